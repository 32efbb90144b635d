"""Both losses learn a ranking from ragged comparisons, and a run that was broken off goes on bit for bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from starling_nb.blocks import Top
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.reward import RewardError, scoring, training
from starling_nb.reward.metrics import pairs
from starling_nb.reward.model import READOUTS
from starling_nb.reward.scoring import Prepared, Scorer
from starling_nb.reward.training import Recipe

QUICK = Recipe(epochs=6, batch=2, lr=3e-3, head_lr=1e-2, trainable="last:2", warmup=0.0)
LOSSES = pytest.mark.parametrize("loss", ["k_wise", "pairwise"])


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


def prepared(lm: LM, trainable: str = "last:2") -> list[Prepared]:
    return scoring.prepare(lm, toy.comparisons(), trainable)


@LOSSES
def test_a_ragged_batch_is_learned_by_heart(loss: str) -> None:
    lm, comparisons = toy.lm(), toy.comparisons()
    recipe = replace(QUICK, loss=loss, epochs=25, batch=4)  # type: ignore[arg-type]
    ready = prepared(lm)
    scorer, history, resumed = training.train(lm, ready, recipe)
    losses = [record["loss"] for record in history]
    k = [len(c.answers) for c in comparisons]
    chance = [math.lgamma(n + 1) / (n - 1) if loss == "k_wise" else math.log(2) for n in k]
    assert losses[0] == pytest.approx(sum(chance) / len(k), rel=1e-4)  # a zero head knows nothing
    assert losses[-1] < 0.2 * losses[0]
    assert resumed == 0
    scores = scoring.predict(scorer, ready, torch.float32)
    assert [len(row) for row in scores] == k
    assert pairs(comparisons, scores).right.mean() == 1.0


@LOSSES
def test_stopping_and_going_on_is_not_stopping_at_all(loss: str, tmp_path: Path) -> None:
    recipe = replace(QUICK, loss=loss, epochs=12, trainable="last:1")  # type: ignore[arg-type]
    whole, history, _ = training.train(lm := toy.lm(), ready := prepared(lm, "last:1"), recipe)
    assert len(history) == 24

    def stop(step: int, steps: int, metrics: dict[str, float]) -> None:
        assert steps == 24
        assert metrics["loss"] == history[step - 1]["loss"]
        if step == 13:
            raise Stop

    path = tmp_path / "scorer.pt"
    with pytest.raises(Stop):
        training.train(lm, ready, recipe, checkpoint=path, report=stop)
    again, rest, resumed = training.train(lm, ready, recipe, checkpoint=path)
    assert resumed == 10
    assert rest == history
    assert toy.changed(toy.weights(whole), again) == set()


def test_the_language_model_is_left_alone() -> None:
    lm = toy.lm()
    before = toy.weights(lm.model)
    training.train(lm, prepared(lm), QUICK)
    assert toy.changed(before, lm.model) == set()


@pytest.mark.parametrize("readout", READOUTS)
def test_the_assembled_model_scores_as_the_scorer_did(readout: str) -> None:
    lm, comparisons = toy.lm(), toy.comparisons()
    ready = prepared(lm)
    scorer, _, _ = training.train(lm, ready, replace(QUICK, readout=readout))
    whole = scoring.assemble(lm, scorer)
    for comparison, scores in zip(comparisons, scoring.predict(scorer, ready, torch.float32), strict=True):
        alone = whole.score([[*comparison.messages, {"role": "assistant", "content": a}] for a in comparison.answers])
        assert alone == pytest.approx(scores, abs=1e-4)
        assert max(scores) - min(scores) > 0.1


def test_a_loss_in_bfloat16_falls_as_well() -> None:
    lm = toy.lm(dtype=torch.bfloat16)
    ready = prepared(lm)
    assert ready[0].states.dtype == torch.bfloat16
    scorer, history, _ = training.train(lm, ready, replace(QUICK, epochs=15, batch=4))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in scorer.parameters())


def test_scores_in_bfloat16_are_not_rounded_to_it() -> None:
    lm = toy.lm(dtype=torch.bfloat16)
    ready = prepared(lm)
    scorer, _, _ = training.train(lm, ready, QUICK)
    with torch.no_grad():
        scorer.v_head.weight.mul_(100)
    scores = torch.tensor([score for one in scoring.predict(scorer, ready, torch.bfloat16) for score in one])
    assert not torch.equal(scores, scores.bfloat16().float())


def test_a_backbone_that_no_reward_model_is_read_from_is_refused() -> None:
    lm = toy.lm()
    lm.model.config.model_type = "gemma"
    for begin in (lambda: scoring.fresh(lm, "last:2", "both"), lambda: scoring.prepare(lm, [], "last:2")):
        with pytest.raises(RewardError, match="gemma cannot be read, only llama"):
            begin()


def test_the_schedule_warms_up_and_decays_to_a_tenth() -> None:
    _, history, _ = training.train(lm := toy.lm(), prepared(lm), replace(QUICK, epochs=10, warmup=0.25, lr=1.0e-3))
    rates = [record["lr"] for record in history]
    assert rates[:6] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4, rel=0.7)


def test_each_epoch_sees_every_comparison_once_in_an_order_of_its_own() -> None:
    order = training._order(7, replace(QUICK, epochs=2, batch=3))
    assert [len(batch) for batch in order] == [3, 3, 1] * 2
    first, second = ([i for batch in part for i in batch] for part in (order[:3], order[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_guards_stop_a_run_that_cannot_learn() -> None:
    lm = toy.lm()
    ready = prepared(lm)
    with pytest.raises(StarlingError, match="nothing to train on"):
        training.train(lm, [], QUICK)
    with pytest.raises(StarlingError, match="all the same after the first epoch"):
        training.train(lm, ready, replace(QUICK, lr=0.0, head_lr=0.0))
    ready[1].states[:] = torch.nan
    with pytest.raises(StarlingError, match="not a number at step 0"):
        training.train(lm, ready, replace(QUICK, batch=4))


def test_scores_depend_on_the_place_that_is_read() -> None:
    """With a head of one direction the score is that coordinate of the state at the answer's end-of-turn token."""
    lm = toy.lm()
    item = prepared(lm, "last:1")[0]
    scorer = Scorer(Top(lm.model.model, 2))
    layout = item.packed.layout
    with torch.no_grad():
        scorer.v_head.weight[0, 5] = 1.0
        states = scorer.top(item.states[None], item.packed.positions[None], layout)[0]
    (scores,) = scoring.score_row(scorer, [item])
    assert scores.tolist() == pytest.approx(states[layout.ends, 5].tolist())


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_packed_and_separate_sequences_give_the_same_scores_and_gradients(family: str) -> None:
    """Ragged K, a long prompt, several comparisons in a row, every weight of the model."""
    lm = toy.lm(family)
    every = toy.comparisons((4, 2, 5))
    every[1] = replace(every[1], messages=toy.user("how is it that " * 12))
    items = scoring.prepare(lm, every, "full")
    scorer = scoring.fresh(lm, "full", "last_token")
    with torch.no_grad():
        scorer.v_head.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(5)))
    decoder: Any = copy.deepcopy(lm.model.model).requires_grad_(True)
    head = scorer.v_head.weight.detach().clone().requires_grad_()
    separate = []
    for one in every:
        ids = [lm.chat.encode(one.messages, answer).ids for answer in one.answers]
        states = [decoder(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
        separate.append(torch.stack(states) @ head[0])
    packed = scoring.score_row(scorer, items)
    for ours, theirs in zip(packed, separate, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for scores in (packed, separate):
        training.ranking_loss(scores, [item.ranks for item in items], Recipe()).backward()
    mine = dict(scorer.top.named_parameters())
    for name, theirs in decoder.named_parameters():
        grad = mine[name].grad
        assert grad is not None
        torch.testing.assert_close(grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scorer.v_head.weight.grad, head.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row_tokens", [1, 150, 10**6])
def test_rows_change_nothing_but_memory(row_tokens: int) -> None:
    lm = toy.lm()
    ready = prepared(lm)
    whole, history, _ = training.train(lm, ready, replace(QUICK, batch=4))
    cut, again, _ = training.train(lm, ready, replace(QUICK, batch=4, row_tokens=row_tokens, checkpointing=True))
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in history], abs=1e-4)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("trainable", ["head", "blocks:1-1", "lora:2", "full"])
def test_every_way_of_training_learns_and_can_be_broken_off(trainable: str, tmp_path: Path) -> None:
    lm = toy.lm()
    ready = scoring.prepare(lm, toy.comparisons(), trainable)
    recipe = replace(QUICK, trainable=trainable, epochs=15, save_every=7, head_lr=5e-2 if trainable == "head" else 1e-2)
    whole, history, _ = training.train(lm, ready, recipe)
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]

    def stop(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 17:
            raise Stop

    with pytest.raises(Stop):
        training.train(lm, ready, recipe, checkpoint=tmp_path / "s.pt", report=stop)
    again, rest, resumed = training.train(lm, ready, recipe, checkpoint=tmp_path / "s.pt")
    assert resumed == 14
    assert rest == history
    assert toy.changed(toy.weights(whole), again) == set()
    scores = scoring.predict(again, ready, torch.float32)
    reward = scoring.assemble(lm, again)
    for comparison, ours in zip(toy.comparisons(), scores, strict=True):
        texts = [[*comparison.messages, {"role": "assistant", "content": a}] for a in comparison.answers]
        assert reward.score(texts) == pytest.approx(ours, abs=1e-4)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    lm = toy.lm()
    ready = prepared(lm)
    recipe = replace(QUICK, save_every=2)
    training.train(lm, ready, recipe, checkpoint=tmp_path / "s.pt")
    for other, data in ((replace(recipe, lr=1e-3), ready), (recipe, ready[:3])):
        with pytest.raises(StarlingError, match="belongs to another run"):
            training.train(lm, data, other, checkpoint=tmp_path / "s.pt")
    backbone = toy.lm(seed=5)
    with pytest.raises(StarlingError, match="belongs to another run"):
        training.train(backbone, prepared(backbone), recipe, checkpoint=tmp_path / "s.pt")
