"""The run as one page: verdicts, notebook by notebook its figures, tables and numbers, and how it was made.

``report.html`` holds everything in itself (:mod:`starling_nb.page`); the executed notebooks stand beside it as HTML.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path
from typing import Any

from starling_nb import files, plots
from starling_nb.evaluation.published import claimed
from starling_nb.page import breakable, cell, page, picture, section, table
from starling_nb.progress import clock
from starling_nb.runner import manifest

TABLE_ROWS = 40
"""Rows of a table that the page shows; the file has them all."""
PURPOSE = {
    "smoke": "It shows that every step runs; its numbers mean nothing.",
    "laptop": "It is the whole story on two cores: one seed, a small model, a simulated judge unless said otherwise.",
    "study": "It takes hours on the same machine, and compares methods over several seeds.",
}
"""What a run of a profile is for."""


def write(out: Path) -> Path:
    """Write ``report.html`` and the notebooks' HTML for the run in ``out``; returns the report's path.

    Raises:
        StarlingError: the manifest or the metrics are damaged, or the folder cannot be written.
    """
    record = manifest.load(out)
    metrics = files.read_json(out / "metrics.json") if (out / "metrics.json").exists() else {}
    titles = {path.stem: as_page(path) for path in sorted((out / "notebooks").glob("*.ipynb"))}
    claims = {name.removeprefix("claim."): row for name, row in metrics.items() if name.startswith("claim.")}
    numbers = {name: row for name, row in metrics.items() if not name.startswith("claim.")}
    targets = claimed.against(metrics)
    parts = {
        "What the authors claim, and what this run shows": _targets(targets),
        "What this run claims": _claims(claims),
        "Notebook by notebook": _notebooks(out, record["stages"], titles, numbers),
        "How it was made": _stages(out, record["stages"]) + _made(out, record),
    }
    ids = {title: title.lower().replace(" ", "-").replace(",", "") for title in parts}
    links = "".join(f'<li><a href="#{id}">{escape(title)}</a></li>' for title, id in ids.items())
    body = (
        _summary(record, claims, list(targets.verdict)) + _story(out, record, metrics) + f"<nav><ul>{links}</ul></nav>"
    )
    body += "".join(section(title, part, ids[title]) for title, part in parts.items())
    path = out / "report.html"
    files.write_text(path, page(f"Starling-7B, reproduced: {record.get('profile', '')}", body))
    return path


def _summary(record: Mapping[str, Any], claims: Mapping[str, Any], targets: list[str]) -> str:
    def counted(words: tuple[str, ...], found: list[str]) -> str:
        return ", ".join(f"{found.count(word)} {word}" for word in words)

    stages, git = record["stages"], record.get("git") or {}
    profile, cpu = record.get("profile", ""), record.get("env", {}).get("cpu", "")
    own = counted(("holds", "fails", "too small"), [row["verdict"] for row in claims.values()])
    told = [
        "A judge ranks answers, a reward model learns the rankings, a language model is tuned on the reward, and both"
        f" are evaluated: one run of all of it, profile {profile}. {PURPOSE.get(profile, '')}",
        f"The authors' claims: {counted(claimed.VERDICTS, targets)}. This run's own claims: {own}.",
        f"{len(stages)} notebooks in {clock(sum(entry['seconds'] for entry in stages.values()))}"
        + (f" on {cpu}, {record['env'].get('cores')} cores" if cpu else "")
        + f"; commit {git.get('commit', 'unknown')[:12]}{' with changes' if git.get('dirty') else ''}.",
    ]
    failed = [f"{name}: {entry['error']}" for name, entry in stages.items() if entry["status"] != "done"]
    return "".join(f"<p>{escape(text)}</p>" for text in told) + "".join(
        f'<pre class="failed">{escape(error)}</pre>' for error in failed
    )


def _story(out: Path, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The run in one picture, kept as ``story.png``; nothing where it has not come so far."""
    judge = record["stages"].get("02_positional_bias", {}).get("params", {}).get("judge", "")
    try:
        figure = plots.story(metrics, judge)
    except plots.PlotError:
        return ""
    commit, profile = (record.get("git") or {}).get("commit"), record.get("profile", "")
    plots.save(figure, out / "story.png", {"commit": commit, "profile": profile})
    return picture(out / "story.png", f"This run ({profile}) in one picture, with 95 % intervals; judge: {judge}.")


def _targets(targets: Any) -> str:
    head = ("claim of the authors", "published", "here", "95 %", "n", "verdict", "on what, and why")
    rows = []
    for one in targets.astype(object).where(lambda df: df.notna(), None).to_dict("records"):
        mark = "holds" if one["verdict"] == claimed.VERDICTS[0] else "fails" if one["verdict"] == "not" else ""
        cells = [cell(one["claim"]), cell(one["published"]), cell(one["obtained"]), _interval(one)]
        n = None if one["n"] is None else int(one["n"])
        rows.append([*cells, cell(n), cell(one["verdict"], mark), cell(f"{one['on']}; {one['why']}")])
    return table(head, rows)


def _interval(row: Mapping[str, Any]) -> str:
    known = row["low"] is not None and row["high"] is not None
    return cell(f"{row['low']:.4g} … {row['high']:.4g}" if known else "", "number")


def _claims(claims: Mapping[str, Any]) -> str:
    rows = (
        [
            cell(row["verdict"], row["verdict"].replace(" ", "-")),
            f'<td>{escape(row["text"] or name)}<br><span class="dim">{breakable(name)}</span></td>',
            cell(row["value"]),
            _interval(row),
            cell(row["n"]),
            cell(row["rule"]),
        ]
        for name, row in claims.items()
    )
    return table(["verdict", "claim", "value", "interval", "n", "rule"], rows) if claims else ""


def _notebooks(
    out: Path, stages: Mapping[str, Any], titles: Mapping[str, str], numbers: Mapping[str, Mapping[str, Any]]
) -> str:
    """A part for every notebook; what belongs to none of them, by its number, stands under that."""
    found = {name[:2]: name for name in [*titles, *stages]}
    figures, tables = (sorted((out / kind).glob(f"*{end}")) for kind, end in (("figures", ".png"), ("tables", ".csv")))
    parts = []
    for number in sorted({*found, *(path.name[:2] for path in [*figures, *tables]), *(name[:2] for name in numbers)}):
        name = found.get(number, number)
        parts.append(f'<h3 id="{escape(name)}">{escape(titles.get(name, name))}</h3>')
        if name in titles:
            where = "executed notebook" if name in stages else "notebook, as far as it came"
            parts.append(f'<p><a href="notebooks/{escape(name)}.html">{where}: {escape(name)}</a></p>')
        parts += [picture(path, _caption(path)) for path in figures if path.name.startswith(number)]
        parts += [_csv(path) for path in tables if path.name.startswith(number)]
        parts.append(_metrics({id: row for id, row in numbers.items() if id.startswith(number)}))
    return "".join(parts)


def _metrics(numbers: Mapping[str, Any]) -> str:
    rows = ([cell(name), cell(row["value"]), _interval(row), cell(row["n"])] for name, row in numbers.items())
    body = table(["name", "value", "interval", "n"], rows)
    return f"<details><summary>All {len(numbers)} numbers</summary>{body}</details>" if numbers else ""


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return beside.read_text(encoding="utf-8").strip() if beside.exists() else path.stem


def _csv(path: Path) -> str:
    head, *rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) or [[]]
    more = f" First {TABLE_ROWS} of {len(rows)} rows." if len(rows) > TABLE_ROWS else ""
    spans = [
        i for i, name in enumerate(head) if head[i + 1 : i + 3] in (["low", "high"], [f"{name}_low", f"{name}_high"])
    ]
    ends = {i + step for i in spans for step in (1, 2)}
    kept = [i for i in range(len(head)) if i not in ends]
    lines = ([_number(row, i, i in spans) for i in kept] for row in rows[:TABLE_ROWS])
    body = table([head[i].replace("_", " ") for i in kept], lines)
    return f"<figure>{body}<figcaption>{escape(_caption(path) + more)}</figcaption></figure>"


def _number(row: list[str], i: int, span: bool) -> str:
    """A cell of a CSV file: numbers rounded, an interval behind its value, nothing where nothing is known."""
    text = _rounded(row[i])
    if span and row[i + 1] and row[i + 2]:
        return cell(f"{text} ({_rounded(row[i + 1])}\u00a0…\u00a0{_rounded(row[i + 2])})", "number span")
    return cell(text, "number" if re.fullmatch(r"-?[\d,.]+(e[+-]?\d+)?|-?inf|", text) else "")


def _rounded(text: str) -> str:
    return f"{float(text):.4g}" if re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?|-?\d(\.\d+)?e[+-]?\d+", text) else text


def _stages(out: Path, stages: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in sorted(stages.items()):
        executed = sorted((out / "notebooks").glob(f"{name}*.html"))
        links = " ".join(f'<a href="notebooks/{escape(path.name)}">{breakable(path.stem)}</a>' for path in executed)
        memory = f"{entry['peak_rss_bytes'] / 2**30:.2f} GiB" if entry["peak_rss_bytes"] else ""
        status = entry["status"] + (" (unchanged)" if entry["cached"] else "")
        cells = [
            cell(status, entry["status"]),
            f"<td>{links or breakable(name)}</td>",
            cell(clock(entry["seconds"]), "number"),
        ]
        key = entry["key"].rsplit("-", 1)[-1]
        rows.append([*cells, cell(memory, "number"), cell(key), cell(_short(entry["params"]))])
    return table(["status", "stage", "time", "peak memory", "key", "parameters"], rows) if rows else ""


def _short(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in parameters.items() if value != "")


def _made(out: Path, record: Mapping[str, Any]) -> str:
    env = dict(record.get("env", {}))
    packages = env.pop("packages", {})
    facts = {"command": record.get("command"), **env, "constraints": record.get("constraints_sha256")}
    made = table(["of the run", ""], ([cell(name), cell(str(value))] for name, value in facts.items()))
    listed = escape(", ".join(f"{name} {version}" for name, version in packages.items()))
    whole = " and ".join(
        f'<a href="{name}">{name}</a>' for name in ("manifest.json", "metrics.json") if (out / name).exists()
    )
    return (
        f"{made}<details><summary>{len(packages)} packages</summary><pre>{listed}</pre></details>"
        f"<p>{f'All of it, with the hash of every file: {whole}.' if whole else ''}</p>"
    )


def as_page(path: Path) -> str:
    """Write the notebook ``path`` as HTML beside it, nbconvert's bare template in this page's style; its title."""
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
            template_name="basic",
            config=Config({"NbConvertBase": {"display_data_priority": order}}),
            exclude_anchor_links=True,
            exclude_input_prompt=True,
            exclude_output_prompt=True,
        )
        body, _ = exporter.from_filename(str(path))
    title = re.search(r"<h1[^>]*>(.*?)</h1>", body)
    body = re.sub(r"(?<=<th>)\w+", lambda name: breakable(name[0]), body)
    plain = unescape(re.sub(r"<[^>]+>", "", title[1])) if title else path.stem
    files.write_text(path.with_suffix(".html"), page(plain, body, heading=title is None))
    return plain
