"""Rollouts are scored on the shared trunk as they would be from their text."""

from __future__ import annotations

import copy

import pytest
import torch

import toy
from starling_nb import models
from starling_nb.chat import ChatFormat, Encoded
from starling_nb.models import LM
from starling_nb.policy.rollouts import RewardOnTrunk, Rollout, collect
from starling_nb.reward import RewardModel
from starling_nb.reward.model import READOUTS

PROMPTS = toy.prompts(toy.QUESTIONS)


def reward_on(lm: LM, readout: str = "last_token") -> RewardModel:
    """A reward model on a copy of the policy's decoder, its top block changed."""
    decoder = copy.deepcopy(lm.model.model)
    with torch.no_grad():
        for parameter in decoder.layers[2].parameters():
            parameter.mul_(1.1)
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    return RewardModel(decoder, lm.chat, head, readout)


def roll(lm: LM, n: int = 1, **settings: object) -> list[Rollout]:
    """Answers to every prompt, ``n`` each."""
    many = [prompt for prompt in PROMPTS for _ in range(n)]
    ids = [f"{i}" for i in range(len(many))]
    return collect(lm, many, ids, **({"seed": 0, "max_new_tokens": 40, "capture": {2}} | settings))  # type: ignore[arg-type]


def test_collected_answers_are_sampled_under_the_names_given() -> None:
    lm = toy.lm(seed=3)
    found = roll(lm, 2)
    assert [rollout.prompt for rollout in found] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert found[0].sample.ids != found[1].sample.ids
    alone = models.sample(lm, [lm.chat.prompt_ids(PROMPTS[0].messages)], ["1"], max_new_tokens=40)[0]
    assert found[1].sample.ids == alone.ids
    for rollout in found:
        sample = rollout.sample
        assert rollout.text == lm.chat.decode(sample.ids)
        assert rollout.trunk.shape == (len(sample.prompt) + len(sample.ids) + (not sample.finished), 32)


@pytest.mark.parametrize("readout", READOUTS)
def test_scores_on_the_shared_trunk_are_those_of_whole_sequences_with_an_end_of_turn(readout: str) -> None:
    lm = toy.lm(seed=3)
    reward, rollouts = reward_on(lm, readout), roll(lm, 3)
    assert {rollout.sample.finished for rollout in rollouts} == {True, False}
    scorer = RewardOnTrunk(reward, lm, 2)
    assert scorer.shared == 2
    closed = [
        Encoded([*s.prompt, *s.ids, *([] if s.finished else [lm.chat.eos_id])], len(s.prompt))
        for s in (rollout.sample for rollout in rollouts)
    ]
    due = reward.score_ids(closed)
    whole = reward.read_ids(closed)
    for batch in (32, 1):
        scorer(rollouts, batch=batch)
        assert [rollout.score for rollout in rollouts] == pytest.approx(due, abs=1e-4)
        for rollout, reading in zip(rollouts, whole, strict=True):
            assert rollout.means is not None
            torch.testing.assert_close(rollout.means, reading.means[: len(rollout.sample.ids)], atol=1e-4, rtol=0)
    assert len(set(due)) == len(due)


def test_scores_of_the_sampled_tokens_where_the_trunk_is_another() -> None:
    lm = toy.lm(seed=3)
    reward = reward_on(lm)
    with torch.no_grad():
        reward.transformer.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    scorer = RewardOnTrunk(reward, lm, 2)
    assert scorer.shared == 0
    rollouts = roll(lm, capture=())
    scorer(rollouts)
    texts = [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in rollouts]
    plain = [place for place, rollout in enumerate(rollouts) if lm.chat._answer_ids(rollout.text) == rollout.sample.ids]
    for place, due in enumerate(reward.score(texts)):
        assert rollouts[place].means is not None
        if place in plain:
            assert rollouts[place].score == pytest.approx(due, abs=1e-5)


def test_scores_from_text_where_the_tokens_are_others() -> None:
    lm = toy.lm(seed=3)
    reward = reward_on(lm)
    reward.chat = copy.copy(lm.chat)
    reward.chat.template = "llama2"
    rollouts = roll(lm, capture=())
    RewardOnTrunk(reward, lm, 2)(rollouts)
    texts = [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in rollouts]
    assert [rollout.score for rollout in rollouts] == pytest.approx(reward.score(texts), abs=1e-5)
    assert all(rollout.means is None for rollout in rollouts)


def test_a_text_that_holds_a_control_token_of_the_reward_model_is_scored_without_it() -> None:
    lm = toy.lm(seed=3)
    reward = reward_on(lm)
    reward.chat = ChatFormat(toy.tokenizer(), "llama2")
    rollouts = roll(lm, capture=())
    plain = [rollout.text for rollout in rollouts]
    RewardOnTrunk(reward, lm, 2)(rollouts)
    due = [rollout.score for rollout in rollouts]
    for rollout, text in zip(rollouts, plain, strict=True):
        rollout.text = text[:1] + "</<s>s>" + text[1:]
    RewardOnTrunk(reward, lm, 2)(rollouts)
    assert [rollout.score for rollout in rollouts] == due


def test_blocks_are_shared_as_far_as_every_weight_and_the_template_agree() -> None:
    lm = toy.lm()
    assert RewardOnTrunk(reward_on(lm), lm, 2).shared == 2
    assert RewardOnTrunk(reward_on(lm), lm, 1).shared == 1  # the policy's own blocks change
    assert RewardOnTrunk(reward_on(lm), lm, 3).shared == 2  # so did the reward model's
    assert RewardOnTrunk(reward_on(toy.lm(seed=1)), lm, 2).shared == 0
    assert RewardOnTrunk(RewardModel(models.shallow(lm, 2).model.model, lm.chat), lm, 3).shared == 2
    half = toy.lm(dtype=torch.bfloat16)
    assert RewardOnTrunk(reward_on(half), lm, 2).shared == 0
    other = reward_on(lm)
    other.chat = copy.copy(lm.chat)
    other.chat.template = "llama2"
    assert RewardOnTrunk(other, lm, 2).shared == 0
