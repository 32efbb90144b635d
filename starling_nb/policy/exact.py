"""Where each objective ends, on a problem small enough to solve: one prompt, a few answers of one token, no sampling.

Every expectation is a sum over all answers, or over all pairs of them, of this package's own losses. So what a run
approaches can be derived, found by descent, and the two compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from scipy.special import lambertw
from torch import Tensor

from starling_nb import losses

Objective = Callable[[Tensor, Tensor], Tensor]
"""Expected loss of a policy's log-probabilities ``[answers]``, given those of the policy that sampled."""


@dataclass(frozen=True)
class Problem:
    """One prompt: the start model's probabilities of its answers and their rewards, ``[answers]`` each, float64."""

    start: Tensor
    rewards: Tensor

    @property
    def advantages(self) -> Tensor:
        """Rewards less what the start model earns on average."""
        return self.rewards - self.start @ self.rewards

    def tilted(self, strength: float) -> Tensor:
        """``start * exp(strength * rewards)``, normalised: the best policy that pays KL / strength for straying."""
        return (self.start.log() + strength * self.rewards).softmax(0)

    def constrained(self, lam: float, sampled: Tensor) -> Tensor:
        """APA's minimiser over all policies where answers come from ``sampled`` instead of from the policy.

        With targets ``t = log start + advantages / lam`` the Lagrangian of ``sum sampled * (log p - t)**2`` under
        ``sum p = 1`` is stationary at ``log p - t = -mu * p / (2 * sampled)``, which Lambert's W solves for every
        ``mu``; the ``mu`` at which p sums to one is found by bisection.
        """
        target = (self.start.log() + self.advantages / lam).exp()

        def policy(mu: float) -> Tensor:
            if abs(mu) < 1e-12:
                return target
            scale = mu / (2 * sampled)
            return torch.from_numpy(lambertw((scale * target).numpy()).real) / scale

        low = -2 / torch.e * float((sampled / target).min()) if target.sum() < 1 else 0.0
        high = 1.0
        while float(policy(high).sum()) > 1:
            high *= 2
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float(policy(middle).sum()) > 1 else (low, middle)
        return policy(high)


EXAMPLE = Problem(
    torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64),
    torch.tensor([0.2, -0.5, 1.0, 0.4, -1.0, 0.8], dtype=torch.float64),
)
"""Six answers; the best is neither the likeliest nor the rarest."""


def ends(problem: Problem = EXAMPLE, beta: float = 0.5, lam: float = 1.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Where each objective comes to rest beside where theory puts it, and the way there.

    APA anchored on the start model ends at ``start * exp(advantage / lam)``; all others, APA anchored on its rollouts
    with them, at ``start * exp(reward / beta)``, whatever their own settings.

    Returns:
        Ends: objective, answer, derived, found. Ways: objective, step, probability of the answer that earns most; the
        derived ones are level lines.
    """
    regularised, tilted = problem.tilted(1 / beta), problem.tilted(1 / lam)
    every = {
        "APA, start anchor": (apa(problem, lam=lam), tilted),
        "APA, rollout anchor": (apa(problem, lam=2.0, anchor="rollout", kl=beta), regularised),
        "PPO": (ppo(problem, kl=beta), regularised),
        "P3O": (p3o(problem, kl=beta), regularised),
        "RLOO": (rloo(problem, kl=beta), regularised),
        "DPO": (dpo(problem, beta=beta), regularised),
    }
    best, found, ways = int(problem.rewards.argmax()), [], []
    for name, (objective, due) in every.items():
        way: list[Tensor] = []
        settle(objective, problem.start, way=way)
        columns = {"objective": name, "answer": range(len(due)), "derived": due, "found": way[-1]}
        found.append(pd.DataFrame(columns))
        seen = [float(policy[best]) for policy in way]
        ways.append(pd.DataFrame({"objective": name, "step": range(len(way)), "probability": seen})[:121:4])
    for name, due in {"derived, λ": tilted, "derived, β": regularised}.items():
        level = {"objective": name, "step": [0, 120], "probability": float(due[best])}
        ways.append(pd.DataFrame(level))
    return pd.concat(found, ignore_index=True), pd.concat(ways, ignore_index=True)


def from_elsewhere(problem: Problem = EXAMPLE) -> pd.DataFrame:
    """How far from ``start * exp(advantage / lam)`` APA ends on answers that are not its own.

    Columns drawn from, lambda, distance (total variation, from :meth:`Problem.constrained`; 0 on its own answers). The
    targets sum to Z, not to one, and who draws the answers decides where the rest goes; with λ it goes away.
    """
    uniform = torch.full_like(problem.start, 1 / len(problem.start))
    rows = []
    for name, sampled in {"the start model": problem.start, "all answers alike": uniform}.items():
        for lam in (0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0):
            gap = problem.constrained(lam, sampled) - problem.tilted(1 / lam)
            rows.append({"drawn from": name, "lambda": lam, "distance": float(gap.abs().sum() / 2)})
    return pd.DataFrame(rows)


def settle(
    objective: Objective, start: Tensor, rounds: int = 250, lr: float = 0.1, way: list[Tensor] | None = None
) -> Tensor:
    """The policy, ``[answers]``, where descent from ``start`` comes to rest, sampling anew before every step.

    Adam on logits with a learning rate that falls to nothing along a cosine; its memory of squared gradients is short,
    since those of an answer shrink with the answer's probability. ``way`` is given the policy after every step.
    """
    logits = start.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=lr, betas=(0.9, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    for _ in range(rounds):
        logprobs = logits.log_softmax(0)
        optimizer.zero_grad()
        objective(logprobs, logprobs.detach()).backward()
        optimizer.step()
        schedule.step()
        if way is not None:
            way.append(logits.detach().softmax(0))
    return logits.detach().softmax(0)


def apa(
    problem: Problem,
    *,
    lam: float,
    anchor: Literal["initial", "rollout"] = "initial",
    kl: float = 0.0,
    whiten: bool = False,
    sampled: Tensor | None = None,
) -> Objective:
    """Expected APA loss. ``sampled`` draws the answers where given, else the policy does.

    Anchored on the start model the advantages are the paper's, fixed; anchored on the rollout policy they are those of
    that policy, with ``kl`` times its log-ratio taken off the reward.
    """

    def expected(logprobs: Tensor, old: Tensor) -> Tensor:
        weights = old.exp() if sampled is None else sampled
        gains = problem.advantages if anchor == "initial" else _gains(problem, old, kl)
        if whiten:
            gains = gains - weights @ gains
            gains = gains / (weights @ gains.square()).sqrt()
        anchors = problem.start.log() if anchor == "initial" else old
        terms = [losses.apa(*_cells(logprobs, anchors, gains, i), lam=lam) for i in range(len(weights))]
        return weights @ torch.stack(terms)

    return expected


def ppo(problem: Problem, *, kl: float) -> Objective:
    """Expected PPO loss with ``kl`` times the log-ratio taken off the reward."""

    def expected(logprobs: Tensor, old: Tensor) -> Tensor:
        gains = _gains(problem, old, kl)
        return old.exp() @ torch.stack([losses.ppo(*_cells(logprobs, old, gains, i)) for i in range(len(gains))])

    return expected


def rloo(problem: Problem, *, kl: float) -> Objective:
    """Expected RLOO loss of two answers a prompt with ``kl`` times the log-ratio taken off the reward."""

    def expected(logprobs: Tensor, old: Tensor) -> Tensor:
        rewards = problem.rewards - kl * (old - problem.start.log())
        return _pairs(old.exp(), lambda pair: losses.rloo(logprobs[pair], old[pair], rewards[pair]))

    return expected


def p3o(problem: Problem, *, kl: float, clipping: str = "joint") -> Objective:
    """Expected P3O loss."""

    def expected(logprobs: Tensor, old: Tensor) -> Tensor:
        start = problem.start.log()
        ratios, before = logprobs - start, old - start
        return _pairs(
            old.exp(),
            lambda pair: losses.p3o(ratios[pair], before[pair], problem.rewards[pair], kl_coef=kl, clipping=clipping),
        )

    return expected


def dpo(problem: Problem, *, beta: float, kind: str = "sigmoid") -> Objective:
    """Population DPO loss: pairs of different answers, all alike often, labelled by a Bradley-Terry judge."""
    start = problem.start.log()
    orders = [(i, j) for i in range(len(start)) for j in range(len(start)) if i != j]
    wins = torch.stack([torch.sigmoid(problem.rewards[i] - problem.rewards[j]) for i, j in orders])

    def expected(logprobs: Tensor, old: Tensor) -> Tensor:
        pairs = [(logprobs[[i]], logprobs[[j]], start[[i]], start[[j]]) for i, j in orders]
        terms = [losses.dpo(*pair, beta=beta, kind=kind) for pair in pairs]
        return wins @ torch.stack(terms) / len(orders)

    return expected


def _gains(problem: Problem, old: Tensor, kl: float) -> Tensor:
    """Advantages of the policy that sampled, its log-ratio to the start model paid for."""
    rewards = problem.rewards - kl * (old - problem.start.log())
    return rewards - old.exp() @ rewards


def _cells(logprobs: Tensor, other: Tensor, gains: Tensor, i: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One answer as a batch of one token: log-probability, anchor or old one, advantage, mask."""
    return logprobs[i].view(1, 1), other[i].view(1, 1), gains[i].view(1, 1), torch.ones(1, 1)


def _pairs(probs: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Expectation over two independent answers of a loss that their order does not change; it takes their numbers,
    ``[1, 2]``. Twice the same answer teaches nothing: its gradient is zero, and it is left out."""
    both = torch.combinations(torch.arange(len(probs)))
    return 2 * probs[both].prod(1) @ torch.stack([loss(pair[None]) for pair in both])
