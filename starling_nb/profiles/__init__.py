"""How large a run is: one frozen dataclass of parameters per stage, and one TOML file of values per profile.

The dataclasses (:mod:`starling_nb.profiles.stages`) are the only place where a parameter gets its name, type and help.
``laptop.toml`` holds a value for every one of them (the notebooks' ``parameters`` cells hold the same); any other
profile holds what differs from it. In each file the table ``[common]`` speaks to all stages and
``["03_reward_training"]`` to one.
"""

from __future__ import annotations

import ast
import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from starling_nb.profiles.stages import STAGES, Common
from starling_nb.profiles.values import KINDS, ParameterError, check, parse

__all__ = ["KINDS", "STAGES", "Common", "ParameterError", "check", "parse"]

FOLDER = Path(__file__).parent
COMMON = tuple(field.name for field in fields(Common))


def names() -> list[str]:
    """The profiles, by name."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def kinds(stage: str) -> dict[str, type]:
    """Name → type of a stage's parameters, in the order of declaration."""
    cls = STAGES[stage]
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def helps(stage: str) -> dict[str, str]:
    """Name → help text of a stage's parameters, read from the string under each field."""
    found: dict[str, str] = {}
    for cls in reversed(STAGES[stage].__mro__[:-1]):
        body = ast.parse(inspect.getsource(cls)).body[0]
        assert isinstance(body, ast.ClassDef)
        for here, below in zip(body.body, body.body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(here, ast.AnnAssign) and isinstance(text, ast.Constant):
                found[ast.unparse(here.target)] = str(text.value)
    return found


@cache
def _load(profile: str) -> dict[str, dict[str, Any]]:
    if profile not in names():
        raise ParameterError(f"profile {profile!r} is unknown: choose one of {', '.join(names())}")
    tables = tomllib.loads((FOLDER / f"{profile}.toml").read_text(encoding="utf-8"))
    for table in tables:
        if table != "common" and table not in STAGES:
            raise ParameterError(f"profiles/{profile}.toml: [{table}] is no stage; there are {', '.join(STAGES)}")
    return tables


def values(profile: str, stage: str) -> dict[str, Any]:
    """A stage's parameter values in a profile; for a stage of somebody's own, the common ones.

    Raises:
        ParameterError: no such profile, or its file names a parameter that the stage lacks.
    """
    merged: dict[str, Any] = {}
    for name in ("laptop", profile):
        tables = _load(name)
        merged |= tables.get("common", {}) | tables.get(stage, {})
    merged |= {"profile": profile, "out": ""}
    if stage in STAGES:
        wanted = kinds(stage)
        if unknown := sorted(merged.keys() - wanted.keys()):
            raise ParameterError(f"profile {profile}: {stage} has no parameter {', '.join(unknown)}")
        merged = {name: check(f"{stage}.{name}", wanted[name], merged[name]) for name in wanted if name in merged}
    return merged


def make(stage: str, given: Mapping[str, Any]) -> Common:
    """The frozen parameters of a stage.

    Raises:
        ParameterError: a name is unknown or missing, or a value is of the wrong type or range.
    """
    wanted = kinds(stage)
    if unknown := sorted(given.keys() - wanted.keys()):
        raise ParameterError(f"{stage} has no parameter {', '.join(unknown)}; it has {', '.join(wanted)}")
    if missing := sorted(wanted.keys() - given.keys()):
        raise ParameterError(
            f"{stage} lacks a value for {', '.join(missing)}: add it to profiles/laptop.toml and the cell"
        )
    return STAGES[stage](**{name: check(f"{stage}.{name}", wanted[name], given[name]) for name in wanted})
