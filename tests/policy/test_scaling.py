"""The plans of the profiles, their commands, and the speed of the machine at hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import toy
from starling_nb import profiles
from starling_nb.models import LM
from starling_nb.nectar.responses import making
from starling_nb.policy import scaling
from starling_nb.policy.launching import Launch
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.scaling import plan, speed
from starling_nb.policy.scaling.plan import Card, Run, Shape
from starling_nb.reward import RewardModel

HERE = Card(8e9, 1e11, 1e10)
PROMPTS = toy.prompts(toy.QUESTIONS)


def start() -> tuple[LM, RewardModel]:
    """A toy start model of five blocks and a reward model that shares the lowest with it."""
    lm = toy.lm(num_hidden_layers=5)
    decoder: Any = copy.deepcopy(lm.model.model)
    with torch.no_grad():
        decoder.layers[1].mlp.up_proj.weight.add_(1)
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    return lm, RewardModel(decoder, lm.chat, head).eval()


def plans(*names: str) -> list[scaling.Sized]:
    lm, reward = start()
    return [scaling.sized(name, lm, reward, PROMPTS, HERE) for name in names]


def test_the_published_run_is_planned_as_the_blog_tells_it() -> None:
    gpu, paper = plans("gpu", "paper")
    assert paper.run == Run(updates=10_016)
    assert paper.run.longest == (scaling.launch("paper", "p", "r", Path("o")).prompt_tokens, 1024)
    assert gpu.run == Run(updates=10_016, ranks=1, reward_cards=0, sharded=False)
    assert paper.card == plan.CARDS["a100"]
    assert (paper.policy, paper.reward) == tuple(scaling.RELEASED.values())
    assert scaling.settings([gpu, paper])["paper"].tolist()[2:5] == ["7 + 1", "28", "10,016"]


def test_the_embedded_run_is_counted_in_the_models_and_prompts_at_hand() -> None:
    (small,) = plans("laptop")
    p = profiles.make(scaling.TUNING, profiles.values("laptop", scaling.TUNING))
    lm, _ = start()
    lengths = [len(lm.chat.prompt_ids(prompt.messages)) for prompt in PROMPTS]
    assert small.run.policy == Shape.of(lm.model.config)
    assert (small.run.longest, small.run.mean[0]) == ((max(lengths), p.max_new_tokens), round(sum(lengths) / 6))
    assert (small.run.rows, small.run.together, small.run.flight, small.run.answers) == (96, 16, 96, 4)
    assert (small.run.shared, small.run.width, small.card) == (1, 4, HERE)
    assert small.run.updates == p.steps * p.epochs * 6


def test_every_planned_byte_is_one_that_the_classes_make() -> None:
    lm, reward = start()
    table = scaling.bytes_beside(
        [scaling.sized(name, lm, reward, PROMPTS, HERE) for name in ("laptop", "paper")], lm, reward
    )
    assert table.ratio.to_numpy() == pytest.approx(1, rel=0.01)
    assert set(table[table.profile == "laptop"].component) - set(table[table.profile == "paper"].component) == {
        "reward model"
    }
    assert table[table.component == "sampled policy"].measured.tolist() == pytest.approx(
        [scaling.size(lm.model.parameters()) / 1e9, 14.48], rel=1e-3
    )


def test_tables_hold_what_the_plans_say() -> None:
    one, two = plans("laptop", "gpu")
    found = scaling.memory([one, two])
    for sized in (one, two):
        part = found[found.profile == sized.profile].set_index("component").gigabytes * 1e9
        assert part.to_dict() == pytest.approx(plan.memory(sized.run))
    assert set(found[found.when == "sampling"].component) == {"keys and values"}
    times = scaling.time([one, two]).set_index("profile")
    assert times.hours["gpu"] == pytest.approx(two.plan.hours)
    assert times.dollars.tolist() == pytest.approx([0, 2 * two.plan.hours])


def test_a_refusal_is_told_and_what_fits_is_not_refused() -> None:
    (gpu,) = plans("gpu")
    assert scaling.refused(gpu.run, gpu.card) == ""
    assert "It fits with --trainable last:1" in scaling.refused(replace(gpu.run, trainable="full"), gpu.card)


@pytest.mark.parametrize("profile", ["laptop", "gpu", "paper"])
def test_a_profile_is_launched_with_its_own_recipe(profile: str) -> None:
    p, q = scaling.parameters(profile)
    launch = scaling.launch(profile, "prompts.parquet", "reward/model", Path("policy"))
    assert launch == Launch(
        "prompts.parquet",
        p.reward or "reward/model",
        Path("policy"),
        p.base,
        Recipe.of(p),
        p.recipe,
        config=q.config,
        processes=q.ranks,
        reward_cards=q.reward_cards,
        template=p.template,
        prompt_tokens=p.prompt_tokens,
    )
    assert ("serve-reward" in launch.shown()) is (profile == "paper")
    assert f"--num_processes {q.ranks}" in launch.shown()
    assert "distributed_type" in launch.configuration


def test_written_prompts_read_back(tmp_path: Path) -> None:
    found = list(making.prompts(scaling.write_prompts(tmp_path / "prompts.jsonl", PROMPTS)))
    assert [one.messages for one in found] == [one.messages for one in PROMPTS]


def test_a_step_is_timed_phase_by_phase_and_leaves_the_model_alone() -> None:
    lm, reward = start()
    before = toy.weights(lm.model)
    (small,) = plans("laptop")
    recipe = Recipe(rollouts=8, answers=2, minibatch=4, epochs=2, max_new_tokens=6, trainable="last:2", lr=1e-3)
    found = speed.measure(lm, reward, PROMPTS, recipe, replace(small.run, trainable="last:2"))
    assert toy.changed(before, lm.model) == set()
    assert set(found.seconds) == set(plan.operations(small.run))
    assert all(taken > 0 for taken in found.seconds.values())
    assert (found.run.rows, found.run.answers, found.run.together, found.run.longest[1]) == (8, 2, 4, 6)


def test_shares_are_of_what_the_card_could_at_most() -> None:
    run = replace(plans("laptop")[0].run, rows=8, flight=8, mean=(10, 6), longest=(12, 6))
    least = plan.seconds(run, HERE, dict.fromkeys(plan.operations(run), 1.0))
    half = speed.Speed(run, {name: 2 * seconds for name, seconds in least.items()})
    assert half.shares(HERE) == pytest.approx(dict.fromkeys(least, 0.5))
    table = half.table(HERE).set_index("phase")
    assert table.tokens_per_s["sampling"] == pytest.approx(8 * 6 / half.seconds["sampling"])
    assert table.tokens_per_s["update"] == pytest.approx(run.epochs * 8 * 16 / half.seconds["update"])
    assert table.gflop_per_s["update"] == pytest.approx(HERE.rate / 2e9)
    as_here = scaling.time(plans("gpu"), half.shares(HERE))
    assert pd.isna(as_here).sum().sum() == 0


def test_limits_are_those_of_products_and_reads() -> None:
    found = speed.limits(torch.float32, torch.device("cpu"), 5e9, side=128, rounds=2)
    assert found.memory == 5e9
    assert found.rate > 0
    assert found.bandwidth > 0
