"""Direct preference optimisation and its kin on the data set's own pairs: no sampling, no reward model.

Trained over the same kept trunk states and the same top blocks as the online objectives, so that budgets compare.
Several processes share the pairs of every step.
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
from starling_nb.policy.parallel import sharded
from starling_nb.policy.parallel.sharing import Team
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


def sequence(lm: LM, item: Prepared, k: int) -> tuple[Tensor, int, list[int]]:
    """The ``k``-th answer (from 1) of a packed comparison behind its prompt, as :func:`collate` takes sequences.

    Trunk states ``[tokens, width]``, the prompt's length, the answer's ids.
    """
    segments = item.packed.segments
    states = item.states[(segments == 0) | (segments == k)]
    if states.dim() == 1:  # token ids: a reward model's embeddings may learn, a policy's never do
        decoder: Any = lm.model.model
        states = decoder.embed_tokens(states.to(lm.device)).detach()
    return states, int((segments == 0).sum()), item.packed.ids[segments == k].tolist()


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
        StarlingError: the loss is not a number, or the checkpoint is another run's.
    """

    def learn(hydra: Any, step: int, team: Team) -> dict[str, Tensor]:
        every = prepared[step * recipe.batch : (step + 1) * recipe.batch]
        own = [every[i] for i in team.own(len(every))]
        batch = _batch(lm, own or every[:1])
        ours = _sums(hydra(batch)[0], batch)
        with team.autocast():
            theirs = _sums(team.plain(hydra).reference_logprobs(batch), batch)
        found = {"loss": _loss(ours, theirs, recipe), **_margins(ours.detach(), theirs)}
        return {name: len(own) / len(every) * value for name, value in found.items()}

    def named(steps: int) -> str:
        seen = [item.packed.ids.tolist() for item in prepared[: steps * recipe.batch]]
        return files.hash_value([lm.name, weights, str(recipe), seen])

    steps, weights = math.ceil(len(prepared) / recipe.batch), lm.fingerprint()
    run = Run("DPO", recipe.trainable, recipe.lr, recipe.seed, steps, learn, named)
    return descend(lm, run, checkpoint, report)


@dataclass(frozen=True)
class Run:
    """What :func:`descend` needs to know of an objective.

    ``learn`` makes of the hydra, a step and the processes that share it a record of means, its loss among them: this
    process's part of each, so that the sum over all is the mean of the whole step. A process without a part passes
    something through the hydra all the same, for all must take part. ``named`` tells which run the first so many steps
    belong to: equal names, equal weights after them.
    """

    objective: str
    trainable: str
    lr: float
    seed: int
    steps: int
    learn: Callable[[Any, int, Team], dict[str, Tensor]]
    named: Callable[[int], str]


def descend(
    lm: LM, run: Run, checkpoint: Path | None = None, report: Report | None = None
) -> tuple[Hydra, list[dict[str, float]]]:
    """Train the top blocks step by step and write them into ``lm``; the hydra, and one record a step.

    Raises:
        StarlingError: the loss is not a number, or the checkpoint is another run's.
    """
    torch.manual_seed(run.seed)
    accelerator = lm.accelerator()
    team = Team(accelerator)
    hydra: Any = Hydra(lm, run.trainable)
    hydra.value_head.requires_grad_(False)  # processes would wait for its gradient
    optimizer: Any = torch.optim.AdamW(hydra.learning()[0], lr=run.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    hydra, optimizer = sharded.prepared(accelerator, hydra, optimizer)
    plain: Hydra = accelerator.unwrap_model(hydra)
    with team.together():
        history = _restore(checkpoint, plain, optimizer, run)
        if len(history) > run.steps:
            raise StarlingError(f"{checkpoint} is at step {len(history)} of {run.steps}: delete it, or ask for as many")
    for step in range(team.agreed(len(history), checkpoint), run.steps):
        means = run.learn(hydra, step, team)
        whole = team.total(torch.stack([value.detach() for value in means.values()])).tolist()
        record = dict(zip(means, whole, strict=True))
        if not math.isfinite(record["loss"]):
            raise StarlingError(f"the {run.objective} loss is not a number at step {step}: lower lr")
        accelerator.backward(team.size * means["loss"])  # gradients are averaged over the processes
        accelerator.clip_grad_norm_(plain.top.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": float(step), **record})
        due = checkpoint is not None and ((step + 1) % 10 == 0 or step + 1 == run.steps)
        state = _state(plain, optimizer, history, run) if due else None
        with team.together():
            if report is not None and team.main:
                report(step + 1, run.steps, history[-1])
            if checkpoint is not None and state is not None and team.main:
                with files.replacing(checkpoint) as part:
                    torch.save(state, part)
    plain.top.write_into(lm.model.model)
    return sharded.unsharded(plain, lambda: Hydra(lm, run.trainable)), history


def _loss(ours: Tensor, theirs: Tensor, recipe: Recipe) -> Tensor:
    """Of pairs: log-probabilities of both answers, policy and reference, ``[pairs, 2]`` each."""
    return losses.dpo(
        *(side[:, place] for side in (ours, theirs) for place in (0, 1)),
        beta=recipe.beta,
        label_smoothing=recipe.flipped if recipe.objective == "cdpo" else 0.0,
        kind="ipo" if recipe.objective == "ipo" else "sigmoid",
    )


def _margins(ours: Tensor, theirs: Tensor) -> dict[str, Tensor]:
    """Mean lead of the chosen answers in log-ratio, nats, and the share of pairs that they lead."""
    lead = ours - theirs
    margin = lead[:, 0] - lead[:, 1]
    return {"margin": margin.mean(), "accuracy": (margin > 0).float().mean()}


def _state(hydra: Hydra, optimizer: Any, history: list[dict[str, float]], run: Run) -> dict[str, Any]:
    states = {"top": hydra.top.state_dict(), "optimizer": optimizer.state_dict()}
    return {**sharded.gathered(states), "history": history, "run": run.named(len(history))}


def _restore(path: Path | None, hydra: Hydra, optimizer: Any, run: Run) -> list[dict[str, float]]:
    if path is None or not path.exists():
        return []
    state = torch.load(path, map_location="cpu", weights_only=True)
    history: list[dict[str, float]] = state["history"]
    if state.get("run") != run.named(len(history)):
        raise StarlingError(
            f"{path} belongs to another run (start model, data or recipe): delete it, or go back to that one"
        )
    hydra.top.load_state_dict(sharded.weights_for(hydra.top, state["top"]))
    optimizer.load_state_dict(sharded.moments_for(optimizer, state["optimizer"]))
    return history


def _batch(lm: LM, chosen: Sequence[Prepared]) -> Batch:
    """Chosen and rejected answers side by side: rows 0, 2, … are chosen, 1, 3, … rejected."""
    states, prompts, answers = zip(*(sequence(lm, item, k) for item in chosen for k in (1, 2)), strict=True)
    return collate(states, prompts, answers)


def _sums(logprobs: Tensor, batch: Batch) -> Tensor:
    """``[pairs, 2]`` log-probabilities of whole answers."""
    return batch.unflatten(logprobs).sum(1).view(-1, 2)
