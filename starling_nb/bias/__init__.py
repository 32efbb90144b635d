"""02: what the shown position does to a ranking: first places, mean ranks, effects over the whole ranking."""

from starling_nb.bias.effects import (
    BiasError,
    PositionEffects,
    first_place_share,
    first_place_test,
    mean_rank,
    position_by_rank,
    position_effects,
    share_from_counts,
)
from starling_nb.bias.panels import bias_difference, published_first_place, read_logs

__all__ = [
    "BiasError",
    "PositionEffects",
    "bias_difference",
    "first_place_share",
    "first_place_test",
    "mean_rank",
    "position_by_rank",
    "position_effects",
    "published_first_place",
    "read_logs",
    "share_from_counts",
]
