"""The one style of all figures, how they are saved, and the parts that they share.

Colours are seaborn's colour-blind palette on a light card, which reads the same on white and on dark pages.
"""

from __future__ import annotations

import io
import itertools
import json
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from starling_nb import files
from starling_nb.errors import StarlingError

CARD, INK, GRID, MUTED = "#fbfaf7", "#22262b", "#dcdad3", "#8a8f96"
COLOURS = sns.color_palette("colorblind", 10).as_hex()
STYLE: dict[str, Any] = {
    "figure.facecolor": CARD,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.10,
    "savefig.facecolor": CARD,
    "axes.facecolor": CARD,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "grid.color": GRID,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.framealpha": 0.0,
    "legend.fontsize": 9,
}
DPI = 150
INCH = 96
"""CSS pixels: as large as a page shows it."""
LETTERS = 10
"""Letters of a title to an inch."""
P = ParamSpec("P")


class PlotError(StarlingError, ValueError):
    """A table that cannot be drawn."""


class Picture(Figure):
    """A figure that notebooks show without any plotting backend.

    ``caption`` is what somebody is told who cannot see it; :meth:`starling_nb.stage.Stage.figure` sets it.
    """

    caption = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
        return _png(self, {}), {"alt": self.caption or self._words(), "width": round(self.get_figwidth() * INCH)}

    def _words(self) -> str:
        """Its titles, where nobody gave a caption."""
        titles = [self.get_suptitle(), *(ax.get_title(loc) for ax in self.axes for loc in ("left", "center"))]
        return "; ".join(dict.fromkeys(title.replace("\n", ", ") for title in titles if title)) or "figure"


def save(fig: Figure, path: Path, provenance: Mapping[str, Any]) -> None:
    """Write ``fig`` as PNG, atomically, with ``provenance`` as JSON in the file's ``Description``.

    Equal figures give equal bytes under one version of matplotlib and Pillow: no date and no software name are stored.

    Raises:
        StarlingError: the file cannot be written.
    """
    description = json.dumps(provenance, sort_keys=True, ensure_ascii=True)
    files.write_bytes(Path(path), _png(fig, {"Description": description}))


def _png(fig: Figure, metadata: Mapping[str, str]) -> bytes:
    """128 colours are all that a chart needs: a third of the bytes in notebooks, reports and folders."""
    stream, small, notes = io.BytesIO(), io.BytesIO(), PngInfo()
    with _style():
        fig.savefig(stream, format="png", dpi=DPI)
    for key, text in metadata.items():
        notes.add_text(key, text)
    picture = Image.open(stream).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(small, "png", optimize=True, pnginfo=notes, dpi=(DPI, DPI))
    return small.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: dict[Any, Any] = {
            **sns.axes_style("whitegrid"),
            **sns.plotting_context("notebook"),
            **STYLE,
        }
        mpl.rcParams.update(settings)
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in this module's style whatever the caller's settings are, and leave those as they were."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return wrapper


def need(df: pd.DataFrame, *columns: str) -> None:
    """Raise a :class:`PlotError` unless ``df`` has rows and these columns."""
    missing = [name for name in columns if name not in df.columns]
    if missing or df.empty:
        problem = f"lacks {', '.join(missing)}" if missing else "is empty"
        raise PlotError(f"the table {problem}: this figure draws {', '.join(columns)}")


def letters_on(colour: str) -> str:
    """The colour of letters on a ground of ``colour``: light or black, whichever stands out more (WCAG 2)."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    luminance = float(np.dot(parts, (0.2126, 0.7152, 0.0722)))
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else CARD


def cycle() -> Iterator[str]:
    """The palette, for ever."""
    return itertools.cycle(COLOURS)


def panels(
    items: Collection[Any], title: str, columns: int = 2, size: tuple[float, float] = (4.4, 2.9)
) -> tuple[Picture, list[Axes]]:
    """A grid with one panel an item; further panels of the last row stay invisible."""
    if not items:
        raise PlotError("there is nothing to draw: give at least one panel")
    columns = min(columns, len(items))
    rows = -(-len(items) // columns)
    fig = Picture(figsize=(size[0] * columns, size[1] * rows + 0.3), layout="constrained")
    axes = list(np.atleast_1d(fig.subplots(rows, columns)).flat)
    for ax in axes[len(items) :]:
        ax.set_visible(False)
    if title:
        fig.suptitle(textwrap.fill(title, int(LETTERS * size[0] * columns)), x=0.01, ha="left", fontsize=12)
    return fig, axes[: len(items)]


def errors(ax: Axes, places: Any, table: pd.DataFrame, column: str, colour: Any, horizontal: bool = False) -> None:
    """Interval bars from ``low`` to ``high`` about ``column``; none where they are not known."""
    value = table[column].astype(float).to_numpy()
    low, high = table["low"].astype(float).to_numpy(), table["high"].astype(float).to_numpy()
    known = np.isfinite(low) & np.isfinite(high) & np.isfinite(value)
    at, value = np.asarray(places, float)[known], value[known]
    reach = np.clip([value - low[known], high[known] - value], 0, None)
    style = {"fmt": "none", "ecolor": colour, "elinewidth": 1.6, "capsize": 3}
    ax.errorbar(value, at, xerr=reach, **style) if horizontal else ax.errorbar(at, value, yerr=reach, **style)


def rows(
    ax: Axes,
    table: pd.DataFrame,
    column: str,
    colours: list[str],
    shift: float = 0.0,
    text: bool = True,
    label: str | None = None,
) -> None:
    """One dot with its interval a row, its value written above it."""
    places = np.arange(len(table)) + shift
    for place, colour, (_, row) in zip(places, colours, table.iterrows(), strict=True):
        errors(ax, [place], row.to_frame().T, column, colour, horizontal=True)
    ax.scatter(table[column].astype(float), places, c=colours, s=36, zorder=3, label=label)
    for place, value in zip(places, table[column].astype(float), strict=True):
        if text and np.isfinite(value):
            at: dict[str, Any] = {
                "xytext": (0, 5),
                "textcoords": "offset points",
                "ha": "center",
                "fontsize": 8,
            }
            ax.annotate(f"{value:.3g}", (value, place), **at)
    ax.grid(axis="x")


def name_rows(ax: Axes, names: list[str]) -> None:
    """Names down the left side, the first on top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.6)


def legend(ax: Axes) -> None:
    """A legend where there is something to tell apart."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend()


def shared_legend(fig: Figure, axes: list[Axes], loc: Any = "outside upper right", columns: int = 6) -> Figure:
    """One legend for all panels, outside them."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
        if own := ax.get_legend():
            own.remove()
    if found:
        fig.legend(list(found.values()), list(found), loc=loc, ncols=min(columns, len(found)))
    return fig
