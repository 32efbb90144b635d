"""What data sets are made of, and how models compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from starling_nb.plots.style import (
    CARD,
    COLOURS,
    GRID,
    INK,
    MUTED,
    Picture,
    PlotError,
    cycle,
    errors,
    name_rows,
    need,
    rows,
    shared_legend,
    styled,
)

RESULTS = {
    "mt_bench": "MT-Bench (1 to 10)",
    "alpaca_eval": "AlpacaEval (win rate, %)",
    "mmlu": "MMLU (accuracy, %)",
}


@styled
def radar(scores: Mapping[str, Mapping[str, float]], limits: tuple[float, float] = (0, 10)) -> Figure:
    """Scores by category on a wheel, one line a model: ``model -> category -> value``."""
    if not scores or any(set(row) != set(next(iter(scores.values()))) for row in scores.values()):
        raise PlotError("a radar needs at least one model, and the same categories for every model")
    categories = list(next(iter(scores.values())))
    angles = np.linspace(0, 2 * np.pi, len(categories), endpoint=False)
    fig = Picture(figsize=(8, 5), layout="constrained")
    ax: Any = fig.subplots(subplot_kw={"projection": "polar"})
    for colour, (name, row) in zip(cycle(), scores.items(), strict=False):
        values = [row[category] for category in categories]
        ax.plot([*angles, angles[0]], [*values, values[0]], color=colour, linewidth=2, label=name)
        ax.fill(angles, values, color=colour, alpha=0.06)
    ax.set(theta_offset=np.pi / 2, theta_direction=-1, ylim=limits)
    ax.set_xticks(angles, categories)
    for tick, angle in zip(ax.get_xticklabels(), angles, strict=True):
        tick.set_horizontalalignment("center" if abs(np.sin(angle)) < 0.1 else "left" if angle < np.pi else "right")
    ax.grid(True, color=GRID)
    ax.tick_params(axis="x", pad=4)
    ax.tick_params(axis="y", labelcolor=MUTED, labelsize=8)
    return shared_legend(fig, [ax], loc="outside right upper", columns=1)


@styled
def results_table(published: pd.DataFrame, ours: pd.DataFrame) -> Figure:
    """Published results and, set apart below, ours: from another judge, other questions, other models.

    Args:
        published: ``model, mt_bench, alpaca_eval, mmlu``; NaN where there is none.
        ours: ``model`` and any of these metrics, each with or without ``<metric>_low`` and ``<metric>_high``.
    """
    need(published, "model", *RESULTS)
    need(ours, "model")
    both = pd.concat([published, ours], ignore_index=True)
    own = np.arange(len(both)) >= len(published)
    places = np.arange(len(both)) + 1.2 * own
    fig = Picture(figsize=(10.5, 1.4 + 0.32 * len(both)), layout="constrained")
    axes = fig.subplots(1, len(RESULTS), sharey=True)
    for ax, metric in zip(axes, RESULTS, strict=True):
        _bars(ax, both, metric, places, own)
        ax.axhline(len(published) + 0.1, color=MUTED, linewidth=0.8)
    axes[0].set_yticks(places, both["model"])
    axes[0].invert_yaxis()
    theirs = Patch(color=COLOURS[0], label="published")
    mine = Patch(facecolor=COLOURS[1], hatch="///", edgecolor=CARD, label="ours: other judge, other scale")
    fig.legend(handles=[theirs, mine], loc="outside upper right", ncols=2)
    return fig


def _bars(ax: Axes, table: pd.DataFrame, metric: str, places: NDArray[np.float64], own: NDArray[np.bool_]) -> None:
    """One metric's bars, ours hatched, each with its interval where known and its value behind it."""
    values = table[metric].astype(float)
    bars = ax.barh(places, values.fillna(0), color=np.where(own, COLOURS[1], COLOURS[0]), height=0.7)
    for i in np.flatnonzero(own):
        bars[i].set(hatch="///", edgecolor=CARD)
    low, high = (table.get(f"{metric}_{end}", values * np.nan).astype(float) for end in ("low", "high"))
    errors(ax, places, table.assign(low=low, high=high), metric, INK, horizontal=True)
    ends = high.fillna(values).fillna(0)
    for place, value, end in zip(places, values, ends, strict=True):
        text = "–" if np.isnan(value) else f"{value:.4g}"
        ax.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set(title=RESULTS[metric], xlim=(0, 1.18 * max(ends.max(), 1e-9)))
    ax.grid(axis="x")


@styled
def composition(df: pd.DataFrame) -> Figure:
    """What a data set is made of: ``kind, name, count``; one panel a kind, sorted bars with their counts."""
    need(df, "kind", "name", "count")
    kinds = list(df["kind"].unique())
    tallest = int(df.groupby("kind").size().max())
    fig = Picture(figsize=(4.2 * len(kinds), 1 + 0.3 * tallest), layout="constrained")
    for ax, kind in zip(np.atleast_1d(fig.subplots(1, len(kinds))), kinds, strict=True):
        part = df[df["kind"] == kind].sort_values("count", ascending=False, kind="stable")
        bars = ax.barh(np.arange(len(part)), part["count"], color=COLOURS[0], height=0.72)
        ax.bar_label(bars, [f"{count:,}" for count in part["count"]], padding=3, fontsize=8)
        ax.set(title=kind, xlim=(0, 1.2 * part["count"].max()), xticks=[], ylim=(tallest - 0.4, -0.6))
        ax.set_yticks(np.arange(len(part)), part["name"])
        ax.spines["bottom"].set_visible(False)
        ax.grid(False)
    return fig


@styled
def mean_rank_by_model(df: pd.DataFrame, best: float = 1.0) -> Figure:
    """Mean rank of each answering model, best on top: ``model, mean_rank, low, high``, optionally ``n``."""
    need(df, "model", "mean_rank", "low", "high")
    table = df.sort_values("mean_rank", kind="stable").reset_index(drop=True)
    fig = Picture(figsize=(7, 1.2 + 0.34 * len(table)), layout="constrained")
    ax = fig.subplots()
    rows(ax, table, "mean_rank", [COLOURS[0]] * len(table))
    names = [f"{row.model} (n = {row.n:,})" if "n" in table else row.model for row in table.itertuples()]
    ax.set_xlabel(f"mean rank ({best:g} is best)")
    name_rows(ax, names)
    return fig
