"""The watched run stops every few steps, goes on from there, and makes nothing twice."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import toy
from benchmarks import overoptimization
from starling_nb.policy.recipe import Recipe


class Panel:
    """Counts what it measures."""

    proxy = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def measured(self, lm: Any, start: Any, held_out: Any, samples: int, name: str) -> pd.DataFrame:
        self.asked.append(name)
        return pd.DataFrame({"prompt_id": ["a"], "kl": [1.0], "name": [name]})


def test_a_watched_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    monkeypatch.setattr(overoptimization.arms, "reward_model", lambda *_: (None, {}))
    monkeypatch.setattr(overoptimization.tuning, "tune", lambda *args, **_: trained.append(args[3].steps))
    ground: Any = SimpleNamespace(lm=toy.lm(), prompts=lambda split: [])
    asked = argparse.Namespace(labels="full", seed=0, prompts=2, every=2, out=tmp_path, policy_samples=1, method="apa")
    panel: Any = Panel()
    first = overoptimization.watched(ground, Recipe(steps=5), asked, panel)
    assert list(first) == ["step 2", "step 4"]
    assert (trained, panel.asked) == ([2, 4], ["step 2", "step 4"])
    longer = overoptimization.watched(ground, Recipe(steps=6), asked, panel)
    assert (trained, panel.asked) == ([2, 4, 6], ["step 2", "step 4", "step 6"])
    assert longer["step 4"].name.to_list() == ["step 4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:04}.parquet" for n in (2, 4, 6)]
