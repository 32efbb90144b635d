"""Pages that hold everything in themselves, pictures included, and read in light or dark.

Their policy forbids scripts and the network, and every cell is escaped, so text written by a model can do nothing in
the reader's browser. Every colour of a text keeps a contrast of 4.5 to 1 (``benchmarks/browser`` measures it).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2127; --dim: #59616a; --line: #d9dce0; --soft: #f4f5f6;
  --link: #0b5cad; --good: #0b6b45; --bad: #b3261e; --word: #7a3e9d; --literal: #0b6b45; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e8ea; --dim: #a5adb5; --line: #3a4047;
  --soft: #1e2226; --link: #86bdff; --good: #5fce9d; --bad: #ff958d; --word: #d3a6f2; --literal: #8fd6b4; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 72rem; margin: 2.5rem auto 4rem; padding: 0 1.5rem;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { margin: 3rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { margin: 2.5rem 0 .5rem; }
h1, h2, h3, h4 { text-wrap: balance; }
p, ul, ol { max-width: 48rem; }
a { color: var(--link); }
nav ul { columns: 2; padding-left: 1.2rem; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.45; max-width: 100%; }
table, th, td { border: 0; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, td.holds, td.fails, td.too-small, td.done, td.failed, td.blocked { white-space: nowrap; }
td.span { white-space: normal; }
table.dense, table.dataframe { font-size: .78rem; }
main .dataframe thead th { text-align: left; }
.dense th, .dense td, .dataframe th, .dataframe td { padding: .3rem .4rem; }
figure { margin: 1.5rem 0 2rem; }
figure img { max-width: 100%; height: auto; border-radius: 4px; }
figcaption, .dim { color: var(--dim); font-size: .875rem; }
figcaption { margin-top: .4rem; max-width: 48rem; }
.wide, .output_html { overflow-x: auto; }
.wide + .wide { margin-top: 2rem; }
.holds, .done { color: var(--good); font-weight: 600; }
.fails, .failed, .blocked { color: var(--bad); font-weight: 600; }
summary { cursor: pointer; margin: .5rem 0; }
code, pre { font: .875em/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .7rem 1rem;
  border-radius: 4px; }
.input pre { border-left: 3px solid var(--line); }
.output_area pre { background: none; border: 1px solid var(--line); }
.output_area { margin: .75rem 0; }
.output_area img { max-width: 100%; height: auto; border-radius: 4px; }
.highlight .k, .highlight .kn, .highlight .kc, .highlight .ow { color: var(--word); font-weight: 600; }
.highlight .s1, .highlight .s2, .highlight .sa, .highlight .mi, .highlight .mf { color: var(--literal); }
.highlight .c1 { color: var(--dim); font-style: italic; }
"""
MANY = 9
"""Columns of a table; one with more is set in smaller letters."""
INCH = 96
"""CSS pixels."""


def page(title: str, body: str, heading: bool = True) -> str:
    """A whole HTML page around ``body``, with the style and without scripts or network.

    ``heading`` writes the title above it, for a body without a heading of the first level.
    """
    top = f"<h1>{escape(title)}</h1>" if heading else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{top}{body}</main></body></html>\n"
    )


def section(title: str, body: str, id: str = "") -> str:
    """A heading and what stands under it; ``id`` is for links."""
    named = f' id="{escape(id)}"' if id else ""
    return f"<h2{named}>{escape(title)}</h2>{body or '<p class=dim>none</p>'}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that :func:`cell` made, under ``head``, whose words stand above numbers as these do."""
    names, lines = list(head), [list(row) for row in rows]
    numbers = {i for line in lines for i, one in enumerate(line) if one.startswith('<td class="number')}
    top = "".join(
        f'<th scope="col"{" class=number" if i in numbers else ""}>{breakable(name)}</th>'
        for i, name in enumerate(names)
    )
    body = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    dense = ' class="dense"' if len(names) > MANY else ""
    return f'<div class="wide"><table{dense}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def cell(value: Any, mark: str = "") -> str:
    """One cell: numbers to the right, None empty; ``mark`` is a class of the style."""
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f'<td class="{mark}">{"" if value is None else breakable(str(value))}</td>'


def breakable(text: str) -> str:
    """Text, escaped, that may go on in the next line behind an underscore."""
    return escape(text).replace("_", "_<wbr>")


def picture(path: Path, caption: str) -> str:
    """A PNG file inside the page, as large as its resolution says, with its caption."""
    content, text = base64.b64encode(path.read_bytes()).decode(), escape(caption)
    with Image.open(path) as image:
        width, height = (round(size * INCH / image.info.get("dpi", (INCH, INCH))[0]) for size in image.size)
    return (
        f'<figure id="{escape(path.stem)}">'
        f'<img alt="{text}" width="{width}" height="{height}" src="data:image/png;base64,{content}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
