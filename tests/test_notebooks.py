"""The notebooks keep their shape: clean, small-celled, parametrised, and equal to the laptop profile."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from starling_nb import files, profiles
from starling_nb.runner import keys, notebook

FOLDER = files.ROOT / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MOST_LINES = 8
"""Lines of a code cell: import, call, look."""
PATH = re.compile(r"(/|~/|\.{1,2}/|data/|outputs/|notebooks/)\S+")

books = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"])
    return content


def trees(path: Path) -> list[ast.Module]:
    """The code cells but for the parameters."""
    return [ast.parse(source) for source in notebook.read(path).code]


def nodes(path: Path) -> list[ast.AST]:
    return [node for tree in trees(path) for node in ast.walk(tree)]


def test_the_story_is_complete_and_in_order() -> None:
    found = notebook.find(FOLDER)
    assert [book.number for book in found[:6]] == [f"{number:02}" for number in range(6)]
    assert [book.name for book in found] == list(profiles.STAGES) == sorted(profiles.STAGES)


@books
def test_committed_without_outputs_or_traces_of_a_run(path: Path) -> None:
    content = load(path)
    assert set(content["metadata"]) <= {"kernelspec", "language_info", "starling_nb"}
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "version" not in content["metadata"].get("language_info", {})
    assert [cell["id"] for cell in content["cells"]] == [str(number) for number in range(len(content["cells"]))]
    for cell in content["cells"]:
        assert not set(cell["metadata"]) & {"papermill", "execution", "collapsed", "scrolled"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert path.stat().st_size < 100_000


@books
def test_title_then_parameters_then_enter_and_leave_at_the_end(path: Path) -> None:
    first, second, third, *_ = cells = load(path)["cells"]
    assert first["cell_type"] == "markdown"
    assert first["source"].startswith("# ")
    assert second["metadata"]["tags"] == ["parameters"]
    assert f'starling_nb.enter("{path.stem}", globals())' in third["source"]
    last = [cell for cell in cells if cell["cell_type"] == "code"][-1]
    assert last["source"].strip().splitlines()[-1] == "stage.leave()"
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 0.4 * len(cells)


@books
def test_parameters_are_the_laptop_profile_with_its_helps(path: Path) -> None:
    declared = notebook.read(path).parameters
    usual = profiles.values("laptop", path.stem) | {"out": ""}
    assert {name: one.default for name, one in declared.items()} == usual
    assert {name: one.kind for name, one in declared.items()} == profiles.kinds(path.stem)
    assert [name for name, one in declared.items() if len(one.help) < 5] == []


@books
def test_every_parameter_is_used(path: Path) -> None:
    book = notebook.read(path)
    used = {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}
    used |= {node.value for node in nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for file in keys.closure(book.code).values():
        used |= {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    assert set(book.parameters) - used - set(profiles.COMMON) == set()


@books
def test_cells_are_small_and_define_nothing(path: Path) -> None:
    for source in notebook.read(path).code:
        lines = [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= MOST_LINES, source
        assert not [line for line in lines if line.startswith(("%", "!"))], source
    defined = [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [node.name for node in defined] == []


@books
def test_no_paths_no_exit_no_installation(path: Path) -> None:
    texts = [node.value for node in nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if PATH.fullmatch(text)] == []
    called = {ast.unparse(node.func) for node in nodes(path) if isinstance(node, ast.Call)}
    assert called & {"exit", "quit", "sys.exit", "os._exit", "eval", "exec", "open"} == set()


@books
def test_inputs_are_announced(path: Path) -> None:
    calls = [node for node in nodes(path) if isinstance(node, ast.Call) and ast.unparse(node.func) == "stage.input"]
    asked = {ast.literal_eval(node.args[0]) for node in calls}
    assert asked <= set(notebook.read(path).needs)


@books
def test_everything_imported_from_the_package_exists(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("starling_nb"):
            home = __import__(str(node.module), fromlist=[alias.name for alias in node.names])
            assert [alias.name for alias in node.names if not hasattr(home, alias.name)] == []
