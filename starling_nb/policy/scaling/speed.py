"""How fast this machine tunes, beside what it could at most: its products and reads, measured in the same minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pandas as pd
import torch

from starling_nb.models import LM
from starling_nb.policy import objectives
from starling_nb.policy.experience import Minibatch, minibatches, scale_of
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.rollouts import RewardOnTrunk, Rollout, collect
from starling_nb.policy.scaling import plan as planning
from starling_nb.policy.scaling.plan import Card, Run
from starling_nb.reward import RewardModel

T = TypeVar("T")


def limits(dtype: torch.dtype, device: torch.device, memory: float, side: int = 1024, rounds: int = 8) -> Card:
    """This machine as a card: the best of some square matrix products in ``dtype``, and of some passes over 256 MB."""
    square = torch.ones(side, side, dtype=dtype, device=device)
    many = torch.ones(2**26, dtype=torch.float32, device=device)
    product = min(_timed(lambda: square @ square, device)[1] for _ in range(rounds))
    reading = min(_timed(many.sum, device)[1] for _ in range(rounds))
    return Card(memory, 2.0 * side**3 / product, 4.0 * len(many) / reading)


@dataclass(frozen=True)
class Speed:
    """A measured set of rollouts: its sizes, and the seconds of every phase."""

    run: Run
    seconds: dict[str, float]

    def shares(self, card: Card) -> dict[str, float]:
        """By phase, how much of what the machine could at most (as :func:`~.scaling.plan.seconds`) it did."""
        least = planning.seconds(self.run, card, dict.fromkeys(self.seconds, 1.0))
        return {name: least[name] / taken for name, taken in self.seconds.items()}

    def table(self, card: Card) -> pd.DataFrame:
        """One row a phase: seconds, tokens_per_s (while sampling: new ones), gflop_per_s, share of the limit."""
        counts, rows = planning.operations(self.run), self.run.rows
        tokens = dict.fromkeys(self.seconds, rows * sum(self.run.mean))
        tokens |= {"sampling": rows * self.run.mean[1], "update": self.run.epochs * rows * sum(self.run.mean)}
        return pd.DataFrame(
            [
                {
                    "phase": name,
                    "seconds": taken,
                    "tokens_per_s": tokens[name] / taken,
                    "gflop_per_s": counts[name] / taken / 1e9,
                    "share": self.shares(card)[name],
                }
                for name, taken in self.seconds.items()
            ]
        )


def measure(lm: LM, reward: RewardModel, prompts: Sequence[Any], recipe: Recipe, run: Run) -> Speed:
    """Tune for one step as the loop does, phase by phase, on copies of the top blocks: ``lm`` stays as it is.

    Args:
        lm: the start model.
        reward: the reward model.
        prompts: some are answered, ``recipe.rollouts // recipe.answers`` of them.
        recipe: how.
        run: the plan's run of the same models; its lengths become those that were sampled.
    """
    hydra = Hydra(lm, recipe.trainable, recipe.value)
    score = RewardOnTrunk(reward, lm, hydra.start)
    policy, critic = hydra.learning()
    optimizer = torch.optim.AdamW([*policy, *critic], lr=recipe.lr, fused=True)
    chosen = [prompt for prompt in prompts[: recipe.rollouts // recipe.answers] for _ in range(recipe.answers)]

    def sample(tokens: int) -> list[Rollout]:
        ids = [f"speed/{place}" for place in range(len(chosen))]
        return collect(lm, chosen, ids, seed=recipe.seed, max_new_tokens=tokens, capture=score.capture)

    def fixed() -> list[Minibatch]:
        with _precision(lm):
            return minibatches(hydra, rollouts, recipe, scale_of(rollouts))

    def learn() -> None:
        for part in [part for _ in range(recipe.epochs) for part in parts]:
            with _precision(lm):
                logprobs, values = hydra(part.batch)
            policy_loss, value_loss = objectives.own_part(logprobs, values, part, recipe, lm.chat.eos_id)
            (policy_loss + value_loss).backward()
            optimizer.step()
            optimizer.zero_grad()

    sample(2)  # warm
    rollouts, sampling = _timed(lambda: sample(recipe.max_new_tokens), lm.device)
    _, scoring = _timed(lambda: score(rollouts), lm.device)
    parts, before = _timed(fixed, lm.device)
    _, update = _timed(learn, lm.device)
    seconds = {"sampling": sampling, "reward": scoring, "old and reference": before, "update": update}
    return Speed(_as_sampled(run, rollouts, recipe), seconds)


def _as_sampled(run: Run, rollouts: Sequence[Rollout], recipe: Recipe) -> Run:
    """The run with the sizes of these rollouts."""
    prompts, answers = [len(r.sample.prompt) for r in rollouts], [len(r.sample.ids) for r in rollouts]
    n = len(rollouts)
    return replace(
        run,
        rows=n,
        flight=n,
        together=recipe.minibatch,
        answers=recipe.answers,
        epochs=recipe.epochs,
        longest=(max(prompts), max(answers)),
        mean=(round(sum(prompts) / n), round(sum(answers) / n)),
    )


def _precision(lm: LM) -> Any:
    return torch.autocast(lm.device.type, dtype=torch.bfloat16, enabled=lm.dtype == torch.bfloat16)


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What ``work`` returns, and the seconds until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    found = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - began
