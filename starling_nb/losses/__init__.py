"""Every training objective, as a pure function of tensors.

Rankings (:mod:`~starling_nb.losses.ranking`): ``k_wise``, ``plackett_luce_nll``, ``pairwise``.
Policies and critics (:mod:`~starling_nb.losses.policy`): ``apa``, ``ppo``, ``rloo``, ``p3o``, ``dpo``, ``c_rlft``,
``value``, ``gae``, ``whiten``, ``masked_mean``, ``kl_k1``, ``kl_k3``.

Half-precision inputs are computed in float32; float64 stays float64. Masks are true where a number counts,
and what stands elsewhere has no influence, not even when it is NaN.
"""

from __future__ import annotations

from starling_nb.losses.policy import (
    apa,
    c_rlft,
    dpo,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    p3o,
    ppo,
    rloo,
    value,
    whiten,
)
from starling_nb.losses.precision import LossError
from starling_nb.losses.ranking import k_wise, pairwise, plackett_luce_nll

__all__ = [
    "LossError",
    "apa",
    "c_rlft",
    "dpo",
    "gae",
    "k_wise",
    "kl_k1",
    "kl_k3",
    "masked_mean",
    "p3o",
    "pairwise",
    "plackett_luce_nll",
    "ppo",
    "rloo",
    "value",
    "whiten",
]
