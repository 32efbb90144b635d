"""C-RLFT: imitation of the data set's answers, each under the class it belongs to; the best class is asked for later.

Conditioned reinforcement-learning fine-tuning, Wang et al. 2023 (arXiv 2309.11235), is how OpenChat was made: weighted
likelihood of expert and lesser answers whose prompts name the class. There the class is the model that answered; here
it is the rank. Trained over kept trunk states like every other objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starling_nb import files, losses
from starling_nb.chat import OPENCHAT, ChatFormat
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy.hydra import Batch, Hydra, collate
from starling_nb.policy.offline import Report, Run, descend, sequence
from starling_nb.policy.parallel.sharing import Team
from starling_nb.reward.comparisons import Comparison, only
from starling_nb.reward.scoring import Prepared, prepare


@dataclass(frozen=True)
class Recipe:
    """How C-RLFT is run.

    ``others`` is the coarse reward of all answers but the best, 0.1 where the best count 1 (the paper); 0 leaves them
    out. ``conditioned`` puts the class into the prompt.

    Raises:
        StarlingError: numbers that make no run.
    """

    batch: int = 8
    epochs: int = 2
    lr: float = 2e-5
    others: float = 0.1
    conditioned: bool = True
    trainable: str = "last:4"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.epochs < 1 or not 0 <= self.others < math.inf:
            raise StarlingError("C-RLFT needs batch and epochs of at least 1, and others of at least 0")

    @classmethod
    def best_answers(cls, **changes: Any) -> Recipe:
        """Supervised fine-tuning on the best answers alone, under no class."""
        return cls(**{"others": 0.0, "conditioned": False} | changes)


@dataclass(frozen=True)
class Demonstration:
    """The ``k``-th answer (from 1) of a packed comparison, whether it is one of its prompt's best, and its weight."""

    item: Prepared
    k: int
    best: bool
    weight: float

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return int((self.item.packed.segments == self.k).sum())

    @property
    def ids(self) -> Tensor:
        """``[tokens]`` of prompt and answer."""
        segments = self.item.packed.segments
        return self.item.packed.ids[(segments == 0) | (segments == self.k)]


@dataclass(frozen=True)
class Tuned:
    """A finished run.

    Attributes:
        lm: the tuned model, asked for the best class by every prompt, under a name of its own: a start model for
            further tuning.
        hydra: with the tuned top.
        history: one record a step.
    """

    lm: LM
    hydra: Hydra
    history: list[dict[str, float]]


def classes(chat: ChatFormat) -> tuple[str, str]:
    """What a prompt says to ask for the best class, and for the other.

    OpenChat's own two names; elsewhere an instruction in plain words.
    """
    if chat.template == "openchat":
        return OPENCHAT, "GPT3"
    return "Answer as well as you can.", "Answer less well than you can."


def demonstrations(
    lm: LM, comparisons: Sequence[Comparison], recipe: Recipe, report: Report | None = None
) -> list[Demonstration]:
    """The answers of ranked comparisons as demonstrations of their class, the best ones first.

    Best are all answers that share a prompt's first rank. Comparisons whose answers are all of one rank tell no class
    apart and are passed over; so are those whose prompt would lose its class to the cut that makes long answers fit
    (:func:`starling_nb.reward.packing.pack`).

    Raises:
        StarlingError: nothing is left.
    """
    ranked = [comparison for comparison in comparisons if len(set(comparison.ranks)) > 1]
    found: list[Demonstration] = []
    for best, name, weight in zip((True, False), classes(lm.chat), (1.0, recipe.others), strict=True):
        if not weight:
            continue
        chat = lm.chat.conditioned(name) if recipe.conditioned else lm.chat
        parts = [only(c, [i for i, rank in enumerate(c.ranks) if (rank == min(c.ranks)) == best]) for c in ranked]
        items = prepare(LM(lm.model, chat, lm.name), parts, recipe.trainable, report)
        whole = [item for item in items if not (recipe.conditioned and item.packed.cut)]
        found += [Demonstration(item, k, best, weight) for item in whole for k in range(1, len(item.ranks) + 1)]
    if not found:
        raise StarlingError("C-RLFT needs comparisons with at least two differently ranked answers, prompts uncut")
    return found


def tune(
    lm: LM,
    demonstrations: Sequence[Demonstration],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> Tuned:
    """Train the top blocks on demonstrations and write them into ``lm``'s model.

    Every epoch goes through all of them in an order of its own; the last step is filled up from the next one. One
    record a step: loss; best and others, the mean log-probability of a token (nats) of the answers of each class in it.

    Raises:
        StarlingError: the loss is not a number, or the checkpoint is another run's.
    """
    told = [[one.ids.tolist(), one.best, one.weight] for one in demonstrations]
    own = files.hash_value([lm.name, lm.fingerprint(), str(replace(recipe, epochs=1)), told])

    def learn(hydra: Any, step: int, team: Team) -> dict[str, Tensor]:
        every = [demonstrations[place] for place in _places(len(demonstrations), recipe, step)]
        own = [every[i] for i in team.own(len(every))]
        chosen = own or every[:1]
        batch = _batch(lm, chosen)
        logprobs = batch.unflatten(hydra(batch)[0])
        weights = torch.tensor([item.weight for item in chosen], device=logprobs.device)
        share = sum(item.length for item in own) / sum(item.length for item in every)
        loss = share * losses.c_rlft(logprobs, weights, batch.mask)
        return {"loss": loss, **_parts(logprobs.detach(), own, every)}

    steps = math.ceil(len(demonstrations) * recipe.epochs / recipe.batch)
    run = Run("C-RLFT", recipe.trainable, recipe.lr, recipe.seed, steps, learn, lambda _: own)
    hydra, history = descend(lm, run, checkpoint, report)
    chat = lm.chat.conditioned(classes(lm.chat)[0]) if recipe.conditioned else lm.chat
    name = f"{lm.name} + {'C-RLFT' if recipe.conditioned else 'SFT'} {files.hash_value([own, steps])[:8]}"
    return Tuned(LM(lm.model, chat, name), hydra, history)


def _places(n: int, recipe: Recipe, step: int) -> list[int]:
    """Which of ``n`` demonstrations a step learns from."""
    found = []
    for place in range(step * recipe.batch, (step + 1) * recipe.batch):
        epoch, offset = divmod(place, n)
        found.append(int(files.rng(recipe.seed, "c_rlft", epoch).permutation(n)[offset]))
    return found


def _batch(lm: LM, chosen: Sequence[Demonstration]) -> Batch:
    states, prompts, answers = zip(*(sequence(lm, one.item, one.k) for one in chosen), strict=True)
    return collate(states, prompts, answers)


def _parts(logprobs: Tensor, own: Sequence[Demonstration], every: Sequence[Demonstration]) -> dict[str, Tensor]:
    """What ``own`` rows add to the mean log-probability of a token by class, of those classes that are there."""
    found = {}
    for name, best in {"best": True, "others": False}.items():
        rows = [row for row, one in enumerate(own) if one.best == best]
        if tokens := sum(one.length for one in every if one.best == best):
            found[name] = logprobs[rows].sum() / tokens
    return found
