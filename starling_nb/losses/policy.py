"""Losses for a policy and its critic, and what they need: advantages, whitening, divergences.

Log-probabilities are in nats, one for each sampled token, ``[batch, time]``; ``mask`` is true on the answer's
tokens, its end-of-turn token included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from starling_nb.losses.precision import LossError, keep, wide


def apa(
    logprobs: Float[Tensor, "batch time"],
    anchor_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"],
    *,
    lam: float,
) -> Float[Tensor, ""]:
    """Advantage-induced policy alignment: squared distance to the target ``anchor + advantage / lam``.

    Zhu et al. 2023 (arXiv 2306.02231), the APA loss: its minimiser is pi_anchor * exp(A / lam), the
    KL-regularised optimum with its normaliser set to one. The paper anchors at the initial policy; Starling's
    released code anchors at the policy that sampled, with ``lam=1``.

    Raises:
        LossError: ``lam`` is not positive.
    """
    if not lam > 0:
        raise LossError(f"lam must be positive, got {lam}: small values trust the advantages, large ones the anchor")
    target = keep(anchor_logprobs, mask) + keep(advantages, mask) / lam
    return masked_mean((keep(logprobs, mask) - target.detach()).square(), mask)


def ppo(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"],
    *,
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """Clipped surrogate of PPO, Schulman et al. 2017 (arXiv 1707.06347, eq. 7), negated, mean over tokens."""
    ratio = (keep(logprobs, mask) - keep(old_logprobs, mask).detach()).exp()
    advantages = keep(advantages, mask).detach()
    return masked_mean(torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)), mask)


def rloo(
    logprobs: Float[Tensor, "batch answers"],
    old_logprobs: Float[Tensor, "batch answers"],
    rewards: Float[Tensor, "batch answers"],
    *,
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """REINFORCE against the mean of a prompt's other answers, Ahmadian et al. 2024 (arXiv 2402.14740), negated.

    Whole answers (sums over tokens). At the policy that sampled the gradient is the paper's; in later passes over the
    same answers the ratio is clipped as in PPO.

    Args:
        logprobs: of each answer under the policy, nats.
        old_logprobs: the same under the policy that sampled.
        rewards: scores with the KL term taken off, two answers a prompt or more.
        clip: how far the ratio may move before its gradient stops.

    Raises:
        LossError: one answer a prompt, which has nothing to be compared with.
    """
    k = rewards.shape[1]
    if k < 2:
        raise LossError("RLOO compares an answer with the prompt's others: sample two or more for each prompt")
    scores = wide(rewards).detach()
    gain = (scores - scores.mean(1, keepdim=True)) * k / (k - 1)
    ratio = (wide(logprobs) - wide(old_logprobs).detach()).exp()
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip, 1 + clip)).mean()


def p3o(
    logratios: Float[Tensor, "batch 2"],
    old_logratios: Float[Tensor, "batch 2"],
    rewards: Float[Tensor, "batch 2"],
    *,
    kl_coef: float,
    clip: float = 0.2,
    ratio_clip: float = 10.0,
    clipping: str = "joint",
) -> Float[Tensor, ""]:
    """Pairwise proximal policy optimisation on two answers to one prompt, Wu et al. 2023 (arXiv 2310.00212).

    Args:
        logratios: log pi - log pi_reference of each whole answer (sum over its tokens), nats.
        old_logratios: the same under the policy that sampled.
        rewards: scores of the two answers, without the KL term; only their difference counts.
        kl_coef: weight of the log-ratio difference inside the reward difference.
        clip: how far a (difference of) log-ratio may move before its gradient stops.
        ratio_clip: the importance weight of the pair is kept within [1 / ratio_clip, ratio_clip].
        clipping: ``"joint"`` clips the pair's difference (V2, as Starling's code), ``"separate"`` each answer
            (V1).

    Raises:
        LossError: unknown ``clipping``.
    """
    if clipping not in ("joint", "separate"):
        raise LossError(f"unknown clipping {clipping!r}: choose 'joint' or 'separate'")
    new, old = wide(logratios), wide(old_logratios).detach()
    sign = torch.tensor([1.0, -1.0], dtype=new.dtype, device=new.device)
    gap = (wide(rewards).detach() * sign).sum(1) - kl_coef * (new.detach() * sign).sum(1)
    weight = (new.detach() - old).sum(1).exp().clamp(1 / ratio_clip, ratio_clip)
    if clipping == "joint":
        new, old, push = (new * sign).sum(1), (old * sign).sum(1), gap * weight
    else:
        push = (gap * weight)[:, None] * sign
    moved = new.clamp(old - clip, old + clip)
    return torch.maximum(-push * new, -push * moved).sum() / (2 * len(gap))


def dpo(
    policy_chosen: Float[Tensor, " batch"],
    policy_rejected: Float[Tensor, " batch"],
    reference_chosen: Float[Tensor, " batch"],
    reference_rejected: Float[Tensor, " batch"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    kind: str = "sigmoid",
) -> Float[Tensor, ""]:
    """Direct preference optimisation; log-probabilities of whole answers (sums over tokens), mean over pairs.

    ``"sigmoid"``: Rafailov et al. 2023 (arXiv 2305.18290, eq. 7), with ``label_smoothing`` the chance that a
    label is flipped; ``"ipo"``: Azar et al. 2023 (arXiv 2310.12036, eq. 17).

    Raises:
        LossError: unknown ``kind``, or label smoothing with ``"ipo"``, which has none.
    """
    lead = wide(policy_chosen) - wide(policy_rejected) - wide(reference_chosen) + wide(reference_rejected)
    if kind == "sigmoid":
        smooth = label_smoothing
        return -((1 - smooth) * F.logsigmoid(beta * lead) + smooth * F.logsigmoid(-beta * lead)).mean()
    if kind != "ipo" or label_smoothing:
        raise LossError(
            f"kind={kind!r}, label_smoothing={label_smoothing}: choose 'sigmoid', or 'ipo' without smoothing"
        )
    return (lead - 1 / (2 * beta)).square().mean()


def c_rlft(
    logprobs: Float[Tensor, "batch time"],
    weights: Float[Tensor, " batch"],
    mask: Shaped[Tensor, "batch time"],
) -> Float[Tensor, ""]:
    """Class-conditioned fine-tuning: log-likelihood weighted by each answer's coarse reward, token mean.

    Wang et al. 2023 (arXiv 2309.11235), OpenChat: weight 1 for expert answers, 0.1 for the others. The class
    itself stands in the prompt.
    """
    return masked_mean(-wide(weights)[:, None] * keep(logprobs, mask), mask)


def value(
    values: Float[Tensor, "batch time"],
    old_values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"],
    *,
    clip: float | None = 0.2,
) -> Float[Tensor, ""]:
    """Half the squared error of the critic, mean over tokens.

    With ``clip`` a token counts the worse of its error and of the error after a step of at most ``clip``. The
    clipped form is that of the PPO code of Stiennon et al. 2020 (arXiv 2009.01325) and of Starling's release.
    """
    new, goal = keep(values, mask), keep(returns, mask).detach()
    error = (new - goal).square()
    if clip is not None:
        old = keep(old_values, mask).detach()
        stepped = new.clamp(old - clip, old + clip)
        error = torch.maximum(error, (stepped - goal).square())
    return 0.5 * masked_mean(error, mask)


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Shaped[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Generalised advantage estimates and returns; no gradient flows through them.

    Schulman et al. 2016 (arXiv 1506.02438, eq. 16). The value
    after a row's last masked-in token is zero, whatever stands in the padding.

    Returns:
        Advantages and returns (advantages + values), both zero where the mask is false.
    """
    inside = mask.bool()
    with torch.no_grad():
        rewards, values = keep(rewards, inside), keep(values, inside)
        advantages = torch.zeros_like(values)
        advantage = next_value = torch.zeros_like(values[:, 0])
        for step in reversed(range(values.shape[1])):
            delta = rewards[:, step] + gamma * next_value - values[:, step]
            advantage = (delta + gamma * lam * advantage) * inside[:, step]
            advantages[:, step], next_value = advantage, values[:, step]
        return advantages, advantages + values


def whiten(
    x: Float[Tensor, "batch time"], mask: Shaped[Tensor, "batch time"], shift_mean: bool = True
) -> Float[Tensor, "batch time"]:
    """``x`` with unit (population) variance over the mask and, if ``shift_mean``, zero mean; 0 elsewhere."""
    kept = keep(x, mask)
    mean = masked_mean(kept, mask)
    variance = masked_mean((kept - mean).square(), mask)
    scaled = (kept - mean) * torch.rsqrt(variance + 1e-8)
    return keep(scaled if shift_mean else scaled + mean, mask)


def masked_mean(x: Float[Tensor, "*shape"], mask: Shaped[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of ``x`` where ``mask`` is true.

    Raises:
        LossError: the mask is false everywhere.
    """
    count = mask.bool().sum()
    if not count:
        raise LossError("the mask is false everywhere: the batch holds no answer token to learn from")
    return keep(x, mask).sum() / count


def kl_k1(logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy || reference), nats, for samples of the policy: unbiased, any sign."""
    return wide(logprobs) - wide(reference_logprobs)


def kl_k3(logprobs: Float[Tensor, "*shape"], reference_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Per-token estimate of the same divergence that is unbiased and never negative, nats.

    ``exp(-d) - 1 + d`` with ``d = logprobs - reference_logprobs`` (Schulman 2020, "Approximating KL
    divergence"); ``expm1`` keeps it exact where the policies nearly agree.
    """
    gap = wide(logprobs) - wide(reference_logprobs)
    return torch.expm1(-gap) + gap
