"""What a large run holds and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from starling_nb.plots.style import CARD, COLOURS, INK, MUTED, Picture, letters_on, need, shared_legend, styled

TIMES = {"sampling": "while sampling", "learning": "while learning"}
SHADES = [COLOURS[i] for i in (0, 1, 2, 4, 3, 5, 9, 6, 8)] + ["#3d4f5c", "#b9a37e", MUTED]


@styled
def memory_plan(df: pd.DataFrame, rooms: Mapping[str, float]) -> Figure:
    """What a training card holds while sampling and while learning, a panel a profile, a colour a component.

    Args:
        df: ``profile, component, when, gigabytes``; ``when`` is always, sampling or learning.
        rooms: gigabytes of the card, by profile.
    """
    need(df, "profile", "component", "when", "gigabytes")
    names = list(df["profile"].unique())
    shades = dict(zip(df["component"].unique(), SHADES, strict=False))
    fig = Picture(figsize=(9.5, 0.7 + 1.3 * len(names)), layout="constrained")
    axes = list(np.atleast_1d(fig.subplots(len(names), 1)))
    for ax, name in zip(axes, names, strict=True):
        own, ends = df[df["profile"] == name], np.zeros(len(TIMES))
        own = own.iloc[np.argsort(own["when"] != "always", kind="stable")]
        for component, when, size in own[["component", "when", "gigabytes"]].itertuples(index=False):
            sizes = np.array([size if when in ("always", time) else 0.0 for time in TIMES])
            ax.barh([0, 1], sizes, left=ends, color=shades[component], edgecolor=CARD, height=0.72, label=component)
            ends += sizes
        for place, end in enumerate(ends):
            ax.annotate(f"{end:.3g} GB", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        near = rooms[name] < 2.5 * ends.max()
        if near:
            ax.axvline(rooms[name], color=INK, linestyle="--", linewidth=1.2)
        ax.set(xlim=(0, 1.06 * rooms[name] if near else 1.25 * ends.max()))
        ax.set(title=f"{name}: {rooms[name]:.3g} GB are there")
        ax.set_yticks([0, 1], TIMES.values())
        ax.invert_yaxis()
        ax.grid(axis="x")
        ax.grid(False, axis="y")
    axes[-1].set_xlabel("GB on a training card")
    return shared_legend(fig, axes, "outside right upper", columns=1)


@styled
def phase_plan(df: pd.DataFrame, phases: list[str]) -> Figure:
    """How a set of rollouts divides its time: ``profile``, seconds in one column a phase, ``hours``, ``dollars``."""
    need(df, "profile", "hours", "dollars", *phases)
    fig = Picture(figsize=(9.5, 1.3 + 0.5 * len(df)), layout="constrained")
    ax = fig.subplots()
    places, whole, ends = np.arange(len(df)), df[phases].sum(axis=1).to_numpy(), np.zeros(len(df))
    for colour, phase in zip(COLOURS, phases, strict=False):
        shares = 100 * df[phase].to_numpy() / whole
        ax.barh(places, shares, left=ends, color=colour, edgecolor=CARD, height=0.66, label=phase)
        for place, share, end in zip(places, shares, ends, strict=True):
            if share >= 6:
                middle, ink = (end + share / 2, place), letters_on(colour)
                ax.annotate(f"{share:.0f} %", middle, ha="center", va="center", color=ink, fontsize=8)
        ends += shares
    for place, seconds, hours, dollars in zip(places, whole, df["hours"], df["dollars"], strict=True):
        told = f"{seconds:,.0f} s a set, {hours:.1f} h in all" + (f", ${dollars:,.0f}" if dollars else "")
        ax.annotate(told, (100, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set(xlim=(0, 142), xticks=range(0, 101, 20))
    ax.set_xlabel("share of the time of a set of rollouts, %", x=50 / 142)
    ax.set_yticks(places, df["profile"])
    ax.invert_yaxis()
    ax.grid(False)
    ax.spines["bottom"].set_bounds(0, 100)
    return shared_legend(fig, [ax], "outside upper left")
