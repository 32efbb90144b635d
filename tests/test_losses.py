"""The objectives against golden values, closed forms, brute force and a public Plackett-Luce fitter."""

from __future__ import annotations

import itertools
import math

import choix
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from starling_nb import losses

A = [3, 2, 1.5, 0.5, 0, -1, -2]
rows = st.lists(st.floats(-8, 8), min_size=2, max_size=7)
quick = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def double(*x: object) -> Tensor:
    return torch.tensor(*x, dtype=torch.float64)


# --- rankings ------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "nll", "pairs", "top"),
    [
        (A, 3.169444, 0.174634, 0.558435),
        (A[::-1], 19.949312, 2.317491, 5.558435),
        ([0] * 7, 8.525161, 0.693147, 1.945910),
    ],
)
def test_golden_rankings(scores: list[float], nll: float, pairs: float, top: float) -> None:
    s = double([scores])
    assert losses.k_wise(s, normalizer="none").item() == pytest.approx(nll, abs=1e-6)
    assert losses.k_wise(s).item() == pytest.approx(nll / 6, abs=1e-6)
    assert losses.k_wise(s, normalizer="pairs").item() == pytest.approx(nll / 21, abs=1e-6)
    assert losses.k_wise(s, normalizer="none", top=1).item() == pytest.approx(top, abs=1e-6)
    assert losses.pairwise(s).item() == pytest.approx(pairs, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "gradient"),
    [
        (A, [-0.071316, -0.049612, 0.002180, -0.017371, 0.034759, 0.029277, 0.072084]),
        ([0.0] * 7, [-0.142857, -0.115079, -0.081746, -0.040079, 0.015476, 0.098810, 0.265476]),
    ],
)
def test_golden_gradient(scores: list[float], gradient: list[float]) -> None:
    s = double([scores]).requires_grad_()
    losses.k_wise(s).backward()
    torch.testing.assert_close(s.grad, double([gradient]), atol=1e-6, rtol=0)


@quick
@given(rows)
def test_k_wise_gradient_is_the_closed_form(scores: list[float]) -> None:
    s = double([scores]).requires_grad_()
    losses.k_wise(s, normalizer="none").backward()
    k = len(scores)
    expected = [
        sum(math.exp(scores[i]) / sum(math.exp(x) for x in scores[j:]) for j in range(i + 1)) - 1 for i in range(k)
    ]
    torch.testing.assert_close(s.grad, double([expected]), atol=1e-9, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda x: losses.pairwise(x, margin=0.3), (s,))


@quick
@given(rows, st.randoms(use_true_random=False), st.floats(-50, 50))
def test_order_of_columns_and_a_constant_change_nothing(scores: list[float], random: object, shift: float) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    plain, ranks = double([scores]), double([order])
    shuffled = plain[:, order]
    for loss in (losses.k_wise, losses.pairwise):
        torch.testing.assert_close(loss(shuffled, ranks=ranks), loss(plain))
        torch.testing.assert_close(loss(plain + shift), loss(plain))
        torch.testing.assert_close(loss(shuffled, ranks=3 * ranks - 7), loss(plain))


@quick
@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 3), st.sampled_from(["k-1", "pairs", "none"]))
def test_padding_and_neighbours_change_nothing(batch: list[list[float]], extra: int, normalizer: str) -> None:
    width = max(map(len, batch)) + extra
    padded = torch.full((len(batch), width), torch.nan, dtype=torch.float64)
    mask = torch.zeros(padded.shape, dtype=torch.bool)
    for i, row in enumerate(batch):
        padded[i, : len(row)], mask[i, : len(row)] = double(row), True
    alone = [losses.k_wise(double([row]), normalizer=normalizer) for row in batch]
    torch.testing.assert_close(losses.k_wise(padded, mask, normalizer=normalizer), torch.stack(alone).mean())
    padded.requires_grad_()
    losses.k_wise(padded, mask).backward()
    assert torch.isfinite(padded.grad).all()
    assert (padded.grad[~mask] == 0).all()
    assert torch.allclose(padded.grad.sum(1), torch.zeros(len(batch), dtype=torch.float64))


def test_gaps_and_rows_without_a_comparison_do_not_count() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    gaps = losses.k_wise(double([[1, 9, 0.5], [2, 3, 4], [5, 6, 7]]), mask)
    torch.testing.assert_close(gaps, losses.k_wise(double([[1, 0.5]])))
    with pytest.raises(losses.LossError, match="nothing to compare"):
        losses.k_wise(double([[1.0, 2.0]]), torch.tensor([[True, False]]))
    with pytest.raises(losses.LossError, match="nothing to compare"):
        losses.pairwise(double([[1.0, 2.0]]), ranks=double([[1, 1]]))


def test_zero_sum_penalty_and_half_precision() -> None:
    s = double([[2.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(losses.k_wise(s, zero_sum_penalty=0.5) - losses.k_wise(s), double(0.25 * (9 + 1)))
    half = torch.tensor([A], dtype=torch.bfloat16)
    assert losses.k_wise(half).dtype == torch.float32
    assert losses.k_wise(half).item() == pytest.approx(0.528241, abs=1e-6)


def _orders(ranks: list[int]) -> list[tuple[int, ...]]:
    return [p for p in itertools.permutations(range(len(ranks))) if [ranks[i] for i in p] == sorted(ranks)]


@quick
@given(st.lists(st.tuples(st.floats(-4, 4), st.integers(0, 2)), min_size=2, max_size=5))
def test_ties_against_brute_force(items: list[tuple[float, int]]) -> None:
    scores, ranks = [s for s, _ in items], [r for _, r in items]
    s, r = double([[*scores, torch.nan]]), torch.tensor([[*ranks, 0]])
    mask = torch.tensor([[True] * len(items) + [False]])

    def loss(ties: str) -> float:
        return losses.plackett_luce_nll(s, mask, ranks=r, ties=ties).item()

    orders = [losses.plackett_luce_nll(double([scores])[:, list(p)]).item() for p in _orders(ranks)]
    assert loss("average") == pytest.approx(np.mean(orders), abs=1e-9)
    efron = breslow = -sum(scores)
    for level in set(ranks):
        rest = sum(math.exp(x) for x, rank in items if rank >= level)
        tied = [math.exp(x) for x, rank in items if rank == level]
        breslow += len(tied) * math.log(rest)
        efron += sum(math.log(rest - i / len(tied) * sum(tied)) for i in range(len(tied)))
    assert loss("breslow") == pytest.approx(breslow, abs=1e-9)
    assert loss("efron") == pytest.approx(efron, abs=1e-9)


@pytest.mark.parametrize("ties", ["average", "breslow", "efron"])
def test_tie_rules_agree_where_nothing_ties(ties: str) -> None:
    s = double([A]).requires_grad_()
    ranks = torch.arange(7)[None]
    torch.testing.assert_close(losses.k_wise(s, ranks=ranks, ties=ties), losses.k_wise(s))
    tied = torch.tensor([[0, 1, 1, 2, 2, 2, 3]])
    assert torch.autograd.gradcheck(lambda x: losses.k_wise(x, ranks=tied, ties=ties), (s,))


def test_bad_ranking_arguments_are_refused() -> None:
    s = double([A])
    for arguments, match in [
        ({"ranks": torch.zeros(1, 7)}, "row 0 has equal ranks"),
        ({"ties": "coin"}, "unknown ties"),
        ({"normalizer": "k"}, "unknown normalizer"),
        ({"top": 0}, "top must be"),
        ({"top": 2, "ties": "efron"}, "without ties"),
        ({"ranks": torch.full((1, 7), torch.nan)}, "not a finite"),
        ({"ranks": torch.full((1, 7), -torch.inf)}, "not a finite"),
        ({"ranks": torch.full((1, 7), torch.inf)}, "nothing to compare"),
    ]:
        with pytest.raises(losses.LossError, match=match):
            losses.k_wise(s, **arguments)
    with pytest.raises(losses.LossError, match="at most 12"):
        losses.k_wise(torch.zeros(1, 13), ranks=torch.zeros(1, 13), ties="average")
    with pytest.raises(Exception, match="batch k"):
        losses.k_wise(torch.zeros(7))


def test_pairwise_adjacent_and_ties() -> None:
    s, softplus = double([[1.0, 0.5, -1.0, 2.0]]), lambda x: math.log1p(math.exp(x))
    neighbours = losses.pairwise(s, pairs="adjacent").item()
    assert neighbours == pytest.approx((softplus(-0.5) + softplus(-1.5) + softplus(3.0)) / 3)
    ranks = torch.tensor([[5, 1, 1, 9]])
    across = losses.pairwise(s, ranks=ranks, pairs="adjacent").item()
    assert across == pytest.approx((softplus(0.5) + softplus(2.0) + softplus(1.0)) / 3)
    with_margin = losses.pairwise(double([[1.0, 0.0]]), margin=0.4).item()
    assert with_margin == pytest.approx(softplus(-0.6))


@st.composite
def partial_rows(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Scores and ranks; at least one answer is ranked, and some may not be."""
    scores = draw(st.lists(st.floats(-4, 4), min_size=2, max_size=5))
    ranked = draw(st.integers(1, len(scores)))
    ranks = [float(i) if i < ranked else math.inf for i in range(len(scores))]
    return scores, draw(st.permutations(ranks))


def _pl(scores: list[float], order: tuple[int, ...]) -> float:
    """Probability of one whole order, one choice after another."""
    return math.prod(
        math.exp(scores[i]) / sum(math.exp(scores[j]) for j in order[place:]) for place, i in enumerate(order)
    )


@quick
@given(partial_rows())
def test_a_partial_ranking_is_the_sum_over_its_completions(row: tuple[list[float], list[float]]) -> None:
    scores, ranks = row
    best_first = sorted((i for i in range(len(ranks)) if ranks[i] < math.inf), key=lambda i: ranks[i])
    orders = itertools.permutations(range(len(scores)))
    total = sum(_pl(scores, order) for order in orders if list(order[: len(best_first)]) == best_first)
    s, r = double([scores]).requires_grad_(), double([ranks])
    for ties in (None, "average", "breslow", "efron"):
        found = losses.plackett_luce_nll(s, ranks=r, ties=ties)
        assert found.item() == pytest.approx(-math.log(total), abs=1e-9)
        assert torch.autograd.gradcheck(lambda x, ties=ties: losses.k_wise(x, ranks=r, ties=ties), (s,))


@quick
@given(st.permutations(range(6)), st.integers(1, 6), st.sampled_from(["k-1", "pairs", "none"]))
def test_top_choices_are_ranks_for_the_best_alone(order: list[int], top: int, normalizer: str) -> None:
    s, ranks = double([A[:6]])[:, order] * 1.3, double([[2.0, 0, 5, 1, 3, 4]])
    cut = torch.where(ranks < top, ranks, torch.inf)
    short = losses.k_wise(s, ranks=cut, normalizer=normalizer)
    torch.testing.assert_close(short, losses.k_wise(s, ranks=ranks, top=top, normalizer=normalizer))
    torch.testing.assert_close(losses.k_wise(s, ranks=cut, top=top + 3, normalizer=normalizer), short)
    if top >= 5:  # the last place of six is no choice
        torch.testing.assert_close(short, losses.k_wise(s, ranks=ranks, normalizer=normalizer))


@pytest.mark.parametrize("ties", ["average", "breslow", "efron"])
def test_ties_above_unranked_answers(ties: str) -> None:
    scores = [0.3, -0.4, 1.1, 0.2]
    s, ranks = double([scores]), double([[1, 1, math.inf, math.inf]])
    (a, b), rest = (math.exp(x) for x in scores[:2]), math.exp(1.1) + math.exp(0.2)
    choice = {
        "average": 0.5 * math.log(b + rest) + 0.5 * math.log(a + rest),
        "breslow": math.log(a + b + rest),
        "efron": math.log((a + b) / 2 + rest),
    }[ties]
    expected = math.log(a + b + rest) + choice - scores[0] - scores[1]
    assert losses.plackett_luce_nll(s, ranks=ranks, ties=ties).item() == pytest.approx(expected, abs=1e-9)


def test_a_row_that_ranks_nothing_does_not_count() -> None:
    s = double([[1.0, 0.2, -0.3], [3.0, 9.0, 2.0]])
    ranks = double([[2, 1, math.inf], [math.inf] * 3])
    torch.testing.assert_close(losses.k_wise(s, ranks=ranks), losses.k_wise(s[:1], ranks=ranks[:1]))
    torch.testing.assert_close(losses.pairwise(s, ranks=ranks), losses.pairwise(s[:1], ranks=ranks[:1]))
    assert losses.plackett_luce_nll(s, ranks=ranks)[1] == 0


def test_an_unranked_answer_lost_to_the_ranked_ones_in_pairs() -> None:
    s, softplus = double([[1.0, 0.5, -1.0, 2.0]]), lambda x: math.log1p(math.exp(x))
    ranks = double([[math.inf, 1, 2, math.inf]])
    lost = [softplus(x) for x in (-1.5, 0.5, 1.5, 2.0, 3.0)]
    assert losses.pairwise(s, ranks=ranks).item() == pytest.approx(sum(lost) / 5)
    near = losses.pairwise(s, ranks=ranks, pairs="adjacent").item()
    assert near == pytest.approx((lost[0] + lost[3] + lost[4]) / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_stops_with_its_row(bad: float) -> None:
    s, mask = double([[1.0, 0.0, 2.0], [0.5, bad, 1.0]]), torch.tensor([[True] * 3, [True, True, False]])
    for loss in (losses.k_wise, losses.pairwise, losses.plackett_luce_nll):
        with pytest.raises(losses.LossError, match="row 1 holds a score"):
            loss(s, mask)
        assert torch.isfinite(loss(s, torch.tensor([[True] * 3, [True, False, True]]))).all()


@quick
@given(st.lists(partial_rows(), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 4))
def test_no_loss_sees_padding_or_neighbours(
    batch: list[tuple[list[float], list[float]]], extra: int, drawn: int
) -> None:
    width = max(len(scores) for scores, _ in batch) + extra
    s = torch.full((len(batch), width), torch.nan, dtype=torch.float64)
    ranks, mask = s.clone(), torch.zeros(s.shape, dtype=torch.bool)
    draws = torch.rand(len(batch), width, width, generator=torch.Generator().manual_seed(drawn))
    for i, (scores, places) in enumerate(batch):
        s[i, : len(scores)], ranks[i, : len(scores)], mask[i, : len(scores)] = double(scores), double(places), True
    alone: dict[object, list[Tensor]] = {"k_wise": [], "all": [], "adjacent": [], drawn: []}
    for i, (scores, places) in enumerate(batch):
        row, place, own = double([scores]), double([places]), draws[i : i + 1, : len(scores), : len(scores)]
        alone["k_wise"].append(losses.k_wise(row, ranks=place, ties="efron"))
        for pairs in ("all", "adjacent", drawn):
            sample = own if pairs == drawn else None
            alone[pairs].append(losses.pairwise(row, ranks=place, pairs=pairs, draws=sample))
    together = {"k_wise": losses.k_wise(s, mask, ranks=ranks, ties="efron")}
    for pairs in ("all", "adjacent", drawn):
        sample = draws if pairs == drawn else None
        together[pairs] = losses.pairwise(s, mask, ranks=ranks, pairs=pairs, draws=sample)
    for name, loss in together.items():
        torch.testing.assert_close(loss, torch.stack(alone[name]).mean())


def test_padding_that_entered_the_normaliser_elsewhere() -> None:
    """sentence-transformers until #3827: one padded slot took this kind of loss from 0.263 to 0.976."""
    s = double([[2.0, 0.8]]).requires_grad_()
    plain = losses.k_wise(s)
    (gradient,) = torch.autograd.grad(plain, s)
    assert plain.item() == pytest.approx(math.log1p(math.exp(-1.2)))
    padded = double([[2.0, 0.8, 0.0], [5.0, 1.0, 0.5]]).requires_grad_()
    row = losses.plackett_luce_nll(padded, torch.tensor([[True, True, False], [True] * 3]))[0]
    assert row.item() == pytest.approx(plain.item())
    (with_pad,) = torch.autograd.grad(row, padded)
    torch.testing.assert_close(with_pad[:1, :2], gradient)
    assert (with_pad[1] == 0).all()


def test_sampled_pairs_are_distinct_and_reproducible() -> None:
    s, n = double([A, A[::-1]]), 5
    draws = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(3))
    expected = []
    for row, own in zip(s, draws, strict=True):
        taken = sorted((own[i, j].item(), i, j) for i in range(7) for j in range(i + 1, 7))[:n]
        expected.append(np.mean([math.log1p(math.exp(row[j] - row[i])) for _, i, j in taken]))
    assert losses.pairwise(s, pairs=n, draws=draws).item() == pytest.approx(np.mean(expected))
    once, again, other = (
        losses.pairwise(s, pairs=n, generator=torch.Generator().manual_seed(seed)).item() for seed in (3, 3, 4)
    )
    assert once == again == pytest.approx(np.mean(expected))
    assert once != other
    every = losses.pairwise(s, pairs=21, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(every, losses.pairwise(s))
    torch.testing.assert_close(losses.pairwise(s, pairs=99, draws=draws), losses.pairwise(s))


def test_sampled_pairs_are_right_on_average_and_follow_their_columns() -> None:
    s, generator = double([[1.0, -0.5, 0.3, 2.0]]), torch.Generator().manual_seed(1)
    many = s.expand(4000, 4)
    assert losses.pairwise(many, pairs=2, generator=generator).item() == pytest.approx(
        losses.pairwise(s).item(), abs=0.02
    )
    draws, order = torch.rand(1, 4, 4, generator=generator), [2, 0, 3, 1]
    moved = losses.pairwise(s[:, order], ranks=double([order]), pairs=3, draws=draws[:, order][:, :, order])
    torch.testing.assert_close(moved, losses.pairwise(s, pairs=3, draws=draws))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"pairs": "some"}, "unknown pairs"),
        ({"pairs": 0, "generator": torch.Generator()}, "at least 1 pair"),
        ({"pairs": 2}, "either draws or a generator"),
        ({"pairs": 2, "draws": torch.zeros(1, 7, 7), "generator": torch.Generator()}, "either draws or a generator"),
    ],
)
def test_bad_samples_of_pairs_are_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(losses.LossError, match=match):
        losses.pairwise(double([A]), **arguments)


@quick
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.permutations(range(6)), st.integers(2, 6))
def test_likelihoods_are_those_of_choix(utility: list[float], order: list[int], k: int) -> None:
    chosen = order[:k]
    ours = losses.plackett_luce_nll(double([[utility[i] for i in chosen]])).item()
    assert ours == pytest.approx(-choix.log_likelihood_rankings([chosen], np.array(utility)), abs=1e-9)
    best = losses.plackett_luce_nll(double([[utility[i] for i in chosen]]), top=1).item()
    top1 = choix.log_likelihood_top1([(chosen[0], tuple(chosen[1:]))], np.array(utility))
    assert best == pytest.approx(-top1, abs=1e-9)


def test_fitted_utilities_equal_those_of_choix() -> None:
    rng = np.random.default_rng(5)
    utility = rng.normal(size=6)
    data = [np.argsort(-(utility + rng.gumbel(size=6)))[: rng.integers(2, 7)].tolist() for _ in range(120)]
    width = max(map(len, data))
    items = torch.tensor([row + [0] * (width - len(row)) for row in data])
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in data])
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = losses.k_wise(theta[items], mask, normalizer="none")
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = choix.ilsr_rankings(6, data)
    np.testing.assert_allclose((theta - theta.mean()).detach(), expected - expected.mean(), atol=1e-4)


# --- policies and critics ------------------------------------------------

ADVANTAGES = double([[0.3726, 0.508, 0.64, 0.8]])
LOGPROBS = double([[-0.9, -0.6, -1.5, -0.2]])
OLD = double([[-1, -0.5, -2, -0.1]])
REFERENCE = double([[-1.1, -0.5, -2.1, -0.1]])
FULL = torch.ones(1, 4, dtype=torch.bool)


def test_golden_gae() -> None:
    advantages, returns = losses.gae(double([[-0.01, 0, -0.02, 1]]), double([[0.5, 0.4, 0.3, 0.2]]), FULL)
    torch.testing.assert_close(advantages, ADVANTAGES, atol=5e-5, rtol=0)
    torch.testing.assert_close(returns, double([[0.8726, 0.908, 0.94, 1.0]]), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("anchor", "lam", "expected"),
    [
        (OLD, 1.0, 0.318394),
        (OLD, 0.1, 35.100069),
        (OLD, 10.0, 0.062293),
        (REFERENCE, 1.0, 0.302764),
        (REFERENCE, 0.1, 34.628769),
        (REFERENCE, 10.0, 0.092230),
    ],
)
def test_golden_apa(anchor: Tensor, lam: float, expected: float) -> None:
    assert losses.apa(LOGPROBS, anchor, ADVANTAGES, FULL, lam=lam).item() == pytest.approx(expected, abs=2e-5)


def test_apa_is_minimal_at_the_tilted_anchor() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(losses.apa(logprobs, OLD, ADVANTAGES, FULL, lam=2.0), logprobs)
        logprobs = (logprobs - gradient).detach().requires_grad_()
    torch.testing.assert_close(logprobs.detach(), OLD + ADVANTAGES / 2, atol=1e-8, rtol=0)
    with pytest.raises(losses.LossError, match="lam must be positive"):
        losses.apa(LOGPROBS, OLD, ADVANTAGES, FULL, lam=0.0)


def test_first_step_gradients_of_apa_and_ppo() -> None:
    old = OLD.clone().requires_grad_()
    (apa,) = torch.autograd.grad(losses.apa(old, OLD, ADVANTAGES, FULL, lam=1.0), old)
    (ppo,) = torch.autograd.grad(losses.ppo(old, OLD, ADVANTAGES, FULL), old)
    torch.testing.assert_close(apa, -2 * ADVANTAGES / 4)
    torch.testing.assert_close(ppo, -ADVANTAGES / 4)


def test_ppo_stops_where_the_ratio_has_moved_enough() -> None:
    moved = (OLD + double([[0.5, 0.5, -0.5, -0.5]])).requires_grad_()
    advantages = double([[1.0, -1.0, 1.0, -1.0]])
    loss = losses.ppo(moved, OLD, advantages, FULL)
    up, down = math.exp(0.5), math.exp(-0.5)
    assert loss.item() == pytest.approx((-1.2 + up - down + 0.8) / 4)
    (gradient,) = torch.autograd.grad(loss, moved)
    assert (gradient != 0).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("rewards", "expected"), [([2.0, 1.0], -0.201669), ([1.0, 2.0], 0.271052)])
def test_golden_p3o(rewards: list[float], expected: float) -> None:
    loss = losses.p3o(double([[0.5, 0.1]]), double([[0.2, 0.1]]), double([rewards]), kl_coef=0.01)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("clipping", ["joint", "separate"])
def test_p3o_first_step_is_the_pairwise_policy_gradient(clipping: str) -> None:
    old = double([[0.2, -0.4], [0.1, 0.3]])
    new = old.clone().requires_grad_()
    rewards = double([[2.0, 0.5], [0.0, 1.0]])
    loss = losses.p3o(new, old, rewards, kl_coef=0.1, clipping=clipping)
    (gradient,) = torch.autograd.grad(loss, new)
    gap = (rewards - 0.1 * old)[:, :1] - (rewards - 0.1 * old)[:, 1:]
    torch.testing.assert_close(gradient, -gap * double([[1.0, -1.0]]) / 2 / 2)
    shifted = losses.p3o(new, old, rewards + 9, kl_coef=0.1, clipping=clipping)
    torch.testing.assert_close(shifted, loss)
    with pytest.raises(losses.LossError, match="unknown clipping"):
        losses.p3o(new, old, rewards, kl_coef=0.1, clipping="both")


def test_p3o_clips_the_pair_or_each_answer() -> None:
    old, rewards = double([[0.0, 0.0]]), double([[1.0, 0.0]])
    both_up = double([[0.5, 0.5]]).requires_grad_()
    joint = torch.autograd.grad(losses.p3o(both_up, old, rewards, kl_coef=0.0), both_up)[0]
    separate = torch.autograd.grad(losses.p3o(both_up, old, rewards, kl_coef=0.0, clipping="separate"), both_up)[0]
    assert (joint != 0).tolist() == [[True, True]]
    assert (separate != 0).tolist() == [[False, True]]
    far = torch.autograd.grad(losses.p3o(both_up + 5, old + 0, rewards, kl_coef=0.0), both_up)[0]
    torch.testing.assert_close(far, double([[-5.0, 5.0]]))


def test_rloo_first_step_is_the_leave_one_out_policy_gradient() -> None:
    old = double([[-3.0, -5.0, -4.0], [-1.0, -2.0, -9.0]])
    rewards = double([[2.0, 4.0, -2.0], [0.5, 0.5, 2.0]])
    logprobs = old.clone().requires_grad_()
    losses.rloo(logprobs, old, rewards).backward()
    others = [[(sum(row) - own) / 2 for own in row] for row in rewards.tolist()]
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -(rewards - double(others)) / 6)
    moved = (old + double([[-0.3, 0.3, -0.3], [-0.3, 0.3, 0.3]])).requires_grad_()
    losses.rloo(moved, old, rewards).backward()
    assert moved.grad is not None
    assert (moved.grad != 0).tolist() == [[True, False, False], [False, True, False]]
    with pytest.raises(losses.LossError, match="two or more"):
        losses.rloo(old[:, :1], old[:, :1], rewards[:, :1])


def test_golden_dpo() -> None:
    pair = [double([x]) for x in (-10.0, -12.0, -11.0, -10.0)]
    assert losses.dpo(*pair, beta=0.1).item() == pytest.approx(0.554355, abs=1e-6)
    smooth = losses.dpo(*pair, beta=0.1, label_smoothing=0.1).item()
    assert smooth == pytest.approx(0.9 * 0.554355 + 0.1 * 0.854355, abs=1e-6)
    assert losses.dpo(*pair, beta=0.1, kind="ipo").item() == pytest.approx((3 - 5) ** 2)
    with pytest.raises(losses.LossError, match="choose"):
        losses.dpo(*pair, beta=0.1, kind="hinge")


def test_c_rlft_weighs_tokens_by_their_answer() -> None:
    logprobs = double([[-1.0, -2.0, torch.nan], [-3.0, torch.nan, torch.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert losses.c_rlft(logprobs, double([1.0, 0.1]), mask).item() == pytest.approx((3.0 + 0.3) / 3)


def test_value_takes_the_worse_of_two_errors() -> None:
    values, old, returns = double([[1.0, 0.0]]), double([[0.0, 0.0]]), double([[1.0, 1.0]])
    mask = torch.tensor([[True, True]])
    assert losses.value(values, old, returns, mask).item() == pytest.approx(0.5 * (0.8**2 + 1) / 2)
    assert losses.value(values, old, returns, mask, clip=None).item() == pytest.approx(0.25)


@quick
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.5, 1),
    st.floats(0, 1),
)
def test_gae_against_the_naive_sum(batch: list[list[tuple[float, float]]], gamma: float, lam: float) -> None:
    width = max(map(len, batch)) + 1
    rewards = torch.full((len(batch), width), torch.nan, dtype=torch.float64)
    values, mask = rewards.clone(), torch.zeros(rewards.shape, dtype=torch.bool)
    expected = torch.zeros_like(rewards)
    for i, row in enumerate(batch):
        r, v = [x for x, _ in row], [x for _, x in row] + [0.0]
        rewards[i, : len(r)], values[i, : len(r)], mask[i, : len(r)] = double(r), double(v[:-1]), True
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        for t in range(len(r)):
            expected[i, t] = sum((gamma * lam) ** (u - t) * delta[u] for u in range(t, len(r)))
    advantages, returns = losses.gae(rewards, values, mask, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns[mask], (expected + values)[mask])
    assert (returns[~mask] == 0).all()


@quick
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_whiten(x: list[float]) -> None:
    row = double([[*x, 99.0]])
    mask = torch.tensor([[True] * len(x) + [False]])
    white = losses.whiten(row, mask)[mask]
    assert white.mean().abs() < 1e-6
    if np.std(x) > 0.01:
        assert white.std(correction=0).item() == pytest.approx(1, abs=1e-3)
        kept = losses.whiten(row, mask, shift_mean=False)
        assert kept[mask].mean().item() == pytest.approx(np.mean(x), abs=1e-6)
        assert kept[0, -1] == 0


def test_policy_losses_ignore_padding() -> None:
    mask = torch.tensor([[True, True, True, True, False]])

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, double([[torch.nan]])], 1)

    short = (LOGPROBS, OLD, ADVANTAGES)
    long = tuple(pad(x).requires_grad_() for x in short)
    torch.testing.assert_close(losses.ppo(*long, mask), losses.ppo(*short, FULL))
    torch.testing.assert_close(losses.value(*long, mask), losses.value(*short, FULL))
    loss = losses.apa(*long, mask, lam=1.0)
    torch.testing.assert_close(loss, losses.apa(*short, FULL, lam=1.0))
    (gradient,) = torch.autograd.grad(loss, long[0])
    assert gradient[0, -1] == 0
    with pytest.raises(losses.LossError, match="false everywhere"):
        losses.ppo(*short, FULL & False)


def test_divergence_estimates_are_unbiased_and_stable() -> None:
    p = torch.softmax(double([0.3, -1.0, 2.0]), 0)
    q = torch.softmax(double([1.0, 0.0, 0.5]), 0)
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * losses.kl_k1(p.log(), q.log())).sum(), exact)
    torch.testing.assert_close((p * losses.kl_k3(p.log(), q.log())).sum(), exact)
    tiny = losses.kl_k3(torch.tensor([1e-4]), torch.tensor([0.0]))
    assert tiny.item() == pytest.approx(5e-9, rel=1e-2)
    assert (losses.kl_k3(torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.zeros(50)) >= 0).all()


def test_shapes_are_checked_here() -> None:
    """The hook of ``conftest.py`` is at work: a vector where rows are due is refused."""
    with pytest.raises(TypeCheckError):
        losses.k_wise(torch.zeros(3))
