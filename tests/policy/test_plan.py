"""What a plan counts is what the real classes would hold, and what does not fit is refused with a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, LlamaConfig, MistralConfig, Qwen2Config
from typer.testing import CliRunner

import toy
from starling_nb.cli import app
from starling_nb.policy import scaling
from starling_nb.policy.hydra import Hydra, collate
from starling_nb.policy.scaling import plan
from starling_nb.policy.scaling.plan import CARDS, LLAMA, OPENCHAT, PlanError, Run, Shape

CONFIGS = {
    "openchat": (OPENCHAT, MistralConfig(vocab_size=32_002, intermediate_size=14_336, num_key_value_heads=8)),
    "llama": (LLAMA, LlamaConfig()),
    "qwen": (None, Qwen2Config(tie_word_embeddings=True, num_key_value_heads=4)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_hold_as_many_weights_as_the_models(name: str) -> None:
    due, config = CONFIGS[name]
    shape = Shape.of(config)
    assert due is None or shape == due
    model = scaling.on_no_device(config)
    assert shape.weights == sum(weight.numel() for weight in model.parameters())
    assert shape.block == sum(weight.numel() for weight in model.model.layers[0].parameters())


@pytest.mark.parametrize("trainable", ["last:4", "blocks:20-23", "lora:8"])
@pytest.mark.parametrize("branch", [False, True])
def test_bytes_are_those_of_the_classes_that_run(trainable: str, branch: bool) -> None:
    config = MistralConfig(
        vocab_size=3200, hidden_size=512, intermediate_size=1792, num_attention_heads=8, num_key_value_heads=2
    )
    reward = LlamaConfig(vocab_size=3200, hidden_size=256, intermediate_size=512, num_attention_heads=4)
    run = Run(
        policy=Shape.of(config),
        reward=Shape.of(reward),
        trainable=trainable,
        branch=branch,
        ranks=1,
        reward_cards=0,
        longest=(30, 20),
        rows=6,
        flight=6,
    )
    due = scaling.held(run, scaling.shaped(config, toy.lm().chat), scaling.on_no_device(reward, AutoModel))
    found = plan.memory(run)
    assert found == pytest.approx(found | due, rel=0.01)
    assert set(found) - set(due) == {"activations (estimate)", "logits of a chunk"}


def test_bytes_of_real_tied_models_in_float32_are_planned_too() -> None:
    lm = toy.lm(tied=True)
    shape = Shape.of(lm.model.config)
    cards = {"ranks": 3, "reward_cards": 0, "sharded": True}
    run = Run(shape, shape, "last:1", rows=4, flight=4, longest=(9, 5), shared=1, width=4, **cards)  # type: ignore[arg-type]
    due = scaling.held(run, lm, toy.lm(seed=1).model.model)
    found = plan.memory(run)
    assert found == pytest.approx(found | due, rel=0.01)
    assert due["optimiser, float32"] == pytest.approx(2 * due["gradients, float32"], rel=0.01)
    alone = scaling.held(replace(run, sharded=False), lm, toy.lm(seed=1).model.model)
    for name in ("optimiser, float32", "gradients, float32"):
        assert due[name] == alone[name] / 3
    assert due["trunk states of the rollouts"] == 2 * 4 * 4 * 14 * 32  # two blocks' states are kept


def test_what_is_never_there_at_once_is_not_added_up() -> None:
    needed = plan.memory(Run())
    sampling = needed["keys and values"]
    learning = sum(needed[name] for name in plan.LEARNING)
    assert plan.peak(needed) == pytest.approx(sum(needed.values()) - min(sampling, learning))
    longer = plan.memory(Run(flight=4))
    assert plan.peak(longer) == pytest.approx(sum(longer.values()) - longer["keys and values"])


def test_more_answers_at_a_time_are_fewer_reads_of_the_weights() -> None:
    few, many = (plan.seconds(Run(flight=flight), CARDS["a100"]) for flight in (4, 64))
    assert few["sampling"] > 4 * many["sampling"]
    assert {name: few[name] for name in few if name != "sampling"} == {n: many[n] for n in many if n != "sampling"}


def test_a_prompt_is_counted_once_for_the_answers_that_share_it() -> None:
    each, once = (plan.operations(Run(answers=n, mean=(300, 100), together=4)) for n in (1, 4))
    assert once["sampling"] / each["sampling"] == pytest.approx((100 + 75) / 400)
    few = plan.operations(Run(answers=4, mean=(300, 100), together=2))
    assert once["update"] < few["update"] < each["update"]
    # No prompt at all leaves the whole of four blocks: 6 operations a weight and token, and 4 of the head's.
    bare = plan.operations(Run(mean=(0, 100), rows=8, epochs=1))["update"]
    assert bare == 800 * (6.0 * 4 * OPENCHAT.block + 4.0 * OPENCHAT.table)
    one = plan.operations(Run(mean=(1, 100), rows=8, epochs=1))["update"] - bare
    assert one == 6.0 * 8 * (4 * OPENCHAT.block - 3 * 4096 * 14_336)


def test_the_estimate_of_activations_counts_a_shared_prompt_once() -> None:
    each, once = (plan.memory(Run(answers=n, longest=(300, 100)))["activations (estimate)"] for n in (1, 4))
    assert once / each == pytest.approx(175 / 400)


def test_measured_shares_take_the_place_of_assumed_ones() -> None:
    usual = plan.seconds(Run(), CARDS["a100"])
    whole = plan.seconds(Run(), CARDS["a100"], dict.fromkeys(usual, 1.0))
    half = plan.seconds(Run(), CARDS["a100"], dict.fromkeys(usual, 0.5))
    assert half == pytest.approx({name: 2 * time for name, time in whole.items()})
    assert usual["update"] == pytest.approx(whole["update"] / Run().used)
    assert usual["sampling"] == pytest.approx(whole["sampling"] / Run().read)


def test_the_published_run_fits_eight_cards_and_one_card_holds_everything() -> None:
    published = plan.plan(Run(), CARDS["a100"])
    alone = plan.plan(Run(ranks=1, reward_cards=0), CARDS["a100"])
    for found in (published, alone):
        assert plan.peak(found.memory) < 72e9
    assert "reward model" in alone.memory
    spread = plan.plan(Run(sharded=True), CARDS["a100"])
    for name in ("optimiser, float32", "gradients, float32"):
        assert spread.memory[name] == pytest.approx(alone.memory[name] / 7)
        assert published.memory[name] == alone.memory[name]
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
    with pytest.raises(PlanError, match="choose a100, h100 or here"):
        plan.card("v100")
    with pytest.raises(PlanError, match="gigabytes above 0"):
        plan.card("a100", memory=-1)


def test_the_command_prints_the_plan_or_why_not() -> None:
    done = CliRunner().invoke(app, ["plan", "--cards", "1", "--reward-cards", "0", "--price", "3"])
    assert done.exit_code == 0
    for told in ("trunk states of the rollouts", "reward model", "while sampling", "update", "hours", "dollars"):
        assert told in done.output
    here = CliRunner().invoke(
        app, ["plan", "--card", "here", "--memory", "100", "--cards", "1", "--trainable", "last:1"]
    )
    assert here.exit_code == 0, here.output
    assert "100.0 GB at most" in here.output
    assert here.output != done.output
    refused = CliRunner().invoke(app, ["plan", "--memory", "24"])
    assert isinstance(refused.exception, PlanError)


def test_the_estimate_of_activations_is_a_little_above_what_autograd_keeps() -> None:
    lm = toy.lm(hidden_size=256, intermediate_size=768, num_attention_heads=8, num_key_value_heads=4, head_dim=32)
    hydra, rows, prompt, answer = Hydra(lm, "last:2"), 4, 40, 40
    states = [torch.randn(prompt + answer, 256) for _ in range(rows)]
    batch = collate(states, [prompt] * rows, [[5] * answer] * rows)
    own = {weight.untyped_storage().data_ptr() for weight in (*hydra.parameters(), *hydra.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hydra(batch)
    measured = sum(storage.nbytes() for place, storage in kept.items() if place not in own)
    run = Run(Shape.of(lm.model.config), trainable="last:2", together=rows, longest=(prompt, answer))
    assert 0.75 < measured / plan.memory(run)["activations (estimate)"] < 1
