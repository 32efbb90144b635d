"""The report's sections that need no model: what was given, places, agreement, failures, differences of variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from itertools import combinations

import numpy as np
import pandas as pd

from starling_nb import files, stats
from starling_nb.bias.effects import difference
from starling_nb.bias.failures import invalid_rates
from starling_nb.bias.panels import bias_difference
from starling_nb.bias.places import mean_rank, order_test, placements
from starling_nb.bias.reliability import agreement
from starling_nb.bias.report.findings import Group, Section, chance, gather
from starling_nb.bias.tables import BiasError, Floats, Rankings
from starling_nb.errors import StarlingError

RESAMPLED = 10_000
"""Prompts at most on which first places of two variants are compared."""


def given(groups: Sequence[Group]) -> Section:
    """Rows, prompts, K, failures, and whether the shown orders look shuffled."""

    def counts(group: Group) -> pd.DataFrame:
        row = invalid_rates(group.rows).iloc[0]
        prompts = len(np.unique(group.table.prompt))
        facts = {"rows": len(group.rows), "ranked": len(group.table), "prompts": prompts, "k": group.lengths}
        models = len(group.table.models) if "models" in group.rows.columns else None
        return pd.DataFrame(
            [facts | {"models": models, "invalid": row["share"], "low": row["low"], "high": row["high"]}]
        )

    rows, missing = gather(groups, counts)
    tables = {"rows": rows}
    failed = any(len(group.ranked) < len(group.rows) for group in groups)
    if failed and "error" in groups[0].rows.columns:
        tables["failures by kind"], _ = gather(groups, lambda group: invalid_rates(group.rows, "error"))
    if any("to" in group.lengths for group in groups) and "models" in groups[0].rows.columns:
        tables["failures by K"], _ = gather(groups, lambda group: invalid_rates(group.rows, "k"))
    found = [line for group in groups for line in _shuffled(group, len(groups) > 1)]
    return Section(
        "given",
        "What was given",
        "The rankings as they came, and the share of rows without one, which are left out from here on; everything "
        "below is fair to the answers only if they were shown in a shuffled order.",
        found,
        {name: table for name, table in tables.items() if len(table)},
        missing,
    )


def _shuffled(group: Group, named: bool) -> list[str]:
    """A warning where models stand unevenly over the positions."""
    lead = f"{group.name}: " if named else ""
    if "models" not in group.rows.columns:
        return [f"{lead}Beware: there is no column models, so whether answers were shuffled cannot be seen."]
    if group.shuffled:
        return []
    p, settled = group.evenness
    fixed = f"; always at one position: {', '.join(settled[:5])}" if settled else ""
    return [
        f"{lead}Beware: models do not stand evenly over the positions ({chance(p)}{fixed}). The figures by design mix "
        "places with the models that stand there; only effects with models held constant can be believed."
    ]


def places(groups: Sequence[Group]) -> Section:
    """What the random draw of the shown orders alone tells."""
    found = []

    def tested(group: Group) -> pd.DataFrame:
        test = order_test(group.ranked if group.repeated else group.table, group.seed)
        lead = f"{group.name}: " if len(groups) > 1 else ""
        (rank, rank_p), (first, first_p) = test.mean_rank, test.first_place
        said = f"mean ranks {chance(rank_p)}, first places {chance(first_p)} ({test.method})"
        found.append(f"{lead}{'c' if lead else 'C'}hance of such figures if positions did not matter: {said}.")
        row = {"mean rank": rank, "p (mean rank)": rank_p, "first place": first, "p (first place)": first_p}
        return pd.DataFrame([row | {"method": test.method}])

    computed = {
        "mean rank": lambda group: mean_rank(group.table, group.seed).assign(fair=_fair(group.table, "mean_rank")),
        "placements": placed,
        "order test": tested,
    }
    tables: dict[str, pd.DataFrame] = {}
    missing: list[str] = []
    for name, compute in computed.items():
        table, absent = gather(groups, compute)
        if name == "placements" and len(table):
            tables = {"first places": table[table["rank"] == 0].drop(columns="rank").reset_index(drop=True)} | tables
        tables |= {name: table} if len(table) else {}
        missing += absent
    return Section(
        "places",
        "First places and mean ranks, by the design alone",
        "How often the answer shown at each position is ranked best, which rank it gets on average (0 is best), and "
        "how likely each rank is; with shuffled answers a fair judge gives every position 1/K of each rank and the "
        "mean rank (K − 1)/2, and the permutation test assumes nothing but the shuffling.",
        found,
        tables,
        missing,
    )


def placed(group: Group) -> pd.DataFrame:
    """:func:`starling_nb.bias.placements`, and beside each share the ``fair`` one."""
    return placements(group.table).assign(fair=_fair(group.table, "placements").ravel())


def _fair(table: Rankings, what: str) -> Floats:
    """A fair judge's share of first places or mean rank by position, or its shares by position and rank."""
    length = table.length.astype(float)
    shown = [table.length > position for position in range(table.width)]
    if what == "mean_rank":
        return np.array([(length[here] - 1).mean() / 2 for here in shown])
    return np.array([[((length[here] > rank) / length[here]).mean() for rank in range(table.width)] for here in shown])


def repeats(groups: Sequence[Group]) -> Section:
    """Agreement of rankings of the same answers."""

    def compared(group: Group) -> pd.DataFrame:
        if not group.repeated:
            raise BiasError("no prompt was ranked more than once: how steady the judge is cannot be seen")
        rows: list[tuple[object, ...]] = []
        for order in ("same", "other"):
            try:
                found = agreement(group.ranked, order=order, seed=group.seed)
            except BiasError as error:
                if order == "other" and not rows:
                    raise error
                continue
            for name, value in (("tau", found.tau), ("same winner", found.same_winner)):
                rows.append((f"{order} order", name, value.value, value.low, value.high, found.pairs, value.n))
        columns = ["shown in", "measure", "value", "low", "high", "pairs", "prompts"]
        return pd.DataFrame(rows, columns=columns)

    table, missing = gather(groups, compared)
    return Section(
        "repeats",
        "The same answers ranked again",
        "How alike two rankings of the same answers are: in the same shown order what differs is the judge's noise, in "
        "another order noise and place together; a judge that looks at the answers alone agrees as well in both.",
        tables={"agreement": table} if len(table) else {},
        missing=missing,
    )


def contradictions(groups: Sequence[Group]) -> Section:
    """How often a verdict's own pair winners contradict its list."""

    def own(group: Group) -> pd.DataFrame:
        absent = [name for name in ("pair_agreement", "contradictions", "cyclic") if name not in group.ranked.columns]
        if absent:
            raise BiasError(f"there is no column {', '.join(absent)}: only replies that name pair winners have them")
        said = group.ranked["pair_agreement"].notna().to_numpy()
        if not said.any():
            raise BiasError("no verdict names pair winners")
        rows, prompt = group.ranked[said], group.table.prompt[said]
        mean = stats.mean_interval(rows["pair_agreement"], prompt, group.seed, 2000 if len(rows) < 50_000 else 400)
        measures = {
            "pairs that the list follows": mean,
            "verdicts with a contradiction": stats.share_interval(rows["contradictions"] > 0, prompt),
            "verdicts whose pairs run in a circle": stats.share_interval(rows["cyclic"] > 0, prompt),
        }
        return pd.DataFrame(
            [(name, found.value, found.low, found.high, len(rows)) for name, found in measures.items()],
            columns=["measure", "share", "low", "high", "n"],
        )

    table, missing = gather(groups, own)
    return Section(
        "contradictions",
        "Pair winners against the list",
        "How far a verdict's list follows the pair winners that it names itself; a consistent judge follows them all.",
        tables={"agreement": table} if len(table) else {},
        missing=missing,
    )


def differences(groups: Sequence[Group]) -> Section:
    """Every two groups, paired by prompt."""
    rows: list[tuple[object, ...]] = []
    gaps, missing = [], []
    for one, other in combinations(groups, 2):
        pair = f"{one.name} − {other.name}"
        try:
            gap = difference(one.effects("marginal"), other.effects("marginal"))
            rows.append((pair, "effects: Wald", gap.wald, np.nan, np.nan, gap.p, gap.prompts))
            gaps.append(gap.effects.assign(pair=pair)[["pair", *gap.effects.columns]])
        except StarlingError as error:
            missing.append(f"{pair}, effects: {error}")
        try:
            value, low, high, n = astuple(_further(one, other))
            rows.append((pair, "first places: further from fair by", value, low, high, np.nan, n))
        except StarlingError as error:
            missing.append(f"{pair}, first places: {error}")
    if len(groups) < 2:
        missing.append("there is one group only: --by COLUMN names what to compare")
    found = pd.DataFrame(rows, columns=["pair", "measure", "value", "low", "high", "p", "prompts"])
    return Section(
        "differences",
        "Differences between judge prompts, paired by prompt",
        "How much further one's first places stray from fair than the other's (chi-square a label), and whether their "
        "marginal position effects differ, on the same prompts and not corrected for the number of comparisons; zero "
        "is no difference, not fairness.",
        tables=({"tests": found} if rows else {}) | ({"effects": pd.concat(gaps, ignore_index=True)} if gaps else {}),
        missing=missing,
    )


def _further(one: Group, other: Group) -> stats.Interval:
    """How much further the first places of ``one`` stray from fair; of each prompt its first ranking counts."""
    for group in (one, other):
        if "to" in group.lengths or group.lengths != one.lengths:
            raise BiasError("first places can be compared at one equal K only")
    first, second = (group.ranked.drop_duplicates("prompt_id") for group in (one, other))
    common = sorted(set(first["prompt_id"]) & set(second["prompt_id"]))
    if len(common) > RESAMPLED:
        drawn = files.rng(one.seed, "prompts compared").choice(len(common), RESAMPLED, replace=False)
        common = [common[i] for i in drawn]
        first, second = (table[table["prompt_id"].isin(common)] for table in (first, second))
    return bias_difference(first, second, one.seed)
