"""What all losses share: their error, and numbers wide enough to subtract safely."""

from __future__ import annotations

import torch
from torch import Tensor

from starling_nb.errors import StarlingError


class LossError(StarlingError, ValueError):
    """Arguments from which no loss can be computed."""


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it already is."""
    return x if x.dtype == torch.float64 else x.float()


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` widened, with zeros (and zero gradient) where ``mask`` is false, even over NaN."""
    return wide(x).masked_fill(~mask.bool(), 0.0)
