"""Both losses learn a ranking from ragged comparisons, and a run that was broken off goes on bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toy
from starling_nb.blocks import Top
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.reward import training
from starling_nb.reward.metrics import pairs
from starling_nb.reward.model import READOUTS
from starling_nb.reward.training import Prepared, Recipe, Scorer

QUICK = Recipe(epochs=6, batch=2, lr=3e-3, head_lr=1e-2, trainable="last:2", warmup=0.0)
LOSSES = pytest.mark.parametrize("loss", ["k_wise", "pairwise"])


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


def prepared(lm: LM, trainable: str = "last:2") -> list[Prepared]:
    return training.prepare(lm, toy.comparisons(), trainable)


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
    scores = training.predict(scorer, ready, torch.float32)
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
    whole = training.assemble(lm, scorer)
    for comparison, scores in zip(comparisons, training.predict(scorer, ready, torch.float32), strict=True):
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
    with torch.no_grad():
        scorer.v_head.weight[0, 5] = 1.0
        states = scorer.top(item.states[None], item.packed.positions[None], item.packed.mask())[0]
    assert training.score_one(scorer, item).tolist() == pytest.approx(states[item.packed.ends, 5].tolist())
