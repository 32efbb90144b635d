"""Pages that hold everything in themselves, pictures included, and read in light or dark.

Their policy forbids scripts and the network, and every cell is escaped, so text written by a model can do nothing in
the reader's browser.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

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


def page(title: str, body: str) -> str:
    """A whole HTML page around ``body``, with the style and without scripts or network."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading and what stands under it."""
    return f"<h2>{escape(title)}</h2>{body or '<p class=dim>none</p>'}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that :func:`cell` made, under ``head``."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: Any, mark: str = "") -> str:
    """One cell: numbers to the right, None empty; ``mark`` is a class of the style."""
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value:,}</td>'
    return f'<td class="{mark}">{"" if value is None else escape(str(value))}</td>'


def picture(path: Path, caption: str) -> str:
    """A PNG file inside the page, with its caption."""
    content, text = base64.b64encode(path.read_bytes()).decode(), escape(caption)
    return (
        f'<figure id="{escape(path.stem)}"><img alt="{text}" src="data:image/png;base64,{content}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
