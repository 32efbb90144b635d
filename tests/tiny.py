"""Small notebooks for the runner's tests: a parameters cell, ``enter``, a body, ``leave``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

COMMON = (
    'profile: str = "laptop"  # size of the run',
    'out: str = ""  # folder of the run',
    "seed: int = 0  # seed of every random choice",
    'judge: str = "simulated"  # who ranks',
    "threads: int = 2  # CPU threads",
    'dtype: str = "auto"  # number format',
)


def write(
    folder: Path,
    name: str,
    body: str,
    *,
    needs: Sequence[str] = (),
    parameters: str = "",
    leave: bool = True,
    common: Sequence[str] = COMMON,
) -> Path:
    """Write ``folder/name.ipynb``; ``body`` stands in one cell between enter and leave."""
    cell = nbformat.v4.new_code_cell
    cells = [
        cell("import starling_nb"),
        cell("\n".join([*common, *parameters.splitlines()]), metadata={"tags": ["parameters"]}),
        cell(f'stage = starling_nb.enter("{name}", globals())'),
        cell(body),
    ]
    cells += [cell("stage.leave()")] if leave else []
    for number, one in enumerate(cells):
        one["id"] = str(number)
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    book.metadata["starling_nb"] = {"needs": list(needs)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def declared(values: Mapping[str, Any]) -> list[str]:
    """The lines of a parameters cell that hold ``values``."""
    return [f"{name}: {type(value).__name__} = {value!r}  # a parameter" for name, value in values.items()]
