"""Keep a finished laptop run as the committed reference: the small files only, without paths of the machine.

    python -m benchmarks.keep_reference [--run outputs/laptop]

Copies metrics, manifest, figures, tables, the report and the executed notebooks (less what papermill notes in them)
into ``outputs/reference/``, at most 4 MB; models, checkpoints and the judge's replies stay behind. Refuses a run that
did not finish, whose code was not committed, or in which a claim fails that ``benchmarks/missed.json`` does not name
with the reason; a claim named there that holds after all is refused too, so that the list stays true.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat

from starling_nb import doctor, files
from starling_nb.errors import StarlingError
from starling_nb.runner import manifest

LIMIT = 4_000_000
MISSED = files.ROOT / "benchmarks" / "missed.json"
KEPT = ("metrics.json", "report.html", "story.png", "figures/*.png", "figures/*.txt", "tables/*.csv", "tables/*.txt")


def without_paths(text: str, run: Path) -> str:
    """The text with the run folder, the project and the home folder as relative names."""
    for path, name in ((run.resolve(), "outputs/reference"), (files.ROOT, "."), (Path.home(), "~")):
        text = text.replace(f"{path}/", f"{name}/").replace(str(path), name)
    return text


def clean(book: Any) -> Any:
    """An executed notebook less papermill's and the kernel's notes of when and where it ran."""
    for holder in (book, *book.cells):
        for note in ("papermill", "execution"):
            holder.metadata.pop(note, None)
    return book


def check(run: Path) -> dict[str, Any]:
    """The run's manifest.

    Raises:
        StarlingError: a stage is not done, a claim fails, or the code was not that of a commit.
    """
    record = manifest.load(run)
    open_stages = [name for name, entry in record["stages"].items() if entry["status"] != "done"]
    if open_stages or not record["stages"]:
        raise StarlingError(f"{run} is not finished ({', '.join(open_stages) or 'no stage'}): run it to its end first")
    metrics = files.read_json(run / "metrics.json")
    claims = {name.removeprefix("claim."): row for name, row in metrics.items() if name.startswith("claim.")}
    failed = {name for name, row in claims.items() if row["verdict"] == "fails"}
    missed = set(files.read_json(MISSED))
    if new := sorted(failed - missed):
        raise StarlingError(f"{run} bears out less than it claims: {', '.join(new)}. Find the cause first")
    if found := {name for name in missed if claims.get(name, {}).get("verdict") == "holds"}:
        raise StarlingError(f"{', '.join(sorted(found))} hold: take them off {MISSED.name}")
    if (record.get("git") or {"dirty": True})["dirty"]:
        raise StarlingError(f"{run} was made from changed files: commit them and run again")
    if stale := doctor.stale_stages(record):
        raise StarlingError(f"{run} is not what the present code makes: {', '.join(stale)}. Run again")
    return record


def main() -> None:
    """Check the run, copy what is kept, check its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=files.ROOT / "outputs" / "laptop")
    run = parser.parse_args().run
    check(run)
    work = manifest.REFERENCE.with_name(".reference.part")
    shutil.rmtree(work, ignore_errors=True)
    for pattern in KEPT:
        for path in sorted(run.glob(pattern)):
            target = work / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                shutil.copyfile(path, target)
            else:
                target.write_text(without_paths(path.read_text(encoding="utf-8"), run), encoding="utf-8")
    (work / "manifest.json").write_text(without_paths((run / "manifest.json").read_text(), run))
    (work / "notebooks").mkdir()
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        if re.fullmatch(r"\d\d_\w+", path.stem):
            book = clean(nbformat.read(path, as_version=4))
            (work / "notebooks" / path.name).write_text(without_paths(nbformat.writes(book) + "\n", run))
    size = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    if size > LIMIT:
        shutil.rmtree(work)
        raise StarlingError(f"the reference would take {size:,} bytes, more than {LIMIT:,}: draw smaller figures")
    shutil.rmtree(manifest.REFERENCE, ignore_errors=True)
    work.rename(manifest.REFERENCE)
    print(f"{manifest.REFERENCE}: {size:,} bytes")


if __name__ == "__main__":
    main()
