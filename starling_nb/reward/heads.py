"""A head alone, fitted exactly on frozen states: cheap enough to ask how a loss fares over many seeds and sizes.

The frozen backbone is read once. A head on it is a convex problem with one solution, so nothing but the labels and the
loss decides what comes out: no learning rate, no order, no stopping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from starling_nb import files, losses
from starling_nb.blocks import first_trainable, run_blocks
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.packing import rows, together
from starling_nb.reward.scoring import Prepared
from starling_nb.reward.training import LOSSES
from starling_nb.stats import Interval

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Weights of the squared norm from which validation chooses, for every loss and size anew."""


@dataclass(frozen=True)
class Read:
    """What a head sees of N comparisons of up to K answers: ``[N, K, width]``, with ranks and mask ``[N, K]``.

    ``places`` ``[N, K]`` are the positions (from 0) at which the judge was shown the answers, where that is known.
    """

    states: Tensor
    ranks: Tensor
    mask: Tensor
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def some(self, chosen: Sequence[int]) -> Read:
        """Some of the comparisons."""
        at = torch.tensor(list(chosen), dtype=torch.long)
        places = None if self.places is None else self.places[at]
        return Read(self.states[at], self.ranks[at], self.mask[at], places)

    def relabelled(self, ranks: Tensor) -> Read:
        """The same answers under other ranks ``[N, K]``."""
        return Read(self.states, ranks, self.mask)

    def scores(self, head: Tensor) -> list[list[float]]:
        """Scores of every comparison's answers under a head ``[width]``."""
        found = self.states @ head
        return [row[mask].tolist() for row, mask in zip(found, self.mask, strict=True)]


@torch.inference_mode()
def read(lm: LM, prepared: Sequence[Prepared], readout: str, trainable: str = "head", row_tokens: int = 2048) -> Read:
    """Post-norm states of the untrained backbone that a head reads.

    ``trainable`` is what the comparisons were prepared for: the blocks above that trunk are run here.
    """
    decoder: Any = lm.model.model
    blocks = len(decoder.layers)
    start = first_trainable(trainable, blocks)
    found: dict[int, Tensor] = {}
    for group in rows([len(item.packed.ids) for item in prepared], row_tokens):
        row = together([prepared[i].packed for i in group])
        states = torch.cat([prepared[i].states for i in group])[None].to(lm.device)
        states = states.to(lm.dtype) if states.is_floating_point() else decoder.embed_tokens(states)
        states = run_blocks(decoder, states, row.positions[None].to(lm.device), row.layout, start, blocks)
        seen = row.readout(readout) @ decoder.norm(states)[0].float().cpu()
        found |= zip(group, seen.split(row.layout.counts), strict=True)
    return stack([found[i] for i in range(len(prepared))], [item.ranks for item in prepared])


def stack(states: Sequence[Tensor], ranks: Sequence[Tensor]) -> Read:
    """Ragged states ``[K, width]`` and ranks ``[K]`` of several comparisons, padded."""
    padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True).clone()
    order = torch.nn.utils.rnn.pad_sequence([one.double() for one in ranks], batch_first=True)
    mask = torch.tensor([[i < len(one) for i in range(order.shape[1])] for one in ranks])
    return Read(padded, order, mask)


def by_ranking(seen: Read, comparisons: Sequence[Comparison], rankings: pd.DataFrame) -> Read:
    """Every ranking of a judge as a comparison of its own, with the places at which its answers were shown.

    Args:
        seen: the states of the comparisons, in their order.
        comparisons: with distinct responders; answers that they lack are left out of the rankings too.
        rankings: ``prompt_id`` as in the comparisons, ``models`` in the order shown, ``ranking`` (shown positions from
            0, best first). Rankings of other prompts, and those that failed, are passed over.

    Raises:
        StarlingError: no ranking is of one of the comparisons.
    """
    number = {one.prompt_id: i for i, one in enumerate(comparisons)}
    chosen, ranks, places = [], [], []
    for record in rankings[rankings.ranking.notna() & rankings.prompt_id.isin(number)].to_dict("records"):
        one = number[record["prompt_id"]]
        shown = {name: place for place, name in enumerate(record["models"])}
        rank = {int(place): float(i) for i, place in enumerate(record["ranking"], 1)}
        own = [shown[name] for name in comparisons[one].responders]
        chosen.append(one)
        places.append(torch.tensor(own))
        ranks.append(torch.tensor([rank[place] for place in own], dtype=torch.float64))
    if not chosen:
        raise StarlingError("no ranking is of one of these comparisons: give the rankings that made them")
    part = seen.some(chosen)
    pad = torch.nn.utils.rnn.pad_sequence
    width = part.mask.shape[1]
    order, at = (torch.nn.functional.pad(pad(x, batch_first=True), (0, width)) for x in (ranks, places))
    return Read(part.states, order[:, :width], part.mask, at[:, :width])


def fit(seen: Read, loss: str, ridge: float, position_term: bool = False, steps: int = 200) -> Tensor:
    """The head ``[width]`` that minimises ``loss + ridge · variance · |head|²``.

    ``variance`` is that of the states, so that a ridge means the same on every backbone. L-BFGS to convergence.
    With ``position_term`` a number for each shown place is added to the scores, learned beside the head and thrown
    away: what the judge gives a place is then not taken for quality.

    Raises:
        StarlingError: an unknown loss, a negative ridge, or a position term without known places.
    """
    if loss not in LOSSES or ridge < 0:
        raise StarlingError(f"loss={loss!r}, ridge={ridge}: choose a loss of {', '.join(LOSSES)} and a ridge from 0")
    if position_term and seen.places is None:
        raise StarlingError("a position term needs the places at which answers were shown: see by_ranking")
    variance = seen.states[seen.mask].var(0).mean()
    states = seen.states / variance.sqrt()
    head = torch.zeros(states.shape[-1], requires_grad=True)
    terms = torch.zeros(0 if seen.places is None else int(seen.places.max()) + 1, requires_grad=True)
    learned = [head, terms] if position_term else [head]
    optimizer = torch.optim.LBFGS(learned, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = states @ head + (terms[seen.places] if position_term else 0.0)
        if loss == "k_wise":
            value = losses.k_wise(scores, seen.mask, ranks=seen.ranks, ties="efron")
        else:
            value = losses.pairwise(scores, seen.mask, ranks=seen.ranks)
        value = value + ridge * head.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return head.detach() / variance.sqrt()


def accuracy(seen: Read, head: Tensor) -> float:
    """Share of all pairs of different rank that the head orders rightly; equal scores count half."""
    right, pairs = _right(seen.states @ head, seen)
    return float(right.sum() / pairs.sum())


def _right(scores: Tensor, seen: Read) -> tuple[Tensor, Tensor]:
    """By comparison: pairs ordered rightly, and pairs."""
    better = seen.ranks[:, :, None] < seen.ranks[:, None, :]
    better = better & seen.mask[:, :, None] & seen.mask[:, None, :]
    right = (torch.sign(scores[:, :, None] - scores[:, None, :]) + 1) / 2
    return torch.where(better, right, 0.0).sum((1, 2)), better.sum((1, 2))


def best(
    train: Read, validation: Read, loss: str, ridges: Sequence[float] = RIDGES, position_term: bool = False
) -> tuple[Tensor, float]:
    """The head of that ridge which orders the validation pairs best, and the ridge."""
    heads = {ridge: fit(train, loss, ridge, position_term) for ridge in ridges}
    chosen = max(ridges, key=lambda ridge: accuracy(validation, heads[ridge]))
    return heads[chosen], chosen


def curve(
    train: Read,
    validation: Read,
    test: Read,
    sizes: Sequence[int],
    seeds: int,
    ridges: Sequence[float] = RIDGES,
    relabel: Callable[[Read, str, int], Read] | None = None,
) -> pd.DataFrame:
    """Test accuracy by loss over subsets of the training comparisons.

    Every seed draws one order of the comparisons; a size takes its first ones, the same for both losses. Validation
    chooses each ridge. A simulated judge labels anew for every seed: ``relabel`` gets a part, its name and the seed.
    Columns: seed, size, loss, ridge, accuracy.
    """
    found = []
    for seed in range(seeds):
        order = files.rng(seed, "learning curve").permutation(len(train)).tolist()
        learn, check = train, validation
        if relabel is not None:
            learn, check = relabel(train, "train", seed), relabel(validation, "validation", seed)
        for size in sizes:
            part = learn.some(order[:size])
            for loss in LOSSES:
                head, ridge = best(part, check, loss, ridges)
                found.append(
                    {"seed": seed, "size": size, "loss": loss, "ridge": ridge, "accuracy": accuracy(test, head)}
                )
    return pd.DataFrame(found)


def label_ratio(points: pd.DataFrame, draws: int = 2000) -> Interval | None:
    """Comparisons that K-wise training needs for each that pairwise training needs, for the same accuracy.

    Below 1 K-wise learns from fewer. Accuracy is taken to grow with the logarithm of the number of comparisons, with
    one slope for both losses; the gap between them, divided by that slope, is the ratio's logarithm. The interval
    (95 %) resamples seeds. Without growth (a slope whose interval holds 0) the ratio means nothing: then None.

    Args:
        points: as :func:`curve` gives.
        draws: resamples.

    Raises:
        StarlingError: fewer than two seeds or sizes.
    """
    table = points.pivot(index=["seed", "size"], columns="loss", values="accuracy")
    seeds = table.index.get_level_values("seed").unique()
    if len(seeds) < 2 or points["size"].nunique() < 2:
        raise StarlingError("a label ratio needs at least two seeds and two sizes")
    values = table.to_numpy().reshape(len(seeds), -1, len(table.columns))
    k_wise, pairwise = (values[:, :, list(table.columns).index(name)] for name in LOSSES)
    x = np.log(np.sort(points["size"].unique()))
    x = x - x.mean()

    def parts(chosen: Any) -> tuple[Any, Any]:
        both = (k_wise[chosen] + pairwise[chosen]).mean(-2) / 2
        return (k_wise[chosen] - pairwise[chosen]).mean((-2, -1)), (both * x).sum(-1) / (x * x).sum()

    gap, slope = parts(np.arange(len(seeds)))
    chosen = files.rng(0, "label ratio").integers(len(seeds), size=(draws, len(seeds)))
    gaps, slopes = parts(chosen)
    if np.quantile(slopes, 0.025) <= 0:
        return None
    low, high = np.quantile(np.exp(-gaps / slopes), [0.025, 0.975])
    return Interval(float(np.exp(-gap / slope)), float(low), float(high), len(seeds))


def plackett_luce_ranks(utilities: Sequence[Sequence[float]], *ids: str | int) -> Tensor:
    """Ranks ``[N, K]`` drawn from a Plackett-Luce model with these utilities (Gumbel noise), ragged K padded with 0.

    ``ids`` decide the draw.
    """
    return _drawn(utilities, ids, lambda draw, k: draw.gumbel(size=k))


def thurstone_ranks(utilities: Sequence[Sequence[float]], *ids: str | int) -> Tensor:
    """The same under normal noise of the Gumbel's variance (Thurstone 1927): a judge that is not Plackett-Luce."""
    return _drawn(utilities, ids, lambda draw, k: draw.normal(size=k) * np.pi / np.sqrt(6))


def _drawn(utilities: Sequence[Sequence[float]], ids: tuple[str | int, ...], noise: Any) -> Tensor:
    ranks = []
    for number, row in enumerate(utilities):
        heard = np.asarray(row) + noise(files.rng(0, "judge", *ids, number), len(row))
        ranks.append(torch.tensor((-heard).argsort().argsort() + 1.0))
    return torch.nn.utils.rnn.pad_sequence(ranks, batch_first=True)
