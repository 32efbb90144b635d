"""Every figure of the notebooks, drawn in one style with seaborn and matplotlib.

Points and bars carry their intervals, axes their units. Figures are plain objects: nothing is kept in global
state, and a notebook shows the one that a cell returns. :func:`save` writes the same bytes for the same data.
"""

from __future__ import annotations

from starling_nb.plots.comparisons import cures
from starling_nb.plots.goodhart import goodhart
from starling_nb.plots.positions import (
    agreement_by_distance,
    effects_forest,
    four_panels,
    mean_rank_by_position,
    placements,
    position_effects,
)
from starling_nb.plots.results import composition, mean_rank_by_model, radar, results_table
from starling_nb.plots.scaling import memory_plan, phase_plan
from starling_nb.plots.story import story
from starling_nb.plots.style import PlotError, save, styled
from starling_nb.plots.training import accuracy_table, before_after, lines, loss_curves, training_curves

__all__ = [
    "PlotError",
    "accuracy_table",
    "agreement_by_distance",
    "before_after",
    "composition",
    "cures",
    "effects_forest",
    "four_panels",
    "goodhart",
    "lines",
    "loss_curves",
    "mean_rank_by_model",
    "mean_rank_by_position",
    "memory_plan",
    "phase_plan",
    "placements",
    "position_effects",
    "radar",
    "results_table",
    "save",
    "story",
    "styled",
    "training_curves",
]
