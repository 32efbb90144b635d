"""Parameter values: which types a notebook may declare, and how a value is checked or read from text."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from starling_nb.errors import StarlingError

KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
"""The types that survive papermill unchanged and that every profile can hold."""

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class ParameterError(StarlingError):
    """An unknown parameter, or a value of the wrong type or range."""


def check(name: str, kind: type, value: Any) -> Any:
    """Return ``value`` as ``kind`` (a whole number is a fine float; nothing else is converted).

    Raises:
        ParameterError: the value is of another type, or a float that is not finite.
    """
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # bool is no int here
        raise ParameterError(f"{name} = {value!r} is a {type(value).__name__}; it has to be {kind.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParameterError(f"{name} = {value} is not a finite number")
    return value


def parse(name: str, kind: type, text: str) -> Any:
    """Read the value of ``--set name=text``; lists are written as in TOML, ``["a", "b"]``.

    Raises:
        ParameterError: the text is no such value.
    """
    try:
        if kind is bool:
            return _WORDS[text.strip().lower()]
        if kind is list:
            return check(name, list, tomllib.loads(f"value = {text}")["value"])
        return check(name, kind, kind(text))
    except (ValueError, KeyError) as error:
        raise ParameterError(f"{name} = {text!r} is not a value of type {kind.__name__}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        StarlingError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StarlingError(f"{path} is missing: mend the path") from error
    except (OSError, ValueError) as error:
        raise StarlingError(f"{path} is not a TOML file ({error}): mend it") from error


def typed(kind: type, values: Any, where: str) -> Any:
    """``values`` as the dataclass ``kind``, tables inside as the dataclasses of their fields.

    Raises:
        StarlingError: a name that ``kind`` does not have, a value of another type, or one that is lacking.
    """
    if not isinstance(values, Mapping):
        raise StarlingError(f"{where} has to be a table")
    hints = get_type_hints(kind)
    if unknown := [name for name in values if name not in hints]:
        raise StarlingError(f"{where} has an unknown name {', '.join(unknown)}: choose from {', '.join(hints)}")
    made = {name: _value(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    if absent := [name for name in needed if name not in made]:
        raise StarlingError(f"{where} lacks {', '.join(absent)}")
    return kind(**made)


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint in (int, float, str, bool):
        return check(where, hint, value)
    if hasattr(hint, "__dataclass_fields__"):
        return typed(hint, value, where)
    (inner,) = hint.__args__  # a list of something
    return [_value(inner, item, f"{where}[{place}]") for place, item in enumerate(check(where, list, value))]
