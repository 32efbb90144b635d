"""Agreement of rankings, verdicts on pairs against rankings, failures: by hand, by chance, and on the authors' logs."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from starling_nb import files, stats
from starling_nb.bias import BiasError, reliability

NAMES = list("abcdefgh")


def judged(n: int, k: int, noise: float, *, seed: int = 0, prompts: str = "p") -> pd.DataFrame:
    """Rankings of ``k`` answers by their quality, a to h from best to worst, shown in random orders."""
    generator = files.rng(0, "reliability", seed)
    rows = []
    for prompt in range(n):
        shown = generator.permutation(k)
        heard = -shown + noise * generator.normal(size=k)
        rows.append((f"{prompts}{prompt}", [NAMES[i] for i in shown], np.argsort(-heard).tolist()))
    return pd.DataFrame(rows, columns=["prompt_id", "models", "ranking"])


def by_name(row: pd.Series) -> list[str]:
    return [row["models"][i] for i in row["ranking"]]


def test_tau_is_kendall_s_for_rows_of_any_length() -> None:
    generator = files.rng(1, "tau")
    length = generator.integers(2, 27, size=300)
    one, other = np.full((2, 300, 26), -1)
    for row, k in enumerate(length):
        one[row, :k], other[row, :k] = generator.permutation(k), generator.permutation(k)
    due = [scipy_stats.kendalltau(a[:k], b[:k]).statistic for a, b, k in zip(one, other, length, strict=True)]
    np.testing.assert_allclose(reliability.kendall(one, other, length), due, atol=1e-12)


def test_answers_are_matched_whatever_order_they_were_shown_in() -> None:
    one, other = judged(40, 5, 1.0, seed=1), judged(40, 5, 1.0, seed=2)
    found = reliability.agreement(one, other.sample(frac=1, random_state=0))
    pairs = [(by_name(a), by_name(b)) for (_, a), (_, b) in zip(one.iterrows(), other.iterrows(), strict=True)]
    taus = [scipy_stats.kendalltau([a.index(x) for x in "abcde"], [b.index(x) for x in "abcde"])[0] for a, b in pairs]
    assert found.tau.value == pytest.approx(np.mean(taus))
    assert found.same_winner.value == np.mean([a[0] == b[0] for a, b in pairs])
    assert (found.pairs, found.tau.n) == (40, 40)
    assert found.same_order == sum(a == b for a, b in zip(one.models, other.models, strict=True))
    assert found.tau.low < found.tau.value < found.tau.high


def test_a_judge_that_looks_at_answers_alone_agrees_with_itself_and_guessing_does_not() -> None:
    steady = reliability.agreement(judged(30, 6, 0.0, seed=1), judged(30, 6, 0.0, seed=2))
    assert steady.tau.value == steady.same_winner.value == 1.0
    assert 0.85 < steady.same_winner.low < 1.0
    guessing = reliability.agreement(judged(400, 6, 1e6, seed=1), judged(400, 6, 1e6, seed=2))
    assert guessing.tau.low < 0 < guessing.tau.high
    assert guessing.same_winner.low < 1 / 6 < guessing.same_winner.high


def test_within_one_table_same_and_other_orders_are_told_apart() -> None:
    first = judged(20, 4, 0.5, seed=1)
    mirror = first.assign(
        models=[row[::-1] for row in first.models], ranking=[[3 - i for i in row] for row in first.ranking]
    )
    upset = first.assign(ranking=[row[::-1] for row in first.ranking])
    table = pd.concat([first, mirror, upset], ignore_index=True)
    other, same = (reliability.agreement(table, order=order) for order in ("other", "same"))
    assert (same.pairs, same.same_order, same.tau.value, same.same_winner.value) == (20, 20, -1.0, 0.0)
    assert (other.pairs, other.same_order, other.tau.value) == (40, 0, 0.0)  # mirror agrees, upset contradicts
    both = reliability.agreement(table)
    assert (both.pairs, both.same_order, both.tau.n) == (60, 20, 20)
    assert both.tau.value == pytest.approx(-1 / 3)


def test_answers_of_one_model_are_told_apart_by_name_and_strangers_are_refused() -> None:
    table = pd.DataFrame(
        {"prompt_id": ["p", "p"], "models": [["m", "m"]] * 2, "shown": [[0, 1], [1, 0]], "ranking": [[0, 1], [0, 1]]}
    )
    assert reliability.agreement(table).tau.value == -1.0
    for call, match in [
        (lambda: reliability.agreement(table.drop(columns="shown")), "cannot be told apart"),
        (lambda: reliability.agreement(judged(3, 3, 1.0), judged(3, 3, 1.0, prompts="q")), "no two rankings"),
        (lambda: reliability.agreement(judged(9, 3, 1.0)), "rank prompts more than once"),
        (lambda: reliability.agreement(table, order="same"), "shown in the same order"),
        (lambda: reliability.agreement(judged(3, 3, 1.0), judged(3, 3, 1.0)[["prompt_id"]]), "lack ranking"),
        (lambda: reliability.agreement(table.assign(models=[["m", "n"]] * 2)), "prompt p: one answer has two models"),
    ]:
        with pytest.raises(BiasError, match=match):
            call()


def test_verdicts_are_sorted_by_distance_in_the_ranking_and_in_the_list() -> None:
    rankings = pd.DataFrame({"prompt_id": ["p"], "answers": [["w", "x", "y"]], "ranking": [[2, 0, 1]]})  # y w x
    verdicts = pd.DataFrame(
        [("p", "y", "w", "first"), ("p", "x", "w", "first"), ("p", "x", "y", "second"), ("p", "w", "x", "tie")],
        columns=["prompt_id", "first", "second", "winner"],
    )
    found = reliability.pair_agreement(rankings, verdicts).set_index(["by", "distance"])
    assert found.loc[("rank", 1), ["share", "n", "ties"]].tolist() == [0.5, 2, 1]  # y over w agrees, x over w does not
    assert found.loc[("rank", 2), ["share", "n", "ties"]].tolist() == [1.0, 1, 0]
    assert found.loc[("shown", 1), ["share", "n", "ties"]].tolist() == [0.5, 2, 1]  # w and x; x and y
    assert found.loc[("shown", 2), ["share", "n", "ties"]].tolist() == [1.0, 1, 0]


def test_pair_verdicts_of_the_ranking_itself_agree_and_turning_them_round_changes_nothing() -> None:
    rankings = judged(25, 5, 2.0)
    rows = [
        (row.prompt_id, a, b, "first")
        for _, row in rankings.iterrows()
        for a, b in combinations(by_name(row), 2)
        if a < b or row.prompt_id != "p3"  # where they contradict the quality, p3's own are left out
    ]
    verdicts = pd.DataFrame(rows, columns=["prompt_id", "first", "second", "winner"])
    found = reliability.pair_agreement(rankings, verdicts)
    assert set(found.share) == {1.0}
    assert found.groupby("by").n.sum().tolist() == [len(rows)] * 2
    turned = verdicts.rename(columns={"first": "second", "second": "first"}).assign(winner="second")
    pd.testing.assert_frame_equal(reliability.pair_agreement(rankings, turned), found)
    wrong = reliability.pair_agreement(rankings, verdicts.assign(winner="second"))
    assert set(wrong.share) == {0.0}
    assert (wrong.high > 0).all()


def test_verdicts_find_their_rankings_by_more_columns_than_the_prompt() -> None:
    rankings = pd.concat([judged(9, 3, 0.0).assign(run=run) for run in "ab"], ignore_index=True)
    verdicts = pd.DataFrame({"prompt_id": ["p1"], "run": ["a"], "first": ["a"], "second": ["c"], "winner": ["first"]})
    assert reliability.pair_agreement(rankings, verdicts).n.tolist() == [2, 2]
    assert reliability.pair_agreement(rankings, verdicts, ("prompt_id", "run")).n.tolist() == [1, 1]
    for call, match in [
        (lambda: reliability.pair_agreement(rankings, verdicts.drop(columns="winner")), "verdicts lack winner"),
        (lambda: reliability.pair_agreement(rankings, verdicts.assign(winner="both")), "'both' is no winner"),
        (lambda: reliability.pair_agreement(rankings, verdicts.assign(first="z")), "no verdict is about two answers"),
        (lambda: reliability.pair_agreement(rankings.drop(columns="models"), verdicts), "nothing names the answers"),
        (lambda: reliability.pair_agreement(rankings.assign(models=[["a", "c", "c"]] * 18), verdicts), "twice"),
        (lambda: reliability.pair_agreement(rankings.assign(models=[["a", "c"]] * 18), verdicts), "name each one"),
    ]:
        with pytest.raises(BiasError, match=match):
            call()


def test_failures_are_counted_by_any_column_and_by_kind() -> None:
    table = judged(10, 3, 1.0).assign(variant=["x"] * 4 + ["y"] * 6, error=None)
    table.loc[table.index[:3], "ranking"] = pd.Series([None, [], np.nan], dtype=object)
    table.loc[0, "error"], table.loc[1, "error"] = "RefusalError: no", "TruncatedError: cut: off"
    whole = reliability.invalid_rates(table).iloc[0]
    assert (whole.share, whole.failed, whole.n) == (0.3, 3, 10)
    assert (whole.low, whole.high) == pytest.approx(stats.wilson(0.3, 10))
    by = reliability.invalid_rates(table, "variant")
    assert by[["variant", "share", "failed", "n"]].to_numpy().tolist() == [["x", 0.75, 3, 4], ["y", 0.0, 0, 6]]
    kinds = reliability.invalid_rates(table, ["error", "variant"])
    kinds = kinds.set_index(["variant", "error"]).failed
    assert kinds["x"].to_dict() == {"RefusalError": 1, "TruncatedError": 1, "no reason given": 1}
    assert set(kinds["y"]) == {0}
    assert reliability.invalid_rates(table, "k")[["k", "failed"]].to_numpy().tolist() == [[3, 3]]
    assert reliability.invalid_rates(table[3:], "error").empty
    for call, match in [
        (lambda: reliability.invalid_rates(table[:0]), "no rows"),
        (lambda: reliability.invalid_rates(table, "judge"), "lack judge: they have prompt_id"),
        (lambda: reliability.invalid_rates(table.drop(columns="error"), "error"), "lack error"),
    ]:
        with pytest.raises(BiasError, match=match):
            call()


# --- the authors' GPT-4 logs --------------------------------------------------------


@pytest.fixture(scope="module")
def logs() -> Path:
    root = os.environ.get("STARLING_NB_REAL_DATA")
    if not root:
        pytest.skip("STARLING_NB_REAL_DATA is not set: it names a folder with nectar_experiments/*.parquet")
    return Path(root) / "nectar_experiments"


def test_follow_up_calls_disagree_more_the_more_answers_were_ranked(logs: Path) -> None:
    rankings, verdicts = reliability.read_follow_ups(logs)
    assert len(verdicts) == (rankings["k"] - 1).sum() > 9000
    on = ("experiment", "k", "prompt_id")
    disagree: dict[int, list[float]] = {}
    for k in (2, 7):
        for arm in sorted(set(rankings["experiment"])):
            rows, asked = (table[(table["k"] == k) & (table["experiment"] == arm)] for table in (rankings, verdicts))
            found = reliability.pair_agreement(rows, asked, on).query("by == 'rank'")
            assert found["distance"].tolist() == [1]
            disagree.setdefault(k, []).append(1 - float(found["share"].iloc[0]))
    assert 0.03 < min(disagree[2]) < max(disagree[2]) < 0.22
    assert 0.27 < min(disagree[7]) < max(disagree[7]) < 0.38


def test_a_retest_of_the_real_judge_gives_the_published_figures(logs: Path) -> None:
    table = pd.read_parquet(logs / "rankings.parquet")
    table = table[table["valid_permutation"] & (table["k"] == 7)]
    table = table.rename(columns={"response_ids": "answers", "ranking_order": "ranking"})
    runs = ("tiebreak_order_given_static", "tiebreak_order_given_static_2")
    found = reliability.agreement(*(table[table["experiment"] == run] for run in runs))
    assert found.same_order == found.pairs == 131
    retests = files.read_json(files.DATA / "published" / "position_by_rank.json")["retests"]
    known = next(row for row in retests if row["tau"]["n"] == 131)
    for name, interval in (("tau", found.tau), ("same_first", found.same_winner)):
        for end in ("value", "low", "high"):
            assert getattr(interval, end) == pytest.approx(known[name][end], abs=5e-4)


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BiasError, match="follow-up logs"):
        reliability.read_follow_ups(tmp_path)
