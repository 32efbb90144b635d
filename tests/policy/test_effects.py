"""What a study shows: planted effects come back, noise is not taken for an effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from starling_nb.errors import StarlingError
from starling_nb.policy.study import effects

PROMPTS = [f"p{i}" for i in range(60)]


def study(
    worth: dict[tuple[str, str], float], seeds: int = 3, noise: float = 0.3, spread: float = 0.0, draw: int = 0
) -> pd.DataFrame:
    """A table in which every arm (method, labels) is worth so much more than the start; ``spread`` is that of seeds."""
    random = np.random.default_rng(draw)
    level = dict(zip(PROMPTS, random.normal(5, 2, len(PROMPTS)), strict=True))
    rows = []
    for (method, labels), gain in {("start", "full"): 0.0, **worth}.items():
        for seed in range(seeds):
            shift = gain + random.normal(0, spread) * (method != "start")
            values = [level[p] + shift + random.normal(0, noise) for p in PROMPTS]
            told = {
                "method": method,
                "labels": labels,
                "start": "chat",
                "changes": "lr=1e-4",
                "split": "test",
                "seed": seed,
            }
            rows += [
                {**told, "prompt_id": p, "utility": v, "reward": 2 * v, "kl": 0.0 if method == "start" else 3.0}
                for p, v in zip(PROMPTS, values, strict=True)
            ]
    return pd.DataFrame(rows)


def test_a_planted_gain_comes_back_with_its_seeds_and_divergence() -> None:
    table = effects.gains(study({("apa", "full"): 0.5, ("dpo", "full"): 0.0})).set_index("method")
    assert table.low["apa"] < 0.5 < table.high["apa"]
    assert table.low["apa"] > 0.3
    assert table.low["dpo"] < 0 < table.high["dpo"]
    assert table.seeds.to_list() == [3, 3]
    assert table.kl.to_list() == [3.0, 3.0]


def test_seeds_that_differ_widen_the_interval_to_what_three_of_them_can_tell() -> None:
    calm, wild = (effects.gains(study({("apa", "full"): 0.5}, spread=spread)).iloc[0] for spread in (0.0, 0.5))
    assert wild.high - wild.low > 4 * (calm.high - calm.low)


def test_methods_are_equivalent_only_within_the_margin() -> None:
    table = study({("apa", "full"): 0.50, ("ppo", "full"): 0.52, ("p3o", "full"): 0.9})
    found = effects.differences(table, margin=0.25).set_index(["one", "other"])
    assert found.equivalent.to_dict() == {("apa", "ppo"): True, ("apa", "p3o"): False, ("ppo", "p3o"): False}
    assert not effects.differences(table, margin=0.01).equivalent.any()
    gap, last = effects.largest_gap(table.replace("start", "dpo")), found.loc[("apa", "p3o")]
    assert gap.value == pytest.approx(max(abs(found.value)))
    assert gap.low < min(abs(last[["low", "high"]])) < gap.value
    with pytest.raises(StarlingError, match="two online methods"):
        effects.largest_gap(table[table.method == "apa"])


def test_at_equal_divergence_a_method_is_read_between_its_trials() -> None:
    """Gains 1 at √KL 1 and 3 at √KL 2; the other method stops at √KL 1.5 with 5: the first is worth 2 there."""
    start = study({}, seeds=1, noise=0.0)
    arms = [("apa", "lr=1", 1.0, 1.0), ("apa", "lr=2", 4.0, 3.0), ("ppo", "lr=1", 2.25, 5.0)]
    tried = [
        start.assign(method=name, changes=change, kl=kl, utility=start.utility + gain, reward=start.reward - gain)
        for name, change, kl, gain in arms
    ]
    best = start.assign(method="best of 3", kl=0.4, utility=start.utility + 9)
    level, table = effects.at_equal_kl(pd.concat([start, *tried, best]))
    assert level == 2.25
    found = table.set_index(["method", "metric"]).value.to_dict()
    assert found == pytest.approx(
        {("apa", "utility"): 2.0, ("apa", "reward"): -2.0, ("ppo", "utility"): 5.0, ("ppo", "reward"): -5.0}
    )


def test_variance_goes_to_what_was_planted() -> None:
    worth = {(m, x): 1.0 * (x == "full") + 0.1 * (m == "apa") for m in ("apa", "ppo", "p3o") for x in ("full", "naive")}
    shares = effects.variance_shares(study(worth)).set_index("part")
    assert shares.value["labels"] > 0.9
    assert shares.value["labels"] > shares.value["method"] > shares.value["labels × method"]
    assert (shares.low <= shares.value + 0.02).all()
    nothing = effects.variance_shares(study(dict.fromkeys(worth, 0.2), noise=1.0)).set_index("part")
    assert abs(nothing.value["labels"]) < 0.3


def test_the_best_trial_of_each_method_is_chosen() -> None:
    one = study({("apa", "full"): 0.1, ("ppo", "full"): 0.4}, seeds=1)
    other = study({("apa", "full"): 0.6, ("ppo", "full"): 0.0}, seeds=1).assign(changes="lr=2e-4")
    assert effects.best_rate(pd.concat([one, other])) == {"apa": "lr=2e-4", "ppo": "lr=1e-4"}


def test_a_table_that_is_not_whole_is_refused() -> None:
    table = study({("apa", "full"): 0.5})
    with pytest.raises(StarlingError, match="one row a prompt"):
        effects.gains(pd.concat([table, table]))
    with pytest.raises(StarlingError, match="other prompts"):
        effects.gains(table.drop(table.index[-1]))
    with pytest.raises(StarlingError, match="every method with every kind"):
        effects.variance_shares(study({("apa", "full"): 1.0, ("apa", "naive"): 0.0, ("ppo", "full"): 1.0}))


def test_a_kept_table_is_read_and_its_chapters_told_apart(tmp_path: Path) -> None:
    table = study({("apa", "full"): 0.5, ("apa", "noise"): 0.1, ("dpo", "full"): 0.0}, seeds=1)
    trial = table.assign(split="validation", changes="lr=1e-4 steps=6")
    switch = table[table.method == "apa"].assign(changes="lr=1e-4 kl=0")
    imitation = table.assign(start="imitation")
    path = tmp_path / "policy.parquet"
    pd.concat([table, trial, switch, imitation], ignore_index=True).to_parquet(path)
    found = effects.read(path)
    methods = effects.of_methods(found)
    assert set(methods.method) == {"start", "apa", "dpo"}
    assert len(methods) == 3 * len(PROMPTS)
    assert effects.trials(found).changes.unique().tolist() == ["lr=1e-4 steps=6"]
    table.drop(columns=["kl", "labels"]).to_parquet(path)
    with pytest.raises(StarlingError, match="lacks labels, kl"):
        effects.read(path)


def test_gains_by_several_metrics_are_told_for_online_methods() -> None:
    table = study({("apa", "full"): 0.5, ("dpo", "full"): 0.1})
    found = effects.gains_of(table, {"utility": "rubric", "reward": "reward"})
    assert found.groupby("method").metric.apply(list).to_dict() == {
        "apa": ["rubric", "reward"],
        "dpo": ["rubric", "reward"],
    }
    assert list(effects.online(found, "reward")) == ["apa"]
    gain = effects.online(found, "reward")["apa"]
    assert gain.value == pytest.approx(2 * effects.online(found, "rubric")["apa"].value)
    assert gain.low < 1.0 < gain.high
    assert gain.n == len(PROMPTS)


def test_every_methods_frontier_begins_at_the_start_model() -> None:
    one, other = (study({("apa", "full"): gain}, seeds=1).assign(changes=f"lr={gain}") for gain in (0.5, 1.0))
    table = pd.concat([one, other[other.method == "apa"].assign(kl=6.0)])
    found = effects.frontier(table, "utility")
    assert found.method.to_list() == ["apa"] * 3
    assert found.kl.to_list() == [0.0, 3.0, 6.0]
    assert found.value[0] == found.low[0] == found.high[0] == 0.0
    assert found.value[1:].to_list() == pytest.approx([0.5, 1.0], abs=0.2)
    assert (found.low[1:] > 0).all()
