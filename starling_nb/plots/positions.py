"""What the shown position does, one panel a judge prompt."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from starling_nb import stats
from starling_nb.plots.style import COLOURS, INK, errors, need, panels, styled


@styled
def four_panels(shares: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """How often each shown position is ranked best, one panel a judge prompt, against a fair judge's 1/K.

    Args:
        shares: name -> ``position, share, low, high, n`` (:func:`starling_nb.bias.first_place_share`).
        title: over all panels; say here whether the judge is real or simulated.

    Raises:
        PlotError: nothing to draw or a missing column.
    """
    fig, axes = panels(shares, title)
    for ax, (name, table) in zip(axes, shares.items(), strict=False):
        need(table, "position", "share", "low", "high", "n")
        ax.bar(table["position"] + 1, table["share"], color=COLOURS[0], width=0.72)
        errors(ax, table["position"] + 1, table, "share", INK)
        ax.axhline(1 / len(table), color=COLOURS[3], linestyle="--", linewidth=1.5)
        ax.set_title(f"{name}\n{_fairness(table)}")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _finish_positions(fig, axes, "ranked best")


@styled
def position_effects(effects: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Effect of the shown position on the whole ranking, one panel a judge prompt; zero is fair.

    Args:
        effects: name -> ``position, effect, low, high`` (``starling_nb.bias.position_effects(…).effects``).
        title: over all panels.

    Raises:
        PlotError: as :func:`four_panels`.
    """
    return _position_points(effects, "effect", "effect (logits)", 0.0, title)


@styled
def mean_rank_by_position(ranks: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Mean rank (0 is best) at each shown position, one panel a judge prompt; (K - 1) / 2 is fair.

    Args:
        ranks: name -> ``position, mean_rank, low, high`` (:func:`starling_nb.bias.mean_rank`).
        title: over all panels.

    Raises:
        PlotError: as :func:`four_panels`.
    """
    fair = (max(map(len, ranks.values()), default=1) - 1) / 2
    return _position_points(ranks, "mean_rank", "mean rank (0 is best)", fair, title)


def _position_points(tables: Mapping[str, pd.DataFrame], column: str, label: str, fair: float, title: str) -> Figure:
    fig, axes = panels(tables, title)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        need(table, "position", column, "low", "high")
        errors(ax, table["position"] + 1, table, column, COLOURS[0])
        ax.plot(table["position"] + 1, table[column], "o-", color=COLOURS[0], linewidth=1)
        ax.axhline(fair, color=COLOURS[3], linestyle="--", linewidth=1.5)
        ax.set_title(name)
    return _finish_positions(fig, axes, label)


def _finish_positions(fig: Figure, axes: list[Axes], label: str) -> Figure:
    """One scale for all panels, and axis labels where they are needed."""
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set(ylim=(low, high), xlabel="shown position (1 is first)", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def _fairness(table: pd.DataFrame) -> str:
    """The chi-square line over a panel; only the counts where rows differ in length."""
    n = int(table["n"].max())
    if table["n"].nunique() > 1:
        return f"n = {n:,}"
    chi2, p = stats.chi_square_uniform((table["share"] * table["n"]).round())
    return f"n = {n:,}, χ² = {chi2:.3g}, p " + ("< 0.001" if p < 0.001 else f"= {p:.2g}")
