"""The report's sections that come from a model: position effects and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from starling_nb.bias.effects import PositionEffects
from starling_nb.bias.power import by_length, needed
from starling_nb.bias.report.findings import Group, Section, chance, gather
from starling_nb.bias.tables import BiasError

SEEN, POWER = 0.2, 0.8
"""The effect that a study should be able to see, logits, and how often."""


def marginal(groups: Sequence[Group]) -> Section:
    """Position effects with the answering models held constant."""
    return _effects(
        groups,
        "marginal",
        "marginal",
        "Position effects over the whole ranking (marginal)",
        "What standing at a position adds to an answer's chances in every choice of the ranking, in logits, with the "
        "answering models held constant and over all the differences between a model's answers; zero is fair.",
    )


def first_choice(groups: Sequence[Group]) -> Section:
    """The same from the first place alone."""
    return _effects(
        groups,
        "top-1",
        "first_choice",
        "Position effects on the first place alone (top-1)",
        "The same effects from the choice of the best answer only, which is all that a chart of first places can see; "
        "zero everywhere is fair.",
    )


def adjustment(groups: Sequence[Group]) -> Section:
    """Unadjusted effects beside adjusted ones."""

    def both(group: Group) -> pd.DataFrame:
        parts = [_table(group.effects(name)) for name in ("marginal", "unadjusted")]
        return pd.concat(parts, ignore_index=True)

    table, missing = gather(groups, both)
    alone, _ = gather([] if len(table) else groups, lambda group: _table(group.effects("unadjusted")))
    return Section(
        "adjustment",
        "Unadjusted beside adjusted effects",
        "Position effects with no effect of the answering models beside the marginal ones: where answers were shuffled "
        "the two tell the same story, unadjusted effects being a little nearer to zero; a fair judge has zero in both.",
        tables={"effects": table if len(table) else alone},
        missing=missing,
    )


def conditional(groups: Sequence[Group]) -> Section:
    """Effects between answers of equal quality: by a quality column, or by answers seen in several orders."""
    tables: dict[str, pd.DataFrame] = {}
    found, missing = [], []
    for name in ("conditional", "repeated"):

        def fitted(group: Group, name: str = name) -> pd.DataFrame:
            return _table(group.effects(name)).assign(estimand=name)

        table, absent = gather(groups, fitted)
        missing += absent
        tables |= {name: table} if len(table) else {}
        for group in groups:
            found += _sentences(group, name, len(groups) > 1, f"{name}: ")
    return Section(
        "conditional",
        "Position effects between answers of equal quality (conditional)",
        "What a position adds between two answers that are equally good, in logits, from a column with the quality of "
        "each answer (conditional) or from pairs of answers that turned round when they were shown in another order "
        "(repeated); zero is fair, and the same judge shows larger numbers here than in the marginal effects.",
        found,
        tables,
        missing,
    )


def lengths(groups: Sequence[Group]) -> Section:
    """Whether the number of answers changes the bias."""
    found = []

    def trends(group: Group) -> pd.DataFrame:
        if "models" not in group.rows.columns:
            raise BiasError("there is no column models, so that positions cannot be told from models")
        result = by_length(group.table)
        name = f"{group.name}: " if len(groups) > 1 else ""
        found.append(f"{name}Wald {result.wald:.3g} on {result.df} df for equal trends at every K, {chance(result.p)}.")
        return result.table

    table, missing = gather(groups, trends)
    return Section(
        "lengths",
        "Position and the number of answers",
        "What the last position has over the first, in logits, for each number of answers K; zero is fair, and equal "
        "trends mean that the length of the list does not matter.",
        found,
        {"trends": table} if len(table) else {},
        missing,
    )


def power(groups: Sequence[Group]) -> Section:
    """How many labels it takes."""

    def enough(group: Group) -> pd.DataFrame:
        effects = group.effects("marginal")
        need = needed(effects, SEEN, POWER)
        row = {"n": effects.n, "detectable": need.detectable, "labels": need.labels, "more": need.more}
        return pd.DataFrame([row])

    table, missing = gather(groups, enough)
    return Section(
        "power",
        "How many labels it takes",
        f"Rankings of this kind with which a marginal effect of {SEEN} logits at the least well known position is seen "
        f"{POWER:.0%} of the time at the 5 % level, how many are still missing, and the smallest effect, in logits, "
        "that those given would show as often; this says what could be seen, not what is fair.",
        tables={"labels": table} if len(table) else {},
        missing=missing,
    )


def _effects(groups: Sequence[Group], estimate: str, key: str, title: str, estimates: str) -> Section:
    """A section with the effects, their test and their flags."""
    table, missing = gather(groups, lambda group: _table(group.effects(estimate)))
    tests, _ = gather(groups, lambda group: _test(group.effects(estimate)))
    found = [line for group in groups for line in _sentences(group, estimate, len(groups) > 1)]
    tables = {"effects": table, "tests": tests} if len(table) else {}
    return Section(key, title, estimates, found, tables, missing)


def _table(found: PositionEffects) -> pd.DataFrame:
    return found.effects.assign(estimand=found.estimand)


def _test(found: PositionEffects) -> pd.DataFrame:
    names = ("wald", "df", "p", "spread", "n", "prompts")
    return pd.DataFrame([{name: getattr(found, name) for name in names}])


def _sentences(group: Group, estimate: str, named: bool, lead: str = "") -> list[str]:
    """The test in words, and the flags; nothing where there is no estimate."""
    try:
        found = group.effects(estimate)
    except BiasError:
        return []
    lead = lead + (f"{group.name}: " if named else "")
    effects = found.effects["effect"]
    test = f"Wald {found.wald:.3g} on {found.df} df, {chance(found.p)}"
    slope = (
        "" if found.slope is None else f"; {found.slope[0]:.3g} logits a unit of the quality (se {found.slope[1]:.2g})"
    )
    ends = f"most favoured {effects.idxmax() + 1}, least {effects.idxmin() + 1}"
    spread = f"spread {found.spread:.3g} logits between positions ({ends})"
    return [f"{lead}{test}; {spread}{slope}.", *(f"{lead}Beware: {flag}." for flag in found.flags)]
