"""The run as one page: verdicts, numbers, figures, how it was made. It opens offline and in light or dark.

``report.html`` holds everything in itself, pictures included; the executed notebooks stand beside it as HTML.
Both pages forbid scripts and the network, so text written by a model can do nothing in the reader's browser.
"""

from __future__ import annotations

import base64
import csv
import io
import warnings
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.progress import clock
from starling_nb.runner import manifest

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TABLE_ROWS = 40
"""Rows of a table that the page shows; the file has them all."""

STYLE = """ :root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2a7; --bad: #d33; --dim:
#888; } body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) } a { color: inherit }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .9rem } th, td { text-align:
left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top } td.number {
text-align: right; font-variant-numeric: tabular-nums } figure { margin: 2rem 0 } figure img { max-width:
100%; background: #fff; border-radius: 4px } figcaption, .dim { color: var(--dim); font-size: .9rem } .holds,
.done { color: var(--good); font-weight: 600 } .fails, .failed, .blocked { color: var(--bad); font-weight: 600
} pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .7rem;
border-radius: 4px } .jp-OutputArea-output img { max-width: 100%; background: #fff }
"""


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
        _section("Claims", _claims(claims)),
        _section("Figures", "".join(_figure(path) for path in sorted((out / "figures").glob("*.png")))),
        _section("Tables", "".join(_csv(path) for path in sorted((out / "tables").glob("*.csv")))),
        _section("Measured numbers", _metrics(numbers)),
        _section("Stages", _stages(out, record["stages"])),
        _section("How it was made", _made(record)),
    ]
    path = out / "report.html"
    files.write_text(path, page(f"Starling-7B, reproduced: {record.get('profile', '')}", "".join(parts)))
    return path


def page(title: str, body: str) -> str:
    """A whole HTML page around ``body``, with the style and without scripts or network."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body or '<p class=dim>none</p>'}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any, mark: str = "") -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f'<td class="{mark}">{"" if value is None else escape(str(value))}</td>'


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
            _cell(row["verdict"], row["verdict"].replace(" ", "-")),
            _cell(row["text"] or name),
            _cell(row["value"]),
            _cell(_interval(row)),
            _cell(row["n"]),
            _cell(row["rule"]),
            _cell(name),
        ]
        for name, row in claims.items()
    )
    return _table(["verdict", "claim", "value", "interval", "n", "rule", "id"], rows) if claims else ""


def _metrics(numbers: Mapping[str, Any]) -> str:
    rows = ([_cell(name), _cell(row["value"]), _cell(_interval(row)), _cell(row["n"])] for name, row in numbers.items())
    return _table(["name", "value", "interval", "n"], rows) if numbers else ""


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.exists() else path.stem


def _figure(path: Path) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    caption = escape(_caption(path))
    return (
        f'<figure id="{escape(path.stem)}"><img alt="{caption}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _csv(path: Path) -> str:
    head, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    more = f" First {TABLE_ROWS} of {len(rows)} rows." if len(rows) > TABLE_ROWS else ""
    body = _table(head, ([_cell(value) for value in row] for row in rows[:TABLE_ROWS]))
    return f"<figure>{body}<figcaption>{escape(_caption(path) + more)}</figcaption></figure>"


def _stages(out: Path, stages: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in sorted(stages.items()):
        executed = sorted((out / "notebooks").glob(f"{name}*.html"))
        links = " ".join(f'<a href="notebooks/{escape(path.name)}">{escape(path.stem)}</a>' for path in executed)
        memory = f"{entry['peak_rss_bytes'] / 2**30:.2f} GiB" if entry["peak_rss_bytes"] else ""
        status = entry["status"] + (" (unchanged)" if entry["cached"] else "")
        cells = [
            _cell(status, entry["status"]),
            f"<td>{links or escape(name)}</td>",
            _cell(clock(entry["seconds"])),
        ]
        rows.append([*cells, _cell(memory), _cell(entry["key"].rsplit("-", 1)[-1]), _cell(_short(entry["params"]))])
    return _table(["status", "stage", "time", "peak memory", "key", "parameters"], rows) if rows else ""


def _short(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items() if value != "")


def _made(record: Mapping[str, Any]) -> str:
    env = dict(record.get("env", {}))
    packages = env.pop("packages", {})
    facts = {"command": record.get("command"), **env, "constraints": record.get("constraints_sha256")}
    table = _table(["", ""], ([_cell(name), _cell(str(value))] for name, value in facts.items()))
    listed = escape(", ".join(f"{name} {version}" for name, version in packages.items()))
    return f"{table}<details><summary>{len(packages)} packages</summary><pre>{listed}</pre></details>"


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
