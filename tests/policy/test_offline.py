"""DPO on the data set's own pairs: margins rise, padding and packing change nothing, resume is exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy import offline
from starling_nb.policy.offline import Recipe
from starling_nb.reward.scoring import Prepared, prepare

QUICK = Recipe(batch=8, lr=1e-2, trainable="last:2")


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


def ready(lm: LM) -> list[Prepared]:
    return prepare(lm, offline.pairs(toy.comparisons(), 96, seed=0), "last:2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_falls_and_the_margins_rise(dtype: torch.dtype) -> None:
    lm = toy.lm(dtype=dtype)
    before = toy.weights(lm.model)
    hydra, history = offline.tune(lm, ready(lm), QUICK)
    assert len(history) == 12
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert history[0]["margin"] == pytest.approx(0.0, abs=1e-2)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["margin"] > 5
    assert history[-1]["accuracy"] == 1.0
    changed = toy.changed(before, lm.model)
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.")) for name in changed)
    assert hydra.start == 1


@pytest.mark.parametrize(
    ("objective", "first", "margin"),
    [("cdpo", math.log(2), math.log(4) / 0.5), ("ipo", 1.0, 1.0)],
)
def test_its_kin_draw_the_margin_to_where_it_belongs(objective: Any, first: float, margin: float) -> None:
    """A share flipped of one fifth is worth log 4 / beta, and IPO's target is 1 / (2 beta)."""
    lm = toy.lm()
    recipe = replace(QUICK, objective=objective, beta=0.5, flipped=0.2, lr=2e-3)
    every = prepare(lm, offline.pairs(toy.comparisons(), 320, seed=0), "last:2")
    _, history = offline.tune(lm, every, recipe)
    assert history[0]["loss"] == pytest.approx(first, abs=1e-3)
    last = [record["margin"] for record in history[-10:]]
    assert sum(last) / len(last) == pytest.approx(margin, rel=0.25)


@torch.no_grad()
def test_pairs_are_drawn_better_first_with_the_states_of_their_own_sequence() -> None:
    lm = toy.lm()
    comparisons = toy.comparisons()
    chosen = offline.pairs(comparisons, 40, seed=0)
    prepared = prepare(lm, chosen, "last:2")
    assert len(prepared) == 40
    worth = {
        (tuple(lm.chat.prompt_ids(c.messages)), answer): rank
        for c in comparisons
        for answer, rank in zip(c.answers, c.ranks, strict=True)
    }
    prompts = {len(p): p for p, _ in worth}
    assert len(prompts) == len(comparisons)
    drawn = [[offline.sequence(lm, item, k) for k in (1, 2)] for item in prepared]
    for pair in drawn:
        ranks = [worth[prompts[length], lm.chat.decode(ids)] for _, length, ids in pair]
        assert ranks[0] < ranks[1]
        assert all(ids[-1] == lm.chat.eos_id for _, _, ids in pair)
        assert [len(states) for states, _, _ in pair] == [length + len(ids) for _, length, ids in pair]
    batch = offline._batch(lm, prepared[:3])
    hydra = offline.Hydra(lm, "last:2")
    sums = offline._sums(hydra(batch)[0], batch)
    for row, pair in zip(sums, drawn[:3], strict=True):
        for found, (_, length, ids) in zip(row, pair, strict=True):
            prompt = prompts[length]
            logits = lm.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            due = torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)].sum()
            assert float(found) == pytest.approx(float(due), abs=1e-3)
    assert offline.pairs(comparisons, 40, seed=0) == chosen
    assert offline.pairs(comparisons, 40, seed=1) != chosen


def test_comparisons_without_a_preference_are_passed_over_and_none_at_all_is_refused() -> None:
    one, two, *_ = toy.comparisons()
    tied = replace(two, ranks=[1.0] * 4)
    single = toy.comparisons((1,))[0]
    drawn = offline.pairs([one, tied, single], 6, seed=0)
    assert {pair.prompt_id for pair in drawn} == {one.prompt_id}
    with pytest.raises(StarlingError, match="two differently ranked"):
        offline.pairs([tied, single], 6, seed=0)


def test_stopping_and_going_on_is_not_stopping_at_all(tmp_path: Path) -> None:
    whole = toy.lm()
    _, history = offline.tune(whole, ready(whole), QUICK)

    def stop(step: int, steps: int, record: dict[str, float]) -> None:
        assert (record, steps) == (history[step - 1], 12)
        if step == 11:
            raise Stop

    path, lm = tmp_path / "dpo.pt", toy.lm()
    before = toy.weights(lm.model)
    with pytest.raises(Stop):
        offline.tune(lm, ready(lm), QUICK, checkpoint=path, report=stop)
    assert toy.changed(before, lm.model) == set()
    steps: list[int] = []
    _, again = offline.tune(lm, ready(lm), QUICK, checkpoint=path, report=lambda step, *_: steps.append(step))
    assert steps == [11, 12]
    assert again == history
    assert toy.changed(toy.weights(whole.model), lm.model) == set()


def test_a_checkpoint_that_was_written_on_a_card_is_read_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lm = tmp_path / "dpo.pt", toy.lm()
    prepared = ready(lm)
    with monkeypatch.context() as card:
        card.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        offline.tune(lm, prepared[:80], QUICK, checkpoint=path)
    _, history = offline.tune(toy.lm(), prepared, QUICK, checkpoint=path)
    assert len(history) == 12


def test_a_checkpoint_serves_a_longer_run_and_no_other(tmp_path: Path) -> None:
    path, lm = tmp_path / "dpo.pt", toy.lm()
    prepared = ready(lm)
    _, history = offline.tune(lm, prepared[:80], QUICK, checkpoint=path)
    fresh = toy.lm()
    _, longer = offline.tune(fresh, prepared, QUICK, checkpoint=path)
    assert longer[:10] == history
    whole = toy.lm()
    offline.tune(whole, prepared, QUICK)
    assert toy.changed(toy.weights(whole.model), fresh.model) == set()
    start = toy.lm()
    for other, data, recipe in (
        (start, prepared[1:], QUICK),
        (start, prepared, replace(QUICK, beta=0.2)),
        (start, prepared[:88], QUICK),  # shorter than what the checkpoint has seen
        (LM(start.model, start.chat, "another start"), prepared, QUICK),
        (toy.lm(seed=7), prepared, QUICK),
    ):
        with pytest.raises(StarlingError, match="belongs to another run"):
            offline.tune(other, data, recipe, checkpoint=path)


def test_every_block_learns_where_the_embeddings_stay() -> None:
    lm = toy.lm()
    before = toy.weights(lm.model)
    recipe = replace(QUICK, trainable="full")
    _, history = offline.tune(lm, prepare(lm, offline.pairs(toy.comparisons(), 96, seed=0), "full"), recipe)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert history[-1]["accuracy"] == 1.0
    assert "model.layers.0.mlp.up_proj.weight" in toy.changed(before, lm.model)
    assert "model.embed_tokens.weight" not in toy.changed(before, lm.model)


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    lm = toy.lm()
    prepared = ready(lm)
    for item in prepared:
        item.states[:] = torch.nan
    with pytest.raises(StarlingError, match="not a number at step 0"):
        offline.tune(lm, prepared, QUICK)
