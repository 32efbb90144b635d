"""How often a judge gives no ranking, and of which kinds its failures are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from starling_nb.bias.tables import ANSWERS, BiasError, valid
from starling_nb.stats import share_interval


def invalid_rates(rankings: pd.DataFrame, by: str | Sequence[str] = (), level: float = 0.95) -> pd.DataFrame:
    """Share of the rows without a ranking, in all or by column.

    Args:
        rankings: needs ``ranking``: None, NaN or an empty list where there is none.
        by: columns to group by. ``k`` is the number of answers shown, if there is no such column; ``error`` is the kind
            of failure, which stands before the colon, and its shares are of all rows of the group.
        level: coverage of the Wilson intervals, which are clustered by ``prompt_id`` where there is one.

    Returns:
        The columns of ``by``, then ``share``, ``low``, ``high``, ``failed``, ``n``; no row for a kind of failure that
        never happened.

    Raises:
        BiasError: no rows, or a missing column.
    """
    table = rankings.reset_index(drop=True)
    failed = ~table.index.isin(valid(table).index)
    if table.empty:
        raise BiasError("there are no rows: nothing can be said about failures")
    names = [by] if isinstance(by, str) else list(by)
    groups = [name for name in names if name != "error"]
    kinds = _kinds(table, failed) if "error" in names else failed.astype(str)
    prompt = table["prompt_id"].astype(str) if "prompt_id" in table.columns else table.index
    frame = pd.DataFrame({name: _column(table, name) for name in groups}, index=table.index)
    rows = []
    for key, part in frame.groupby(groups, dropna=False) if groups else [((), frame)]:
        for kind in sorted(set(kinds[failed])) if "error" in names else ["True"]:
            hit = kinds[part.index] == kind
            share = share_interval(hit, prompt[part.index], level)
            values = dict(zip(groups, key, strict=True)) | {"error": kind}
            given = [values[name] for name in names]
            rows.append((*given, share.value, share.low, share.high, int(hit.sum()), len(hit)))
    return pd.DataFrame(rows, columns=[*names, "share", "low", "high", "failed", "n"])


def _kinds(table: pd.DataFrame, failed: NDArray[np.bool_]) -> NDArray[Any]:
    """The kind of each row's failure; empty where there is none."""
    if "error" not in table.columns:
        raise BiasError("the rankings lack error: it should say why a row has no ranking")
    said = table["error"].where(table["error"].notna(), "").astype(str).str.partition(":")[0].str.strip()
    return np.where(failed, said.replace("", "no reason given"), "")


def _column(table: pd.DataFrame, name: str) -> pd.Series:
    """A column to group by, or the number of answers shown."""
    if name in table.columns:
        return table[name]
    listed = next((column for column in ("models", *ANSWERS) if column in table.columns), None)
    if name != "k" or listed is None:
        raise BiasError(f"the rankings lack {name}: they have {', '.join(map(str, table.columns))}")
    return table[listed].map(len)
