"""The notebooks in a real JupyterLab, and the report in a real browser: Debian's Chromium, driven by Playwright.

    python -m benchmarks.lab [--only 00 05 …] [--run FOLDER]

Every notebook is opened in JupyterLab at profile smoke and all its cells are run; in the arena of notebook 05 three
votes are cast by clicking, in the browsers of rows (01) and of samples (04) pages are turned. Then the report of a
smoke run (``--run``: of one that is there) and all its notebooks are read in a light and in a dark window 1280 pixels
wide, and so are the notebooks as JupyterLab saved them. Pictures to look at lie in ``outputs/lab/``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.browser import SCHEMES, chromium, missing
from starling_nb import files, report
from starling_nb.errors import StarlingError
from starling_nb.stage import NOTEBOOKS

PICTURES = files.ROOT / "outputs" / "lab"
LIMIT = 3600.0
"""Seconds that one notebook may take."""


def run(names: Sequence[str], folder: Path, pictures: Path) -> dict[str, Any]:
    """Run notebooks in JupyterLab, in their order, every one in its own tab; what was seen, by name."""
    from benchmarks.browser import hands
    from benchmarks.browser.jupyter import OpenNotebook, copied, served

    touched: dict[str, tuple[str, Callable[[OpenNotebook, Any], int]]] = {
        "01_dataset_construction": ("pages.browse", lambda _, cell: hands.turn(cell, "user")),
        "04_policy_tuning": ("pages.browse", lambda _, cell: hands.turn(cell, "")),
        "05_evaluation": ("voting_view.show", lambda book, cell: hands.vote(book.page, cell)),
    }
    seen: dict[str, Any] = {}
    books = folder / "notebooks"
    books.mkdir()
    for name in names:
        copied(NOTEBOOKS / f"{name}.ipynb", books, {"profile": "smoke", "out": str(folder / "run")})
    for number, name in enumerate(names):
        theme = SCHEMES[number % 2]
        with served(books, folder / f"settings-{name}", theme) as address, chromium() as browser:
            book, began = OpenNotebook(browser, address, f"{name}.ipynb"), time.monotonic()
            book.run(LIMIT)
            seen[name] = {"theme": theme, "seconds": round(time.monotonic() - began, 1)}
            seen[name]["faults"] = book.errors() + book.blanks()
            if name in touched:
                text, touch = touched[name]
                seen[name]["touched"] = touch(book, book.cell(text))
            seen[name]["faults"] += book.faults
            book.photograph(pictures / f"{name}_in_lab")
            book.save()
            book.close()
        print(name, seen[name], flush=True)
    return seen


def read(pages: Sequence[Path], pictures: Path) -> dict[str, list[str]]:
    """What is wrong with pages, by file name."""
    from benchmarks.browser import audit

    with chromium() as browser:
        found = {path.name: audit.read(browser, path, pictures) for path in pages}
    for name, faults in found.items():
        print(name, faults, flush=True)
    return found


def pages_of(run: Path) -> list[Path]:
    """The report of a finished run and everything that it leads to, written anew."""
    return [report.write(run), *sorted((run / "notebooks").glob("*.html")), *sorted(run.glob("*/bias/*.html"))]


def smoke(folder: Path) -> Path:
    """A smoke run made now."""
    line = [sys.executable, "-m", "starling_nb", "reproduce", "--profile", "smoke", "--out", str(folder)]
    if status := subprocess.run(line, cwd=files.ROOT, check=False).returncode:
        raise StarlingError(f"the smoke run failed with {status}: its messages stand above")
    return folder


def main() -> None:
    """Read the command line, look at everything, keep what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="numbers of notebooks; all without")
    parser.add_argument("--run", type=Path, help="folder of a finished smoke run")
    asked = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"nothing was looked at: {reason}")
    names = [path.stem for path in sorted(NOTEBOOKS.glob("*.ipynb")) if not asked.only or path.stem[:2] in asked.only]
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lab = run(names, folder, PICTURES)
        for path in sorted((folder / "notebooks").glob("*.ipynb")):
            report.as_page(path)
        saved = read(sorted((folder / "notebooks").glob("*.html")), PICTURES / "saved")
        made = read(pages_of(asked.run or smoke(folder / "report")), PICTURES)
    records.keep("lab.json", {"in_jupyterlab": lab, "saved_by_jupyterlab": saved, "report": made})
    faults = sum(len(one["faults"]) for one in lab.values()) + sum(map(len, [*saved.values(), *made.values()]))
    if faults:
        raise SystemExit(f"{faults} faults: see above")


if __name__ == "__main__":
    main()
