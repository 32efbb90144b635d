"""Sheets of exercises as notebooks: stubs for students, solutions for teachers."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from starling_nb import files
from starling_nb.teach import CHAPTERS, Exercise, exercises

KINDS = ("student", "instructor")
_BEGIN = """\
import math

from starling_nb.teach import check"""


def build(out: Path) -> list[Path]:
    """Write ``student/NN_chapter.ipynb`` and ``instructor/NN_chapter.ipynb`` below ``out``, byte-stable."""
    written = []
    for place, (chapter, found) in enumerate(exercises().items(), 1):
        for kind in KINDS:
            path = out / kind / f"{place:02}_{chapter}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.replacing(path) as part:
                part.write_text(nbformat.writes(sheet(chapter, found, kind == "instructor")) + "\n", encoding="utf-8")
            written.append(path)
    return written


def sheet(chapter: str, found: list[Exercise], solved: bool) -> nbformat.NotebookNode:
    """The notebook of a chapter's exercises."""
    place = CHAPTERS.index(chapter) + 1
    minutes = sum(one.minutes for one in found)
    title = f"# Exercises {place} · {chapter.replace('_', ' ').capitalize()}"
    if solved:
        title += ": solutions"
    before = (
        f"They go with notebook `{place:02}_{chapter}`. {len(found)} exercises, about {minutes} minutes; nothing is "
        "trained, every cell runs at once."
    )
    how = "Write each function in the place of the line that raises, run the cell, then the one below it."
    cells = [new_markdown_cell(f"{title}\n\n{before} {how}"), new_code_cell(_BEGIN)]
    for one in found:
        cells += [new_markdown_cell(_asked(one)), new_code_cell(one.source if solved else one.stub)]
        cells.append(new_code_cell(f'check("{one.number}", {one.solved.__name__})'))
    for number, cell in enumerate(cells):
        cell["id"] = str(number)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def _asked(one: Exercise) -> str:
    hints = "\n".join(
        f"<details><summary>Hint {n}</summary>\n\n{hint}\n\n</details>" for n, hint in enumerate(one.hints, 1)
    )
    return f"## {one.number} {one.title}\n\n*About {one.minutes} minutes.* {one.text}\n\n{hints}"
