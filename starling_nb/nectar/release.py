"""The last step: candidates are ranked, and a folder comes out that others can load, read about and train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from starling_nb.judge import Judge
from starling_nb.nectar import card, export, labelling
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.labelling import Each, Labels, Plan
from starling_nb.nectar.prompts import FAMILIES, SOURCES

TERMS: dict[str, str] = {
    **{name: source.terms for name, source in SOURCES.items()},
    **dict.fromkeys(FAMILIES, "written for starling_nb, CC-BY-4.0"),
}
"""Licence and terms of every source that this package knows."""


def release(
    judge: Judge,
    candidates: Iterable[Candidates],
    plan: Plan,
    folder: Path,
    each: Each | None = None,
    terms: Mapping[str, str] = TERMS,
) -> Labels:
    """Rank candidates and write ``nectar.parquet``, ``rankings.parquet``, ``preferences.parquet`` and ``README.md``.

    Args:
        judge: who ranks.
        candidates: gone through several times: a list, or ``candidates.File(path)``.
        plan: how they are ranked.
        folder: of the four files.
        each: called with every outcome as it is settled.
        terms: source → licence and terms, for the card.

    Raises:
        StarlingError: as :func:`starling_nb.nectar.labelling.label`; or no prompt got a valid ranking.
    """
    labels = labelling.label(judge, candidates, plan, folder, each)
    about = card.About(judge.model.partition("@")[0], plan.variant, plan.design, plan.passes, terms=terms)
    card.write(folder, about)
    export.preferences(folder / "nectar.parquet", folder / "preferences.parquet")
    return labels
