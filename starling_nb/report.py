"""The run as one page: verdicts, numbers, figures, how it was made.

``report.html`` holds everything in itself (:mod:`starling_nb.page`); the executed notebooks stand beside it as HTML.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.evaluation import claimed
from starling_nb.page import cell, page, picture, section, table
from starling_nb.progress import clock
from starling_nb.runner import manifest

TABLE_ROWS = 40
"""Rows of a table that the page shows; the file has them all."""


def write(out: Path) -> Path:
    """Write ``report.html`` and the notebooks' HTML for the run in ``out``; returns the report's path.

    Raises:
        StarlingError: the manifest or the metrics are damaged, or the folder cannot be written.
    """
    record = manifest.load(out)
    metrics = files.read_json(out / "metrics.json") if (out / "metrics.json").exists() else {}
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        _notebook(path)
    claims = {name.removeprefix("claim."): row for name, row in metrics.items() if name.startswith("claim.")}
    numbers = {name: row for name, row in metrics.items() if not name.startswith("claim.")}
    parts = [
        _summary(record, claims),
        section("Claims", _claims(claims)),
        section("What the authors claim, and what this run shows", _targets(metrics)),
        section("Figures", "".join(picture(path, _caption(path)) for path in sorted((out / "figures").glob("*.png")))),
        section("Tables", "".join(_csv(path) for path in sorted((out / "tables").glob("*.csv")))),
        section("Measured numbers", _metrics(numbers)),
        section("Stages", _stages(out, record["stages"])),
        section("How it was made", _made(record)),
    ]
    path = out / "report.html"
    files.write_text(path, page(f"Starling-7B, reproduced: {record.get('profile', '')}", "".join(parts)))
    return path


def _targets(metrics: Mapping[str, Any]) -> str:
    head = ("claim of the authors", "published", "here", "95 %", "n", "verdict", "on what, and why")
    rows = []
    for one in claimed.against(metrics).astype(object).where(lambda df: df.notna(), None).to_dict("records"):
        mark = "holds" if one["verdict"] == claimed.VERDICTS[0] else "fails" if one["verdict"] == "not" else ""
        cells = [cell(one["claim"]), cell(one["published"]), cell(one["obtained"]), cell(_interval(one))]
        n = None if one["n"] is None else int(one["n"])
        rows.append([*cells, cell(n), cell(one["verdict"], mark), cell(f"{one['on']}; {one['why']}")])
    return table(head, rows)


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None or row["high"] is None else f"{row['low']:.4g} … {row['high']:.4g}"


def _summary(record: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
    verdicts = [row["verdict"] for row in claims.values()]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("holds", "fails", "too small"))
    commit = (record.get("git") or {}).get("commit", "no commit")[:12]
    dirty = " with changes" if (record.get("git") or {}).get("dirty") else ""
    seconds = sum(entry["seconds"] for entry in record["stages"].values())
    text = f"Profile {record.get('profile')}, commit {commit}{dirty}, {clock(seconds)}. Claims: {counts}."
    failed = [f"{name}: {entry['error']}" for name, entry in record["stages"].items() if entry["status"] != "done"]
    return f"<p>{escape(text)}</p>" + "".join(f'<pre class="failed">{escape(error)}</pre>' for error in failed)


def _claims(claims: Mapping[str, Any]) -> str:
    rows = (
        [
            cell(row["verdict"], row["verdict"].replace(" ", "-")),
            cell(row["text"] or name),
            cell(row["value"]),
            cell(_interval(row)),
            cell(row["n"]),
            cell(row["rule"]),
            cell(name),
        ]
        for name, row in claims.items()
    )
    return table(["verdict", "claim", "value", "interval", "n", "rule", "id"], rows) if claims else ""


def _metrics(numbers: Mapping[str, Any]) -> str:
    rows = ([cell(name), cell(row["value"]), cell(_interval(row)), cell(row["n"])] for name, row in numbers.items())
    return table(["name", "value", "interval", "n"], rows) if numbers else ""


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.exists() else path.stem


def _csv(path: Path) -> str:
    head, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    more = f" First {TABLE_ROWS} of {len(rows)} rows." if len(rows) > TABLE_ROWS else ""
    body = table(head, ([cell(value) for value in row] for row in rows[:TABLE_ROWS]))
    return f"<figure>{body}<figcaption>{escape(_caption(path) + more)}</figcaption></figure>"


def _stages(out: Path, stages: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in sorted(stages.items()):
        executed = sorted((out / "notebooks").glob(f"{name}*.html"))
        links = " ".join(f'<a href="notebooks/{escape(path.name)}">{escape(path.stem)}</a>' for path in executed)
        memory = f"{entry['peak_rss_bytes'] / 2**30:.2f} GiB" if entry["peak_rss_bytes"] else ""
        status = entry["status"] + (" (unchanged)" if entry["cached"] else "")
        cells = [
            cell(status, entry["status"]),
            f"<td>{links or escape(name)}</td>",
            cell(clock(entry["seconds"])),
        ]
        rows.append([*cells, cell(memory), cell(entry["key"].rsplit("-", 1)[-1]), cell(_short(entry["params"]))])
    return table(["status", "stage", "time", "peak memory", "key", "parameters"], rows) if rows else ""


def _short(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items() if value != "")


def _made(record: Mapping[str, Any]) -> str:
    env = dict(record.get("env", {}))
    packages = env.pop("packages", {})
    facts = {"command": record.get("command"), **env, "constraints": record.get("constraints_sha256")}
    made = table(["", ""], ([cell(name), cell(str(value))] for name, value in facts.items()))
    listed = escape(", ".join(f"{name} {version}" for name, version in packages.items()))
    return f"{made}<details><summary>{len(packages)} packages</summary><pre>{listed}</pre></details>"


def _notebook(path: Path) -> None:
    """Write ``path`` as HTML beside it: nbconvert's bare template in this page's style."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbconvert's own deprecations
        from nbconvert.exporters import HTMLExporter
        from traitlets.config import Config

        order = [
            "text/html",
            "text/markdown",
            "image/svg+xml",
            "text/latex",
            "image/png",
            "image/jpeg",
            "text/plain",
        ]
        exporter = HTMLExporter(
            template_name="basic", config=Config({"NbConvertBase": {"display_data_priority": order}})
        )
        body, _ = exporter.from_filename(str(path))
    files.write_text(path.with_suffix(".html"), page(path.stem, body))
