"""How several processes share one run of tuning: each its own prompts, all the same decisions.

Under ``accelerate launch`` or ``torchrun`` every process keeps the trunk states of the answers that it sampled and
learns from those. Everything small (tokens, scores, sums) is told to all, so that whatever is decided from a step's
answers is decided alike everywhere. One process alone is the same code, with nothing to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy.recipe import TuningError
from starling_nb.policy.rollouts import Rollout

T = TypeVar("T")


class Team:
    """The processes of a run; there is one where no accelerator is given."""

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.size = accelerator.num_processes if accelerator else 1
        self.rank = accelerator.process_index if accelerator else 0

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and says how far the work is."""
        return self.rank == 0

    def plain(self, wrapped: Any) -> Any:
        """A module without the accelerator's wrapping."""
        return self.accelerator.unwrap_model(wrapped) if self.accelerator else wrapped

    def autocast(self) -> AbstractContextManager[None]:
        """The number format of the passes that learn nothing."""
        return self.accelerator.autocast() if self.accelerator else nullcontext()

    def own(self, n: int, unit: int = 1) -> list[int]:
        """Places of this process's among ``n`` items; ``unit`` neighbours stay together."""
        return [place for place in range(n) if place // unit % self.size == self.rank]

    def every(self, found: T) -> list[T]:
        """What each process has found, in their order."""
        told: list[T] = [found] if self.size == 1 else gather_object([found])
        return told

    def joined(self, numbers: Tensor) -> Tensor:
        """All processes' numbers, ``[n]`` each with an n of its own, one after another."""
        if self.size == 1:
            return numbers
        return torch.cat(self.every(numbers.detach().cpu())).to(numbers.device)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, ``[n]`` as given; the same bits everywhere."""
        if self.accelerator is None or self.size == 1:
            return numbers
        every: Tensor = self.accelerator.gather(numbers.detach()[None])
        return every.sum(0)

    def agreed(self, step: int, path: Path | None) -> int:
        """``step``, from which this process goes on by the checkpoint at ``path``.

        Raises:
            TuningError: other processes go on from another.
        """
        if len(set(self.every(step))) > 1:
            raise TuningError(f"processes find different checkpoints at {path}: put it where all of them read it")
        return step

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails within on one process stops all, with its reason.

        Nothing within may wait for another process.

        Raises:
            TuningError: another process has failed; the message says which, and why. Its own error is raised there.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        told = self.every(None if error is None else _reason(error))
        if error is not None:
            raise error
        for rank, reason in enumerate(told):
            if reason is not None:
                raise TuningError(f"process {rank} has stopped: {reason}")


ALONE = Team()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, StarlingError) else f"{type(error).__name__}: {error}"


def everybodys(own: Sequence[Rollout], places: Sequence[int], prompts: Sequence[Prompt], team: Team) -> list[Rollout]:
    """The rollouts of all processes, to ``prompts`` in their order; those of other processes without states.

    ``places`` are those of ``own`` among them.
    """
    told = {place: replace(r, sample=replace(r.sample, states={})) for place, r in zip(places, own, strict=True)}
    found = {place: rollout for one in team.every(told) for place, rollout in one.items()}
    for place, rollout in found.items():
        rollout.prompt = prompts[place]
    found |= dict(zip(places, own, strict=True))
    return [found[place] for place in range(len(prompts))]
