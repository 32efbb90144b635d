"""How training went: curves over steps, and methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from starling_nb.plots.style import (
    COLOURS,
    MUTED,
    Picture,
    PlotError,
    cycle,
    legend,
    name_rows,
    need,
    panels,
    rows,
    shared_legend,
    styled,
)

LABELS = {
    "reward": "reward",
    "kl": "KL to the start (nats an answer)",
    "length": "answer length (tokens)",
    "entropy": "entropy (nats a token)",
    "eos_rate": "share of answers that end",
    "value_loss": "critic loss",
    "policy_loss": "policy loss",
    "rubric": "rubric (1 to 10)",
    "explained": "return explained by the critic (share)",
    "sampler_gap": "sampler − trainer (nats a token)",
}


@styled
def loss_curves(df: pd.DataFrame, levels: Mapping[str, float] | None = None, unit: str = "loss (nats)") -> Figure:
    """Loss over optimiser steps, pale, and its running mean over a twelfth of the run; a band shows 95 % over seeds
    where a step occurs more than once.

    Args:
        df: ``step, loss``, optionally ``method`` (colour) and ``split`` (line style).
        levels: label -> value, drawn as horizontal lines, for example the loss of guessing.
        unit: label of the vertical axis.
    """
    need(df, "step", "loss")
    fig = Picture(figsize=(7, 4), layout="constrained")
    ax = fig.subplots()
    by = {"style": "split"} if "split" in df else {}
    palette = _palette(df) if "method" in df else None
    _curve(ax, df, "loss", palette, **by, alpha=0.25, legend=False)
    _curve(ax, _running_mean(df), "loss", palette, **by)
    for colour, (label, value) in zip(COLOURS[7:] + COLOURS, (levels or {}).items(), strict=False):
        ax.axhline(value, color=colour, linestyle=":", linewidth=1.5, label=label)
    ax.set(xlabel="optimiser step", ylabel=unit)
    legend(ax)
    return fig


@styled
def training_curves(df: pd.DataFrame, labels: Mapping[str, str] | None = None) -> Figure:
    """One small panel a metric over training steps, one colour a method; bands show 95 % over seeds.

    Args:
        df: ``step``, ``method``, optionally ``seed``, and any number of metric columns.
        labels: metric -> axis label with its unit; known metrics have one.
    """
    need(df, "step", "method")
    metrics = [name for name in df.select_dtypes("number").columns if name not in ("step", "seed")]
    fig, axes = panels(metrics, "", columns=3, size=(3.6, 2.6))
    for ax, metric in zip(axes, metrics, strict=True):
        _curve(ax, df.dropna(subset=[metric]), metric, _palette(df))
        ax.set(xlabel="step", ylabel="", title={**LABELS, **(labels or {})}.get(metric, metric))
    return shared_legend(fig, axes)


@styled
def lines(
    df: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    diagonal: bool = False,
) -> Figure:
    """Curves of ``y`` over ``x``, one a ``hue``, with a band from ``low`` to ``high`` where given.

    A ``diagonal`` marks where ``y`` equals ``x``.
    """
    need(df, x, y, *([hue] if hue else []))
    fig = Picture(figsize=(7, 4.2), layout="constrained")
    ax = fig.subplots()
    groups = df.groupby(hue, sort=False) if hue else [("", df)]
    for colour, (name, part) in zip(cycle(), groups, strict=False):
        part = part.sort_values(x)
        ax.plot(part[x], part[y], marker="o", markersize=4, color=colour, label=name or None)
        if {"low", "high"} <= set(part):
            low, high = part["low"].astype(float), part["high"].astype(float)
            ax.fill_between(part[x], low, high, color=colour, alpha=0.18)
    if diagonal:
        ax.axline((0.5, 0.5), slope=1, color=MUTED, linestyle=":", linewidth=1.2)
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y, title=title)
    legend(ax)
    return fig


@styled
def accuracy_table(df: pd.DataFrame) -> Figure:
    """Values with intervals, a row a method, a panel a metric: ``method, metric, value, low, high``."""
    need(df, "method", "metric", "value", "low", "high")
    methods, metrics = list(df["method"].unique()), list(df["metric"].unique())
    fig = Picture(figsize=(1.8 + 2.6 * len(metrics), 1.2 + 0.42 * len(methods)), layout="constrained")
    axes = np.atleast_1d(fig.subplots(1, len(metrics), sharey=True))
    for ax, metric in zip(axes, metrics, strict=True):
        part = _in_order(df[df["metric"] == metric], "method", methods)
        rows(ax, part, "value", [COLOURS[i % 10] for i in range(len(methods))])
        ax.set_title(metric)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    name_rows(axes[0], methods)
    return fig


@styled
def before_after(df: pd.DataFrame, unit: str = "mean score") -> Figure:
    """Parts of a rubric before and after tuning: ``part, when, value, low, high``, two values of ``when``."""
    need(df, "part", "when", "value", "low", "high")
    parts, stages = list(df["part"].unique()), list(df["when"].unique())
    fig = Picture(figsize=(7, 1.5 + 0.5 * len(parts)), layout="constrained")
    ax = fig.subplots()
    for i, stage in enumerate(stages):
        part = _in_order(df[df["when"] == stage], "part", parts)
        shift = 0.26 * (i - (len(stages) - 1) / 2)
        rows(ax, part, "value", [[MUTED, *COLOURS][i % 11]] * len(parts), shift, text=False, label=stage)
    ax.set_xlabel(unit)
    name_rows(ax, parts)
    return shared_legend(fig, [ax])


def _in_order(df: pd.DataFrame, column: str, names: list[str]) -> pd.DataFrame:
    """One row a name, in this order; NaN where the table has none."""
    if df[column].duplicated().any():
        name = df.loc[df[column].duplicated(), column].iloc[0]
        raise PlotError(f"two rows for {name!r}: keep one, or average them first")
    return df.set_index(column).reindex(names).reset_index()


def _palette(df: pd.DataFrame) -> dict[str, str]:
    return dict(zip(df["method"].unique(), cycle(), strict=False))


def _running_mean(df: pd.DataFrame) -> pd.DataFrame:
    """``loss`` averaged over the neighbouring steps of its own run."""
    runs = [df[column] for column in ("method", "split", "seed") if column in df] or [pd.Series(0, df.index)]
    window = max(1, df["step"].nunique() // 12)
    ordered = df.sort_values("step")
    smooth = ordered.groupby(runs)["loss"].transform(lambda loss: loss.rolling(window, 1, center=True).mean())
    return ordered.assign(loss=smooth)


def _curve(ax: Axes, df: pd.DataFrame, y: str, palette: dict[str, str] | None, **by: Any) -> None:
    """A seaborn line over steps, with a 95 % band of the standard error where steps repeat."""
    colours = {"hue": "method", "palette": palette} if palette else {"color": COLOURS[0]}
    sns.lineplot(data=df, x="step", y=y, ax=ax, errorbar=("se", 1.96), linewidth=1.6, **colours, **by)
