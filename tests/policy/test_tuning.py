"""Every objective finds a planted reward, a run that was broken off goes on bit for bit, and each guard stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toy
from starling_nb import losses
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy import experience, guards, tuning
from starling_nb.policy.hydra import Batch, Hydra, collate
from starling_nb.policy.recipe import Recipe, TuningError, switches
from starling_nb.policy.rollouts import Rollout, collect
from starling_nb.policy.tuning import tune
from starling_nb.reward.model import Reading

PROMPTS = toy.prompts(toy.QUESTIONS)
QUICK = Recipe(
    steps=8,
    rollouts=32,
    epochs=2,
    minibatch=16,
    lr=3e-3,
    value_lr=1e-2,
    lam=0.1,
    kl=0.0,
    max_new_tokens=10,
    trainable="last:2",
    critic_warmup=1,
)
ONE = replace(QUICK, steps=1, rollouts=8, minibatch=4, critic_warmup=0)


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


@pytest.mark.parametrize("objective", ["apa", "ppo", "p3o", "rloo"])
def test_every_objective_finds_a_planted_reward(objective: Any) -> None:
    lm = toy.lm()
    before = toy.weights(lm.model)
    found = tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(QUICK, objective=objective))
    rewards = [record["reward"] for record in found.history]
    assert rewards[0] < 0.1  # five letters of 79
    assert sum(rewards[-2:]) / 2 > 0.2
    kl = [record["kl"] for record in found.history]
    assert kl[0] == 0.0
    assert kl[-1] > 0.5
    assert max(record["sampler_gap"] for record in found.history) < 1e-5
    assert found.resumed == 0
    changed = toy.changed(before, lm.model)
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.")) for name in changed)
    assert toy.changed(toy.weights(found.hydra.top.layers[0]), lm.model.model.layers[1]) == set()


def test_a_rule_is_learned_beside_the_reward() -> None:
    lm = toy.lm()
    rules = {"likes x to z": (30.0, lambda _, text: sum(letter in "xyz" for letter in text) / max(1, len(text)))}
    tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(QUICK, score_clip=0.1), rules=rules)
    texts = "".join(r.text for r in collect(lm, PROMPTS, [str(i) for i in range(6)], seed=1, max_new_tokens=10))
    assert sum(letter in "xyz" for letter in texts) / len(texts) > 0.2  # three letters of 79


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "p3o"},
        {"objective": "rloo", "kl": 0.1, "kl_target": 1.0, "kl_horizon": 40},
        {"scale": "running", "value": "branch", "trainable": "lora:2"},
    ],
    ids=["apa", "p3o", "rloo, steered", "running scale, branch, adapters"],
)
def test_stopping_and_going_on_is_not_stopping_at_all(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(QUICK, steps=6, rollouts=16, minibatch=8, **changes)
    lm = toy.lm()
    whole = tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, recipe)

    def stop(step: int, steps: int, record: dict[str, float]) -> None:
        assert (record, steps) == (whole.history[step - 1], 6)
        if step == 3:
            raise Stop

    path = tmp_path / "policy.pt"
    second = toy.lm()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")  # as if written on a card
    with pytest.raises(Stop):
        tune(second, toy.Likes(second, "aeiou"), PROMPTS, recipe, checkpoint=path, report=stop)
    monkeypatch.undo()
    third = toy.lm()
    again = tune(third, toy.Likes(third, "aeiou"), PROMPTS, recipe, checkpoint=path)
    assert again.resumed == 2
    assert again.history == whole.history
    assert toy.changed(toy.weights(whole.hydra), again.hydra) == set()
    assert toy.changed(toy.weights(lm.model), third.model) == set()
    weights = {record["kl_weight"] for record in whole.history if "kl_weight" in record}
    assert len(weights) == (6 if "kl_target" in changes else 0)
    with pytest.raises(TuningError, match="is at step 6 of this run"):
        tune(toy.lm(), toy.Likes(toy.lm(), "aeiou"), PROMPTS, replace(recipe, steps=2), checkpoint=path)
    other, start = toy.Likes(toy.lm(), "aeiou"), toy.lm(seed=5)
    other.v_head.weight.data.add_(1)
    for model, reward in ((toy.lm(), other), (start, toy.Likes(start, "aeiou"))):
        with pytest.raises(TuningError, match="belongs to another run"):
            tune(model, reward, PROMPTS, recipe, checkpoint=path)
    fourth = toy.lm()
    finished = tune(fourth, toy.Likes(fourth, "aeiou"), PROMPTS, recipe, checkpoint=path)
    assert finished.resumed == 6
    assert toy.changed(toy.weights(lm.model), fourth.model) == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_pass_sees_the_weights_of_the_step_before(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision may keep casts of the weights; a second pass must not run on those of the first."""
    moved: list[float] = []

    def watched(logprobs: Tensor, old: Tensor, *rest: Any, **settings: Any) -> Tensor:
        moved.append(float((logprobs - old).detach().abs().mean()))
        return ppo(logprobs, old, *rest, **settings)

    ppo = losses.ppo
    monkeypatch.setattr(losses, "ppo", watched)
    lm = toy.lm(dtype=dtype)
    tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(ONE, objective="ppo", lr=1e-3, epochs=3, minibatch=8))
    assert moved[0] < 1e-2
    assert 0.02 < moved[1] < moved[2]


def test_bfloat16_learns_as_well() -> None:
    lm = toy.lm(dtype=torch.bfloat16)
    found = tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(QUICK, objective="ppo"))
    assert found.history[0]["kl"] == 0.0
    assert found.history[-1]["reward"] > 0.2
    assert 0 < max(record["sampler_gap"] for record in found.history) < 0.2


def test_prompts_come_round_by_seed_with_their_answers_side_by_side() -> None:
    def ids(step: int, answers: int = 1, **changes: Any) -> list[str]:
        recipe = replace(QUICK, rollouts=4, answers=answers, **changes)
        chosen, names = tuning._step_prompts(PROMPTS, recipe, step)
        assert len(set(names)) == len(names) == 4
        return [prompt.id for prompt in chosen]

    epoch = ids(0) + ids(1) + ids(2)
    assert sorted(epoch[:6]) == sorted(epoch[6:]) == sorted(prompt.id for prompt in PROMPTS)
    assert ids(1) == ids(1)
    assert [ids(step) for step in range(3)] != [ids(step, seed=1) for step in range(3)]
    doubled = ids(0, answers=2, objective="p3o")
    assert doubled[::2] == doubled[1::2]
    assert len(set(doubled)) == 2
    assert len(set(ids(0, answers=4))) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answers": 3}, "multiple"),
        ({"answers": 0}, "multiple"),
        ({"objective": "p3o", "answers": 1}, "must be even"),
        ({"objective": "rloo", "answers": 1}, "must be 2 or more"),
        ({"kl_target": 4.0}, "cannot be steered"),
        ({"kl_target": -1.0, "kl": 0.1}, "cannot be steered"),
    ],
)
def test_recipes_that_cannot_be_run_are_refused(changes: Any, says: str) -> None:
    with pytest.raises(TuningError, match=says):
        replace(QUICK, **changes)


def test_the_critic_warms_up_alone() -> None:
    lm = toy.lm()
    before = toy.weights(lm.model)
    found = tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(QUICK, steps=2, critic_warmup=2))
    assert toy.changed(before, lm.model) == set()
    assert found.hydra.value_head[2].weight.abs().sum() > 0


def test_the_gate_lets_only_the_critic_s_loss_through() -> None:
    gated = replace(QUICK, steps=2, critic_warmup=0, critic_gate=True, score_clip=100.0, missing_eos=-50.0)
    before, found = toy.weights(toy.lm().model), {}
    for name, recipe in {
        "near": replace(gated, lam=9.0),
        "far": gated,
        "branch": replace(gated, value="branch"),
    }.items():
        found[name] = toy.lm()  # a critic this far off keeps the gate shut
        tune(found[name], toy.Likes(found[name], "aeiou"), PROMPTS, recipe)
    assert toy.changed(before, found["far"].model), "its head sits on the policy's own states, whose blocks it moves"
    assert toy.changed(toy.weights(found["near"].model), found["far"].model) == set()
    assert toy.changed(before, found["branch"].model) == set()


class Constant(toy.Likes):
    """Likes everything alike."""

    def share(self, text: str) -> float:
        return 0.3


class Broken(toy.Likes):
    """One score in a step is not a number."""

    def read_ids(self, encoded: Sequence[Any], batch: int = 32) -> list[Reading]:
        found = super().read_ids(encoded)
        return [found[0]._replace(score=float("nan")), *found[1:]]


def test_a_constant_or_broken_reward_stops_the_run() -> None:
    lm = toy.lm()
    with pytest.raises(TuningError, match="the reward is constant over a whole step"):
        tune(lm, Constant(lm), PROMPTS, ONE)
    with pytest.raises(TuningError, match="score that is not a number"):
        tune(lm, Broken(lm), PROMPTS, ONE)


def test_a_policy_that_is_not_its_reference_at_the_start_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(Hydra):
        def __init__(self, lm: LM, *rest: Any) -> None:
            super().__init__(lm, *rest)
            with torch.no_grad():
                self.reference.norm.weight.mul_(1.05)

    monkeypatch.setattr(tuning, "Hydra", Shifted)
    lm = toy.lm()
    with pytest.raises(TuningError, match="differ before any step"):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)


@pytest.mark.parametrize(("attention", "stopped"), [(0.3, "dropout of attention"), (0.0, "differ before any step")])
def test_dropout_that_was_left_on_stops_the_run(
    attention: float, stopped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dropping(Hydra):
        def __init__(self, lm: LM, *rest: Any) -> None:
            super().__init__(lm, *rest)
            self.top.layers[0].mlp.act_fn = nn.Sequential(self.top.layers[0].mlp.act_fn, nn.Dropout(0.3))
            self.top.train()

    monkeypatch.setattr(tuning, "Hydra", Dropping)
    lm = toy.lm(attention_dropout=attention)
    with pytest.raises(StarlingError, match=stopped):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)


def test_padding_on_the_wrong_side_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(*given: Any) -> Batch:
        right = collate(*given)
        return replace(right, states=right.states.roll(1, 1))

    monkeypatch.setattr(experience, "collate", turned)
    lm = toy.lm()
    with pytest.raises(TuningError, match="sampler and trainer disagree"):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)


def test_a_mask_made_from_padding_that_is_the_end_of_turn_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_padding(states: Any, prompts: Any, answers: Any, same: Any) -> Batch:
        kept = [[token for token in answer if token != 2] or [5] for answer in answers]
        return collate(states, prompts, kept, same)

    monkeypatch.setattr(experience, "collate", from_padding)
    lm = toy.lm()
    with pytest.raises(TuningError, match="make masks from lengths"):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(ONE, rollouts=16, minibatch=16))


@pytest.mark.parametrize(("where", "says"), [("prompt", "two BOS tokens"), ("answer", "between every prompt")])
def test_a_second_begin_of_text_stops_the_run(where: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun_twice(*arguments: Any, **settings: Any) -> list[Rollout]:
        found = collect(*arguments, **settings)
        for rollout in found:
            if where == "answer":
                rollout.sample.ids.insert(0, 1)
            else:
                rollout.sample.prompt[:0] = [1, 1]
        return found

    monkeypatch.setattr(tuning, "collect", begun_twice)
    lm = toy.lm()
    with pytest.raises(TuningError, match=says):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)


def test_answers_that_stop_ending_stop_the_run() -> None:
    recipe = replace(QUICK, rollouts=40)

    def record(step: int, rate: float) -> dict[str, float]:
        return {"step": float(step), "eos_rate": rate}

    guards.still_ends(record(0, 0.0), [], recipe)
    guards.still_ends(record(1, 0.11), [record(0, 0.5)], recipe)
    guards.still_ends(record(1, 0.0), [record(0, 0.3)], recipe)  # twelve answers at first: too few to tell
    with pytest.raises(TuningError, match="5% of them in step 1, 50% at first"):
        guards.still_ends(record(1, 0.05), [record(0, 0.5)], recipe)


def test_the_weight_of_the_divergence_is_steered_by_at_most_a_fifth() -> None:
    recipe = replace(QUICK, rollouts=100, kl=0.1, kl_target=2.0, kl_horizon=1000)
    for kl, factor in ((2.0, 1.0), (2.2, 1.01), (9.0, 1.02), (1.8, 0.99), (0.0, 0.98)):
        assert tuning.steered(0.1, kl, recipe) == pytest.approx(0.1 * factor)
    assert tuning.steered(0.1, 9.0, QUICK) == 0.1


def test_the_published_recipe_warns_of_its_quirk_and_is_guarded_against_all_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[int] = []
    apa = losses.apa

    def watched(logprobs: Tensor, anchor: Tensor, advantages: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        learned.append(int(mask.sum()))
        return apa(logprobs, anchor, advantages, mask, **settings)

    monkeypatch.setattr(losses, "apa", watched)
    recipe = Recipe.published(steps=2, rollouts=32, max_new_tokens=40, trainable="last:1")
    lm = toy.lm()
    found = tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, recipe)
    assert [warning.split(":")[0] for warning in found.warnings] == ["hide_eos"]
    tokens, ended = (sum(round(32 * record[name]) for record in found.history) for name in ("length", "eos_rate"))
    assert recipe.epochs * tokens - sum(learned) == recipe.epochs * ended > 0
    assert tune(toy.lm(), toy.Likes(lm, "aeiou"), PROMPTS, replace(ONE, rollouts=4)).warnings == []
    with pytest.raises(TuningError, match="the reward is constant"):
        tune(toy.lm(), Constant(lm), PROMPTS, recipe)


def test_every_switch_of_the_published_recipe_is_one_and_is_set() -> None:
    published = Recipe.published()
    table = switches()
    assert len({row["switch"] for row in table}) == len(table)
    for row in table:
        assert getattr(published, row["switch"]) == row["published"]
        assert getattr(Recipe(), row["switch"]) == row["corrected"]
    assert (published.anchor, published.lam, published.kl, published.score_clip) == ("rollout", 1.0, 0.01, 10.0)


def test_a_sampler_that_is_not_the_trained_model_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def cooler(*arguments: Any, **settings: Any) -> list[Rollout]:
        return collect(*arguments, **settings, temperature=0.7)

    monkeypatch.setattr(tuning, "collect", cooler)
    lm = toy.lm()
    with pytest.raises(TuningError, match="sampler and trainer disagree"):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)


def test_a_ratio_that_is_not_one_on_fresh_rollouts_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drifting(Hydra):
        def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
            logprobs, values = super().forward(batch)
            return logprobs + 0.06, values

    monkeypatch.setattr(tuning, "Hydra", Drifting)
    lm = toy.lm()
    with pytest.raises(TuningError, match=r"log-ratio of 0\.060"):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)


def test_a_loss_that_is_not_a_number_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "apa", lambda logprobs, *_, **__: logprobs.sum() * torch.nan)
    lm = toy.lm()
    before = toy.weights(lm.model)
    with pytest.raises(TuningError, match="not a number at step 0: lower lr"):
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, ONE)
    assert toy.changed(before, lm.model) == set()


def test_the_anchor_is_the_start_model_or_the_policy_that_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    anchors: dict[str, list[Tensor]] = {"initial": [], "rollout": []}
    apa = losses.apa
    for anchor, seen in anchors.items():

        def watched(logprobs: Tensor, target: Tensor, *rest: Any, seen: list[Tensor] = seen, **more: Any) -> Tensor:
            seen.append((logprobs.detach() - target).abs().max())
            return apa(logprobs, target, *rest, **more)

        monkeypatch.setattr(losses, "apa", watched)
        lm = toy.lm()
        tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(ONE, steps=2, epochs=1, minibatch=8, anchor=anchor))
    assert anchors["initial"][0] < 1e-5
    assert anchors["rollout"][0] < 1e-5
    assert anchors["initial"][1] > 1e-2  # step 1 is measured against the start model
    assert anchors["rollout"][1] < 1e-5  # or against itself, while it has not moved


def test_trunk_states_are_held_once_while_the_policy_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    make, learn = tuning.minibatches, tuning._learn

    def minibatches(hydra: Any, rollouts: Any, *rest: Any) -> Any:
        held.extend(rollouts)
        assert all(rollout.here for rollout in rollouts)
        return make(hydra, rollouts, *rest)

    def learned(*given: Any) -> Any:
        assert held
        assert not any(rollout.here for rollout in held)
        return learn(*given)

    monkeypatch.setattr(tuning, "minibatches", minibatches)
    monkeypatch.setattr(tuning, "_learn", learned)
    lm = toy.lm()
    assert len(tune(lm, toy.Likes(lm, "aeiou"), PROMPTS, replace(QUICK, steps=2)).history) == 2
