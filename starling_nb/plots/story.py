"""A whole run in one picture: the judge and its places, the reward model, the policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from starling_nb.plots.style import COLOURS, INK, MUTED, Picture, PlotError, errors, name_rows, rows, styled

JUDGES = {"naive": "plain prompt", "final": "pairs first, random order"}
SCORERS = {"k_wise": "K-wise", "pairwise": "pairwise", "surface": "surface only", "longest": "longest answer"}
METHODS = {"apa": "APA", "ppo": "PPO", "p3o": "P3O", "dpo": "DPO"}


@styled
def story(metrics: Mapping[str, Mapping[str, Any]], judge: str) -> Figure:
    """First places by shown position, pairs ordered as the judge does, change of quality by method; 95 % intervals.

    Args:
        metrics: a run's ``metrics.json``: id -> value, low, high, n.
        judge: who judged, for the first panel's title; say here where it is simulated.

    Raises:
        PlotError: the run lacks a panel's numbers.
    """
    fig = Picture(figsize=(11.4, 3.5), layout="constrained")
    places, accuracy, quality = fig.subplots(1, 3)
    _places(places, metrics)
    places.set_title(f"The judge ({judge}):\nranked best, by shown place")
    _dots(accuracy, _table(metrics, "03.{}.pairwise_accuracy", SCORERS))
    accuracy.set_title("The reward model:\npairs ordered as the judge orders them")
    accuracy.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if ceiling := metrics.get("03.ceiling.pairwise_accuracy"):
        accuracy.axvline(ceiling["value"], color=MUTED, linestyle="--", linewidth=1.2)
        accuracy.annotate("as far as one ranking allows", (ceiling["value"], 3.4), ha="right", fontsize=8, color=INK)
    _dots(quality, _table(metrics, "04.{}.rubric", METHODS))
    quality.axvline(0, color=MUTED, linestyle="--", linewidth=1.2)
    quality.set_title("The policy: change from the start,\nrubric of 1 to 10")
    return fig


def _table(metrics: Mapping[str, Mapping[str, Any]], id: str, names: Mapping[str, str]) -> pd.DataFrame:
    found = {label: metrics[id.format(name)] for name, label in names.items() if id.format(name) in metrics}
    if not found:
        raise PlotError(f"the run has no number {id.format(next(iter(names)))}: run its notebook first")
    return pd.DataFrame(found).T


def _places(ax: Axes, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Bars side by side, one colour a prompt; the line is fair."""
    numbers = {str(place): str(place) for place in range(1, 8)}
    for i, (name, label) in enumerate(JUDGES.items()):
        table = _table(metrics, f"02.first_place.{name}.{{}}", numbers)
        at = table.index.astype(int) + 0.4 * (i - 0.5)
        ax.bar(at, table["value"].astype(float), width=0.38, color=COLOURS[i], label=label)
        errors(ax, at, table, "value", INK)
    ax.axhline(1 / len(table), color=MUTED, linestyle="--", linewidth=1.2)
    ax.set(xlabel="shown place", xticks=table.index.astype(int))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend()


def _dots(ax: Axes, table: pd.DataFrame) -> None:
    rows(ax, table, "value", COLOURS[: len(table)])
    name_rows(ax, list(table.index))
