"""Measures over divergence: where what is optimised and what judges part."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from starling_nb.plots.style import COLOURS, INK, PlotError, need, panels, shared_legend, styled

NAMES = {"proxy": "proxy", "other": "other reward model", "judge": "judge", "rubric": "rubric"}


@styled
def goodhart(df: pd.DataFrame, stops: Mapping[tuple[str, str], str] | None = None, unit: str = "SD") -> Figure:
    """Gains over the start by √KL, a panel a way of optimising, a colour a measure; dashed: the fitted curves.

    Args:
        df: ``way, measure, d, gain, low, high, fitted``, and ``point`` to name the points.
        stops: (way, measure) → the monitor's words, shown in the panel's legend.
        unit: of the gains.
    """
    need(df, "way", "measure", "point", "d", "gain", "low", "high", "fitted")
    if not (df["d"] > 0).all():
        raise PlotError("√KL of a point has to be above 0: leave the start out, it is drawn anyway")
    ways, measures = list(df["way"].unique()), list(df["measure"].unique())
    fig, axes = panels(ways, "", columns=2, size=(5.4, 3.9))
    for ax, way in zip(axes, ways, strict=True):
        for colour, measure in zip(COLOURS, measures, strict=False):
            own = df[(df["way"] == way) & (df["measure"] == measure)].sort_values("d")
            if own.empty:
                continue
            d, gain, fitted, low, high = ([0.0, *own[c]] for c in ("d", "gain", "fitted", "low", "high"))
            ax.plot(d, gain, marker="o", markersize=4, color=colour, label=NAMES.get(measure, measure))
            ax.fill_between(d, low, high, color=colour, alpha=0.13)
            ax.plot(d, fitted, color=colour, linestyle="--", linewidth=1)
        ax.axhline(0, color=INK, linewidth=0.6)
        said = [f"{NAMES.get(m, m)}: {text}" for (name, m), text in (stops or {}).items() if name == way]
        ax.set(
            title="\n".join([way, *said]), xlabel="√KL from the start (√nats)", ylabel=f"gain over the start ({unit})"
        )
        ax.title.set_fontsize(9)
    return shared_legend(fig, axes)
