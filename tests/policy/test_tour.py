"""Notebook 04's own steps: answers before and after are scored alike and compared pair by pair."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import toy
from starling_nb.models import LM
from starling_nb.policy import measure, tour
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.recipe import Recipe, TuningError
from starling_nb.reward import RewardModel

RUBRIC = {"behaviour": "answer", "facts": ["e"], "length": [1, 40]}
PROMPTS = [replace(prompt, rubric=RUBRIC) for prompt in toy.prompts(toy.QUESTIONS)]
P = SimpleNamespace(trainable="last:1", samples=3, seed=0, max_new_tokens=16)


def reward_on(lm: LM) -> RewardModel:
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    return RewardModel(copy.deepcopy(lm.model.model), lm.chat, head)


def test_answers_are_scored_as_whole_conversations_are_and_an_untrained_policy_changes_nothing() -> None:
    lm = toy.lm(seed=3)
    reward = reward_on(lm)
    before = tour.before(lm, reward, PROMPTS, P)
    assert len(before) == 3 * len(PROMPTS)
    texts = [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in before]
    whole = reward.score(texts)
    retold = [i for i, r in enumerate(before) if lm.chat._answer_ids(r.text) == r.sample.ids]
    assert retold
    for i in retold:
        assert before[i].score == pytest.approx(whole[i], abs=1e-4)
    after = tour.after(lm, Hydra(lm, "last:1"), reward, PROMPTS, P, 1, "apa")
    table = tour.compare_methods(before, {"apa": after})
    assert table.value.abs().max() < 1e-5
    assert set(table.n) == {len(PROMPTS)}
    assert measure.divergence(Hydra(lm, "last:1"), after, torch.float32).value == 0.0


def test_a_method_with_fewer_answers_is_compared_with_the_first_of_each_prompt() -> None:
    lm = toy.lm(seed=3)
    before = tour.before(lm, reward_on(lm), PROMPTS, P)
    for place, rollout in enumerate(before):
        rollout.score = 100.0 * (place % 3) + PROMPTS.index(rollout.prompt)
    after = copy.deepcopy(before[::3])
    for rollout in after:
        rollout.score += 0.5
    table = tour.compare_methods(before, {"ppo": after}).set_index("metric")
    assert table.value.to_dict() == pytest.approx({"rubric": 0.0, "reward": 0.5, "words": 0.0})


def test_prompts_of_one_s_own_leave_dpo_out_and_a_recipe_that_some_method_cannot_follow_stops_before_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame(toy.ROWS).to_parquet(tmp_path / "nectar.parquet")
    own = toy.prompts([f"my own question number {i}?" for i in range(4)])
    recipe = Recipe(steps=1, rollouts=8, answers=4, minibatch=8, lr=1e-3, max_new_tokens=6, trainable="last:1")
    found = tour.run_arms(toy.lm(), reward_on(toy.lm()), own, recipe, 1, tmp_path / "nectar.parquet", tmp_path, {})
    assert list(found.hydras) == ["apa", "ppo", "p3o"]
    assert "DPO is left out" in capsys.readouterr().out
    single, empty = replace(recipe, answers=1), tmp_path / "empty"
    with pytest.raises(TuningError, match="must be even"):
        tour.run_arms(toy.lm(), reward_on(toy.lm()), own, single, 1, tmp_path / "nectar.parquet", empty, {})
    assert not empty.exists()
