"""02: what the shown position does to a ranking: first places, mean ranks, effects over the whole ranking."""

from starling_nb.bias.effects import PositionEffects, difference, position_effects
from starling_nb.bias.panels import (
    bias_difference,
    published_first_place,
    published_ranks,
    published_tests,
    read_logs,
)
from starling_nb.bias.places import (
    OrderTest,
    first_place_share,
    first_place_test,
    mean_rank,
    mean_rank_from_counts,
    order_test,
    placements,
    position_by_rank,
    share_from_counts,
)
from starling_nb.bias.power import Need, Trends, bootstrap_errors, by_length, needed
from starling_nb.bias.reliability import Agreement, agreement, invalid_rates, pair_agreement
from starling_nb.bias.repeated import repeated_effects
from starling_nb.bias.tables import BiasError, Rankings, read, valid

__all__ = [
    "Agreement",
    "BiasError",
    "Need",
    "OrderTest",
    "PositionEffects",
    "Rankings",
    "Trends",
    "agreement",
    "bias_difference",
    "bootstrap_errors",
    "by_length",
    "difference",
    "first_place_share",
    "first_place_test",
    "invalid_rates",
    "mean_rank",
    "mean_rank_from_counts",
    "needed",
    "order_test",
    "pair_agreement",
    "placements",
    "position_by_rank",
    "position_effects",
    "published_first_place",
    "published_ranks",
    "published_tests",
    "read",
    "read_logs",
    "repeated_effects",
    "share_from_counts",
    "valid",
]
