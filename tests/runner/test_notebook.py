from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from starling_nb.runner import notebook
from starling_nb.runner.notebook import NotebookError, read_parameters


def test_parameters_have_name_type_value_and_help() -> None:
    found = read_parameters('# two\nlr: float = 1  # step size (per step)\nnames: list = ["a=b", "#c"]', "x")
    assert [(one.name, one.kind, one.default, one.help) for one in found.values()] == [
        ("lr", float, 1.0, "step size (per step)"),
        ("names", list, ["a=b", "#c"], ""),
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("n = 3", "typed assignment"),
        ("n: int", "typed assignment"),
        ("n: int | None = 3", "type of n"),
        ("n: 'int' = 3", "type of n"),
        ("n: dict = {}", "type of n"),
        ("n: tuple = (1, 2)", "type of n"),
        ("n: int = 2 * 8", "not a literal"),
        ("n: int = len('a')", "not a literal"),
        ("n: int = 1.5", "has to be int"),
        ("n: int = True", "has to be int"),
        ("n: list = (1, 2)", "has to be list"),
        ("n: int = 1\nn: int = 2", "twice"),
        ("import os", "typed assignment"),
        ("n: int =", "line 1"),
        ("a.n: int = 1", "typed assignment"),
    ],
)
def test_anything_else_in_the_cell_is_refused(source: str, message: str) -> None:
    with pytest.raises(NotebookError, match=message) as caught:
        read_parameters(source, "03_x.ipynb")
    assert str(caught.value).startswith("03_x.ipynb, parameters cell, line ")


@given(st.dictionaries(st.from_regex(r"p_[a-z]{1,8}", fullmatch=True), st.integers() | st.text() | st.booleans()))
def test_declared_values_read_back(values: dict[str, int | str | bool]) -> None:
    found = read_parameters("\n".join(tiny.declared(values)), "x")
    assert {name: one.default for name, one in found.items()} == values


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": [], "metadata": {}}', '{"cells": 3, "metadata": {}}'])
def test_what_is_no_notebook_is_one_message(tmp_path: Path, content: str) -> None:
    path = tmp_path / "00_x.ipynb"
    path.write_text(content)
    with pytest.raises(notebook.StarlingError, match=r"00_x\.ipynb"):
        notebook.read(path)


def test_order_and_needs_are_checked(tmp_path: Path) -> None:
    tiny.write(tmp_path, "01_b", "pass", needs=["00_a"])
    with pytest.raises(NotebookError, match="needs 00_a, which does not come before"):
        notebook.find(tmp_path)
    tiny.write(tmp_path, "00_a", "pass")
    tiny.write(tmp_path, "scratch", "pass")
    assert [book.name for book in notebook.find(tmp_path)] == ["00_a", "01_b"]
    tiny.write(tmp_path, "01_c", "pass")
    with pytest.raises(NotebookError, match="number 01"):
        notebook.find(tmp_path)


def test_an_empty_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match="no numbered notebook"):
        notebook.find(tmp_path)


def test_a_bare_name_is_for_one_notebook_or_for_common_ones(tmp_path: Path) -> None:
    tiny.write(tmp_path, "00_a", "pass", parameters="lr: float = 0.1  # step\nk: int = 1  # number")
    tiny.write(tmp_path, "01_b", "pass", parameters="lr: float = 0.2  # step")
    books = notebook.find(tmp_path)
    chosen = notebook.settings(books, ["seed=4", "k=2", "1.lr=3"])
    assert chosen == {"00_a": {"seed": 4, "k": 2}, "01_b": {"seed": 4, "lr": 3.0}}
    with pytest.raises(notebook.ParameterError, match=r"choose among 00\.lr, 01\.lr"):
        notebook.settings(books, ["lr=1"])


def test_cell_sources_may_be_lists_of_lines(tmp_path: Path) -> None:
    path = tiny.write(tmp_path, "00_a", "x = 1\ny = 2")
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
    path.write_text(json.dumps(content))
    assert "x = 1\ny = 2" in notebook.read(path).code
