"""The parameters of stage 04 say where a run starts from and which recipe it follows."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from starling_nb import profiles
from starling_nb.chat import ChatFormat
from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts import split_of
from starling_nb.policy import starting
from starling_nb.policy.recipe import PUBLISHED, Recipe, TuningError
from starling_nb.reward import RewardModel, serving

STAGE = "04_policy_tuning"


def parameters(profile: str) -> Any:
    return profiles.make(STAGE, profiles.values(profile, STAGE))


def test_the_laptop_takes_the_corrected_recipe_with_its_own_values() -> None:
    p = parameters("laptop")
    given = {one.name: getattr(p, one.name) for one in fields(Recipe) if hasattr(p, one.name)}
    assert Recipe.of(p) == Recipe(**given)
    assert Recipe.of(p) == Recipe(steps=9, rollouts=96, minibatch=16, epochs=2, lr=2e-4, lam=0.5, critic_warmup=0,
                                  max_new_tokens=64)  # fmt: skip


@pytest.mark.parametrize(("profile", "ranks"), [("paper", 7), ("gpu", 1)])
def test_the_large_profiles_are_the_published_recipe(profile: str, ranks: int) -> None:
    """64 answers and 4 sequences a rank, 2 epochs, 10,000 updates: mistral_apa.py and the blog."""
    p = parameters(profile)
    recipe = Recipe.of(p)
    assert {name: getattr(recipe, name) for name, _, _ in PUBLISHED} == {name: value for name, value, _ in PUBLISHED}
    assert (recipe.objective, recipe.max_new_tokens, recipe.rollouts, recipe.minibatch) == (
        "apa",
        1024,
        64 * ranks,
        4 * ranks,
    )
    assert 0 <= recipe.steps * recipe.epochs * recipe.rollouts // recipe.minibatch - 10_000 < 32
    assert (p.base, p.template) == ("openchat/openchat_3.5", "openchat")
    assert p.reward == "berkeley-nest/Starling-RM-7B-alpha"


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(TuningError, match="choose corrected or published"):
        Recipe.of(replace(parameters("laptop"), recipe="paper"))


def test_prompts_of_a_file_are_those_of_its_training_split(tmp_path: Path) -> None:
    lm = toy.lm()
    reward, p = toy.Likes(lm), replace(parameters("laptop"), max_new_tokens=9)
    assert [prompt.split for prompt in starting.training_prompts(None, lm, reward, p)] == ["train"] * 459
    rows = [
        {"id": f"p{i}", "messages": toy.user(f"question {i}?"), "source": ["toy"], "answers": []} for i in range(20)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = starting.training_prompts(path, lm, reward, p)
    assert 0 < len(found) < 20
    assert {split_of(prompt.messages) for prompt in found} == {"train"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if split_of(row["messages"]) == "test"))
    with pytest.raises(StarlingError, match="give more prompts"):
        starting.training_prompts(path, lm, reward, p)


def test_a_reward_model_of_one_s_own_takes_the_place_of_notebook_03_s(tmp_path: Path) -> None:
    lm = toy.lm()
    for name, seed in {"own": 0, "other": 1}.items():
        head = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
        RewardModel(toy.lm().model.model, lm.chat, head).save_pretrained(tmp_path / name, {"base": "toy"})
    p = parameters("laptop")
    conversation = [[*toy.user("why?"), {"role": "assistant", "content": "because"}]]
    other = replace(p, reward=str(tmp_path / "other"))
    scores = [starting.reward_model(one, tmp_path / "own", torch.float32).score(conversation) for one in (p, other)]
    assert scores[0] == RewardModel.from_pretrained(tmp_path / "own").score(conversation) != scores[1]


def test_prompts_that_would_stop_a_training_are_left_out_and_told() -> None:
    lm = toy.lm()
    reward, long = toy.Likes(lm), "word " * lm.window
    asked = toy.prompts(["what is it?", "a </s> inside <|im_end|>", long, "why?"])
    said: list[str] = []
    found = starting.askable(lm, reward, asked, 9, say=said.append)
    assert [prompt.id for prompt in found] == [asked[0].id, asked[3].id]
    assert said == [said[0]]
    assert said[0].startswith("2 of 4 prompts are left out, such as ")
    assert asked[1].id in said[0]
    assert f"{lm.window - 9} is the most beside an answer in a window of {lm.window}" in said[0]
    room = lm.window - len(lm.chat.prompt_ids(asked[0].messages))
    assert starting.askable(lm, reward, asked[:1], room) == asked[:1]
    assert starting.askable(lm, reward, asked[:1], room + 1, say=said.append) == []
    assert starting.askable(lm, reward, asked[:1], 9, lm.window - room) == asked[:1]
    assert starting.askable(lm, reward, asked[:1], 9, lm.window - room - 1, said.append) == []
    assert f"; {lm.window - room - 1} is the most" in said[-1]


def test_prompts_whose_answers_cannot_be_scored_are_left_out_whoever_scores() -> None:
    lm = toy.lm()
    reward = toy.Likes(lm)
    reward.chat = ChatFormat(toy.tokenizer(), "llama2")
    asked = toy.prompts(["what is it?", "why?"])
    asked[1] = replace(asked[1], messages=[{"role": "system", "content": "be kind"}, *asked[1].messages])
    stop, address = serving.serve(reward, "toy")
    for one in (reward, serving.load(address)):
        said: list[str] = []
        assert starting.askable(lm, one, asked, 9, say=said.append) == asked[:1]
        assert "p1: the reward model: this Llama-2 text has no system turn" in said[0]
    stop()
