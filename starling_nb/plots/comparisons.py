"""Cures of position bias side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from starling_nb.plots.style import COLOURS, PlotError, name_rows, need, panels, rows, shared_legend, styled


@styled
def cures(
    table: pd.DataFrame,
    metric: str,
    title: str = "",
    label: str = "",
    references: Sequence[str] = ("fair judge", "random order"),
) -> Figure:
    """One number for every cure of position bias, one panel a judge and one row a cure, with intervals.

    Args:
        table: ``judge, cure, metric, value, low, high`` (:func:`starling_nb.bias.cures.compare`).
        metric: which rows to draw.
        title: over all panels; say here whether the judges are real or simulated.
        label: of the axis, by default the metric's name.
        references: cures that are no rows but lines through the panel, with their interval as a band.

    Raises:
        PlotError: a missing column, or no such metric.
    """
    need(table, "judge", "cure", "metric", "value", "low", "high")
    drawn = table[table["metric"] == metric]
    if drawn.empty:
        known = ", ".join(dict.fromkeys(table["metric"]))
        raise PlotError(f"there is no metric {metric!r} in the table: choose from {known}")
    names = [name for name in dict.fromkeys(drawn["cure"]) if name not in references]
    judges = list(dict.fromkeys(drawn["judge"]))
    columns = min(3, len(judges))
    fig, axes = panels(judges, title, columns, size=(3.4 if columns > 1 else 5.4, 1.0 + 0.24 * max(3, len(names))))
    for number, (ax, judge) in enumerate(zip(axes, judges, strict=True)):
        own = drawn[drawn["judge"] == judge].drop_duplicates("cure").set_index("cure")
        for name, colour in zip(references, (COLOURS[2], COLOURS[3], *COLOURS[4:]), strict=False):
            if name in own.index:
                ax.axvspan(own.loc[name, "low"], own.loc[name, "high"], color=colour, alpha=0.15, linewidth=0)
                ax.axvline(own.loc[name, "value"], color=colour, linestyle="--", linewidth=1.4, label=name)
        rows(ax, own.reindex(names).reset_index(), "value", [COLOURS[0]] * len(names), text=False)
        name_rows(ax, names if number % columns == 0 else [""] * len(names))
        ax.set(title=judge, xlabel=label or metric.replace("_", " "))
        ax.xaxis.set_major_locator(MaxNLocator(5))
    low, high = min(ax.get_xlim()[0] for ax in axes), max(ax.get_xlim()[1] for ax in axes)
    for ax in axes:
        ax.set_xlim(low, high)
    return shared_legend(fig, axes, "outside lower center")
