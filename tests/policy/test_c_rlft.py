"""C-RLFT on data: the loss is the plain formula's, the best class gains, and the tuned model is a start model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from starling_nb.chat import ChatFormat
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy import offline, tuning
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.offline import c_rlft
from starling_nb.policy.offline.c_rlft import Demonstration, Recipe, classes, demonstrations, tune
from starling_nb.policy.rollouts import RewardOnTrunk, collect
from starling_nb.reward import RewardModel
from starling_nb.reward.scoring import fresh, prepare

QUICK = Recipe(batch=8, epochs=10, lr=1e-2, trainable="last:2")
PLAIN = replace(QUICK, others=0.0, conditioned=False)


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


def ready(lm: LM, recipe: Recipe = QUICK) -> list[Demonstration]:
    return demonstrations(lm, toy.comparisons(), recipe)


def logprobs(lm: LM, ids: Tensor, prompt: int) -> Tensor:
    """Log-probabilities of the answer's tokens, by a plain forward pass of the whole model."""
    logits = lm.model(input_ids=ids[None]).logits[0, prompt - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[prompt:, None])[:, 0]


@torch.no_grad()
def lead(lm: LM) -> float:
    """Mean log-probability of a token (nats) of the best answers less that of the others, as ``lm`` asks for them."""
    means: dict[bool, list[float]] = {True: [], False: []}
    for one in toy.comparisons():
        for answer, rank in zip(one.answers, one.ranks, strict=True):
            found = lm.chat.encode(one.messages, answer)
            means[rank == 1].append(float(logprobs(lm, torch.tensor(found.ids), found.prompt_length).mean()))
    return sum(means[True]) / len(means[True]) - sum(means[False]) / len(means[False])


def test_answers_stand_under_their_class_with_the_weight_of_the_paper() -> None:
    lm = toy.lm()
    one, two, *_ = toy.comparisons()
    tied = replace(one, ranks=[1.0, 3.0, 1.0, 4.0])
    found = demonstrations(lm, [tied, replace(two, ranks=[2.0] * 4)], QUICK)
    good, worse = (lm.chat.conditioned(name) for name in classes(lm.chat))
    due = {tuple(good.encode(one.messages, one.answers[i]).ids): (True, 1.0) for i in (0, 2)}
    due |= {tuple(worse.encode(one.messages, one.answers[i]).ids): (False, 0.1) for i in (1, 3)}
    assert {tuple(d.ids.tolist()): (d.best, d.weight) for d in found} == due
    assert len(found) == 4
    alone = demonstrations(lm, [tied], Recipe.best_answers(trainable="last:2"))
    assert [tuple(d.ids.tolist()) for d in alone] == [
        tuple(lm.chat.encode(one.messages, one.answers[i]).ids) for i in (0, 2)
    ]
    with pytest.raises(StarlingError, match="differently ranked"):
        demonstrations(lm, [replace(one, ranks=[1.0] * 4)], QUICK)


def test_the_classes_of_openchat_are_its_own() -> None:
    words = toy.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|end_of_turn|>"]})
    form = ChatFormat(words, "openchat")
    assert classes(form) == ("GPT4 Correct", "GPT3")
    good, worse = (form.conditioned(name) for name in classes(form))
    assert good.writes_like(form)
    asked = toy.user("why?")
    for chat, name in ((good, "GPT4 Correct"), (worse, "GPT3")):
        text = f"{name} User: why?<|end_of_turn|>{name} Assistant:"
        assert chat.prompt_ids(asked) == words(text)["input_ids"]


def test_a_prompt_that_would_lose_its_class_is_left_out() -> None:
    lm = toy.lm()
    short, long = toy.comparisons((3, 3))
    long = replace(long, messages=toy.user("so " * 800))
    both = [short, replace(long, prompt_id="long")]
    assert {len(d.item.ranks) for d in demonstrations(lm, both, QUICK)} == {1, 2}
    assert len(demonstrations(lm, both, QUICK)) == 3
    assert len(demonstrations(lm, both, replace(PLAIN, others=1.0))) == 6  # without a class nothing is lost


@pytest.mark.parametrize("recipe", [QUICK, PLAIN], ids=["classes", "best answers"])
def test_loss_and_gradient_are_those_of_the_plain_formula(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy.lm()
    found = ready(lm, recipe)
    chosen = [found[place] for place in c_rlft._places(len(found), recipe, 0)]
    for name, weight in lm.model.named_parameters():
        weight.requires_grad_(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.")))
    total, tokens = torch.tensor(0.0), 0
    for one in chosen:
        prompt = int((one.item.packed.segments == 0).sum())
        total = total - one.weight * logprobs(lm, one.ids, prompt).sum()
        tokens += len(one.ids) - prompt
    (total / tokens).backward()
    due = {name: weight.grad for name, weight in lm.model.named_parameters() if weight.grad is not None}
    lm.model.requires_grad_(False)
    seen: dict[str, Tensor] = {}

    class Watched(torch.optim.AdamW):
        def step(self, *args: Any, **more: Any) -> Any:
            own = [weight.grad for group in self.param_groups for weight in group["params"]]
            seen.setdefault("norm", torch.stack([grad.norm() for grad in own]).norm())
            seen.setdefault("first", own[0].clone())
            return super().step(*args, **more)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    history = tune(lm, found, replace(recipe, epochs=1)).history
    assert history[0]["loss"] == pytest.approx(float(total.detach()) / tokens, abs=1e-5)
    whole = torch.stack([grad.norm() for grad in due.values()]).norm()
    assert float(whole) > 1  # so that the gradient is clipped to 1 before the step
    assert float(seen["norm"]) == pytest.approx(1.0, abs=1e-4)
    first = due["model.layers.1.self_attn.q_proj.weight"] / whole
    torch.testing.assert_close(seen["first"], first, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_class_is_learned_and_told_from_the_other(dtype: torch.dtype) -> None:
    lm = toy.lm(dtype=dtype)
    start, before = lead(lm), toy.weights(lm.model)
    tuned = tune(lm, ready(lm), QUICK)
    assert len(tuned.history) == 20  # 16 answers, 10 epochs
    assert tuned.history[-1]["best"] > tuned.history[0]["best"] + 1
    assert lead(tuned.lm) > start + 1
    changed = toy.changed(before, lm.model)
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.")) for name in changed)
    other = LM(lm.model, lm.chat.conditioned(classes(lm.chat)[1]), lm.name)
    assert lead(tuned.lm) > lead(other) + 0.5
    texts = [r.text for r in collect(tuned.lm, toy.prompts(toy.QUESTIONS), list("abcdef"), seed=0, max_new_tokens=8)]
    assert sum(text.count("e") for text in texts) > 0.2 * sum(map(len, texts))  # one letter of 79


def test_without_a_class_only_the_best_answers_are_learned() -> None:
    lm = toy.lm()
    start = lead(lm)
    tuned = tune(lm, ready(lm, PLAIN), replace(PLAIN, epochs=40))
    assert lead(tuned.lm) > start + 1
    assert all("others" not in record for record in tuned.history)
    assert tuned.lm.chat is lm.chat


def test_stopping_and_going_on_is_not_stopping_at_all(tmp_path: Path) -> None:
    whole = toy.lm()
    due = tune(whole, ready(whole), QUICK)

    def stop(step: int, steps: int, record: dict[str, float]) -> None:
        assert (record, steps) == (due.history[step - 1], 20)
        if step == 15:
            raise Stop

    path, lm = tmp_path / "c_rlft.pt", toy.lm()
    with pytest.raises(Stop):
        tune(lm, ready(lm), QUICK, checkpoint=path, report=stop)
    steps: list[int] = []
    found = tune(lm, ready(lm), QUICK, checkpoint=path, report=lambda step, *_: steps.append(step))
    assert steps == [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert found.history == due.history
    assert found.lm.name == due.lm.name
    assert toy.changed(toy.weights(whole.model), lm.model) == set()
    longer = tune(toy.lm(), ready(toy.lm()), replace(QUICK, epochs=11), checkpoint=path)
    assert longer.history[:20] == due.history
    assert longer.lm.name != due.lm.name
    with pytest.raises(StarlingError, match="is at step 22 of 20: delete it"):
        tune(toy.lm(), ready(toy.lm()), QUICK, checkpoint=path)
    for recipe in (PLAIN, replace(QUICK, others=0.2), replace(QUICK, lr=2e-2)):
        with pytest.raises(StarlingError, match="belongs to another run"):
            tune(toy.lm(), ready(toy.lm(), recipe), recipe, checkpoint=path)


def test_a_loss_that_is_not_a_number_and_recipes_that_make_no_run_are_refused() -> None:
    lm = toy.lm()
    found = ready(lm)
    for one in found:
        one.item.states[:] = torch.nan
    with pytest.raises(StarlingError, match="C-RLFT loss is not a number at step 0"):
        tune(lm, found, QUICK)
    for changes in ({"batch": 0}, {"epochs": 0}, {"others": -0.1}):
        with pytest.raises(StarlingError, match="at least"):
            replace(QUICK, **changes)


@pytest.mark.parametrize("recipe", [QUICK, PLAIN], ids=["classes", "best answers"])
def test_the_tuned_model_is_a_start_model(recipe: Recipe) -> None:
    lm = toy.lm()
    start = tune(lm, ready(lm, recipe), replace(recipe, epochs=2)).lm
    assert start.name != lm.name
    online = tuning.Recipe(steps=2, rollouts=8, minibatch=4, max_new_tokens=8, trainable="last:2", critic_warmup=0)
    asked = toy.prompts(toy.QUESTIONS)
    found = tuning.tune(start, toy.Likes(start), asked, online)
    assert found.history[0]["kl"] == 0.0
    assert max(record["sampler_gap"] for record in found.history) < 1e-5
    prepared = prepare(start, offline.pairs(toy.comparisons(), 16, seed=0), "last:2")
    _, history = offline.tune(start, prepared, offline.Recipe(trainable="last:2"))
    assert history[0]["margin"] == pytest.approx(0.0, abs=1e-4)


def test_a_reward_model_reads_no_class() -> None:
    lm = toy.lm()
    start = LM(lm.model, lm.chat.conditioned("Do well."), "conditioned")
    reward = RewardModel(lm.model.model, lm.chat, torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
    scorer = RewardOnTrunk(reward, start, 2)
    assert (scorer.beside, scorer.shared) == (None, 0)
    rollouts = collect(start, toy.prompts(toy.QUESTIONS), list("abcdef"), seed=0, max_new_tokens=8)
    scorer(rollouts)
    texts = [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in rollouts]
    assert [r.score for r in rollouts] == pytest.approx(reward.score(texts), abs=1e-5)
    with pytest.raises(StarlingError, match="without a class"):
        fresh(start, "last:1", "last_token")
    assert Hydra(start, "last:2").start == 1
