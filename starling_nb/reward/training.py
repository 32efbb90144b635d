"""Train a reward model on ranked comparisons, K-wise or pairwise, over a trunk that is computed once.

Only the top blocks and the head learn. Both losses start from the same weights and see the same packed comparisons
in the same order, so their difference is the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from starling_nb import files, losses
from starling_nb.blocks import Top, first_trainable, trunk_states
from starling_nb.chat import ChatFormat, Message
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import Packed, pack

Report = Callable[[int, int, dict[str, float]], None]
LOSSES: tuple[Literal["k_wise"], Literal["pairwise"]] = ("k_wise", "pairwise")


@dataclass(frozen=True)
class Comparison:
    """One prompt with K answers and their ranks (1.0 best), as a Nectar row holds them."""

    prompt_id: str
    messages: list[Message]
    answers: list[str]
    responders: list[str]
    ranks: list[float]


@dataclass(frozen=True)
class Recipe:
    """How a reward model is trained; defaults are those of the embedded run."""

    loss: Literal["k_wise", "pairwise"] = "k_wise"
    lr: float = 1e-4
    head_lr: float = 1e-3
    epochs: int = 2
    batch: int = 6
    trainable: str = "last:4"
    readout: str = "last_token"
    weight_decay: float = 0.01
    warmup: float = 0.1
    seed: int = 0


class Scorer(nn.Module):
    """The trainable part: top blocks and the head, from packed trunk states to the K scores."""

    def __init__(self, top: Top, readout: str = "last_token") -> None:
        super().__init__()
        self.top, self.readout = top, readout
        self.v_head = nn.Linear(top.norm.weight.shape[0], 1, bias=False)
        nn.init.zeros_(self.v_head.weight)

    def forward(self, hidden: Tensor, positions: Tensor, mask: Tensor, packed: Packed) -> Tensor:
        """Scores ``[K]`` of one packed comparison of T tokens with states ``[1, T, width]``."""
        states = self.top(hidden, positions, mask)[0].float()
        scores: Tensor = self.v_head(packed.readout(self.readout).to(states.device) @ states)[:, 0]
        return scores


@dataclass
class Prepared:
    """A comparison after the frozen trunk: states ``[T, width]``, its packing and its ranks ``[K]``."""

    states: Tensor
    packed: Packed
    ranks: Tensor


def prepare(lm: LM, comparisons: Sequence[Comparison], trainable: str, report: Report | None = None) -> list[Prepared]:
    """Pack every comparison and run the frozen trunk over it, once for all losses and epochs."""
    decoder: Any = lm.model.model
    start = first_trainable(trainable, len(decoder.layers))
    prepared = []
    for number, comparison in enumerate(comparisons, 1):
        packed = pack(lm.chat, comparison.messages, comparison.answers)
        states = trunk_states(decoder, packed.ids[None], packed.positions[None], packed.mask(), start)[0]
        prepared.append(Prepared(states.clone(), packed, torch.tensor(comparison.ranks)))
        if report is not None:
            report(number, len(comparisons), {"tokens": float(len(packed.ids))})
    return prepared


def train(
    lm: LM,
    prepared: Sequence[Prepared],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> tuple[Scorer, list[dict[str, float]], int]:
    """Train and return the scorer, one record a step (step, loss, lr) and the step it was resumed from.

    With ``checkpoint`` the state is written every 10 steps and a restarted call goes on from there, bit for bit.

    Raises:
        StarlingError: no comparisons, a loss that is not a number, or scores that are all the same after the first
            epoch (nothing was learned).
    """
    if not prepared:
        raise StarlingError("there is nothing to train on: no comparisons were given")
    torch.manual_seed(recipe.seed)
    accelerator = lm.accelerator()
    decoder: Any = lm.model.model
    scorer: Any = Scorer(Top(decoder, first_trainable(recipe.trainable, len(decoder.layers))), recipe.readout).to(
        lm.device
    )
    optimizer: Any = torch.optim.AdamW(
        [
            {"params": scorer.top.parameters(), "lr": recipe.lr},
            {"params": scorer.v_head.parameters(), "lr": recipe.head_lr},
        ],
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    base = [group["lr"] for group in optimizer.param_groups]
    scorer, optimizer = accelerator.prepare(scorer, optimizer)
    order = _order(len(prepared), recipe)
    history: list[dict[str, float]] = []
    resumed = _restore(checkpoint, scorer, optimizer, history)
    for step in range(resumed, len(order)):
        scale = _schedule(step, len(order), recipe.warmup)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * scale
        loss, spread = _gradient(accelerator, scorer, [prepared[i] for i in order[step]], recipe.loss)
        if not math.isfinite(loss):
            raise StarlingError(f"the loss is not a number at step {step}: lower lr and head_lr")
        if 0 < step == min(len(order) // recipe.epochs, len(order) - 1) and spread < 1e-6:
            raise StarlingError("the scores are all the same after the first epoch: raise lr and head_lr")
        accelerator.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": float(step), "loss": loss, "lr": base[0] * scale})
        if report is not None:
            report(step + 1, len(order), {"loss": loss})
        if checkpoint is not None and (step + 1) % 10 == 0:
            _save(checkpoint, scorer, optimizer, history)
    return accelerator.unwrap_model(scorer), history, resumed


def train_both(
    lm: LM,
    prepared: Sequence[Prepared],
    recipe: Recipe,
    checkpoints: Path,
    named: Callable[[str], Report],
) -> tuple[dict[str, Scorer], list[dict[str, Any]], int]:
    """K-wise and pairwise from the same start on the same data in the same order.

    Returns the scorers by loss, one record a step with its ``method``, and the largest step resumed from.
    """
    scorers: dict[str, Scorer] = {}
    curves: list[dict[str, Any]] = []
    furthest = 0
    for loss in LOSSES:
        own = replace(recipe, loss=loss)
        scorers[loss], history, resumed = train(
            lm, prepared, own, checkpoint=checkpoints / f"{loss}.pt", report=named(f"training, {loss}")
        )
        curves += [{**record, "method": loss} for record in history]
        furthest = max(furthest, resumed)
    return scorers, curves, furthest


def _gradient(accelerator: Accelerator, scorer: Any, items: Sequence[Prepared], kind: str) -> tuple[float, float]:
    """Add one batch's gradient; its mean loss and the widest spread of scores in one comparison."""
    total = spread = 0.0
    for item in items:
        with accelerator.autocast():
            scores = score_one(scorer, item)
        loss = ranking_loss(scores, item.ranks, kind)
        accelerator.backward(loss / len(items))
        total += float(loss.detach()) / len(items)
        spread = max(spread, float(scores.detach().max() - scores.detach().min()))
    return total, spread


def ranking_loss(scores: Tensor, ranks: Tensor, kind: str) -> Tensor:
    """The K-wise or the all-pairs loss of one comparison's scores ``[K]`` under ranks ``[K]``."""
    function = losses.k_wise if kind == "k_wise" else losses.pairwise
    return function(scores[None].float(), ranks=ranks[None].to(scores.device))


def score_one(scorer: Any, item: Prepared) -> Tensor:
    """Scores ``[K]`` of one prepared comparison."""
    device = item.states.device
    inputs = (item.packed.positions[None], item.packed.mask())
    scores: Tensor = scorer(item.states[None], *(part.to(device) for part in inputs), item.packed)
    return scores


@torch.no_grad()
def predict(scorer: Scorer, prepared: Sequence[Prepared], dtype: torch.dtype) -> list[list[float]]:
    """Scores of every comparison, K numbers each, computed in ``dtype`` as in training."""
    device = scorer.v_head.weight.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        return [score_one(scorer, item).tolist() for item in prepared]


def assemble(lm: LM, scorer: Scorer) -> RewardModel:
    """A whole reward model: the language model's frozen trunk, the trained top and head."""
    import copy

    transformer: Any = copy.deepcopy(lm.model.model)
    scorer.top.write_into(transformer)
    chat = ChatFormat(lm.chat.tokenizer, lm.chat.template)
    return RewardModel(transformer, chat, scorer.v_head.weight, scorer.readout).eval()


def _order(n: int, recipe: Recipe) -> list[list[int]]:
    batches = []
    for epoch in range(recipe.epochs):
        shuffled = files.rng(recipe.seed, "reward", "epoch", epoch).permutation(n).tolist()
        batches += [shuffled[i : i + recipe.batch] for i in range(0, n, recipe.batch)]
    return batches


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to a tenth."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 1.0 - 0.9 * (step - rise) / max(1, steps - rise)


def _save(path: Path, scorer: Any, optimizer: Any, history: list[dict[str, float]]) -> None:
    with files.replacing(path) as part:
        torch.save({"scorer": scorer.state_dict(), "optimizer": optimizer.state_dict(), "history": history}, part)


def _restore(path: Path | None, scorer: Any, optimizer: Any, history: list[dict[str, float]]) -> int:
    if path is None or not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    scorer.load_state_dict(state["scorer"])
    optimizer.load_state_dict(state["optimizer"])
    history += state["history"]
    return len(history)
