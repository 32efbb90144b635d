"""What the shown position does, one panel a judge prompt, and how far estimates and judges agree about it.

Whether a judge is real or simulated is for the caller to say, in ``title``. Where rankings differ in length a table's
column ``fair`` says what a fair judge would give; without it that is 1/K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from starling_nb import stats
from starling_nb.plots.style import (
    COLOURS,
    INK,
    cycle,
    errors,
    need,
    panels,
    shared_legend,
    styled,
)

NARROW = 8
"""Most answers with which a cell of the heat map has room for its interval."""
Array = NDArray[np.float64]


@styled
def four_panels(shares: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """How often each shown position is ranked best, one panel a judge prompt, against a fair judge's 1/K.

    Args:
        shares: name -> ``position, share, low, high, n`` (:func:`starling_nb.bias.first_place_share`), and ``p`` where
            another test than chi-square on independent rows is to stand over the panel.
        title: over all panels; say here whether the judge is real or simulated.

    Raises:
        PlotError: nothing to draw or a missing column.
    """
    fig, axes = panels(shares, title)
    for ax, (name, table) in zip(axes, shares.items(), strict=False):
        need(table, "position", "share", "low", "high", "n")
        ax.bar(table["position"] + 1, table["share"], color=COLOURS[0], width=0.72)
        errors(ax, table["position"] + 1, table, "share", INK)
        _fair_line(ax, table, 1 / len(table))
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


@styled
def placements(tables: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """How much likelier than fair each rank is at each shown position, one panel a judge prompt.

    Cells hold the share less the fair one in percentage points, with its interval where there is room; bold where the
    interval leaves out zero.

    Args:
        tables: name -> ``position, rank, share, low, high`` (:func:`starling_nb.bias.placements`), optionally ``fair``.
        title: over all panels.

    Raises:
        PlotError: as :func:`four_panels`.
    """
    largest = max((int(table["position"].max()) + 1 for table in tables.values() if len(table)), default=1)
    side = min(11.0, 1.6 + (0.66 if largest <= NARROW else 0.42) * largest)
    fig, axes = panels(tables, title, size=(side + 0.4, 0.6 + side * 0.78))
    gaps = {name: _gaps(table) for name, table in tables.items()}
    reach = max(1.0, *(float(np.nanmax(np.abs(gap[0]))) for gap in gaps.values()))
    for ax, (name, (value, low, high)) in zip(axes, gaps.items(), strict=True):
        ax.imshow(value, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -reach, reach), aspect="auto")
        for (row, column), number in np.ndenumerate(value):
            ends = (float(low[row, column]), float(high[row, column]))
            _cell(ax, row, column, float(number), ends, reach, len(value) <= NARROW)
        ticks = range(len(value))
        ax.set(title=name, xlabel="rank (0 is best)", ylabel="shown position (1 is first)", xticks=ticks, yticks=ticks)
        ax.set_yticklabels([str(place + 1) for place in ticks])
        ax.grid(False)
    fig.colorbar(axes[0].images[0], ax=axes, label="percentage points over fair", shrink=0.8, pad=0.02)
    return fig


def _gaps(table: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Share less fair and the ends of its interval ``[position, rank]``, in percentage points."""
    need(table, "position", "rank", "share", "low", "high")
    width = int(table["position"].max()) + 1
    fair = table["fair"] if "fair" in table else pd.Series(1 / width, table.index)
    found = np.full((3, width, width), np.nan)
    for layer, column in zip(found, ("share", "low", "high"), strict=True):
        layer[table["position"], table["rank"]] = 100 * (table[column] - fair)
    return found[0], found[1], found[2]


def _cell(ax: Axes, row: int, column: int, value: float, ends: tuple[float, float], reach: float, room: bool) -> None:
    """The numbers of one cell."""
    if not np.isfinite(value):
        return
    sure = ends[0] > 0 or ends[1] < 0
    style: dict[str, Any] = {"ha": "center", "color": "white" if abs(value) > 0.6 * reach else INK}
    weight = "bold" if sure else "normal"
    if room and np.isfinite(ends).all():
        ax.text(column, row - 0.02, _points(value), va="bottom", fontsize=9, fontweight=weight, **style)
        ax.text(column, row + 0.1, f"{_points(ends[0])} to {_points(ends[1])}", va="top", fontsize=6, **style)
    else:
        ax.text(column, row, _points(value), va="center", fontsize=7, fontweight=weight, **style)


def _points(value: float) -> str:
    """Whole percentage points with their sign."""
    whole = round(value)
    return f"{whole:+d}".replace("-", "−") if whole else "0"


@styled
def effects_forest(estimates: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Several estimates of the position effects side by side, each with its intervals; zero is fair.

    Args:
        estimates: name -> ``position, effect, low, high``, and ``panel`` where there are several panels.
        title: over all panels.

    Raises:
        PlotError: as :func:`four_panels`.
    """
    parts: dict[str, dict[str, pd.DataFrame]] = {}
    for name, table in estimates.items():
        need(table, "position", "effect", "low", "high")
        for panel, part in table.groupby("panel", sort=False) if "panel" in table else [("", table)]:
            parts.setdefault(str(panel), {})[name] = part
    fig, axes = panels(parts, title, size=(4.6, 3.4))
    colours = dict(zip(estimates, cycle(), strict=False))
    for ax, (panel, tables) in zip(axes, parts.items(), strict=True):
        for shift, (name, table) in zip(_shifts(len(tables)), tables.items(), strict=True):
            at = table["position"] + 1 + shift
            errors(ax, at, table, "effect", colours[name])
            ax.plot(at, table["effect"], "o", color=colours[name], markersize=4, label=name)
        ax.axhline(0.0, color=INK, linestyle="--", linewidth=1.2)
        ax.set_title(panel)
    columns = 2 * min(2, len(axes))
    return shared_legend(_finish_positions(fig, axes, "effect (logits)"), axes, "outside lower center", columns)


def _shifts(number: int) -> Array:
    """Where ``number`` marks stand about one place."""
    return np.asarray((np.arange(number) - (number - 1) / 2) * min(0.16, 0.7 / max(1, number)))


@styled
def agreement_by_distance(tables: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """How often verdicts on two answers alone follow the ranking of all, by how far apart the two are; half is chance.

    Args:
        tables: name -> ``by, distance, share, low, high`` (:func:`starling_nb.bias.reliability.pair_agreement`).
        title: over both panels.

    Raises:
        PlotError: as :func:`four_panels`.
    """
    labels = {"rank": "distance in the ranking", "shown": "distance in the shown list"}
    fig, axes = panels(labels if tables else {}, title, size=(4.6, 3.4))
    for shift, colour, (name, table) in zip(_shifts(len(tables)), cycle(), tables.items(), strict=False):
        need(table, "by", "distance", "share", "low", "high")
        for ax, by in zip(axes, labels, strict=True):
            part = table[table["by"] == by]
            errors(ax, part["distance"] + shift, part, "share", colour)
            ax.plot(part["distance"] + shift, part["share"], "o-", color=colour, linewidth=1, label=name)
    furthest = max(int(table["distance"].max()) for table in tables.values())
    lowest = min(0.45, *(ax.get_ylim()[0] for ax in axes))
    for ax, label in zip(axes, labels.values(), strict=True):
        ax.axhline(0.5, color=INK, linestyle="--", linewidth=1.2)
        ax.set(xlabel=label, ylabel="verdicts that agree", xlim=(0.5, furthest + 0.5), ylim=(lowest, 1.0))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return shared_legend(fig, axes, "outside lower center", columns=4)


def _position_points(tables: Mapping[str, pd.DataFrame], column: str, label: str, fair: float, title: str) -> Figure:
    fig, axes = panels(tables, title)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        need(table, "position", column, "low", "high")
        errors(ax, table["position"] + 1, table, column, COLOURS[0])
        ax.plot(table["position"] + 1, table[column], "o-", color=COLOURS[0], linewidth=1)
        _fair_line(ax, table, fair)
        ax.set_title(name)
    return _finish_positions(fig, axes, label)


def _fair_line(ax: Axes, table: pd.DataFrame, fair: float) -> None:
    """The fair value: one line, or a step a position where rankings differ in length."""
    style: dict[str, Any] = {"color": COLOURS[3], "linestyle": "--", "linewidth": 1.5}
    own = table["fair"].to_numpy(float) if "fair" in table else np.array([fair])
    if np.ptp(own) < 1e-9:
        ax.axhline(own[0], **style)
        return
    for place, value in zip(table["position"] + 1, own, strict=True):
        ax.plot([place - 0.45, place + 0.45], [value, value], **style)


def _finish_positions(fig: Figure, axes: list[Axes], label: str) -> Figure:
    """One scale for all panels, and axis labels where they are needed."""
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set(ylim=(low, high), xlabel="shown position (1 is first)", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return fig


def _fairness(table: pd.DataFrame) -> str:
    """The line over a panel: the p-value that came with the table, else chi-square where all rows have one length."""
    n = f"n = {int(table['n'].max()):,}"
    if "p" in table:
        return f"{n}, {_chance(float(table['p'].iloc[0]))}"
    if table["n"].nunique() > 1:
        return n
    chi2, p = stats.chi_square_uniform((table["share"] * table["n"]).round())
    return f"{n}, χ² = {chi2:.3g}, {_chance(p)}"


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
