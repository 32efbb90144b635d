"""Stage keys: everything that decides a stage's result, in one hash.

A stage is run again exactly when its key changes or one of its files does. The key covers the notebook's
code, the modules of this package that the code can reach, the parameters, the files of the stages before it,
``data/``, and the versions of the numerical libraries. What only drives or prints (the runner, the report) is
left out, and so is ``out``.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.profiles import ParameterError
from starling_nb.runner.notebook import Notebook, NotebookError

PACKAGE = Path(__file__).resolve().parent.parent
DRIVERS = ("cli", "reproduce", "runner", "report", "doctor", "profiles", "__main__")
"""Modules that cannot change a number; profiles act through the parameters, which the key holds."""

LIBRARIES = ("numpy", "pandas", "scipy", "torch", "transformers")
BOOKKEEPING = ("metrics.json", "stage.json", "progress.jsonl")
"""Files of a stage's folder that no later stage reads."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


def closure(sources: Iterable[str], package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of ``package`` that the sources can import, lazily or not: dotted name → file.

    Imports inside functions count, and so do dotted module names in string constants (registries, ``python
    -m``).
    """
    found: dict[str, Path] = {}
    waiting = {name for source in sources for name in _imports(ast.parse(source), package.name, "", False)}
    while waiting:
        name = waiting.pop()
        path = _module(name, package)
        if path is None or name in found or name.removeprefix(package.name + ".").split(".")[0] in DRIVERS:
            continue
        found[name] = path
        waiting |= set(_imports(_tree(path), package.name, name, path.name == "__init__.py"))
    return found


def _module(name: str, package: Path) -> Path | None:
    base = package.parent.joinpath(*name.split("."))
    for path in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(tree: ast.AST, package: str, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            targets = [node.value]
        for target in targets:
            parts = target.split(".")
            if parts[0] == package:
                yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


@cache
def _text_tree(text: str) -> ast.Module:
    return ast.parse(text)


def _tree(path: Path) -> ast.Module:
    return _text_tree(path.read_text(encoding="utf-8"))


def hash_tree(path: Path) -> str:
    """One hash of a file, or of all files in a folder with their relative names."""
    if path.is_file():
        return files.hash_file(path)
    return files.hash_value(hashes(path, path))


def hashes(folder: Path, base: Path) -> dict[str, str]:
    """Hash of every file in ``folder``, by its path relative to ``base``; hidden ones left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in name.parts):
            found[path.relative_to(base).as_posix()] = files.hash_file(path)
    return found


def outputs(out: Path, stage: str) -> dict[str, str]:
    """What a stage has written in the run folder ``out``: its own folder, its figures and tables."""
    found = hashes(out / stage, out)
    for kind in ("figures", "tables"):
        for path in sorted((out / kind).glob(f"{stage[:2]}_*")):
            found[path.relative_to(out).as_posix()] = files.hash_file(path)
    found.pop(f"{stage}/progress.jsonl", None)
    return found


def handed_over(stage: str, written: Mapping[str, str]) -> str:
    """One hash of the files that later stages may read from ``stage``, out of its :func:`outputs`."""
    names = {name: value for name, value in written.items() if name.startswith(f"{stage}/")}
    return files.hash_value({name: value for name, value in names.items() if name.split("/", 1)[1] not in BOOKKEEPING})


def versions() -> dict[str, str]:
    """Python's minor version and those of the libraries that decide numbers."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def components(
    book: Notebook,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    data: str,
    package: Path = PACKAGE,
) -> dict[str, Any]:
    """Everything that decides the stage's result, by kind. ``inputs``: :func:`handed_over` of each needed
    stage.

    Raises:
        NotebookError: a cell is not Python.
    """
    sources = [_plain(source, book.name) for source in book.code]
    modules = closure(sources, package)
    folders = {path.parent for path in modules.values() if path.name == "__init__.py"}
    beside = [
        path for folder in folders for path in folder.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    if planned := parameters.get("planned"):  # such a stage shows what other profiles say
        beside += [path for name in ("laptop", *planned) if (path := package / "profiles" / f"{name}.toml").exists()]
    named = {n: resolve(parameters[n]) for n in ("base", "reward") if parameters.get(n)}
    models = {name: _as_it_lies(path) for name, path in named.items() if path.is_dir()}
    real = {n: existing(n, value) for n, value in parameters.items() if n.startswith(("real_", "recorded_")) and value}
    return {
        "code": files.hash_value(list(book.code)),
        "modules": {name: files.sha256(ast.dump(_tree(path)).encode()) for name, path in sorted(modules.items())},
        "package data": {path.relative_to(package).as_posix(): files.hash_file(path) for path in sorted(beside)},
        "parameters": {name: value for name, value in sorted(parameters.items()) if name != "out"},
        "real data": {name: hash_tree(path) for name, path in sorted(real.items())},
        "inputs": dict(sorted(inputs.items())),
        "data": data,
        "versions": versions(),
        **({"models": models} if models else {}),
    }


def _as_it_lies(folder: Path) -> str:
    """One hash of names, sizes and times of a model's files: to read gigabytes before every run would take too long."""
    found = {path: path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return files.hash_value([[str(path.relative_to(folder)), s.st_size, s.st_mtime_ns] for path, s in found.items()])


def resolve(text: str) -> Path:
    """A user's path: ``~`` expanded, relative ones from the project's root (notebooks have no fixed cwd)."""
    path = Path(text).expanduser()
    return path if path.is_absolute() else files.ROOT / path


def existing(name: str, value: str) -> Path:
    """The file or folder that a ``real_…`` or ``recorded_…`` parameter names.

    Raises:
        ParameterError: there is none.
    """
    path = resolve(value)
    if not path.exists():
        raise ParameterError(f"{name} = {value!r}: there is no such file or folder; leave it empty to do without")
    return path


def _plain(source: str, where: str) -> str:
    lines = ["" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()]
    try:
        ast.parse("\n".join(lines))
    except SyntaxError as error:
        raise NotebookError(f"{where}: a cell is not Python ({error.msg}: {(error.text or '').strip()})") from error
    return "\n".join(lines)


def data_hash() -> str:
    """One hash of the project's ``data/`` folder, its texts for readers left out."""
    return files.hash_value(
        {name: value for name, value in hashes(files.DATA, files.DATA).items() if not name.endswith(".md")}
    )


def key_of(stage: str, parts: Mapping[str, Any]) -> str:
    """The stage key: the stage's name and 16 hexadecimal digits."""
    return f"{stage}-{files.hash_value(parts)[:16]}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why two sets of components differ, in words a user understands."""
    found = []
    for kind in new:
        before, after = old.get(kind), new[kind]
        if before == after:
            continue
        if not isinstance(before, Mapping) or not isinstance(after, Mapping):
            found.append({"code": "the notebook's code changed", "data": "data/ changed"}.get(kind, f"{kind} changed"))
            continue
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                found.append(_difference(kind, name, before.get(name), after.get(name)))
    return found


def _difference(kind: str, name: str, before: Any, after: Any) -> str:
    if kind in ("parameters", "versions"):
        return f"{name}: {before!r} -> {after!r}"
    if kind == "inputs":
        return f"the files of {name} changed"
    return f"{name} {'appeared' if before is None else 'vanished' if after is None else 'changed'}"
