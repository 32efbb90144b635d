"""The house keeps its shape: who may import whom, and what no module may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from starling_nb import files

PACKAGE = files.ROOT / "starling_nb"
STORY = ("nectar", "bias", "reward", "policy", "evaluation")
"""The stages; each may import those before it."""
FRONT = (
    "cli",
    "cli_models",
    "reproduce",
    "runner",
    "report",
    "doctor",
    "stage",
    "tour",
    "teach",
    "explore",
    "plan",
    "__main__",
    "__init__",
)
"""What drives the stages; nothing below imports it."""
MODULES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = ("pickle", "dill", "joblib", "random")
RANDOM = {"default_rng", "Generator", "SeedSequence", "PCG64", "BitGenerator", "Philox"}


def room(path: Path) -> str:
    """The first name below the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import from the package, lazy ones included, type-checking ones not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import in line {node.lineno}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE.name and len(parts) > 1 and id(node) not in typing_only:
                yield node.lineno, parts[1]


def test_there_is_a_house() -> None:
    assert {"cli", "reproduce", "stage", "files", "claims", *STORY} <= {room(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_run_from_front_to_stages_to_ground_floor(path: Path) -> None:
    own = room(path)
    if own in FRONT:
        return
    later = STORY[STORY.index(own) + 1 :] if own in STORY else STORY
    wrong = [f"line {line}: {name}" for line, name in imported(path) if name in FRONT or name in later]
    assert wrong == []


def part(name: str) -> str:
    """Where a room stands in the picture of ARCHITECTURE.md."""
    rooms = (*STORY, "judge", "rubric", "losses", "plots")
    return "front" if name in FRONT else name if name in rooms else "ground"


def test_the_drawn_architecture_is_the_one_that_stands() -> None:
    page = (files.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^  (\w+) --> (\w+)$", page, re.MULTILINE)
    assert len(drawn) == len(set(drawn))
    pairs = {(part(room(path)), part(name)) for path in MODULES for _, name in imported(path)}
    assert set(drawn) == {(one, other) for one, other in pairs if one != other}
    told = {name: re.search(rf"^`{name}`: (.*?)\.\n", page, re.MULTILINE | re.DOTALL) for name in ("front", "ground")}
    for name, found in told.items():
        assert found is not None
        rooms = {room(path) for path in MODULES if part(room(path)) == name}
        assert set(re.findall(r"`(\w+)`", found[1])) == rooms - {"__init__", "__main__"}


def test_the_modules_that_the_page_names_are_there() -> None:
    page = (files.ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+/(?:[\w/]+\.py)?|\w+\.py)`", page)
    assert len(named) > 10
    assert [name for name in named if not any((root / name).exists() for root in (PACKAGE, files.ROOT))] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is"
    long = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            if (node.end_lineno or 0) - first.lineno + 1 > 40:
                long.append(node.name)
    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_evaluates_unpickles_or_uses_global_randomness(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN:
            found.append(str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "pd.read_pickle"):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            found += [] if "weights_only=True" in ast.unparse(node) else [ast.unparse(node)]
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            found.append(node.arg)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random"):
            found += [node.attr] if node.attr not in RANDOM else []
    assert found == []
