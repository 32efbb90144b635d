"""The watched run stops every few steps, goes on from there, and makes nothing twice."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import toy
from benchmarks import overoptimization, records
from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.overoptimization import goodhart
from starling_nb.policy.recipe import Recipe, TuningError


class Panel:
    """Counts what it measures."""

    proxy = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def measured(self, lm: Any, start: Any, held_out: Any, samples: int, name: str) -> pd.DataFrame:
        self.asked.append(name)
        return pd.DataFrame({"prompt_id": ["a"], "kl": [1.0], "name": [name]})


def measured(samples: int, policy: str, shift: float) -> pd.DataFrame:
    """Answers to forty prompts, on which all measures agree but for noise."""
    draw = files.rng(0, policy)
    proxy = draw.normal(shift, 1, 40 * samples)
    found = pd.DataFrame({"prompt_id": np.repeat([f"p{i:02d}" for i in range(40)], samples), "proxy": proxy})
    gold = {name: 0.5 * proxy + draw.normal(size=len(proxy)) for name in goodhart.GOLD}
    return found.assign(**gold, sample=np.tile(range(samples), 40), kl=shift**2, words=9, text="an answer")


def test_a_record_gives_the_curves_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    asked = argparse.Namespace(name="long", judge="simulated", labels="full", method="apa")
    start, after = measured(8, "start", 0), {f"step {n}": measured(2, f"step {n}", n) for n in (1, 2)}
    overoptimization.keep(asked, Recipe(), start, after, "a guard's reason")
    about = files.read_json(tmp_path / "long" / "run.json")
    assert about["stopped"] == "a guard's reason"
    assert about["asked"]["labels"] == "full"
    assert {row["measure"] for row in about["verdicts"]} == set(goodhart.MEASURES)
    kept = goodhart.watch(*goodhart.recorded(tmp_path / "long" / "answers.parquet"), "apa")
    made = goodhart.watch(start, after, "apa")
    pd.testing.assert_frame_equal(kept.points, made.points, rtol=1e-5)
    assert made.gain("apa", "proxy").value == made.points[made.points.point == "step 2"].gain.iloc[0]
    assert set(zip(made.rows.kind, made.rows.way, strict=True)) == {
        (kind, way) for kind in ("gain_at_the_end", "fall") for way in ("best of n", "apa")
    }
    assert ("apa", "rubric") in made.said
    pd.DataFrame({"prompt_id": ["p"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(EvaluationError, match="the recorded answers"):
        goodhart.recorded(tmp_path / "other.parquet")


def test_a_guard_ends_the_curve_once_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(lm: Any, proxy: Any, prompts: Any, recipe: Recipe, **_: Any) -> None:
        if recipe.steps > last:
            raise TuningError("the answers no longer end")

    monkeypatch.setattr(overoptimization.arms, "reward_model", lambda *_: (None, {}))
    monkeypatch.setattr(overoptimization.tuning, "tune", tune)
    ground: Any = SimpleNamespace(lm=toy.lm(), prompts=lambda split: [])
    asked = argparse.Namespace(labels="full", seed=0, prompts=2, every=2, out=tmp_path, policy_samples=1, method="apa")
    panel: Any = Panel()
    last = 3
    with pytest.raises(TuningError, match="no longer end"):
        overoptimization.watched(ground, Recipe(steps=9), asked, panel)
    last = 5
    found, stopped = overoptimization.watched(ground, Recipe(steps=9), asked, panel)
    assert (list(found), stopped) == (["step 2", "step 4"], "the answers no longer end")


def test_a_watched_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    monkeypatch.setattr(overoptimization.arms, "reward_model", lambda *_: (None, {}))
    monkeypatch.setattr(overoptimization.tuning, "tune", lambda *args, **_: trained.append(args[3].steps))
    ground: Any = SimpleNamespace(lm=toy.lm(), prompts=lambda split: [])
    asked = argparse.Namespace(labels="full", seed=0, prompts=2, every=2, out=tmp_path, policy_samples=1, method="apa")
    panel: Any = Panel()
    first, _ = overoptimization.watched(ground, Recipe(steps=5), asked, panel)
    assert list(first) == ["step 2", "step 4"]
    assert (trained, panel.asked) == ([2, 4], ["step 2", "step 4"])
    longer, stopped = overoptimization.watched(ground, Recipe(steps=6), asked, panel)
    assert (trained, panel.asked) == ([2, 4, 6], ["step 2", "step 4", "step 6"])
    assert longer["step 4"].name.to_list() == ["step 4"]
    assert stopped is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:04}.parquet" for n in (2, 4, 6)]
