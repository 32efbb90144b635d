"""Direct preference optimisation and its kin on the data set's own pairs: no sampling, no reward model.

Trained over the same kept trunk states and the same top blocks as the online objectives, so that budgets compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from starling_nb import files, losses
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy.hydra import Batch, Hydra, collate
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.scoring import Prepared

Report = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Recipe:
    """How DPO is run; ``beta`` 0.1 as in its authors' script (eric-mitchell/direct-preference-optimization).

    ``cdpo`` takes a share ``flipped`` of the labels for wrong (the same script); ``ipo`` draws margins to 1 / (2 beta)
    (:func:`starling_nb.losses.dpo`).
    """

    objective: Literal["dpo", "cdpo", "ipo"] = "dpo"
    batch: int = 8
    lr: float = 2e-5
    beta: float = 0.1
    flipped: float = 0.1
    trainable: str = "last:4"
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """Trunk states, prompt length and answer ids of a chosen and a rejected answer to one prompt."""

    states: tuple[Tensor, Tensor]
    prompt: int
    answers: tuple[list[int], list[int]]


def pairs(comparisons: Sequence[Comparison], n: int, seed: int) -> list[Comparison]:
    """Draw ``n`` pairs, one comparison after another: comparisons of two answers, the better one first.

    Raises:
        StarlingError: there is no comparison with two differently ranked answers.
    """
    drawn: list[Comparison] = []
    place = 0
    ranked = [comparison for comparison in comparisons if len(set(comparison.ranks)) > 1]
    if not ranked:
        raise StarlingError("DPO needs comparisons with at least two differently ranked answers")
    while len(drawn) < n:
        epoch, offset = divmod(place, len(ranked))
        one = ranked[int(files.rng(seed, "dpo", epoch).permutation(len(ranked))[offset])]
        place += 1
        chosen = files.rng(seed, "dpo pair", place).choice(len(one.ranks), 2, replace=False)
        first, second = sorted(chosen.tolist(), key=lambda i: one.ranks[i])
        if one.ranks[first] < one.ranks[second]:
            answers, names = ([column[i] for i in (first, second)] for column in (one.answers, one.responders))
            drawn.append(Comparison(one.prompt_id, one.messages, answers, names, [1.0, 2.0]))
    return drawn


def _pair(item: Prepared) -> Pair:
    """A packed comparison of two answers, taken apart."""
    segments = item.packed.segments
    states = [item.states[(segments == 0) | (segments == k)] for k in (1, 2)]
    answers = [item.packed.ids[segments == k].tolist() for k in (1, 2)]
    return Pair((states[0], states[1]), int((segments == 0).sum()), (answers[0], answers[1]))


def tune(
    lm: LM,
    prepared: Sequence[Prepared],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> tuple[Hydra, list[dict[str, float]]]:
    """Train the top blocks with DPO and write them into ``lm``; one record a step: loss, margin, accuracy.

    ``prepared`` are the :func:`pairs`, after :func:`starling_nb.reward.scoring.prepare`, in the order of training.

    Raises:
        StarlingError: the loss is not a number.
    """
    torch.manual_seed(recipe.seed)
    accelerator = lm.accelerator()
    hydra: Any = Hydra(lm, recipe.trainable)
    optimizer: Any = torch.optim.AdamW(
        hydra.learning()[0], lr=recipe.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    hydra, optimizer = accelerator.prepare(hydra, optimizer)
    plain: Hydra = accelerator.unwrap_model(hydra)
    drawn = [_pair(item) for item in prepared]
    batches = [drawn[i : i + recipe.batch] for i in range(0, len(drawn), recipe.batch)]
    history = _restore(checkpoint, plain, optimizer)
    for step in range(len(history), len(batches)):
        batch = _batch(batches[step])
        ours = _sums(hydra(batch)[0], batch)
        with accelerator.autocast():
            theirs = _sums(plain.reference_logprobs(batch), batch)
        loss = _loss(ours, theirs, recipe)
        if not math.isfinite(float(loss.detach())):
            raise StarlingError(f"the DPO loss is not a number at step {step}: lower lr")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(plain.top.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": float(step), "loss": float(loss.detach()), **_margins(ours.detach(), theirs)})
        if report is not None:
            report(step + 1, len(batches), history[-1])
        if checkpoint is not None and (step + 1) % 10 == 0:
            _save(checkpoint, plain, optimizer, history)
    plain.top.write_into(lm.model.model)
    return plain, history


def _loss(ours: Tensor, theirs: Tensor, recipe: Recipe) -> Tensor:
    """Of pairs: log-probabilities of both answers, policy and reference, ``[pairs, 2]`` each."""
    return losses.dpo(
        *(side[:, place] for side in (ours, theirs) for place in (0, 1)),
        beta=recipe.beta,
        label_smoothing=recipe.flipped if recipe.objective == "cdpo" else 0.0,
        kind="ipo" if recipe.objective == "ipo" else "sigmoid",
    )


def _margins(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Mean lead of the chosen answers in log-ratio, nats, and the share of pairs that they lead."""
    lead = ours - theirs
    margin = lead[:, 0] - lead[:, 1]
    return {"margin": float(margin.mean()), "accuracy": float((margin > 0).float().mean())}


def _save(path: Path, hydra: Hydra, optimizer: Any, history: list[dict[str, float]]) -> None:
    state = {"top": hydra.top.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
    with files.replacing(path) as part:
        torch.save(state, part)


def _restore(path: Path | None, hydra: Hydra, optimizer: Any) -> list[dict[str, float]]:
    if path is None or not path.exists():
        return []
    state = torch.load(path, weights_only=True)
    hydra.top.load_state_dict(state["top"])
    optimizer.load_state_dict(state["optimizer"])
    history: list[dict[str, float]] = state["history"]
    return history


def _batch(chosen: Sequence[Pair]) -> Batch:
    """Chosen and rejected answers side by side: rows 0, 2, … are chosen, 1, 3, … rejected."""
    states = [state for pair in chosen for state in pair.states]
    answers = [answer for pair in chosen for answer in pair.answers]
    return collate(states, [pair.prompt for pair in chosen for _ in range(2)], answers)


def _sums(logprobs: Tensor, batch: Batch) -> Tensor:
    """``[pairs, 2]`` log-probabilities of whole answers."""
    return batch.unflatten(logprobs).sum(1).view(-1, 2)
