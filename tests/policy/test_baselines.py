"""Best of n is what brute force says, extrapolated weights lie on a line, and demonstrations are graded by rank."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb import rubric
from starling_nb.errors import StarlingError
from starling_nb.models import Sample
from starling_nb.nectar import prompts
from starling_nb.policy import measure
from starling_nb.policy.offline import baselines
from starling_nb.policy.rollouts import Rollout
from starling_nb.reward.comparisons import Comparison


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (2, 0.193), (4, 0.636), (8, 1.204), (16, 1.835), (64, 3.175)])
def test_golden_divergence(n: int, kl: float) -> None:
    assert baselines.best_of_n_kl(n) == pytest.approx(kl, abs=5e-4)


def test_the_divergence_is_that_of_the_chosen_answer() -> None:
    """Of m equally likely answers the one of rank i is the best of n with probability (i^n - (i-1)^n) / m^n."""
    m, n = 20_000, 4
    edges = (np.arange(m + 1) / m) ** n
    chosen = np.diff(edges)
    assert float(chosen @ np.log(chosen * m)) == pytest.approx(baselines.best_of_n_kl(n), abs=1e-3)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-9, 9)), min_size=1, max_size=7), st.data())
def test_best_of_n_is_the_mean_over_all_choices(scores: list[tuple[int, int]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    due = []
    for choice in itertools.combinations(scores, n):
        top = max(by for by, _ in choice)
        worth = [gold for by, gold in choice if by == top]
        due.append(sum(worth) / len(worth))
    proxy, gold = zip(*scores, strict=True)
    if len(set(proxy)) == len(proxy):
        assert baselines.best_of_n(proxy, gold, n) == pytest.approx(np.mean(due))
    assert baselines.best_of_n(proxy, proxy, n) == pytest.approx(
        np.mean([max(by for by, _ in choice) for choice in itertools.combinations(scores, n)])
    )
    assert baselines.best_of_n(proxy, gold, 1) == pytest.approx(np.mean(gold))
    assert baselines.mean_best_of_n([proxy, proxy], [gold, gold], n) == baselines.best_of_n(proxy, gold, n)


def test_equal_proxies_share_their_places() -> None:
    assert baselines.best_of_n([1, 1], [0, 6], 2) == 3.0
    assert baselines.best_of_n([1, 1, 0], [0, 6, 100], 2) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("proxy", "gold", "n", "told"),
    [
        ([1.0], [1.0], 2, "from 1 to 1"),
        ([1.0, 2.0], [1.0, 2.0], 0, "from 1 to 2"),
        ([1.0, 2.0], [1.0], 1, "one finite proxy"),
        ([1.0, math.nan], [1.0, 2.0], 1, "one finite proxy"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(proxy: list[float], gold: list[float], n: int, told: str) -> None:
    with pytest.raises(StarlingError, match=told):
        baselines.best_of_n(proxy, gold, n)
    with pytest.raises(StarlingError, match="1 or more"):
        baselines.best_of_n_kl(0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_extrapolated_weights_lie_on_the_line(tied: bool, alpha: float) -> None:
    start, tuned = toy.lm(tied=tied), toy.lm(tied=tied)
    with torch.no_grad():
        tuned.model.model.layers[2].mlp.up_proj.weight.add_(0.25)
        tuned.model.model.embed_tokens.weight.add_(0.5)
    before = toy.weights(tuned.model)
    found = baselines.extrapolate(start, tuned, alpha)
    assert toy.changed(before, tuned.model) == set()
    moved = toy.changed(toy.weights(start.model), found.model)
    assert moved <= {"model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"}
    gap = found.model.model.layers[2].mlp.up_proj.weight - start.model.model.layers[2].mlp.up_proj.weight
    torch.testing.assert_close(gap, torch.full_like(gap, 0.25 * (1 + alpha)))
    gap = found.model.model.embed_tokens.weight - start.model.model.embed_tokens.weight
    torch.testing.assert_close(
        gap, torch.full_like(gap, 0.5 * (1 + alpha)), msg="tied weights have two names, and move once"
    )
    with pytest.raises(StarlingError, match="was not tuned from"):
        baselines.extrapolate(toy.lm("qwen2", tied=tied), tuned, alpha)


def ranked(prompt: prompts.Prompt, answers: list[str], ranks: list[float]) -> Comparison:
    return Comparison(prompts.key(prompt.messages), prompt.messages, answers, ["m"] * len(answers), ranks)


def test_the_best_demonstration_is_the_one_of_first_rank_and_the_one_of_highest_grade() -> None:
    one, two, three = prompts.load(split="test")[:3]
    worth = {
        p.id: [rubric.grade(p.rubric, p.messages, text).utility for text in (p.reference, p.flawed)] for p in (one, two)
    }
    assert all(good > bad for good, bad in worth.values())
    rows = [
        ranked(one, [one.flawed, one.reference, "?"], [1.0, 2.0, 3.0]),  # a judge that was wrong
        ranked(two, [two.reference, two.flawed], [1.0, 1.0]),
        ranked(two, [two.reference], [1.0]),  # the same prompt in another row
    ]
    found = baselines.best_demonstrations([one, two, three], rows).set_index("prompt_id")
    assert list(found.index) == [one.id, two.id]
    (good, bad), (fine, poor) = worth[one.id], worth[two.id]
    assert found.loc[one.id, ["by_rank", "best", "answers"]].tolist() == [bad, good, 3]
    assert found.by_rank[two.id] == pytest.approx((2 * fine + poor) / 3)
    assert found.best[two.id] == fine
    cut = baselines.best_demonstrations([one], rows, lambda text: text.split()[0])
    assert cut.best[0] < good
    with pytest.raises(StarlingError, match="none of the 1 prompts"):
        baselines.best_demonstrations([three], rows)


def test_a_policy_is_paired_with_the_demonstrations_of_its_prompts() -> None:
    chosen = prompts.load(split="test")[:8]
    rows = [ranked(p, [p.reference, p.flawed], [1.0, 2.0]) for p in chosen[:6]]
    bar = baselines.best_demonstrations(chosen, rows)
    answers = [Rollout(p, Sample([1], [5, 2], finished=True), text) for p in chosen for text in (p.flawed, p.reference)]
    table = baselines.against_demonstrations(measure.grade(answers), bar).set_index("against")
    assert (table.n == 6).all()
    for name in ("by_rank", "best"):
        assert table.value[name] == pytest.approx(table.policy[name] - table.demonstration[name])
        assert table.high[name] < 0
    assert table.value["mean"] == pytest.approx(0.0, abs=1e-9)  # its answers are the data set's
    with pytest.raises(StarlingError, match="share no prompt"):
        baselines.against_demonstrations(measure.grade(answers[12:]), bar)
