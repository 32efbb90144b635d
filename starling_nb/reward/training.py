"""Train a reward model on ranked comparisons, K-wise or pairwise.

All losses start from the same weights and see the same packed comparisons in the same order, so their difference is
the loss. One small loop: a step takes ``batch`` comparisons, in rows of ``row_tokens``; several processes share a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from starling_nb import files, losses
from starling_nb.errors import StarlingError
from starling_nb.losses import LossError
from starling_nb.models import LM
from starling_nb.reward.packing import rows
from starling_nb.reward.scoring import Prepared, Report, Scorer, fresh, score_row

LOSSES: tuple[Literal["k_wise"], Literal["pairwise"]] = ("k_wise", "pairwise")


@dataclass(frozen=True)
class Recipe:
    """How a reward model is trained; defaults are those of the embedded run."""

    loss: Literal["k_wise", "pairwise"] = "k_wise"
    """Whole rankings (Plackett-Luce) or all pairs (Bradley-Terry)."""
    ties: str = "efron"
    """How the K-wise loss reads equal ranks: efron, breslow or average; a pairwise loss leaves such pairs out."""
    lr: float = 1e-4
    """Of the blocks, AdamW; the published 7B used 1e-5 for all of it."""
    head_lr: float = 1e-3
    """Of the score head."""
    epochs: int = 2
    """Passes over the comparisons; the published 7B was kept after 0.9."""
    batch: int = 6
    """Comparisons a step, over all processes; the published 7B took about 104."""
    trainable: str = "last:4"
    """What learns: last:k, blocks:a-b, lora:r, full (as published), or the head alone."""
    readout: str = "last_token"
    """Where the score is read: last_token (as published), mean or both."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    warmup: float = 0.1
    """Share of the steps in which the rates rise."""
    row_tokens: int = 2048
    """Tokens computed at a time; more is faster and takes more memory."""
    checkpointing: bool = False
    """Compute inner states again in the backward pass: less memory, a third more time."""
    save_every: int = 10
    """Steps between checkpoints."""
    seed: int = 0
    """Of the order."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            StarlingError: an unknown loss, or a number out of range.
        """
        if self.loss not in LOSSES:
            raise StarlingError(f"loss={self.loss!r}: choose one of {', '.join(LOSSES)}")
        counts = {name: getattr(self, name) for name in ("epochs", "batch", "row_tokens", "save_every")}
        rates = {name: getattr(self, name) for name in ("lr", "head_lr", "weight_decay", "warmup")}
        wrong = [name for name, value in counts.items() if value < 1]
        wrong += [name for name, value in rates.items() if not 0 <= value < math.inf]
        if wrong:
            raise StarlingError(f"{', '.join(wrong)}: counts must be at least 1, rates finite and not negative")


def train(
    lm: LM,
    prepared: Sequence[Prepared],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> tuple[Scorer, list[dict[str, float]], int]:
    """Train and return the scorer, one record a step (step, loss, lr) and the step it was resumed from.

    With ``checkpoint`` the state is written every ``save_every`` steps and a restarted call goes on from there, bit for
    bit. Under ``accelerate launch`` the processes share every step and end with the same weights.

    Raises:
        StarlingError: no comparisons, a checkpoint of another run, a loss that is not a number, or scores that are all
            the same after the first epoch (nothing was learned).
    """
    if not prepared:
        raise StarlingError("there is nothing to train on: no comparisons were given")
    torch.manual_seed(recipe.seed)
    accelerator = lm.accelerator()
    scorer: Any = fresh(lm, recipe.trainable, recipe.readout, recipe.checkpointing)
    optimizer: Any = _optimizer(scorer, recipe)
    base = [group["lr"] for group in optimizer.param_groups]
    scorer, optimizer = accelerator.prepare(scorer, optimizer)
    plain: Scorer = accelerator.unwrap_model(scorer)
    order = _order(len(prepared), recipe)
    state = _State(checkpoint, plain, optimizer, _fingerprint(lm, recipe, prepared))
    history, resumed = state.history, state.restore()
    for step in range(resumed, len(order)):
        scale = _schedule(step, len(order), recipe.warmup)
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * scale
        try:
            loss, spread = _gradient(accelerator, scorer, [prepared[i] for i in order[step]], recipe)
        except LossError as error:
            raise StarlingError(f"the loss is not a number at step {step} ({error}): lower lr and head_lr") from error
        _guard(loss, spread, step, len(order), recipe)
        accelerator.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append({"step": float(step), "loss": loss, "lr": base[0] * scale, "spread": spread})
        if report is not None:
            report(step + 1, len(order), {"loss": loss})
        if (step + 1) % recipe.save_every == 0 and accelerator.is_main_process:
            state.save()
    accelerator.wait_for_everyone()
    return plain, history, resumed


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


def ranking_loss(scores: Sequence[Tensor], ranks: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """Mean loss of comparisons with scores ``[K]`` and ranks ``[K]``, K of each its own."""
    padded = torch.nn.utils.rnn.pad_sequence([one.float() for one in scores], batch_first=True)
    order = torch.nn.utils.rnn.pad_sequence(list(ranks), batch_first=True).to(padded.device)
    mask = torch.tensor([[i < len(one) for i in range(padded.shape[1])] for one in scores], device=padded.device)
    if recipe.loss == "pairwise":
        return losses.pairwise(padded, mask, ranks=order)
    return losses.k_wise(padded, mask, ranks=order, ties=recipe.ties)


def _gradient(accelerator: Any, scorer: Any, items: Sequence[Prepared], recipe: Recipe) -> tuple[float, float]:
    """Add one batch's gradient over all processes; its mean loss and the widest spread of scores in one comparison.

    Every process takes each n-th comparison. The processes' gradients are averaged, hence the factor; a process that
    has none computes one with weight 0, for all must take part.
    """
    own = items[accelerator.process_index :: accelerator.num_processes]
    weight = accelerator.num_processes / len(items) if own else 0.0
    own = own or items[:1]
    total = spread = 0.0
    groups = rows([len(item.packed.ids) for item in own], recipe.row_tokens)
    for number, group in enumerate(groups, 1):
        with _last(accelerator, scorer, number == len(groups)), accelerator.autocast():
            scores = score_row(scorer, [own[i] for i in group])
            loss = ranking_loss(scores, [own[i].ranks for i in group], recipe) * (len(group) * weight)
            accelerator.backward(loss)
        total += float(loss.detach())
        spread = max([spread, *(float((one.max() - one.min()).detach()) for one in scores)])
    if accelerator.num_processes > 1:
        shared = torch.tensor([total, spread], device=accelerator.device)
        every = accelerator.gather(shared[None])
        total, spread = float(every[:, 0].mean()), float(every[:, 1].max())
    return total, spread


def _last(accelerator: Any, scorer: Any, last: bool) -> Any:
    """Processes exchange gradients in the last row of a step only."""
    from contextlib import nullcontext

    return nullcontext() if last else accelerator.no_sync(scorer)


def _guard(loss: float, spread: float, step: int, steps: int, recipe: Recipe) -> None:
    """Stop a run that cannot become anything."""
    if not math.isfinite(loss):
        raise StarlingError(f"the loss is not a number at step {step}: lower lr and head_lr")
    if 0 < step == min(steps // recipe.epochs, steps - 1) and spread < 1e-6:
        raise StarlingError("the scores are all the same after the first epoch: raise lr and head_lr")


def _optimizer(scorer: Scorer, recipe: Recipe) -> Any:
    learning = [part for part in scorer.top.parameters() if part.requires_grad]
    groups = [{"params": learning, "lr": recipe.lr}, {"params": scorer.v_head.parameters(), "lr": recipe.head_lr}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True)


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


def _fingerprint(lm: LM, recipe: Recipe, prepared: Sequence[Prepared]) -> str:
    """Names the run that a checkpoint belongs to: backbone, recipe, ranks and token ids."""
    told = "".join(f"{item.ranks.tolist()}{item.packed.ids.tolist()}" for item in prepared)
    return files.sha256(f"{lm.name}{lm.fingerprint()}{replace(recipe, save_every=1)}{told}".encode())


class _State:
    """What a broken-off run needs to go on: weights, optimiser and history, beside the name of the run."""

    def __init__(self, path: Path | None, scorer: Scorer, optimizer: Any, run: str) -> None:
        self.path, self.scorer, self.optimizer, self.run = path, scorer, optimizer, run
        self.history: list[dict[str, float]] = []

    def save(self) -> None:
        if self.path is None:
            return
        learned = {name for name, part in self.scorer.named_parameters() if part.requires_grad}
        weights = {name: value for name, value in self.scorer.state_dict().items() if name in learned}
        with files.replacing(self.path) as part:
            torch.save(
                {
                    "run": self.run,
                    "scorer": weights,
                    "optimizer": self.optimizer.state_dict(),
                    "history": self.history,
                },
                part,
            )

    def restore(self) -> int:
        if self.path is None or not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if state.get("run") != self.run:
            raise StarlingError(f"{self.path} belongs to another run (recipe or data differ): delete it to start anew")
        self.scorer.load_state_dict(state["scorer"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.history += state["history"]
        return len(self.history)
