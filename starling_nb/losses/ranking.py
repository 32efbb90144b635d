"""Losses for a reward model that learns from rankings of K answers.

Rows may hold different numbers of answers: ``mask`` is true for answers, false for padding. A row's loss
depends on its own answers only, never on padding or on its neighbours, and adding a constant to its scores
changes nothing.

Rankings may be partial: an answer with rank +inf was not ranked. It lost to every ranked answer and says nothing
about the other unranked ones, so it stays in every denominator and never stands in a numerator.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from starling_nb.losses.precision import LossError, keep

NORMALIZERS = ("k-1", "pairs", "none")
TIES = (None, "average", "breslow", "efron")
LARGEST_AVERAGED = 12


def k_wise(
    scores: Float[Tensor, "batch k"],
    mask: Shaped[Tensor, "batch k"] | None = None,
    *,
    ranks: Shaped[Tensor, "batch k"] | None = None,
    normalizer: str = "k-1",
    ties: str | None = None,
    top: int | None = None,
    zero_sum_penalty: float = 0.0,
) -> Float[Tensor, ""]:
    """K-wise maximum likelihood: Plackett-Luce negative log-likelihood of whole rankings, averaged over rows.

    Zhu, Jordan & Jiao 2023 (arXiv 2301.11270), eq. for MLE_K. The released training code divides each row by
    K - 1; the log of Starling-RM-7B-alpha starts at ln(7!)/21, which is what dividing by the number of pairs
    gives.

    Args:
        scores: one score an answer, best first, or in any order when ``ranks`` is given.
        mask: true for answers, false for padding, anywhere in the row; default all true.
        ranks: a number for each answer, smaller is better, +inf for unranked; only their order counts.
        normalizer: what a row with K answers is divided by: ``"k-1"``, ``"pairs"`` (K(K-1)/2) or ``"none"``. K
            counts all answers of the row, unranked ones too, so that ``top=m`` and ranks for the best m alone
            are one loss.
        ties: how equal ranks are read, see :func:`plackett_luce_nll`.
        top: only the first ``top`` choices count (1: which answer is best); default the whole ranking.
        zero_sum_penalty: weight of (sum of a row's scores)², added before dividing; it pins the free
            constant.

    Returns:
        The mean over rows with at least two answers of which one is ranked, nats; other rows do not count.

    Raises:
        LossError: unknown ``normalizer``, no row that counts, or as :func:`plackett_luce_nll`.
    """
    if normalizer not in NORMALIZERS:
        raise LossError(f"unknown normalizer {normalizer!r}: choose one of {', '.join(NORMALIZERS)}")
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    loss = plackett_luce_nll(scores, mask, ranks=ranks, ties=ties, top=top)
    if zero_sum_penalty:
        loss = loss + zero_sum_penalty * keep(scores, mask).sum(1).square()
    k = mask.sum(1).to(loss.dtype)
    divisor = {"k-1": k - 1, "pairs": k * (k - 1) / 2, "none": torch.ones_like(k)}[normalizer]
    ranked = mask if ranks is None else mask & (ranks != torch.inf)
    return _mean_of_rows(loss, divisor, (k >= 2) & ranked.any(1))


def plackett_luce_nll(
    scores: Float[Tensor, "batch k"],
    mask: Shaped[Tensor, "batch k"] | None = None,
    *,
    ranks: Shaped[Tensor, "batch k"] | None = None,
    ties: str | None = None,
    top: int | None = None,
) -> Float[Tensor, " batch"]:
    """Each row's negative log-probability, nats: ``sum_i [logsumexp(scores ranked at or below i) - s_i]``.

    The sum runs over ranked answers; with unranked ones it is the probability of the ranked list summed over all
    orders of the rest (Plackett 1975). A row without a ranked answer has loss 0.

    Args:
        scores, mask, ranks: as in :func:`k_wise`.
        top: only the first ``top`` choices count; in a row that ranks fewer, all of them do.
        ties: how ranked answers of equal rank are read (unranked answers do not tie). ``None`` refuses them;
            ``"average"`` takes the mean of the loss over all orders of the tied answers (what breaking ties at
            random gives on average); ``"breslow"`` and ``"efron"`` are the approximations of survival analysis
            (Breslow 1974, Efron 1977), which cost no more than a ranking without ties.

    Raises:
        LossError: ranks that tie while ``ties`` is None, unknown ``ties``, ``top`` together with ties, a score of
            an answer that is not finite, or a rank that is NaN or -inf.
    """
    s, mask, ranks = _read(scores, mask, ranks)
    ranked = mask & (ranks < torch.inf)
    _check_ties(ranked, ranks, ties, top)
    if ties == "average":
        return _average_over_orders(s, mask, ranks)
    both = mask[:, :, None] & mask[:, None, :]
    own = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    remaining = both & (ranks[:, None, :] >= ranks[:, :, None])
    # A padded answer faces itself alone: its logsumexp is finite, and its term is dropped below.
    terms = torch.where(remaining | own, s[:, None, :], -torch.inf)
    if ties == "efron":
        tied = both & (ranks[:, None, :] == ranks[:, :, None])
        earlier = tied.tril(-1).sum(2).to(s.dtype) / tied.sum(2).clamp(min=1)
        terms = terms + torch.where(tied, torch.log1p(-earlier)[:, :, None], 0.0)
    kept = ranked if top is None else ranked & ((both & ~remaining).sum(2) < top)
    return torch.where(kept, terms.logsumexp(2) - s, 0.0).sum(1)


def pairwise(
    scores: Float[Tensor, "batch k"],
    mask: Shaped[Tensor, "batch k"] | None = None,
    *,
    ranks: Shaped[Tensor, "batch k"] | None = None,
    pairs: str | int = "all",
    margin: float = 0.0,
    draws: Float[Tensor, "batch k k"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Bradley-Terry loss ``-log sigmoid(better - worse - margin)``: mean over a row's pairs, then over rows.

    InstructGPT (arXiv 2203.02155, eq. 1); MLE_2 of arXiv 2301.11270. Pairs of equal rank are left out, and so are
    pairs of two unranked answers.

    Args:
        scores, mask, ranks: as in :func:`k_wise`.
        pairs: ``"all"``; ``"adjacent"``, answers of neighbouring ranks (K - 1 pairs where nothing ties); or a
            number, so many pairs of each row drawn without replacement, all where a row has no more.
        margin: by how much the better score has to lead.
        draws: with a number: a random number for each (better, worse) pair; those with the smallest are taken. A
            row's sample then depends on its own draws alone, wherever it stands.
        generator: with a number: makes the draws instead, for the whole batch at once.

    Raises:
        LossError: no row holds two answers of different rank, unknown ``pairs``, a number without exactly one of
            ``draws`` and ``generator``, or scores or ranks that :func:`plackett_luce_nll` refuses.
    """
    s, mask, ranks = _read(scores, mask, ranks)
    better = mask[:, :, None] & mask[:, None, :] & (ranks[:, :, None] < ranks[:, None, :])
    if isinstance(pairs, int):
        better = _sample(better, pairs, draws, generator)
    elif pairs == "adjacent":
        after = torch.where(better, ranks[:, None, :], torch.inf)
        better = better & (ranks[:, None, :] == after.amin(2, keepdim=True))
    elif pairs != "all":
        raise LossError(f"unknown pairs {pairs!r}: choose 'all', 'adjacent' or how many to draw from each row")
    losses = torch.where(better, F.softplus(margin - s[:, :, None] + s[:, None, :]), 0.0)
    count = better.sum((1, 2))
    return _mean_of_rows(losses.sum((1, 2)), count.to(s.dtype), count > 0)


def _sample(better: Tensor, n: int, draws: Tensor | None, generator: torch.Generator | None) -> Bool[Tensor, "b k k"]:
    """``n`` of each row's pairs, those with the smallest draws."""
    if n < 1 or (draws is None) == (generator is None):
        raise LossError(f"pairs={n}: draw at least 1 pair, and pass either draws or a generator")
    if draws is None:
        assert generator is not None
        draws = torch.rand(better.shape, generator=generator, device=generator.device)
    keys = torch.where(better, draws.to(better.device), torch.inf).flatten(1)
    place = keys.argsort(dim=1, stable=True).argsort(dim=1)
    chosen: Tensor = better & (place < n).view_as(better)
    return chosen


def _mean_of_rows(loss: Tensor, divisor: Tensor, counted: Tensor) -> Tensor:
    """Mean of ``loss / divisor`` over the counted rows."""
    if not bool(counted.any()):
        raise LossError("no row holds two ranked answers: there is nothing to compare; check the mask and the ranks")
    return torch.where(counted, loss / divisor.clamp(min=1), 0.0).sum() / counted.sum()


def _read(scores: Tensor, mask: Tensor | None, ranks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Wide scores, a mask, and ranks in float64 (exact for integers); zeros under padding.

    Without ranks, the columns are in order.
    """
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    s = keep(scores, mask)
    if not bool(torch.isfinite(s).all()):
        row = int((~torch.isfinite(s)).any(1).nonzero()[0])
        raise LossError(f"row {row} holds a score that is NaN or infinite: lower the learning rate, or mask it out")
    if ranks is None:
        order = torch.arange(scores.shape[1], device=scores.device, dtype=torch.float64)
        return s, mask, order.expand(scores.shape)
    ranks = keep(ranks.double(), mask)
    if not bool((ranks > -torch.inf).all()):
        raise LossError("a rank is not a finite number (or +inf, unranked): mask the answer out or give it a rank")
    return s, mask, ranks


def _check_ties(ranked: Tensor, ranks: Tensor, ties: str | None, top: int | None) -> None:
    if ties not in TIES:
        raise LossError(f"unknown ties {ties!r}: choose None, 'average', 'breslow' or 'efron'")
    if top is not None and (top < 1 or ties is not None):
        raise LossError("top must be at least 1, and it needs rankings without ties (ties=None)")
    if ties is None:
        equal = (ranks[:, :, None] == ranks[:, None, :]) & ranked[:, :, None] & ranked[:, None, :]
        rows = (equal.sum((1, 2)) > ranked.sum(1)).nonzero().flatten()
        if len(rows):
            raise LossError(f"row {int(rows[0])} has equal ranks: pass ties='average', 'breslow' or 'efron'")


def _average_over_orders(s: Tensor, mask: Tensor, ranks: Tensor) -> Tensor:
    """Mean negative log-likelihood over all orders of tied answers, by the sets that may be left to choose.

    While m answers of a tied group are left, each m-subset of it is equally likely, with all worse answers
    beside it.
    """
    k = s.shape[1]
    if k > LARGEST_AVERAGED:
        raise LossError(f"ties='average' takes at most {LARGEST_AVERAGED} answers, got {k}: use ties='efron'")
    sets = _subsets(k).to(s.device)
    worst_first = torch.where(mask, ranks, -torch.inf)
    best = torch.where(sets, ranks[:, None, :], torch.inf).amin(2)
    group = worst_first[:, None, :] == best[:, :, None]
    worse = worst_first[:, None, :] > best[:, :, None]
    possible = ((sets & ~group) == worse).all(2) & (best < torch.inf)
    orders = [[1 / max(comb(n, m), 1) for m in range(k + 1)] for n in range(k + 1)]
    weight = torch.tensor(orders, dtype=s.dtype, device=s.device)[group.sum(2), (group & sets).sum(2)]
    lse = torch.where(sets, s[:, None, :], -torch.inf).logsumexp(2)
    return torch.where(possible, weight * lse, 0.0).sum(1) - torch.where(ranks < torch.inf, s, 0.0).sum(1)


@lru_cache(maxsize=16)
def _subsets(k: int) -> Bool[Tensor, "sets k"]:
    """All non-empty subsets of k answers."""
    numbers = torch.arange(1, 2**k)
    return (numbers[:, None] >> torch.arange(k)) % 2 == 1
