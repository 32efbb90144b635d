"""03: reward models from rankings: comparisons, packing, scoring, training, the model, and what it is worth."""

from starling_nb.reward.model import RewardError, RewardModel

__all__ = ["RewardError", "RewardModel"]
