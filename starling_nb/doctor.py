"""What is there, what is missing, and what to do about it: ``starling-nb doctor``."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from starling_nb import fetch, files, profiles
from starling_nb.errors import StarlingError
from starling_nb.runner import keys, manifest, notebook

NEEDED = ("torch", "transformers", "papermill", "jupyterlab", "openai", "pandas", "seaborn")
FREE_BYTES = 3 * 2**30
"""Disk space that a laptop run with the embedded model asks for."""


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    fine: bool
    detail: str


def checks() -> list[Check]:
    """All checks, none of which changes anything or imports a heavy library."""
    found = [_python(), *(_package(name) for name in NEEDED), _disk(), _memory(), _threads()]
    for look in (_model, _data, _judge, _notebooks, _reference):
        try:
            found.append(look())
        except StarlingError as error:
            found.append(Check(look.__name__.strip("_"), False, str(error)))
    return found


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version)


def _package(name: str) -> Check:
    pinned = dict(line.split("==") for line in _lines(files.ROOT / "constraints.txt") if "==" in line)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed: run `make` or `pip install -c constraints.txt -e .[dev]`")
    pin = pinned.get(name, version)
    same = version.split("+")[0] == pin
    return Check(name, True, version if same else f"{version}; the reference run was made with {pin}")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _disk() -> Check:
    free = shutil.disk_usage(files.ROOT).free
    return Check(
        "disk",
        free > FREE_BYTES,
        f"{free / 2**30:.1f} GiB free; a laptop run asks for {FREE_BYTES / 2**30:.0f}",
    )


def _memory() -> Check:
    free = psutil.virtual_memory().available
    return Check("memory", free > 4 * 2**30, f"{free / 2**30:.1f} GiB free; a laptop run asks for 4")


def _threads() -> Check:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    note = "" if policy == "PASSIVE" else "; PASSIVE is several times faster beside other programs"
    return Check("threads", policy == "PASSIVE", f"{os.cpu_count()} cores, OMP_WAIT_POLICY={policy or 'unset'}{note}")


def _model() -> Check:
    path = fetch.find("model").cached()
    return Check("model", path is not None, str(path) if path else "not in the cache: run `starling-nb fetch model`")


def _data() -> Check:
    count = len(keys.hashes(files.DATA, files.DATA)) if files.DATA.exists() else 0
    if not count:
        return Check("data", False, "data/ is empty: restore it (git checkout data)")
    changed = manifest.changed_files("data")
    note = (
        ""
        if changed is None
        else f"; differs from the commit: {', '.join(changed[:5])}"
        if changed
        else ", as committed"
    )
    return Check("data", not changed, f"{count} files, hash {keys.data_hash()[:12]}{note}")


def _judge() -> Check:
    from starling_nb.judge.wire import public

    base = public(os.environ.get("OPENAI_BASE_URL", "")) or "the vendor's address"
    key = "a key is set" if os.environ.get("OPENAI_API_KEY") else "no key (OPENAI_API_KEY)"
    return Check("judge", True, f"default: simulated, on this machine; for a real one: {base}, {key}")


def _notebooks() -> Check:
    books = notebook.find(files.ROOT / "notebooks")
    return Check("notebooks", True, f"{len(books)}: {', '.join(book.number for book in books)}")


def _reference() -> Check:
    if not (manifest.REFERENCE / "manifest.json").exists():
        return Check("reference", False, "there is no reference run: make one with `make evidence`")
    stale = stale_stages(manifest.load(manifest.REFERENCE))
    if not stale:
        return Check("reference", True, "up to date with the code")
    commit = ((manifest.load(manifest.REFERENCE).get("git") or {}).get("commit") or "its commit")[:12]
    told = "; ".join(f"{name}: {', '.join(reasons[:3])}" for name, reasons in stale.items())
    return Check("reference", False, f"stale since {commit}: {told}")


def stale_stages(record: dict[str, Any], folder: Path | None = None) -> dict[str, list[str]]:
    """Which stages of a recorded run the present code would run again, and why; library versions do not
    count.

    A stage whose inputs are stale is stale too.
    """
    found: dict[str, list[str]] = {}
    for book in notebook.find(folder or files.ROOT / "notebooks"):
        entry = record["stages"].get(book.name)
        if entry is None:
            found[book.name] = ["not in the run"]
            continue
        old = entry["components"]
        usual = profiles.values(record["profile"], book.name)
        values = {name: usual.get(name, parameter.default) for name, parameter in book.parameters.items()}
        new = keys.components(book, values, old["inputs"], keys.data_hash())
        reasons = keys.differences(old, new | {"versions": old["versions"]})
        reasons += [f"{need} is stale" for need in book.needs if need in found]
        if reasons:
            found[book.name] = reasons
    return found
