"""What a measurement of position bias found, ready to be printed or written; and the rankings that it is made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from starling_nb.bias.effects import PositionEffects, position_effects
from starling_nb.bias.repeated import repeated_effects
from starling_nb.bias.tables import BiasError, Rankings, read, valid
from starling_nb.errors import StarlingError

UNEVEN, SETTLED = 1e-3, 5
"""p-value below which shown orders were hardly random; rankings from which on a model that never moved is named."""
MOST = 12
"""Groups that are told apart, at most."""


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
        key: its name in ``bias.json``.
        title: its heading.
        estimates: one sentence: what is estimated, and what would be fair.
        found: sentences about what was found.
        tables: name → table; the first column is ``group`` where there are several.
        missing: why something could not be computed, one line each.
    """

    key: str
    title: str
    estimates: str
    found: Sequence[str] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    missing: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """The section, ready for JSON: numbers that are not finite become None."""
        tables = {name: records(table) for name, table in self.tables.items()}
        texts = {"estimates": self.estimates, "found": list(self.found), "missing": list(self.missing)}
        return {"key": self.key, "title": self.title, **texts, "tables": tables}


@dataclass(frozen=True)
class Findings:
    """All sections, and a summary of one or two sentences. ``groups`` are the judge prompts that are told apart."""

    summary: str
    sections: Sequence[Section]
    groups: Sequence[str]

    def __getitem__(self, key: str) -> Section:
        return next(section for section in self.sections if section.key == key)

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON. Positions and ranks count from 0."""
        sections = [section.as_dict() for section in self.sections]
        return {"summary": self.summary, "groups": list(self.groups), "sections": sections}


@dataclass(frozen=True)
class Group:
    """Rankings by one judge prompt.

    Attributes:
        name: of the group.
        rows: all of them, failed ones too.
        quality: the column with one number an answer, if there is one.
        seed: of every draw.
    """

    name: str
    rows: pd.DataFrame
    quality: str | None
    seed: int
    _fits: dict[str, PositionEffects | StarlingError] = field(default_factory=dict, repr=False)

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """The rows with a ranking."""
        return valid(self.rows)

    @cached_property
    def table(self) -> Rankings:
        """Those rows as arrays; without a column ``models`` every answer has the same model."""
        if "models" in self.rows.columns:
            return read(self.ranked, "prompt_id", "models")
        table = read(self.ranked, "prompt_id")
        return replace(table, model=np.where(table.mask, 0, -1), models=["unknown"])

    @property
    def repeated(self) -> bool:
        """Whether some prompt was ranked more than once."""
        return len(np.unique(self.table.prompt)) < len(self.table)

    @cached_property
    def evenness(self) -> tuple[float, list[str]]:
        """:func:`evenness` of the models over the positions; (1, none) where models are not known."""
        return evenness(self.table) if "models" in self.rows.columns else (1.0, [])

    @property
    def shuffled(self) -> bool:
        """Whether nothing speaks against the answers having been shuffled."""
        return self.evenness[0] >= UNEVEN

    @property
    def lengths(self) -> str:
        """The numbers of answers in words: ``7`` or ``2 to 7``."""
        least, most = int(self.table.length.min()), int(self.table.length.max())
        return str(most) if least == most else f"{least} to {most}"

    def effects(self, estimate: str) -> PositionEffects:
        """Position effects, computed once: ``marginal``, ``top-1``, ``unadjusted``, ``conditional`` or ``repeated``.

        Raises:
            BiasError: as the function that computes them.
        """
        if estimate not in self._fits:
            try:
                self._fits[estimate] = self._estimate(estimate)
            except StarlingError as error:
                self._fits[estimate] = error
        found = self._fits[estimate]
        if isinstance(found, StarlingError):
            raise found
        return found

    def _estimate(self, estimate: str) -> PositionEffects:
        if estimate == "unadjusted":
            return position_effects(self.table, models=False)
        if estimate == "conditional" and self.quality is None:
            raise BiasError("no column with the quality of the answers was given (--quality NAME)")
        if estimate == "repeated":
            if not self.repeated:
                raise BiasError("no prompt was ranked twice: effects free of quality need answers seen in two orders")
            return repeated_effects(self.ranked)
        if "models" not in self.rows.columns:
            raise BiasError("there is no column models, so that positions cannot be told from models")
        if estimate == "conditional":
            return position_effects(self.ranked, quality=self.quality)
        return position_effects(self.table, top=1 if estimate == "top-1" else None)


def evenness(table: Rankings) -> tuple[float, list[str]]:
    """p-value of "models were dealt over the positions at random", and the models that never moved.

    Pearson's chi-square of model by position, each shown order of a prompt counted once, with the correction of a
    permutation design, (M - 1) / M. Designs that balance positions give values near 1.
    """
    assert table.model is not None
    _, once = np.unique(np.column_stack([table.prompt, table.model]), axis=0, return_index=True)
    model, length = table.model[once], table.length[once]
    rows, places = np.nonzero(model >= 0)
    code = model[rows, places]
    counts, due = np.zeros((2, len(table.models), table.width))
    np.add.at(counts, (code, places), 1)
    share = np.where(np.arange(table.width) < length[:, None], 1 / length[:, None], 0.0)
    np.add.at(due, code, share[rows])
    settled = [name for name, seen in zip(table.models, counts, strict=True) if seen.max() == seen.sum() >= SETTLED]
    kept = counts.sum(1) >= SETTLED
    cells = due[kept] > 0
    if kept.sum() < 2:
        return 1.0, []
    distance = float((((counts - due)[kept][cells]) ** 2 / due[kept][cells]).sum())
    number = int(kept.sum())
    df = (number - 1) * (table.width - 1)
    return float(scipy_stats.chi2.sf(distance * (number - 1) / number, df)), settled


def groups_of(rankings: pd.DataFrame, by: str | None, quality: str | None, seed: int) -> tuple[list[Group], list[str]]:
    """The rankings by the values of the column ``by``, in order of appearance; one group where there is none.

    Returns:
        The groups, and a line for each one that has no ranking at all and is left out.

    Raises:
        BiasError: no such column, too many values, or no row with a ranking.
    """
    if missing := [name for name in ("prompt_id", "ranking", by, quality) if name and name not in rankings.columns]:
        found = ", ".join(map(str, rankings.columns))
        raise BiasError(f"the rankings lack {', '.join(missing)}: they have {found}")
    if not len(valid(rankings)):
        raise BiasError(f"none of the {len(rankings)} rows has a ranking: there is nothing to measure")
    column = by or "variant"
    if column not in rankings.columns:
        return [Group("all", rankings, quality, seed)], []
    value = rankings[column].astype(object).where(rankings[column].notna(), "none").astype(str)
    names = list(dict.fromkeys(value))
    if len(names) > MOST:
        raise BiasError(f"{column} has {len(names)} values: name a column with at most {MOST} to group by (--by)")
    groups = [Group(name, rankings[value == name], quality, seed) for name in names]
    lost = [f"{group.name}: none of its {len(group.rows)} rows has a ranking" for group in groups if group.ranked.empty]
    return [group for group in groups if len(group.ranked)], lost


def gather(groups: Iterable[Group], compute: Callable[[Group], pd.DataFrame | None]) -> tuple[pd.DataFrame, list[str]]:
    """One table over all groups, and why some of them are not in it."""
    groups = list(groups)
    parts: list[pd.DataFrame] = []
    why: dict[str, list[str]] = {}
    for group in groups:
        try:
            part = compute(group)
        except StarlingError as error:
            why.setdefault(str(error), []).append(group.name)
            continue
        if part is not None and len(groups) > 1:
            part = part.reset_index(drop=True)
            part.insert(0, "group", group.name)
        parts += [] if part is None else [part]
    missing = [text if len(names) == len(groups) else f"{', '.join(names)}: {text}" for text, names in why.items()]
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()), missing


def chance(p: float) -> str:
    """A p-value in words."""
    return "p not known" if not math.isfinite(p) else "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as plain values; what is not finite becomes None."""

    def plain(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{str(name): plain(value) for name, value in row.items()} for row in table.to_dict("records")]
