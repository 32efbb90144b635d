from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import tiny
from starling_nb.profiles import ParameterError
from starling_nb.runner import keys, notebook
from starling_nb.runner.notebook import NotebookError

MODULES = {
    "pkg/__init__.py": "from pkg.errors import Oops",
    "pkg/errors.py": "class Oops(Exception): ...",
    "pkg/direct.py": "from pkg import lazy_user",
    "pkg/lazy_user.py": "def f():\n    import pkg.lazy\n",
    "pkg/lazy.py": "",
    "pkg/sub/__init__.py": "from . import inner\nfrom .. import above",
    "pkg/sub/inner.py": "from .deep import thing\nfrom ..sideways import *",
    "pkg/sub/deep.py": "thing = 1",
    "pkg/sub/table.json": "{}",
    "pkg/above.py": "",
    "pkg/sideways.py": "",
    "pkg/named.py": "",
    "pkg/unused.py": "",
    "pkg/report.py": "import pkg.unused",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "pkg"


def reached(package: Path, source: str) -> set[str]:
    return set(keys.closure([source], package))


def test_the_closure_follows_lazy_imports(package: Path) -> None:
    expected = {"pkg", "pkg.errors", "pkg.direct", "pkg.lazy_user", "pkg.lazy"}
    assert reached(package, "import numpy\nfrom pkg.direct import x") == expected


def test_the_closure_follows_relative_imports_of_packages(package: Path) -> None:
    found = reached(package, "def f():\n    import pkg.sub")
    assert found == {
        "pkg",
        "pkg.errors",
        "pkg.sub",
        "pkg.sub.inner",
        "pkg.sub.deep",
        "pkg.above",
        "pkg.sideways",
    }


def test_the_closure_takes_dotted_names_in_strings(package: Path) -> None:
    assert "pkg.named" in reached(package, "run(['python', '-m', 'pkg.named'])")
    assert "pkg.named" not in reached(package, "'see pkg.named'")


def test_what_only_prints_is_left_out(package: Path) -> None:
    assert reached(package, "import pkg.report") == {"pkg", "pkg.errors"}


def parts(package: Path, tmp_path: Path, body: str = "import pkg.sub", **parameters: Any) -> dict[str, Any]:
    book = notebook.read(tiny.write(tmp_path / "books", "00_a", body))
    return keys.components(book, {"seed": 0, "out": "x", **parameters}, {}, "data", package)


def test_the_key_changes_with_code_modules_data_and_parameters(package: Path, tmp_path: Path) -> None:
    before = parts(package, tmp_path)
    assert keys.differences(before, parts(package, tmp_path, out="y")) == []
    (package / "sub" / "deep.py").write_text("thing = 1  # a comment changes nothing")
    (package / "unused.py").write_text("x = 1")
    assert keys.differences(before, parts(package, tmp_path)) == []
    (package / "sub" / "deep.py").write_text("thing = 2")
    (package / "sub" / "table.json").write_text("[]")
    found = keys.differences(before, parts(package, tmp_path, body="import pkg.sub as s", seed=1, new="x"))
    assert found == [
        "the notebook's code changed",
        "pkg.sub.deep changed",
        "sub/table.json changed",
        "new: None -> 'x'",
        "seed: 0 -> 1",
    ]
    assert keys.key_of("00_a", before) != keys.key_of("00_a", parts(package, tmp_path))


def test_a_stage_that_plans_other_profiles_depends_on_what_they_say(package: Path, tmp_path: Path) -> None:
    (package / "profiles").mkdir(exist_ok=True)
    (package / "profiles" / "laptop.toml").write_text("a = 1")
    (package / "profiles" / "paper.toml").write_text("a = 1")
    before, others = parts(package, tmp_path, planned=["paper"]), parts(package, tmp_path)
    (package / "profiles" / "paper.toml").write_text("a = 2")
    assert keys.differences(before, parts(package, tmp_path, planned=["paper"])) == ["profiles/paper.toml changed"]
    assert keys.differences(others, parts(package, tmp_path)) == []


def test_real_data_counts_by_content(package: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.jsonl").write_text("1")
    before = parts(package, tmp_path, real_logs=str(tmp_path / "logs"))
    (tmp_path / "logs" / "a.jsonl").write_text("2")
    after = parts(package, tmp_path, real_logs=str(tmp_path / "logs"))
    assert keys.differences(before, after) == ["real_logs changed"]
    with pytest.raises(ParameterError, match="no such file"):
        parts(package, tmp_path, real_logs=str(tmp_path / "gone"))


@pytest.mark.parametrize("name", ["base", "reward"])
def test_a_model_s_folder_counts_by_its_files(package: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_text("1")
    values = {name: str(tmp_path / "model")}
    before = parts(package, tmp_path, **values)
    assert keys.differences(before, parts(package, tmp_path, **values)) == []
    weights.write_text("2")
    os.utime(weights, ns=(0, 0))
    assert keys.differences(before, parts(package, tmp_path, **values)) == [f"{name} changed"]
    assert "models" not in parts(package, tmp_path, **{name: "hub/model"})


def test_a_cell_that_is_not_python_is_named(package: Path, tmp_path: Path) -> None:
    assert parts(package, tmp_path, body="%matplotlib inline\nx = 1")["code"]
    with pytest.raises(NotebookError, match=r"00_a: a cell is not Python .*def f"):
        parts(package, tmp_path, body="def f(")


def test_later_stages_see_files_but_no_bookkeeping() -> None:
    written = {"00_a/x.txt": "1", "00_a/stage.json": "2", "00_a/metrics.json": "3", "figures/00_y.png": "4"}
    only = keys.handed_over("00_a", {"00_a/x.txt": "1"})
    assert keys.handed_over("00_a", written) == only
    assert keys.handed_over("00_a", written | {"00_a/x.txt": "5"}) != only


def test_the_real_closure_of_a_notebook_holds_the_stage_but_not_the_runner() -> None:
    found = keys.closure(["import starling_nb\nstarling_nb.enter('x', globals())"])
    assert {"starling_nb", "starling_nb.stage", "starling_nb.claims", "starling_nb.files"} <= set(found)
    assert [name for name in found if name.split(".")[1:2] in (["runner"], ["cli"], ["report"])] == []
