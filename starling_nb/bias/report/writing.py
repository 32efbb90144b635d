"""The whole measurement of a judge's positional bias, from a table of rankings to pages that say what it means.

Figures that need nothing but the shuffled orders come first, then those of a model; each section says what it estimates
and what would be fair, and one that cannot be computed says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from starling_nb import files, plots
from starling_nb.bias.power import needed
from starling_nb.bias.report import estimates, rendering, sections
from starling_nb.bias.report.findings import Findings, Group, Section, chance, groups_of
from starling_nb.errors import StarlingError

BUILDERS: Sequence[Callable[[Sequence[Group]], Section]] = (
    sections.given,
    sections.places,
    estimates.marginal,
    estimates.first_choice,
    estimates.adjustment,
    estimates.conditional,
    estimates.lengths,
    sections.repeats,
    sections.contradictions,
    estimates.power,
    sections.differences,
)
"""The sections, in the order of the report."""
ALPHA = 0.05
"""p-value below which the summary says that ranks depend on the position."""
CURVES = {
    "marginal": ("marginal", "effects", "marginal"),
    "first place only": ("first_choice", "effects", "marginal"),
    "unadjusted": ("adjustment", "effects", "unadjusted"),
    "at equal quality": ("conditional", "conditional", "conditional"),
    "by repeated rankings": ("conditional", "repeated", "repeated"),
}
"""Label in the figure → section, table and estimand of the position effects."""


def measure(rankings: pd.DataFrame, seed: int = 0, by: str | None = None, quality: str | None = None) -> Findings:
    """Measure positional bias in every way that these rankings allow.

    Args:
        rankings: one row a verdict: ``prompt_id``, ``ranking`` (None where there was no valid one), and for what needs
            them ``models``, ``shown`` or ``answers``, ``error``, ``pair_agreement``, ``contradictions``, ``cyclic``.
        seed: of bootstraps and permutations; equal input and seed give equal findings.
        by: the column that tells judge prompts apart; ``variant`` by default, where it is there.
        quality: a column with one number an answer, in shown order; better answers have larger ones.

    Raises:
        BiasError: a missing column, more than twelve groups, no row with a ranking, or a row that is no ranking.
    """
    groups, lost = groups_of(rankings, by, quality, seed)
    for group in groups:
        _ = group.table  # a row that is no ranking is refused before anything is computed
    given, *others = (build(groups) for build in BUILDERS)
    found = [replace(given, missing=[*given.missing, *lost]), *others]
    return Findings(_summary(groups, found, len(rankings)), found, [group.name for group in groups])


def write(
    rankings: pd.DataFrame,
    folder: Path,
    title: str,
    provenance: Mapping[str, Any],
    *,
    seed: int = 0,
    by: str | None = None,
    quality: str | None = None,
) -> Findings:
    """Measure, and write ``bias.md``, ``bias.html``, ``bias.json`` and ``figures/*.png`` into ``folder``.

    Args:
        rankings, seed, by, quality: as for :func:`measure`.
        folder: of the files; each is replaced whole.
        title: of the pages and over the figures; say here whether the judge is real or simulated.
        provenance: where the rankings come from; goes into every file.

    Raises:
        BiasError: as :func:`measure`.
        StarlingError: a file cannot be written.
    """
    findings = measure(rankings, seed, by, quality)
    drawn = _figures(findings, title)
    for name in rendering.PICTURES:
        path = folder / "figures" / f"{name}.png"
        if name in drawn:
            plots.save(drawn[name], path, {**provenance, "figure": name})
        else:
            path.unlink(missing_ok=True)
    files.write_json(folder / "bias.json", {"title": title, "provenance": dict(provenance), **findings.as_dict()})
    files.write_text(folder / "bias.md", rendering.markdown(findings, title, provenance, list(drawn)))
    files.write_text(folder / "bias.html", rendering.html(findings, title, provenance, folder, list(drawn)))
    return findings


def _summary(groups: Sequence[Group], found: Sequence[Section], rows: int) -> str:
    """One or two sentences."""
    ranked = sum(len(group.ranked) for group in groups)
    prompts = len(set().union(*(group.table.prompts for group in groups)))
    head = f"{ranked:,} rankings of {prompts:,} prompts"
    head += f" by {len(groups)} judge prompts" if len(groups) > 1 else ""
    head += f" ({rows - ranked:,} more rows have no ranking)" if rows > ranked else ""
    tables = next(section.tables for section in found if section.key == "places")
    if "order test" not in tables:
        return f"{head}. Positions could not be tested: the report says why."
    tests = _panels(tables["order test"], [groups[0].name])
    told: dict[str, list[str]] = {}
    for group in groups:
        if group.name in tests:
            verdict, why = _verdict(group, float(tests[group.name]["p (mean rank)"].iloc[0]))
            told.setdefault(verdict, []).append(f"under {group.name} ({why})" if len(groups) > 1 else f"({why})")
    parts = [f"{verdict} {', '.join(names)}" for verdict, names in told.items()]
    if len(groups) == 1:
        share, fair = tables["first places"][["share", "fair"]].iloc[0]
        parts.append(f"the answer shown first is ranked best {share:.0%} of the time, where {fair:.0%} is fair")
    text = "; ".join(parts)
    return f"{head}. {text[0].upper()}{text[1:]}."


def _verdict(group: Group, p: float) -> tuple[str, str]:
    """What the test of the shown orders means for one group, and why."""
    if not group.shuffled:
        return "places cannot be told from the models that stand there", "the answers do not look shuffled"
    if p < ALPHA:
        return "ranks depend on the shown position", chance(p)
    try:
        seen = f"effects under {needed(group.effects('marginal')).detectable:.2f} logits would often be missed"
    except StarlingError:
        seen = "there is little to see it by"
    return "no dependence on the shown position was seen", f"{chance(p)}; {seen}"


def _figures(findings: Findings, title: str) -> dict[str, Figure]:
    """What can be drawn."""
    places = dict(findings["places"].tables)
    if "order test" in places and "first places" in places:  # its p-value holds for repeated prompts and any lengths
        test = places["order test"].rename(columns={"p (first place)": "p"})
        keys = ["group"] if "group" in test else []
        first = places["first places"]
        places["first places"] = first.merge(test[[*keys, "p"]], on=keys) if keys else first.assign(p=test["p"].iloc[0])
    drawn: dict[str, Figure] = {}
    for name, key, draw in (
        ("first_places", "first places", plots.four_panels),
        ("mean_rank", "mean rank", plots.mean_rank_by_position),
        ("placements", "placements", plots.placements),
    ):
        if key in places:
            drawn[name] = draw(_panels(places[key], findings.groups), f"{title}: {rendering.PICTURES[name][1]}")
    curves = {}
    for label, (key, name, estimand) in CURVES.items():
        table = findings[key].tables.get(name, pd.DataFrame())
        if len(table) and len(part := table[table["estimand"] == estimand]):
            curves[label] = part.rename(columns={"group": "panel"})
    if curves:
        drawn["effects"] = plots.effects_forest(curves, f"{title}: {rendering.PICTURES['effects'][1]}")
    return drawn


def _panels(table: pd.DataFrame, groups: Sequence[str]) -> dict[str, pd.DataFrame]:
    """One table a group."""
    if "group" not in table:
        return {groups[0]: table}
    return {str(name): part.reset_index(drop=True) for name, part in table.groupby("group", sort=False)}
