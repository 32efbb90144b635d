"""Intervals and tests. Every reported mean has an interval; answers to one prompt are resampled together.

``means``: means and paired differences · ``shares``: win rates, accuracies and their changes · ``testing``: tests by
relabelling, agreement of orders · ``clustered``: how far few clusters can be trusted. Randomness comes from a seed (or
a generator that is passed in), never from global state.
"""

from starling_nb.stats.interval import Interval, StatsError
from starling_nb.stats.means import crossed_interval, mean_interval, paired_difference
from starling_nb.stats.shares import proportion_interval, share_change, share_interval, wilson
from starling_nb.stats.testing import chi_square_uniform, kendall_tau, permutation_test

__all__ = [
    "Interval",
    "StatsError",
    "chi_square_uniform",
    "crossed_interval",
    "kendall_tau",
    "mean_interval",
    "paired_difference",
    "permutation_test",
    "proportion_interval",
    "share_change",
    "share_interval",
    "wilson",
]
