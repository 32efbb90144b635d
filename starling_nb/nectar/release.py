"""The last step: candidates are ranked, and a folder comes out that others can load, read about and train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from starling_nb.errors import StarlingError
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
        StarlingError: as :func:`starling_nb.nectar.labelling.label`; or no prompt got a valid ranking,
            in which case ``rankings.parquet`` stays and holds the replies and errors.
    """
    labels = labelling.label(judge, candidates, plan, folder, each)
    if labels.prompts and not labels.rows:
        raise StarlingError(_nothing(labels, folder / "rankings.parquet"))
    about = card.About(judge.model.partition("@")[0], plan.variant, plan.design, plan.passes, terms=terms)
    card.write(folder, about)
    export.preferences(folder / "nectar.parquet", folder / "preferences.parquet")
    return labels


def _nothing(labels: Labels, rankings: Path) -> str:
    """Why there are rankings and no rows, and what to do."""
    if valid := labels.outcomes[""]:
        told = f"each of the {valid:,} valid rankings contradicts a pair of its own, so no row is left"
        return f"{told} ({rankings} holds the replies): do without consistent"
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in labels.outcomes.most_common(5))
    often = str(pd.read_parquet(rankings, columns=["error"]).error.mode()[0])
    return (
        f"all {labels.outcomes.total():,} rankings failed ({kinds}), so there are no rows. The commonest error: "
        f"{often[:300]} (replies and all errors: {rankings}). Another run asks again what was Unanswered; for replies "
        "that cannot be read take another prompt variant or judge"
    )
