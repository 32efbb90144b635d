"""03: reward models from rankings (model, packing, training, metrics)."""

from starling_nb.reward.model import RewardError, RewardModel

__all__ = ["RewardError", "RewardModel"]
