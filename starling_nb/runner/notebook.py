"""Reading a notebook without running it: its parameters, its code, and what it needs.

Papermill takes any name and any type and only warns; so the ``parameters`` cell is read here with ``ast``,
strictly. Each line of it is ``name: type = literal  # help`` with type one of int, float, str, bool and list.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.profiles import COMMON, KINDS, ParameterError, check, parse

_NAME = re.compile(r"\d\d_[a-z0-9_]+")


class NotebookError(StarlingError):
    """A notebook that the runner cannot take."""


@dataclass(frozen=True)
class Parameter:
    """One line of the ``parameters`` cell."""

    name: str
    kind: type
    default: Any
    help: str


@dataclass(frozen=True)
class Notebook:
    """A numbered notebook.

    ``code`` holds the sources of its code cells, parameters excepted; ``needs`` the stages whose files it
    reads; ``outputs`` the files that it promises to write in its folder; ``minutes`` about how long it takes
    on a laptop.
    """

    name: str
    path: Path
    parameters: Mapping[str, Parameter]
    code: tuple[str, ...]
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    minutes: float | None

    @property
    def number(self) -> str:
        """The two digits in front."""
        return self.name[:2]


def read_parameters(source: str, where: str) -> dict[str, Parameter]:
    """Read the source of a ``parameters`` cell.

    Raises:
        NotebookError: a line is anything else than ``name: int|float|str|bool|list = literal  # help``.
    """
    rule = "write only lines like `name: int|float|str|bool|list = literal  # help`"
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise NotebookError(f"{where}, parameters cell, line {error.lineno}: {error.msg}; {rule}") from error
    helps = _comments(source)
    found: dict[str, Parameter] = {}
    for node in tree.body:
        try:
            name, kind, default = _parameter(node)
        except (ValueError, ParameterError) as error:
            raise NotebookError(f"{where}, parameters cell, line {node.lineno}: {error}; {rule}") from error
        if name in found:
            raise NotebookError(f"{where}, parameters cell, line {node.lineno}: {name} stands there twice")
        found[name] = Parameter(name, kind, default, helps.get(node.end_lineno or node.lineno, ""))
    return found


def _parameter(node: ast.stmt) -> tuple[str, type, Any]:
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None):
        raise ValueError("this is not a typed assignment of one name")
    if not (isinstance(node.annotation, ast.Name) and node.annotation.id in KINDS):
        raise ValueError(f"the type of {node.target.id} is not one of {', '.join(KINDS)}")
    try:
        value = ast.literal_eval(node.value)
    except ValueError as error:
        raise ValueError(f"the value of {node.target.id} is not a literal") from error
    kind = KINDS[node.annotation.id]
    return node.target.id, kind, check(node.target.id, kind, value)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def read(path: Path) -> Notebook:
    """Read one notebook.

    Raises:
        NotebookError: it is not a notebook, has not exactly one ``parameters`` cell, or that cell breaks the
        rules.
    """
    content = files.read_json(path)
    try:
        cells = [
            (cell["metadata"].get("tags", []), _source(cell))
            for cell in content["cells"]
            if cell["cell_type"] == "code"
        ]
        notes = content["metadata"].get("starling_nb", {})
        minutes = notes.get("minutes")
        needs, outputs = tuple(notes.get("needs", ())), tuple(notes.get("outputs", ()))
    except (KeyError, TypeError, AttributeError) as error:
        raise NotebookError(f"{path} is not a notebook of format 4: restore it (git checkout)") from error
    tagged = [source for tags, source in cells if "parameters" in tags]
    if len(tagged) != 1:
        raise NotebookError(f"{path.name} has {len(tagged)} cells tagged `parameters`; it has to be one")
    code = tuple(source for tags, source in cells if "parameters" not in tags)
    return Notebook(path.stem, path, read_parameters(tagged[0], path.name), code, needs, outputs, minutes)


def _source(cell: Mapping[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def find(folder: Path) -> list[Notebook]:
    """The numbered notebooks of a folder, in order.

    Raises:
        NotebookError: there is none, two share a number, or one needs a stage that does not come before it.
    """
    found = [read(path) for path in sorted(folder.glob("*.ipynb")) if _NAME.fullmatch(path.stem)]
    if not found:
        raise NotebookError(f"no numbered notebook (NN_name.ipynb) in {folder}")
    seen: set[str] = set()
    for book in found:
        if book.number in {name[:2] for name in seen}:
            raise NotebookError(f"{book.path.name}: another notebook has the number {book.number}")
        if absent := [need for need in book.needs if need not in seen]:
            raise NotebookError(f"{book.path.name} needs {', '.join(absent)}, which does not come before it")
        seen.add(book.name)
    return found


def pick(books: Iterable[Notebook], label: str) -> Notebook:
    """The notebook that ``label`` (``03`` or ``03_reward_training``) means.

    Raises:
        NotebookError: there is none.
    """
    books = list(books)
    for book in books:
        if label in (book.name, book.number, str(int(book.number))):
            return book
    raise NotebookError(f"no notebook {label!r}; there are {', '.join(book.name for book in books)}")


def settings(books: list[Notebook], given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read ``--set`` texts, ``03.lr=1e-5`` or a bare ``lr=1e-5`` where only one notebook has it or it is
    common.

    Returns:
        notebook name → parameter name → value.

    Raises:
        ParameterError: the name is unknown or means several notebooks, or the value is of another type.
    """
    chosen: dict[str, dict[str, Any]] = {book.name: {} for book in books}
    for text in given:
        target, equals, value = text.partition("=")
        label, dot, name = target.strip().rpartition(".")
        if not equals or not name:
            raise ParameterError(f"--set {text}: write it as name=value or 03.name=value")
        holders = [pick(books, label)] if dot else books
        holders = [book for book in holders if name in book.parameters]
        if not holders:
            among = pick(books, label).parameters if dot else sorted({key for book in books for key in book.parameters})
            whose = f" of {label}" if dot else ""
            raise ParameterError(f"--set {text}: {name!r} is no parameter{whose}; there are {', '.join(among)}")
        if len(holders) > 1 and name not in COMMON:
            labels = ", ".join(f"{book.number}.{name}" for book in holders)
            raise ParameterError(f"--set {text}: several notebooks have {name!r}; choose among {labels}")
        for book in holders:
            chosen[book.name][name] = parse(f"{book.number}.{name}", book.parameters[name].kind, value)
    return chosen
