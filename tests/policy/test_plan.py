"""What a plan counts is what the real classes would hold, and what does not fit is refused with a way out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config
from typer.testing import CliRunner

import toy
from starling_nb.cli import app
from starling_nb.decoding import SlabLayer
from starling_nb.models import LM
from starling_nb.policy import plan
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.plan import CARDS, LLAMA, OPENCHAT, PlanError, Run, Shape

CONFIGS = {
    "openchat": (OPENCHAT, MistralConfig(vocab_size=32_002, intermediate_size=14_336, num_key_value_heads=8)),
    "llama": (LLAMA, LlamaConfig()),
    "qwen": (None, Qwen2Config(tie_word_embeddings=True, num_key_value_heads=4)),
}


def on_no_device(config: Any) -> Any:
    """A model of shapes alone."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def size(weights: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_hold_as_many_weights_as_the_models(name: str) -> None:
    due, config = CONFIGS[name]
    shape = Shape.of(config)
    assert due is None or shape == due
    model = on_no_device(config)
    assert shape.weights == sum(weight.numel() for weight in model.parameters())
    assert shape.block == sum(weight.numel() for weight in model.model.layers[0].parameters())


@pytest.mark.parametrize("trainable", ["last:4", "blocks:20-23", "lora:8"])
@pytest.mark.parametrize("branch", [False, True])
def test_bytes_are_those_of_the_classes_that_run(trainable: str, branch: bool) -> None:
    config = MistralConfig(
        vocab_size=3200, hidden_size=512, intermediate_size=1792, num_attention_heads=8, num_key_value_heads=2
    )
    run = Run(policy=Shape.of(config), trainable=trainable, branch=branch, ranks=1, longest=(30, 20), rows=6)
    lm = LM(on_no_device(config), toy.lm().chat, "shapes")
    hydra = Hydra(lm, trainable, "branch" if branch else "head")
    policy, critic = hydra.learning()
    learned = sum(weight.numel() for weight in (*policy, *critic))
    keys = torch.empty(run.together, 2, 1, 64, dtype=torch.bfloat16, device="meta")
    layer = SlabLayer(run.together, 51)
    layer.lazy_initialization(keys, keys)
    states = torch.empty(run.rows, 50, 512, dtype=torch.bfloat16, device="meta")
    due = {
        "sampled policy, bfloat16": size(lm.model.parameters()),
        "policy's top, float32": size(hydra.top.parameters()),
        "reference's top, float32": size(hydra.reference.parameters()),
        "critic, float32": size(critic),
        "gradients, float32": 4 * learned,
        "optimiser, float32": 8 * learned,
        "keys and values, bfloat16": 32 * size([layer._keys, layer._values]),
        "trunk states of all rollouts, bfloat16": size([states]),
    }
    found = plan.memory(run)
    for name, count in due.items():
        assert found[name] == pytest.approx(count, rel=0.1), name
    assert set(found) - set(due) == {"activations (estimate)", "logits of a chunk"}


def test_the_published_run_fits_eight_cards_and_one_card_holds_everything() -> None:
    published = plan.plan(Run(), CARDS["a100"])
    alone = plan.plan(Run(ranks=1, reward_cards=0), CARDS["a100"])
    for found in (published, alone):
        assert sum(found.memory.values()) < 72e9
    assert "reward model, bfloat16" in alone.memory
    assert published.memory["optimiser, float32"] == pytest.approx(alone.memory["optimiser, float32"] / 7)
    faster = plan.plan(Run(), CARDS["h100"])
    assert faster.hours < published.hours
    twice = plan.plan(replace(Run(), updates=20_000), CARDS["a100"])
    assert (twice.hours, twice.dollars) == pytest.approx((2 * published.hours, 2 * published.dollars))


def test_a_plan_that_does_not_fit_says_what_to_change() -> None:
    with pytest.raises(PlanError, match=r"would hold .* are there: .*It fits with --trainable last:1") as caught:
        plan.plan(Run(trainable="full", ranks=1), CARDS["a100"])
    assert "optimiser" in str(caught.value)
    plan.plan(Run(trainable="last:1", ranks=1), CARDS["a100"])
    with pytest.raises(PlanError, match="or take a larger card"):
        plan.plan(Run(), plan.card("a100", memory=16))
    with pytest.raises(PlanError, match="on its card: choose a smaller one"):
        plan.plan(Run(reward=replace(LLAMA, blocks=320)), CARDS["a100"])
    with pytest.raises(PlanError, match="1 or more"):
        plan.plan(Run(ranks=0), CARDS["a100"])
    with pytest.raises(PlanError, match="choose a100 or h100"):
        plan.card("v100")
    with pytest.raises(PlanError, match="gigabytes above 0"):
        plan.card("a100", memory=-1)


def test_the_command_prints_the_plan_or_why_not() -> None:
    done = CliRunner().invoke(app, ["plan", "--cards", "1", "--reward-cards", "0", "--price", "3"])
    assert done.exit_code == 0
    for told in ("trunk states of all rollouts", "reward model, bfloat16", "update", "hours", "dollars"):
        assert told in done.output
    refused = CliRunner().invoke(app, ["plan", "--memory", "24"])
    assert isinstance(refused.exception, PlanError)
