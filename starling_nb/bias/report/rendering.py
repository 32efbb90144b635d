"""Findings as Markdown and as a page: the same words, tables and pictures in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb import page
from starling_nb.bias.report.findings import Findings, Section

MEASURED = ("invalid", "share", "mean_rank", "effect", "trend", "value")
"""Columns behind whose numbers the interval is written."""
HEADS = {
    "position": "shown position (1 is first)",
    "mean_rank": "mean rank (0 is best)",
    "invalid": "without a ranking",
    "k": "K",
    "detectable": "smallest effect seen (logits)",
    "labels": "labels needed",
    "more": "still missing",
}
PICTURES = {
    "first_places": ("places", "share of first places by shown position"),
    "mean_rank": ("places", "mean rank by shown position"),
    "placements": ("places", "how much likelier than fair each rank is at each shown position"),
    "effects": ("conditional", "position effects by what is held constant"),
}
"""Figure → the section under which it stands, and its caption."""


def markdown(findings: Findings, title: str, provenance: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The report as Markdown, with the pictures in ``figures/``."""
    parts = [f"# {_plain(title)}", _plain(findings.summary)]
    for section in findings.sections:
        parts += [f"## {section.title}", f"*{section.estimates}*"]
        if lines := _lines(section):
            parts.append("\n".join(f"- {_plain(line)}" for line in lines))
        for name, table in section.tables.items():
            head, rows = cells(name, table)
            bars = [head, ["---"] * len(head), *rows]
            parts += [f"**{name}**", "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in bars)]
        parts += [f"![{PICTURES[name][1]}](figures/{name}.png)" for name in figures if PICTURES[name][0] == section.key]
    made = "\n".join(f"- {_plain(name)}: {_plain(str(value))}" for name, value in provenance.items())
    return "\n\n".join([*parts, "## How it was made", made or "- nothing was said"]) + "\n"


def html(findings: Findings, title: str, provenance: Mapping[str, Any], folder: Path, figures: Sequence[str]) -> str:
    """The report as a page that holds its pictures (``folder/figures/*.png``) in itself."""
    parts = [f"<p>{escape(findings.summary)}</p>"]
    for section in findings.sections:
        body = f"<p><em>{escape(section.estimates)}</em></p>"
        body += "".join(f"<p>{escape(line)}</p>" for line in _lines(section))
        for name, table in section.tables.items():
            head, rows = cells(name, table)
            listed = page.table(head, ([page.cell(text) for text in row] for row in rows))
            body += f"<figure>{listed}<figcaption>{escape(name)}</figcaption></figure>"
        for name in figures:
            key, caption = PICTURES[name]
            if key == section.key:
                body += page.picture(folder / "figures" / f"{name}.png", caption)
        parts.append(page.section(section.title, body))
    made = page.table(["", ""], ([page.cell(name), page.cell(str(value))] for name, value in provenance.items()))
    return page.page(title, "".join([*parts, page.section("How it was made", made)]))


def cells(name: str, table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """A table in words: heads and rows. Intervals stand behind their numbers, positions are counted from 1."""
    shown = table.copy()
    if "position" in shown:
        shown["position"] = shown["position"] + 1
    measured = next((column for column in MEASURED if column in shown and "low" in shown), None)
    if measured is not None:
        percent = measured in ("invalid", "share")
        values = zip(shown[measured], shown["low"], shown["high"], strict=True)
        shown[measured] = [_interval(*three, percent) for three in values]
        if "fair" in shown:
            shown["fair"] = [number(value, percent) for value in shown["fair"]]
        shown = shown.drop(columns=[column for column in ("low", "high", "se") if column in shown])
    if name == "placements":
        shown = _wide(shown, "rank", "share")
    elif "estimand" in shown:
        shown = _wide(shown, "estimand", "effect")
    head = [HEADS.get(str(column), str(column)) for column in shown.columns]
    rows = [
        [probability(value) if str(column).startswith("p") else number(value) for column, value in row.items()]
        for row in shown.to_dict("records")
    ]
    return head, rows


def number(value: Any, percent: bool = False) -> str:
    """A value in a cell, nothing where it is not known."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
        return f"{value:.1%}" if percent else f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def probability(value: Any) -> str:
    """A p-value in a cell; anything else as :func:`number` has it."""
    if isinstance(value, float) and math.isfinite(value):
        return "< 0.001" if value < 0.001 else f"{value:.2g}"
    return number(value)


def _interval(value: float, low: float, high: float, percent: bool) -> str:
    ends = f"[{number(float(low), percent)}, {number(float(high), percent)}]"
    known = math.isfinite(low) and math.isfinite(high)
    return f"{number(float(value), percent)} {ends}" if known else number(float(value), percent)


def _wide(table: pd.DataFrame, across: str, values: str) -> pd.DataFrame:
    """One column a value of ``across``, in order of appearance."""
    keys = [name for name in ("group", "position") if name in table]
    names = list(dict.fromkeys(table[across]))
    wide = table.pivot(index=keys, columns=across, values=values).reindex(columns=names)
    order = list(dict.fromkeys(zip(*(table[key] for key in keys), strict=True)))
    wide = wide.loc[order if len(keys) > 1 else [key for (key,) in order]].reset_index()
    heads = {name: f"rank {name}" if across == "rank" else str(name) for name in names}
    return wide.rename(columns=heads)


def _lines(section: Section) -> list[str]:
    return [*section.found, *(f"Not computed: {reason}" for reason in section.missing)]


def _plain(text: str) -> str:
    """Text that Markdown neither breaks a table at nor takes for HTML."""
    for mark, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(mark, written)
    return " ".join(text.split())
