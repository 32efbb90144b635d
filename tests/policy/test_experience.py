"""Rewards land on the last token of each answer, inside the mask, whatever the padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb.models import LM
from starling_nb.policy import experience
from starling_nb.policy.experience import Scale
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.recipe import Recipe, TuningError
from starling_nb.policy.rollouts import Rollout, collect

RECIPE = Recipe(minibatch=4, kl=0.0, gae_lambda=0.0, whiten=False, centre=False, missing_eos=-1.0, trainable="last:1")
UNIT = Scale(0.0, 1.0)


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy.lm(seed=3)


def roll(lm: LM, n: int = 10) -> list[Rollout]:
    """Ragged answers, some cut by the cap, scored by their place."""
    prompts = [prompt for prompt in toy.prompts(toy.QUESTIONS) for _ in range(2)][:n]
    found = collect(lm, prompts, [str(i) for i in range(n)], seed=0, max_new_tokens=30, capture={2})
    for place, rollout in enumerate(found):
        rollout.score = 0.1 * place - 0.3
    assert {rollout.sample.finished for rollout in found} == {True, False}
    return found


def test_the_reward_sits_on_the_last_token_which_is_inside_the_mask(lm: LM) -> None:
    rollouts = roll(lm)
    parts = experience.minibatches(Hydra(lm, "last:1"), rollouts, RECIPE, UNIT)
    rows = experience.neighbours(10, RECIPE)
    assert sorted(i for part in rows for i in part) == list(range(10))
    for part, indices in zip(parts, rows, strict=True):
        assert part.batch.mask.sum(1).tolist() == [len(rollouts[i].sample.ids) for i in indices]
        for row, index in enumerate(indices):
            sample = rollouts[index].sample
            due = rollouts[index].score + (0.0 if sample.finished else -1.0)
            last = len(sample.ids) - 1
            # λ = 0 and a critic that says 0: the advantage of a token is its own reward.
            assert part.advantages[row, last].item() == pytest.approx(due)
            assert part.advantages[row].count_nonzero() == (due != 0)
            assert part.scores[row].item() == pytest.approx(due)
            targets = part.batch.unflatten(part.batch.targets)[row]
            assert targets[: last + 1].tolist() == sample.ids
            assert (targets[last] == lm.chat.eos_id) == sample.finished


def test_the_kl_penalty_is_paid_token_by_token(lm: LM) -> None:
    rollouts, hydra = roll(lm), Hydra(lm, "last:1")
    with torch.no_grad():
        for parameter in hydra.top.parameters():
            parameter.mul_(1.1)
    for part in experience.minibatches(hydra, rollouts, replace(RECIPE, kl=0.5), UNIT):
        gap = part.batch.unflatten(part.old.logprobs - part.old.reference)
        due = -0.5 * gap
        ends = part.batch.mask.sum(1) - 1
        due[torch.arange(len(due)), ends] += part.scores
        torch.testing.assert_close(part.advantages, due)
        assert gap.abs().max() > 1e-3


def test_whitened_advantages_have_no_mean_and_unit_spread_over_the_whole_step(lm: LM) -> None:
    parts = experience.minibatches(Hydra(lm, "last:1"), roll(lm), replace(RECIPE, whiten=True, gae_lambda=0.95), UNIT)
    every = torch.cat([part.advantages[part.batch.mask] for part in parts])
    assert every.mean().abs() < 1e-5
    assert every.std().item() == pytest.approx(1.0, abs=1e-4)
    assert all(part.advantages[~part.batch.mask].count_nonzero() == 0 for part in parts)


def test_scores_are_measured_by_the_first_step_and_clipped(lm: LM) -> None:
    rollouts = roll(lm)
    for rollout in rollouts:
        rollout.sample.finished = True
    rollouts[0].score = 100.0
    scale = Scale(0.1, 0.5)
    shaped = experience.shape_scores(rollouts, RECIPE, scale)
    assert shaped[0] == 4.0
    assert shaped[3].item() == pytest.approx(rollouts[3].score / 0.5)
    centred = experience.shape_scores(rollouts, replace(RECIPE, centre=True), scale)
    # Two answers a prompt: each is measured against the mean of both, and a prompt's constant is gone.
    assert centred.view(-1, 2).sum(1).abs().max() < 1e-6
    assert centred[3].item() == pytest.approx((rollouts[3].score - rollouts[2].score) / 2 / 0.5)
    alone = experience.shape_scores(rollouts[::2], replace(RECIPE, centre=True), scale)
    assert alone[1].item() == pytest.approx((rollouts[2].score - 0.1) / 0.5)
    found = experience.scale_of(rollouts)
    scores = torch.tensor([rollout.score for rollout in rollouts])
    assert (found.mean, found.std) == pytest.approx((scores.mean().item(), scores.std().item()))


def test_the_reward_model_foresees_the_return_of_an_unfinished_answer(lm: LM) -> None:
    """Readings that foretell the reward become values; noise becomes nothing; the future is never used."""
    rollouts = roll(lm)
    rewards = experience.centred(torch.tensor([[float(i % 2)] for i in range(10)]), rollouts)[:, 0]
    lengths = [len(rollout.sample.ids) for rollout in rollouts]
    for place, rollout in enumerate(rollouts):
        rollout.means = torch.full((lengths[place],), 3.0 * (place % 2) + 10.0 * (place // 2))
    values = experience.foresee(rollouts, rewards)
    assert [len(row) for row in values] == lengths
    both = [min(lengths[i - i % 2 : i - i % 2 + 2]) for i in range(10)]
    for row, reward, stop in zip(values, rewards, both, strict=True):
        assert row[0] == 0.0  # nothing has been read before the first token
        torch.testing.assert_close(row[1:stop], reward.expand(stop - 1))
    rollouts[0].means = torch.cat([rollouts[0].means[:-1], torch.tensor([1e6])])
    assert all(torch.equal(a, b) for a, b in zip(experience.foresee(rollouts, rewards), values, strict=True))
    assert all(row.count_nonzero() == 0 for row in experience.foresee(rollouts[::2], rewards[::2]))
    rollouts[0].means = None
    assert all(row.count_nonzero() == 0 for row in experience.foresee(rollouts, rewards))


def test_what_is_foreseen_moves_the_credit_to_the_token_that_earned_it(lm: LM) -> None:
    rollouts = roll(lm)
    for place, rollout in enumerate(rollouts):
        good = torch.arange(len(rollout.sample.ids)) >= 4
        rollout.score, rollout.means = float(place % 2), (2.0 * (place % 2) - 1.0) * good
    recipe = replace(RECIPE, centre=True, missing_eos=0.0)
    parts, checked = experience.minibatches(Hydra(lm, "last:1"), rollouts, recipe, UNIT), 0
    for part, rows in zip(parts, experience.neighbours(len(rollouts), recipe), strict=True):
        for row, index in enumerate(rows):
            earned = part.advantages[row, : min(len(rollouts[i].sample.ids) for i in (index, index ^ 1)) - 1]
            if len(earned) > 4:
                checked += 1
                assert earned.abs().argmax() == 4
                assert torch.sign(earned[4]) == 2 * (index % 2) - 1
    assert checked > 3


@given(st.sampled_from(["apa", "p3o", "rloo"]), st.integers(1, 3), st.integers(1, 5), st.integers(1, 9))
def test_answers_that_an_objective_compares_share_a_minibatch(
    objective: Any, pairs: int, prompts: int, minibatch: int
) -> None:
    answers = 2 * pairs
    recipe = replace(RECIPE, objective=objective, minibatch=minibatch, answers=answers, rollouts=prompts * answers)
    parts = experience.neighbours(prompts * answers, recipe)
    assert [i for part in parts for i in part] == list(range(prompts * answers))
    unit = {"apa": 1, "p3o": 2, "rloo": answers}[objective]
    assert all(part[0] % unit == 0 and len(part) % unit == 0 for part in parts)
    assert all(len(part) <= max(minibatch, unit) for part in parts)
    assert len(parts) == -(-prompts * answers // max(minibatch // unit * unit, unit))


def test_answers_to_a_prompt_share_it_and_score_as_they_do_alone(lm: LM) -> None:
    rollouts = roll(lm)
    hydra = Hydra(lm, "last:1")
    with torch.no_grad():
        for parameter in hydra.top.parameters():
            parameter.mul_(1.1)
    batch = experience.collate_rollouts(rollouts)
    assert [tree.prompt for tree in batch.layout.trees] == [len(r.sample.prompt) for r in rollouts[::2]]
    alone = [hydra.compare(experience.collate_rollouts([rollout])) for rollout in rollouts]
    found = hydra.compare(batch)
    for name in ("logprobs", "reference", "kl", "entropy", "values"):
        due = torch.cat([getattr(each, name) for each in alone])
        torch.testing.assert_close(getattr(found, name), due, rtol=1e-5, atol=1e-5)


def test_rewards_that_teach_nothing_are_refused(lm: LM) -> None:
    rollouts = roll(lm, 9)
    for rollout in rollouts:
        rollout.score = 0.7
    with pytest.raises(TuningError, match="constant"):
        experience.raw_scores(rollouts)
    rollouts[4].score = float("nan")
    with pytest.raises(TuningError, match="not a number"):
        experience.minibatches(Hydra(lm, "last:1"), rollouts, RECIPE, UNIT)


def test_the_sampler_and_the_trainer_agree_to_rounding(lm: LM) -> None:
    rollouts, hydra = roll(lm), Hydra(lm, "last:1")
    assert experience.sampler_gap(rollouts, experience.minibatches(hydra, rollouts, RECIPE, UNIT)) < 1e-5
    for rollout in rollouts:
        rollout.sample.logprobs = [value - 0.25 for value in rollout.sample.logprobs]
    gap = experience.sampler_gap(rollouts, experience.minibatches(hydra, rollouts, RECIPE, UNIT))
    assert gap == pytest.approx(0.25, abs=1e-5)


def test_a_step_is_summed_up_by_hand(lm: LM) -> None:
    rollouts = roll(lm)
    found = experience.summary(rollouts, experience.minibatches(Hydra(lm, "last:1"), rollouts, RECIPE, UNIT))
    lengths = [len(rollout.sample.ids) for rollout in rollouts]
    assert found["length"] == pytest.approx(sum(lengths) / 10)
    assert found["reward"] == pytest.approx(0.15)
    assert found["eos_rate"] == sum(rollout.sample.finished for rollout in rollouts) / 10
    assert found["kl"] == 0.0
    assert 0 < found["entropy"] <= torch.tensor(float(lm.model.config.vocab_size)).log()


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_a_running_scale_is_that_of_all_scores(first: list[float], second: list[float]) -> None:
    def scale(values: list[float]) -> Scale:
        return Scale(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))

    both, due = scale(first).joined(scale(second)), scale(first + second)
    assert (both.mean, both.std, both.count) == pytest.approx((due.mean, due.std, due.count), abs=1e-9)


def test_the_published_order_clips_raw_scores_before_it_scales_them(lm: LM) -> None:
    rollouts = roll(lm, 4)
    for rollout, score in zip(rollouts, (-30.0, 4.0, 6.0, 12.0), strict=True):
        rollout.score = score
    found = experience.shape_scores(rollouts, Recipe.published(), Scale(3.0, 2.0, 4))
    assert found.tolist() == [-5.0, 2.0, 3.0, 5.0]
    longer = replace(RECIPE, length=-0.01, missing_eos=0.0)
    gap = experience.shape_scores(rollouts, longer, UNIT) - experience.shape_scores(
        rollouts, replace(longer, length=0.0), UNIT
    )
    assert gap.tolist() == pytest.approx([-0.01 * len(rollout.sample.ids) for rollout in rollouts], abs=1e-6)
