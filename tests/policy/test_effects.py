"""What a study shows: planted effects come back, noise is not taken for an effect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from starling_nb.errors import StarlingError
from starling_nb.policy.recipe import PARTS
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


def test_a_kept_table_is_read_and_its_chapters_told_apart(tmp_path: Path) -> None:
    table = study({("apa", "full"): 0.5, ("apa", "noise"): 0.1, ("dpo", "full"): 0.0}, seeds=1)
    trial = table.assign(split="validation", changes="lr=1e-4 steps=6")
    switch = table[table.method == "apa"].assign(changes="lr=1e-4 kl=0")
    imitation = table.assign(start="imitation")
    path = tmp_path / "policy.parquet"
    pd.concat([table, trial, switch, imitation], ignore_index=True).to_parquet(path)
    found = effects.read(path)
    methods = effects.chapter(found)
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


def of_every_kind() -> pd.DataFrame:
    """Arms that differ from APA and DPO in one thing each: labels, start, blocks, switches."""
    table = study({("apa", "full"): 0.5, ("dpo", "full"): 0.1, ("best of 3", "full"): 0.3}, noise=0.1)
    apa = table[table.method == "apa"]
    moved = [
        apa.assign(labels="noise", utility=apa.utility - 0.4),
        table.assign(start="imitation", utility=table.utility + 0.2),
        apa.assign(changes="lr=1e-4 trainable=lora:8"),
        apa.assign(changes="lr=1e-4 anchor=rollout lam=1.0 whiten=false", utility=apa.utility - 0.3),
        apa.assign(changes=" ".join(f"{name}=0" for names in PARTS.values() for name in names)),
        apa.assign(method="expo", utility=apa.utility + 0.1),
        apa.assign(method=effects.DEMONSTRATION, utility=9.0, kl=np.nan, changes=""),
    ]
    return pd.concat([table, *moved], ignore_index=True)


def test_each_chapter_holds_the_arms_that_differ_in_its_one_thing() -> None:
    def held(varied: str) -> set[tuple[str, str]]:
        found = effects.chapter(of_every_kind(), varied)
        others = {"method": "split", "beyond": "split", "trainable": "changes", "switches": "changes"}
        column = others.get(varied, varied)
        return set(zip(found.method, found[column].map(effects.further), strict=True))

    assert {method for method, _ in held("method")} == {"start", "apa", "dpo", "best of 3"}
    assert {method for method, _ in held("beyond")} == {"start", "apa", "expo"}
    assert held("labels") == {("start", "full"), ("apa", "full"), ("apa", "noise")}
    assert held("start") == {(m, s) for m in ("start", "apa", "dpo", "best of 3") for s in ("chat", "imitation")}
    assert held("trainable") == {("start", ""), ("apa", ""), ("apa", "trainable=lora:8")}
    assert len(held("switches")) == 4
    with pytest.raises(StarlingError, match="choose one of method, labels"):
        effects.chapter(of_every_kind(), "label")


def test_gains_are_told_over_the_model_that_an_arm_began_with() -> None:
    starts = effects.chapter(of_every_kind(), "start")
    over_chat = effects.gains(starts).set_index(["method", "start"]).value
    own = effects.from_own_start(starts, {"utility": "rubric", "reward": "reward"})
    assert own.metric.value_counts().to_dict() == {"rubric": 4, "reward": 4}
    own = own[own.metric == "rubric"].set_index(["method", "start"])
    assert over_chat["start", "imitation"] == pytest.approx(0.2, abs=1e-9)
    table = of_every_kind()
    mean = table[(table.method == "start") & (table.start == "chat")].utility.mean()
    assert effects.demonstrated(table).value == pytest.approx(9 - mean)
    assert over_chat["apa", "imitation"] == pytest.approx(over_chat["apa", "chat"] + 0.2)
    assert own.index.to_list() == [("apa", "chat"), ("dpo", "chat"), ("apa", "imitation"), ("dpo", "imitation")]
    assert own.value.to_numpy() == pytest.approx(np.tile([over_chat["apa", "chat"], over_chat["dpo", "chat"]], 2))


def test_parts_of_the_recipe_are_told_by_name_beside_the_plain_arm() -> None:
    switches = effects.chapter(of_every_kind(), "switches")
    plain = switches[switches.changes == "lr=1e-4"]
    found = effects.named(effects.gains(switches, base=plain[plain.method == "apa"]), "changes")
    assert found.method.to_list() == ["apa, target", "apa, all of them"]
    assert found.value.to_list() == pytest.approx([-0.3, 0.0], abs=1e-9)
    blocks = effects.named(effects.gains(effects.chapter(of_every_kind(), "trainable")), "changes")
    assert blocks.method.to_list() == ["apa", "apa, trainable=lora:8"]


def test_only_trained_methods_are_set_against_each_other() -> None:
    pairs = effects.differences(effects.chapter(of_every_kind()), margin=0.25)
    assert list(zip(pairs.one, pairs.other, strict=True)) == [("apa", "dpo")]


def test_a_chapter_under_way_is_told_of_the_seeds_that_all_its_arms_have() -> None:
    worth = {("apa", "full"): 0.5, ("apa", "noise"): 0.1}
    table = study(worth)
    part = table[(table.labels == "full") | (table.seed == 1)]
    assert set(effects.chapter(part, "labels").seed) == {1}
    assert set(effects.chapter(part, "method").seed) == {0, 1, 2}, "arms of other chapters do not hold this one up"
    found = effects.gains(effects.chapter(part, "labels"))
    assert found.seeds.to_list() == [1, 1]
    assert effects.told_seeds(found) == "one seed, intervals over prompts alone"
    assert effects.told_seeds(effects.gains(table)) == "3 seeds"
