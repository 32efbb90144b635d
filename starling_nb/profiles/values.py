"""Parameter values: which types a notebook may declare, and how a value is checked or read from text."""

from __future__ import annotations

import math
import tomllib
from typing import Any

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
