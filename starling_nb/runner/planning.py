"""Deciding what to run, with every name and type checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_nb import files, profiles
from starling_nb.judge.connect import SIMULATED, address, need_price
from starling_nb.judge.spending import Budget
from starling_nb.runner import manifest, notebook
from starling_nb.runner.notebook import Notebook

NOTEBOOKS = files.ROOT / "notebooks"


@dataclass(frozen=True)
class Plan:
    """What is to be run: the notebooks in order with their parameters, and how."""

    profile: str
    out: Path
    books: list[Notebook]
    parameters: dict[str, dict[str, Any]]
    forced: frozenset[str] = frozenset()
    timeout: int | None = None
    dollars: float | None = None
    """The most that paid judges may cost the folder, earlier runs included."""


def plan(
    profile: str = "laptop",
    out: Path | None = None,
    *,
    start: str = "",
    only: Sequence[str] = (),
    settings: Sequence[str] = (),
    force: bool = False,
    timeout: int | None = None,
    dollars: float | None = None,
    notebooks: Path | None = None,
) -> Plan:
    """Decide what to run, and check every name and type before anything starts.

    ``start`` selects a stage and all after it, ``only`` single ones; the stages that these need come along
    (and are skipped when nothing changed). ``force`` runs the selected ones whatever their keys say.

    Raises:
        StarlingError: a profile, stage or parameter is unknown, a value has the wrong type, or dollars are no amount,
            or are to limit a judge whose price is not known.
    """
    Budget(dollars=dollars)
    settings = list(settings)
    for text in [text for text in settings if text.split("=")[0].strip() in ("profile", "out")]:
        name, _, value = text.partition("=")
        settings.remove(text)
        profile, out = (value, out) if name.strip() == "profile" else (profile, Path(value))
    if profile not in profiles.names():
        raise profiles.ParameterError(f"profile {profile!r} is unknown: choose one of {', '.join(profiles.names())}")
    out, notebooks = _folder(out or files.ROOT / "outputs" / profile, notebooks or NOTEBOOKS)
    books = notebook.find(notebooks)
    chosen = notebook.settings(books, settings)
    wanted = {notebook.pick(books, label).name for label in only}
    if start:
        first = notebook.pick(books, start).number
        wanted |= {book.name for book in books if book.number >= first}
    if not wanted:
        wanted = {book.name for book in books}
    parameters = {book.name: _resolve(book, profile, out, chosen[book.name], dollars) for book in books}
    selected = _with_needs(books, wanted)
    return Plan(profile, out, selected, parameters, frozenset(wanted if force else ()), timeout, dollars)


def _folder(out: Path, notebooks: Path) -> tuple[Path, Path]:
    """Both folders, whole; a run must not write over the notebooks or the project itself."""
    out, notebooks = out.expanduser().resolve(), notebooks.resolve()
    if out / "notebooks" == notebooks or out in (files.ROOT, *files.ROOT.parents):
        raise profiles.ParameterError(f"--out {out} holds the project itself: choose a folder of its own")
    return out, notebooks


def _with_needs(books: list[Notebook], wanted: set[str]) -> list[Notebook]:
    needed = set(wanted)
    for book in reversed(books):
        if book.name in needed:
            needed |= set(book.needs)
    return [book for book in books if book.name in needed]


def _resolve(book: Notebook, profile: str, out: Path, chosen: dict[str, Any], dollars: float | None) -> dict[str, Any]:
    """The notebook's parameters: its own values, then the profile's, then ``--set``."""
    usual = profiles.values(profile, book.name)
    values = {name: usual.get(name, parameter.default) for name, parameter in book.parameters.items()} | chosen
    values = {
        name: profiles.check(f"{book.number}.{name}", book.parameters[name].kind, value)
        for name, value in values.items()
    }
    if "judge" in values:
        model, _ = address(values["judge"])  # before it is written into any file
        if dollars is not None and model != SIMULATED:
            need_price(model)
    if "out" in values:
        values["out"] = manifest.shown(out)
    if book.name in profiles.STAGES:
        profiles.make(book.name, values)
    return values
