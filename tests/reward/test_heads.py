"""A head on frozen states is the exact optimum of its loss, and label efficiency is read off right."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from starling_nb import losses
from starling_nb.errors import StarlingError
from starling_nb.reward import heads, scoring, tour, training
from starling_nb.reward.heads import Read, fit


def world(n: int, seed: int, width: int = 8, k: int = 7, spread: float = 1.0) -> tuple[Read, torch.Tensor]:
    """Comparisons whose utilities are linear in the states, ranked by a Plackett-Luce judge; and the true head."""
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randn(width, generator=torch.Generator().manual_seed(99)) * spread
    states = torch.randn(n, k, width, generator=draw)
    ranks = heads.plackett_luce_ranks((states @ truth).tolist(), seed)
    return Read(states, ranks.double(), torch.ones(n, k, dtype=torch.bool)), truth


@pytest.mark.parametrize("loss", heads.LOSSES)
def test_the_fit_is_stationary_and_the_best_of_its_neighbours(loss: str) -> None:
    seen, _ = world(30, 1)

    def objective(head: torch.Tensor) -> torch.Tensor:
        scores = seen.states.double() @ head
        kind = losses.k_wise if loss == "k_wise" else losses.pairwise
        variance = seen.states[seen.mask].var(0).mean()
        return kind(scores, ranks=seen.ranks) + 0.05 * variance * head.square().sum()

    head = fit(seen, loss, 0.05).double().requires_grad_()
    objective(head).backward()
    assert head.grad is not None
    assert head.grad.abs().max() < 1e-3
    assert head.abs().max() > 0.05
    with pytest.raises(StarlingError, match="choose a loss"):
        fit(seen, "listwise", 0.1)


def test_both_losses_find_the_truth_and_k_wise_from_fewer_labels() -> None:
    """Theory (Zhu, Jordan & Jiao 2023, theorem 4.3): the likelihood of the whole ranking has the smaller variance."""
    errors: dict[str, list[float]] = {loss: [] for loss in heads.LOSSES}
    for seed in range(24):
        seen, truth = world(60, seed)
        for loss in heads.LOSSES:
            errors[loss].append(float((fit(seen, loss, 0.0) - truth).square().sum()))
    ratio = np.mean(errors["k_wise"]) / np.mean(errors["pairwise"])
    assert ratio < 0.95
    assert np.mean(errors["k_wise"]) < 0.6


def test_ragged_comparisons_are_read_as_a_scorer_reads_them() -> None:
    lm = toy.lm()
    every = toy.comparisons((4, 2, 5))
    ready = scoring.prepare(lm, every, "head")
    recipe = training.Recipe(trainable="head", readout="both", epochs=3, batch=2, head_lr=0.05)
    scorer, _, _ = training.train(lm, ready, recipe)
    seen = heads.read(lm, ready, "both", row_tokens=100)
    assert seen.mask.sum(1).tolist() == [4, 2, 5]
    head = scorer.v_head.weight.detach()[0]
    for ours, theirs in zip(seen.scores(head), scoring.predict(scorer, ready, torch.float32), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    whole = heads.read(lm, scoring.prepare(lm, every, "full"), "both", "full")
    torch.testing.assert_close(whole.states, seen.states, rtol=1e-5, atol=1e-5)
    lower = heads.read(lm, scoring.prepare(lm, every, "last:2"), "both", "last:2")
    torch.testing.assert_close(lower.states, seen.states, rtol=1e-5, atol=1e-5)
    part = seen.some([2, 0])
    assert part.scores(head) == [pytest.approx(seen.scores(head)[i]) for i in (2, 0)]


def test_accuracy_counts_pairs_by_hand() -> None:
    states = torch.tensor([[[3.0], [1.0], [2.0]], [[1.0], [1.0], [9.0]]])
    ranks = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]]).double()
    seen = Read(states, ranks, torch.tensor([[True] * 3, [True, True, False]]))
    assert heads.accuracy(seen, torch.tensor([1.0])) == pytest.approx((2 + 0.5) / 4)


def test_the_judges_choose_as_their_models_say() -> None:
    """First places under Plackett-Luce follow the softmax; a normal judge's pairs follow the probit."""
    utilities = [[1.0, 0.0, -0.5]] * 4000
    ranks = heads.plackett_luce_ranks(utilities, 0)
    first = (ranks == 1).double().mean(0)
    wanted = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64).softmax(0)
    assert (first - wanted).abs().max() < 0.03
    pairs = heads.thurstone_ranks([[1.0, 0.0]] * 4000, 0)
    wins = float((pairs[:, 0] < pairs[:, 1]).double().mean())
    assert wins == pytest.approx(float(torch.special.ndtr(torch.tensor(1 / (np.pi / np.sqrt(6) * 2**0.5)))), abs=0.03)
    assert sorted(ranks[0].tolist()) == [1.0, 2.0, 3.0]
    assert torch.equal(ranks, heads.plackett_luce_ranks(utilities, 0))
    assert not torch.equal(ranks, heads.plackett_luce_ranks(utilities, 1))


def test_a_position_term_takes_the_judge_s_taste_for_places_away() -> None:
    """A judge that likes early places, shown the better answers first: the plain head learns the order, not quality."""
    draw = torch.Generator().manual_seed(3)
    truth = torch.tensor([1.0, 0.5, 0.0, 0.0])
    states = torch.randn(400, 5, 4, generator=draw)
    states[..., 3] = -torch.arange(5.0)  # what stands in front differs in a feature that is worth nothing
    shuffled = torch.stack([torch.randperm(5, generator=draw) for _ in range(400)])
    places = torch.where(torch.rand(400, 1, generator=draw) < 0.7, torch.arange(5).expand(400, 5), shuffled)
    liked = states @ truth - 0.8 * places
    ranks = heads.plackett_luce_ranks(liked.tolist(), 4).double()
    seen = Read(states, ranks, torch.ones(400, 5, dtype=torch.bool), places)
    plain, corrected = fit(seen, "k_wise", 1e-4), fit(seen, "k_wise", 1e-4, position_term=True)
    assert plain[3] > 0.4
    assert abs(float(corrected[3])) < 0.15
    assert (corrected[:2] - truth[:2]).abs().max() < 0.15
    with pytest.raises(StarlingError, match="needs the places"):
        fit(world(5, 1)[0], "k_wise", 0.1, position_term=True)


def test_rankings_become_comparisons_of_their_own_with_their_places() -> None:
    every = toy.comparisons((3, 2))
    seen = Read(
        torch.arange(6.0).reshape(2, 3, 1),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.tensor([[True, True, True], [True, True, False]]),
    )
    rankings = pd.DataFrame(
        {
            "prompt_id": ["c0", "c1", "c0", "c9", "c0"],
            "models": [["m2", "m0", "m1"], ["m1", "left out", "m0"], ["m0", "m1", "m2"], ["m0"], ["m0", "m1", "m2"]],
            "ranking": [[2, 0, 1], [0, 1, 2], [0, 1, 2], [0], None],
        }
    )
    found = heads.by_ranking(seen, every, rankings)
    assert found.states[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert found.places is not None
    assert found.places.tolist() == [[1, 2, 0], [2, 0, 0], [0, 1, 2]]
    assert found.ranks.tolist() == [[3, 1, 2], [3, 1, 0], [1, 2, 3]]
    assert found.mask.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    assert found.some([1]).places is not None
    with pytest.raises(StarlingError, match="no ranking is of one of these"):
        heads.by_ranking(seen, every, rankings[3:])


def test_arms_that_use_the_passes_need_passes() -> None:
    seen = {name: world(20, number)[0] for number, name in enumerate(("train", "validation", "test"))}
    train = toy.comparisons((7,) * 20)
    shown = pd.DataFrame(
        {
            "prompt_id": [one.prompt_id for one in train],
            "models": [one.responders for one in train],
            "ranking": [np.argsort(ranks).tolist() for ranks in seen["train"].ranks.numpy()],
        }
    )
    arms = tour.position_arms(seen, train, shown)
    assert list(arms) == ["merged", "each_pass", "position_term"]
    np.testing.assert_allclose(arms["each_pass"], arms["merged"], atol=1e-4)  # one pass, and it made the ranks
    assert list(tour.position_arms(seen, train, shown[:0])) == ["merged"]


def points(ratio: float, noise: float = 0.0, slope: float = 0.03) -> pd.DataFrame:
    """Learning curves in which K-wise training needs ``ratio`` times the comparisons."""
    draw = np.random.Generator(np.random.PCG64(0))
    rows = []
    for seed in range(8):
        for size in (50, 100, 200, 400):
            both = 0.5 + slope * np.log(size) + noise * draw.normal()
            rows.append({"seed": seed, "size": size, "loss": "pairwise", "accuracy": both})
            own = noise / 4 * draw.normal()
            rows.append({"seed": seed, "size": size, "loss": "k_wise", "accuracy": both - slope * np.log(ratio) + own})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.3])
def test_a_planted_label_ratio_is_found(ratio: float) -> None:
    exact = heads.label_ratio(points(ratio))
    assert exact is not None
    assert (exact.value, exact.low, exact.high) == pytest.approx((ratio, ratio, ratio))
    noisy = heads.label_ratio(points(ratio, noise=0.004))
    assert noisy is not None
    assert noisy.low < ratio < noisy.high
    assert noisy.high - noisy.low < 0.3


def test_no_ratio_is_told_where_nothing_grows() -> None:
    assert heads.label_ratio(points(0.8, slope=-0.01)) is None
    assert heads.label_ratio(points(0.8, slope=0.0, noise=0.01)) is None
    with pytest.raises(StarlingError, match="two seeds and two sizes"):
        heads.label_ratio(points(0.8).query("seed == 0"))


def test_a_learning_curve_grows_and_gives_every_loss_its_own_ridge() -> None:
    train, _ = world(120, 5, spread=0.5)
    validation, _ = world(40, 6, spread=0.5)
    test, _ = world(200, 7, spread=0.5)
    found = heads.curve(train, validation, test, sizes=(8, 100), seeds=3, ridges=(0.01, 0.3))
    assert len(found) == 3 * 2 * 2
    mean = found.groupby("size").accuracy.mean()
    assert mean[100] > mean[8] + 0.02
    assert found[found["size"] == 8].groupby("loss").accuracy.std().min() > 0  # seeds draw subsets of their own
    again = heads.curve(train, validation, test, sizes=(8, 100), seeds=3, ridges=(0.01, 0.3))
    pd.testing.assert_frame_equal(found, again)
