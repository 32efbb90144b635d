"""Arms of a study: labels as they are named, each arm kept, measured beside a start that has not moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import toy
from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.nectar import dataset
from starling_nb.policy.offline import c_rlft
from starling_nb.policy.recipe import PUBLISHED, Recipe, TuningError
from starling_nb.policy.study import arms
from starling_nb.policy.study.arms import Arm, Ground
from starling_nb.reward import training
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.scoring import Prepared

RECIPE = Recipe(
    steps=1,
    rollouts=4,
    answers=2,
    minibatch=2,
    epochs=1,
    max_new_tokens=6,
    trainable="last:1",
    lr=1e-2,
    critic_warmup=0,
)


def rows(folder: Path) -> Path:
    """Forty rows with short prompts, cut short: a toy has a token a letter."""
    every = sorted(dataset.load(files.DATA / "nectar_mini.parquet"), key=lambda row: len(row["prompt"]))[:40]
    for row in every:
        for place, answer in enumerate(row["answers"]):
            answer["answer"] = f"{place} {answer['answer'][:10]}"
    path = folder / "rows.jsonl"
    files.write_jsonl(path, every)
    return path


def ground(folder: Path) -> Ground:
    return Ground(
        lm=toy.lm(),
        rows={"final": rows(folder)},
        folder=folder,
        recipe=RECIPE,
        reward=training.Recipe(epochs=1, batch=8, trainable="last:1", readout="mean"),
        imitation=c_rlft.Recipe.best_answers(epochs=1, lr=1e-2, trainable="last:1"),
        depth=2,
        samples=2,
        limit=3,
    )


def test_labels_are_what_their_names_say(tmp_path: Path) -> None:
    here = ground(tmp_path)
    full, quarter, noise = (arms.labelled(here, name, 0) for name in ("full", "quarter", "noise"))
    assert len(quarter) == len(full) // 4
    assert {c.prompt_id for c in quarter} < {c.prompt_id for c in full}
    moved = [one.ranks != other.ranks for one, other in zip(full, noise, strict=True)]
    assert 0 < sum(moved) <= round(0.3 * len(full))
    assert all(sorted(a.ranks) == sorted(b.ranks) and a.answers == b.answers for a, b in zip(full, noise, strict=True))
    assert arms.labelled(here, "noise", 0) == noise
    assert arms.labelled(here, "noise", 1) != noise
    with pytest.raises(StarlingError, match="naive rows"):
        arms.labelled(here, "naive", 0)
    with pytest.raises(StarlingError, match="choose one of full"):
        arms.labelled(here, "half", 0)


def test_reward_models_of_all_labels_and_seeds_share_one_pass_of_the_trunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, together, prepared = ground(tmp_path / "alone"), ground(tmp_path / "together"), []
    plain = arms.scoring.prepare

    def counted(lm: LM, found: list[Comparison], *other: Any) -> list[Prepared]:
        prepared.append(len(found))
        return plain(lm, found, *other)

    monkeypatch.setattr(arms.scoring, "prepare", counted)
    trunk: dict[str, Prepared] = {}
    for labels, seed in (("noise", 0), ("quarter", 1)):
        before, offsets = arms.reward_model(alone, labels, seed)
        after, same = arms.reward_model(together, labels, seed, trunk)
        assert offsets == pytest.approx(same, abs=1e-5)
        assert torch.allclose(before.v_head.weight, after.v_head.weight, atol=1e-6)
    everything = len(arms.labelled(alone, "full", 0))
    assert prepared == [everything, everything, everything, 0]


def test_a_policy_of_a_record_is_tuned_again_where_its_weights_are_needed(tmp_path: Path) -> None:
    here = ground(tmp_path)
    tuned = arms.run(here, Arm("apa"))
    (tmp_path / "arms" / f"{Arm('apa').name}.safetensors").unlink()
    assert arms.run(here, Arm("expo")).kl.mean() > tuned.kl.mean()
    pd.testing.assert_frame_equal(arms.run(here, Arm("apa")), tuned)


def test_arms_are_measured_alike_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ground(tmp_path)
    asked = [Arm("start"), Arm("apa"), Arm("dpo"), Arm("apa", labels="quarter", changes=("lr=2e-2", "lam=0.5"))]
    found = [arms.run(here, arm) for arm in asked]
    start = found[0]
    assert (start.kl == 0).all()
    for arm, table in zip(asked, found, strict=True):
        assert len(table) == 3 * 2
        assert table.prompt_id.to_list() == start.prompt_id.to_list()
        assert set(table.method) == {arm.method}
        assert set(table.changes) == {" ".join(arm.changes)}
        assert arm.method == "start" or (table.kl > 0).any()
    note = files.read_json(tmp_path / "arms" / f"{asked[3].name}.json")
    assert (note["recipe"]["lam"], note["recipe"]["lr"], len(note["history"])) == (0.5, 2e-2, 1)
    assert not list(tmp_path.glob("arms/*.pt"))
    assert sorted(path.name for path in (tmp_path / "rewards").iterdir()) == ["full-0", "quarter-0"]
    centred = [set(arms.reward_model(here, labels, 0)[1]) for labels in ("full", "quarter")]
    assert centred[0] == centred[1] == {c.prompt_id for c in arms.labelled(here, "full", 0)}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(arms, "_tuned", refuse)
    monkeypatch.setattr(arms.training, "train", refuse)
    pd.testing.assert_frame_equal(arms.run(here, asked[1]), found[1])


def test_extrapolation_goes_on_where_apa_went(tmp_path: Path) -> None:
    here = ground(tmp_path)
    tuned, beyond = (arms.run(here, Arm(method)) for method in ("apa", "expo"))
    assert beyond.kl.mean() > 1.2 * tuned.kl.mean() > 0


def test_an_arm_may_begin_with_an_imitation_of_the_best_answers(tmp_path: Path) -> None:
    here = ground(tmp_path)
    chat, imitation, tuned = (
        arms.run(here, a) for a in (Arm("start"), *(Arm(m, start="imitation") for m in ("start", "dpo")))
    )
    assert (imitation.kl == 0).all()
    assert imitation.reward.to_list() != chat.reward.to_list()
    assert (tuned.kl > 0).any()
    assert [path.name for path in (tmp_path / "starts").iterdir()] == ["imitation-0.safetensors"]
    with pytest.raises(StarlingError, match="choose chat or imitation"):
        arms.run(here, Arm("start", start="afresh"))


def test_an_arm_of_its_own_seed_has_its_own_name_and_numbers(tmp_path: Path) -> None:
    here = ground(tmp_path)
    one, other = (arms.run(here, Arm("start", seed=seed)) for seed in (0, 1))
    assert one.reward.to_list() != other.reward.to_list()
    names = {Arm("apa", s, x, changes=c).name for s in (0, 1) for x in ("full", "noise") for c in ((), ("lr=1e-4",))}
    assert len(names) == 8


def test_an_arm_of_many_changes_has_a_name_that_fits_a_file(tmp_path: Path) -> None:
    every = tuple(f"{name}={value}" for name, value, _ in PUBLISHED)
    one, other = Arm("apa", changes=every).name, Arm("apa", changes=(*every[1:], every[0])).name
    assert one != other
    assert f"{len(every)}-changes" in one
    assert len(one) < 150, "a temporary name beside it is longer, and may have 255 bytes"
    files.write_json(tmp_path / f"{one}.stopped.json", {})


def test_unknown_methods_and_switches_are_refused(tmp_path: Path) -> None:
    here = ground(tmp_path)
    with pytest.raises(StarlingError, match="choose one of start"):
        arms.run(here, Arm("grpo"))
    with pytest.raises(TuningError, match="unknown switch"):
        arms.run(replace(here, recipe=RECIPE), Arm("apa", changes=("speed=1",)))
