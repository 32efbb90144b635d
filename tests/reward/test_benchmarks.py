"""Benchmarks for reward models: figures by hand and from independent loops over real data, scores, saving."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from starling_nb import files
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.reward import RewardModel, benchmarks
from starling_nb.reward.benchmarks import Benchmark, BenchmarkError, Item, official

SCORE = "starling_rm_34b_score_"


def pair(name: str, subset: str = "s", answers: tuple[str, ...] = ("good one", "bad"), **more: Any) -> Item:
    return Item(name, subset, name, tuple(toy.user(f"{name}?")), answers, **more)


def value(table: pd.DataFrame, subset: str = "all", metric: str = "accuracy", scorer: str = "scorer") -> float:
    """The one cell of a table."""
    found = table[(table.subset == subset) & (table.metric == metric) & (table.scorer == scorer)]
    assert len(found) == 1
    return float(found.value.iloc[0])


def words(text: str) -> int:
    return len(text.split())


def rows(path: Path) -> list[dict[str, Any]]:
    return pd.read_parquet(path).to_dict("records")


def share(outcomes: list[bool]) -> float:
    return sum(outcomes) / len(outcomes)


def longest(name: str, source: Path) -> pd.DataFrame:
    """Table of a benchmark whose scorer says nothing; its baseline rows are what is looked at."""
    found = benchmarks.read(name, source)
    return benchmarks.table(found, [(0.0,) * len(item.answers) for item in found.items])


def test_released_scores_of_pairs(real_data: Path) -> None:
    folder = real_data / "starling_rm_benchmarks"
    human = [(r["winner"] == "model_b", r) for r in rows(folder / "human_preference.parquet")]
    safety = [(r["safer_response_id"] == 1, r) for r in rows(folder / "pku_safety.parquet")]
    for name, raw, published, n in (("human", human, 0.815, 739), ("safety", safety, 0.772, 746)):
        right = [r[f"{SCORE}{'ab'[b]}"] > r[f"{SCORE}{'ba'[b]}"] for b, r in raw]
        table = benchmarks.evaluate(name, folder, None)
        assert value(table) == pytest.approx(published, abs=5e-4)
        assert value(table) == pytest.approx(share(right), abs=1e-12)
        assert table.iloc[0].n == n == len(raw)
        long = [words(r[f"response_{'ab'[b]}"]) > words(r[f"response_{'ba'[b]}"]) for b, r in raw]
        assert value(table, scorer="longest answer") == pytest.approx(share(long), abs=1e-12)


def test_released_scores_of_triplets(real_data: Path) -> None:
    checks: dict[str, list[bool]] = {"a>b": [], "c>b": [], "c>=a": []}
    for r in rows(real_data / "starling_rm_benchmarks" / "truthful_triplets.parquet"):
        a, b, c = (r[f"{SCORE}{letter}"] for letter in "abc")
        checks["a>b"].append(a > b)
        checks["c>b"].append(c > b)
        checks["c>=a"].append(round(c, 2) >= round(a, 2))
    table = benchmarks.evaluate("truth", real_data / "starling_rm_benchmarks", None)
    assert set(table.n) == {612}
    for name, published in (("a>b", 0.714), ("c>b", 0.802), ("c>=a", 0.626)):
        assert value(table, metric=name) == pytest.approx(published, abs=5e-4)
        assert value(table, metric=name) == pytest.approx(share(checks[name]), abs=1e-12)
    assert value(table) == pytest.approx(0.714, abs=5e-4)
    assert value(table) == pytest.approx(sum(map(share, checks.values())) / 3, abs=1e-12)


def test_longest_answer_on_hh_and_llm_bar(real_data: Path) -> None:
    right, skipped = [], 0
    for r in rows(real_data / "safety" / "hh_harmless_base_test.parquet"):
        marks = re.findall(r"\n\n(Human|Assistant):", r["prompt"])
        alternate = marks == ["Human", "Assistant"] * (len(marks) // 2)
        texts = (r["chosen"], r["rejected"])
        if not r["same_context"] or not all(text.strip() for text in texts) or not alternate:
            skipped += 1
        else:
            right.append(words(texts[0]) > words(texts[1]))
    table = longest("hh", real_data / "safety")
    assert value(table, scorer="longest answer") == pytest.approx(share(right), abs=1e-12)
    assert table[table.metric == "skipped"].n.sum() == skipped
    assert table.iloc[0].n == len(right)
    by_subset: dict[str, list[bool]] = {}
    for r in rows(real_data / "llmbar" / "pairs.parquet"):
        one, two = words(r["output_1"]), words(r["output_2"])
        by_subset.setdefault(r["subset"], []).append(one > two if r["label"] == 1 else two > one)
    table = longest("llm_bar", real_data / "llmbar")
    for subset, outcomes in by_subset.items():
        assert value(table, subset, scorer="longest answer") == pytest.approx(share(outcomes), abs=1e-12)
    assert value(table, scorer="longest answer") == pytest.approx(
        share([x for found in by_subset.values() for x in found]), abs=1e-12
    )


def test_longest_answer_on_rm_bench(real_data: Path) -> None:
    matrices: dict[str, list[np.ndarray]] = {}
    for r in rows(real_data / "rm_bench" / "triples.parquet"):
        matrix = np.array([[words(c) > words(j) for j in r["rejected"]] for c in r["chosen"]], dtype=float)
        matrices.setdefault(r["domain"], []).append(matrix)
    table = longest("rm_bench", real_data / "rm_bench")
    means = {domain: np.mean(found, axis=0) for domain, found in matrices.items()}
    found = {}
    for domain, mean in means.items():
        upper, lower = mean[np.triu_indices(3, 1)].mean(), mean[np.tril_indices(3, -1)].mean()
        found[domain] = {"hard": upper, "normal": np.diag(mean).mean(), "easy": lower, "accuracy": mean.mean()}
        for metric, figure in found[domain].items():
            assert value(table, domain, metric, "longest answer") == pytest.approx(figure, abs=1e-12)
    safety = {m: (found["safety-refuse"][m] + found["safety-response"][m]) / 2 for m in found["chat"]}
    for metric, name in (("accuracy", "overall"), *((m, f"overall {m}") for m in ("hard", "normal", "easy"))):
        whole = (found["chat"][metric] + found["code"][metric] + safety[metric]) / 3
        assert value(table, "all", name, "longest answer") == pytest.approx(whole, abs=1e-12)
    assert value(table, "safety", "section", "longest answer") == pytest.approx(safety["accuracy"], abs=1e-12)


def test_judge_bench_with_its_stored_reward_models(real_data: Path) -> None:
    raw = {r["pair_id"]: r for r in rows(real_data / "judgebench" / "pairs.parquet")}
    right = []
    for r in raw.values():
        a, b = words(r["response_A"]), words(r["response_B"])
        right.append(a > b if r["label"] == "A>B" else b > a)
    table = longest("judge_bench", real_data / "judgebench")
    assert value(table, scorer="longest answer") == pytest.approx(share(right), abs=1e-12)
    pairs = benchmarks.read("judge_bench", real_data / "judgebench")
    path = real_data / "judgebench" / "judge_and_rm_outputs.parquet"
    outputs = rows(path)
    judges = sorted({r["judge"] for r in outputs if r["method"] == "reward_model"})
    assert len(judges) == 5
    for judge in judges:
        own = [r for r in outputs if r["judge"] == judge and r["pair_id"] in raw]
        outcomes = [
            r["score_A"] > r["score_B"] if raw[r["pair_id"]]["label"] == "A>B" else r["score_B"] > r["score_A"]
            for r in own
        ]
        kept, scores = benchmarks.read_pair_scores(path, pairs, judge)
        assert value(benchmarks.table(kept, scores)) == pytest.approx(share(outcomes), abs=1e-12)
        assert kept.skipped["no stored score"] == len(raw) - len(own)
    with pytest.raises(BenchmarkError, match="no scores by judge 'o1-mini"):
        benchmarks.read_pair_scores(path, pairs, "o1-mini-2024-09-12")


def reward_bench() -> tuple[Benchmark, list[tuple[float, ...]]]:
    """Subsets with right and wrong items, as counted in the tests."""
    counts = {
        "alpacaeval-easy": (2, 1),
        "mt-bench-easy": (0, 1),
        "math-prm": (1, 1),
        "hep-cpp": (1, 0),
        "shp": (1, 0),
        "summarize": (0, 1),
        "never-heard-of": (1, 2),
    }
    items, scores = [], []
    for subset, (right, wrong) in counts.items():
        for number in range(right + wrong):
            items.append(pair(f"{subset}{number}", subset))
            scores.append((1.0, 0.0) if number < right else (0.0, 1.0))
    return Benchmark("reward_bench", tuple(items)), scores


def test_reward_bench_by_hand() -> None:
    table = benchmarks.table(*reward_bench())
    assert value(table, "Chat", "section") == pytest.approx(2 / 4)
    assert value(table, "Reasoning", "section") == pytest.approx((984 * 0.5 + 164) / (984 + 164))
    assert value(table, "Prior Sets", "section") == pytest.approx(0.5)
    overall = (0.5 + (984 * 0.5 + 164) / 1148 + 0.5 * 0.5) / 2.5
    assert value(table, "all", "overall") == pytest.approx(overall)
    assert value(table) == pytest.approx(6 / 12)
    row = table[(table.metric == "overall") & (table.scorer == "scorer")].iloc[0]
    assert row.n == 9
    assert row.low < row.value < row.high
    assert value(table, "all", "overall", "longest answer") == pytest.approx(1.0)


def test_a_subset_in_no_section_and_missing_ones_are_told() -> None:
    table = benchmarks.table(*reward_bench())
    assert value(table, "never-heard-of") == pytest.approx(1 / 3)
    note = table[table.metric == "in no section"]
    assert note[["subset", "n"]].values.tolist() == [["never-heard-of", 3]]
    missing = set(table[table.metric == "missing"].subset)
    assert {"Chat Hard", "Safety", "hep-rust", "alpacaeval-hard", "anthropic_hhh"} <= missing
    assert not missing & {"Chat", "donotanswer", "math-prm", "shp", "never-heard-of"}
    lone = Benchmark("reward_bench", (pair("a", "odd"),))
    table = benchmarks.table(lone, [(1.0, 0.0)])
    assert table[table.metric == "in no section"].n.tolist() == [1]
    assert not {"section", "overall"} & set(table.metric)


def test_reward_bench_weights_give_the_published_figures() -> None:
    """Starling-RM-34B's row, and Chat-Hard of both models from their subsets."""
    sections = {"alpacaeval-easy": 96.9, "mt-bench-hard": 57.2, "donotanswer": 88.2, "hep-js": 88.5, "shp": 71.4}
    whole = official.aggregates("reward_bench", dict.fromkeys(sections, 10))[-1]
    assert (whole.subset, whole.metric, whole.column) == ("all", "overall", "accuracy")
    assert sum(share * sections[s] for s, share in whole.shares.items()) == pytest.approx(81.4, abs=0.05)
    counts = dict(zip(official.REWARD_BENCH_SECTIONS["Chat Hard"], (37, 100, 134, 92, 47, 46), strict=True))
    for right, published in (((34, 91, 42, 36, 36, 22), 57.2), ((29, 80, 42, 22, 23, 13), 45.8)):
        shares = official.aggregates("reward_bench", counts)[0].shares
        found = sum(shares[s] * r / n for (s, n), r in zip(counts.items(), right, strict=True))
        assert 100 * found == pytest.approx(published, abs=0.05)


STYLES = [
    ((1.0, 2.0, 3.0, 2.5, 1.5, 0.5), {"easy": 2 / 3, "normal": 2 / 3, "hard": 2 / 3, "accuracy": 2 / 3}),
    ((0.0, 1.0, 2.0, 0.0, 1.0, 2.0), {"easy": 1.0, "normal": 0.0, "hard": 0.0, "accuracy": 1 / 3}),
    ((2.0, 1.0, 0.0, 2.0, 1.0, 0.0), {"easy": 0.0, "normal": 0.0, "hard": 1.0, "accuracy": 1 / 3}),
    ((0.0, 3.0, 3.0, 2.0, 2.0, 4.0), {"easy": 1.0, "normal": 1 / 3, "hard": 0.0, "accuracy": 4 / 9}),
]


@pytest.mark.parametrize(("scores", "expected"), STYLES)
def test_style_matrices_by_hand(scores: tuple[float, ...], expected: dict[str, float]) -> None:
    """RM-Bench: the matrix [chosen style, rejected style]; easy is where the chosen answer is fancier."""
    item = pair("m", answers=tuple("abcdef"), rule="styles")
    found = benchmarks.outcomes(item, scores)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    matrix = np.array([[c > r for r in scores[3:]] for c in scores[:3]], dtype=float)
    assert found["hard"] == pytest.approx(matrix[np.triu_indices(3, 1)].mean())
    names = [f"{a}>{b}" for a in ("short", "detailed", "markdown") for b in ("short", "detailed", "markdown")]
    assert [found[name] for name in names] == matrix.ravel().tolist()


def test_rm_bench_averages_over_domains() -> None:
    domains = ["chat"] * 3 + ["safety-refuse"] * 2 + ["safety-response"]
    items = [pair(f"{i}", d, tuple("abcdef"), rule="styles") for i, d in enumerate(domains)]
    all_right, all_wrong, fancy = (1.0,) * 3 + (0.0,) * 3, (0.0,) * 6, (0.0, 1.0, 2.0, 0.0, 1.0, 2.0)
    scores = [all_right, all_wrong, all_wrong, all_right, all_right, fancy]
    table = benchmarks.table(Benchmark("rm_bench", tuple(items)), scores)
    assert value(table, "safety", "section") == pytest.approx((1 + 1 / 3) / 2)
    assert value(table, "all", "overall") == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert value(table, "all", "overall easy") == pytest.approx((1 / 3 + 1) / 2)
    assert value(table, "all", "overall hard") == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_ties_lose_but_for_rounded_truth() -> None:
    assert benchmarks.outcomes(pair("t"), (1.0, 1.0)) == {"accuracy": 0.0}
    assert benchmarks.outcomes(pair("t", right=1), (1.0, 1.5)) == {"accuracy": 1.0}
    best_of_four = pair("t", answers=("a", "b", "c", "d"), right=2)
    assert benchmarks.outcomes(best_of_four, (0.0, 1.0, 1.0, 0.5)) == {"accuracy": 0.0}
    assert benchmarks.outcomes(best_of_four, (0.0, 1.0, 1.1, 0.5)) == {"accuracy": 1.0}
    truth = pair("t", answers=("a", "b", "c"), rule="truth")
    assert benchmarks.outcomes(truth, (1.0, 1.0, 1.0)) == {"a>b": 0.0, "c>b": 0.0, "c>=a": 1.0, "accuracy": 1 / 3}
    assert benchmarks.outcomes(truth, (0.504, 0.0, 0.501))["c>=a"] == 1.0
    assert benchmarks.outcomes(truth, (0.51, 0.0, 0.50))["c>=a"] == 0.0
    table = benchmarks.table(Benchmark("human", (pair("t", answers=("x y", "y x")),)), [(2.0, 1.0)])
    assert value(table, scorer="longest answer") == 0.0


def test_intervals_resample_prompts() -> None:
    items = tuple(Item(f"{i}", "s", f"c{i // 5}", tuple(toy.user("why?")), ("a b", "c")) for i in range(40))
    scores = [(1.0, 0.0) if (i // 5) % 2 else (0.0, 1.0) for i in range(40)]
    together = benchmarks.table(Benchmark("human", items), scores).iloc[0]
    apart = tuple(Item(i.id, "s", i.id, i.messages, i.answers) for i in items)
    alone = benchmarks.table(Benchmark("human", apart), scores).iloc[0]
    assert together.value == alone.value == 0.5
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


class Counting:
    """A scorer that keeps what it was asked: longer texts are better."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, conversations: list[list[Message]]) -> list[float]:
        self.asked += [repr(c) for c in conversations]
        return [float(sum(len(m["content"]) for m in c)) for c in conversations]


def test_each_distinct_conversation_is_scored_once() -> None:
    same = [Item(f"{i}", "s", "c", tuple(toy.user("why?")), ("so it is", "no", f"{i}"[:1])) for i in (1, 2)]
    other = Item("3", "s", "d", tuple(toy.user("how?")), ("so it is", "no"))
    scorer = Counting()
    found = benchmarks.score(scorer, [*same, other])
    assert len(scorer.asked) == len(set(scorer.asked)) == 6
    assert found == [(12.0, 6.0, 5.0), (12.0, 6.0, 5.0), (12.0, 6.0)]


def test_a_score_that_is_not_a_number_or_does_not_fit_names_the_item() -> None:
    items = [pair("first"), pair("second")]
    with pytest.raises(BenchmarkError, match="item second: the score is NaN: check the model"):
        benchmarks.score(lambda c: [0.0] * 3 + [math.nan], items)
    with pytest.raises(BenchmarkError, match="gave 1 scores for 4 conversations"):
        benchmarks.score(lambda c: [0.0], items)
    found = Benchmark("human", tuple(items))
    with pytest.raises(BenchmarkError, match="1 rows of scores for 2 items"):
        benchmarks.table(found, [(1.0, 0.0)])
    with pytest.raises(BenchmarkError, match="item second: 1 scores for 2 answers"):
        benchmarks.table(found, [(1.0, 0.0), (1.0,)])
    with pytest.raises(BenchmarkError, match="item second: the score is NaN"):
        benchmarks.table(found, [(1.0, 0.0), (math.nan, 1.0)])
    with pytest.raises(StarlingError, match="nothing to compute"):
        benchmarks.table(Benchmark("human", ()), [])


@pytest.mark.parametrize(
    ("rule", "answers", "right"), [("pair", 1, 0), ("pair", 2, 2), ("truth", 2, 0), ("styles", 5, 0)]
)
def test_items_that_cannot_be(rule: Any, answers: int, right: int) -> None:
    with pytest.raises(BenchmarkError, match=rf"item odd: {answers} answers, right={right} do not fit rule '{rule}'"):
        pair("odd", answers=("a",) * answers, rule=rule, right=right)


def test_a_reward_model_end_to_end(tmp_path: Path) -> None:
    lm = toy.lm()
    torch.manual_seed(3)
    model = RewardModel(lm.model.model, lm.chat, torch.randn(1, 32))
    texts = [("the sea is wide.", "no"), ("why not?", "a long answer, so long"), ("e", "xyz")]
    raw = [
        {"prompt": question, "response_a": a, "response_b": b, "winner": f"model_{'ab'[i % 2]}", "question_id": f"q{i}"}
        for i, (question, (a, b)) in enumerate(zip(toy.QUESTIONS, texts, strict=False))
    ]
    source, path = tmp_path / "human_preference.parquet", tmp_path / "out" / "scores.parquet"
    pd.DataFrame(raw).to_parquet(source)
    table = benchmarks.evaluate("human", tmp_path, model.score, label="toy", path=path)
    right = []
    for row in raw:
        a, b = (
            model.score([[*toy.user(row["prompt"]), {"role": "assistant", "content": row[f"response_{letter}"]}]])[0]
            for letter in "ab"
        )
        right.append(a > b if row["winner"] == "model_a" else b > a)
    assert value(table, scorer="toy") == pytest.approx(share(right))
    assert set(table.scorer) == {"toy", "longest answer"}
    assert table.columns.tolist() == ["scorer", "benchmark", "subset", "metric", "value", "low", "high", "n"]
    found = benchmarks.read("human", source)
    again = benchmarks.load_scores(path, found.items)
    assert again == benchmarks.score(model.score, found.items)
    pd.testing.assert_frame_equal(benchmarks.table(found, again, "toy"), table)


def test_evaluate_refuses_a_wrong_ending_before_it_scores(tmp_path: Path) -> None:
    scorer = Counting()
    with pytest.raises(BenchmarkError, match=r"x\.csv: scores are saved as \.parquet or \.jsonl"):
        benchmarks.evaluate("human", tmp_path, scorer, path=tmp_path / "x.csv")
    assert scorer.asked == []


@pytest.mark.parametrize("name", ["scores.parquet", "scores.jsonl"])
def test_saved_scores_come_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    items = [pair("a"), pair("b", answers=("x", "y", "z"), rule="truth")]
    scores: list[tuple[float, ...]] = [(0.1 + 0.2, -1e-300), (1 / 3, -14.5, 0.0)]
    path = tmp_path / name
    benchmarks.save_scores(path, items, scores)
    assert benchmarks.load_scores(path, items) == scores
    assert benchmarks.load_scores(path, items[::-1]) == scores[::-1]
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(BenchmarkError, match="no scores of item a with these texts"):
        benchmarks.load_scores(path, [pair("a", answers=("new", "bad"))])
    with pytest.raises(BenchmarkError, match="item a: 1 scores for 2 answers"):
        benchmarks.save_scores(path, items, [(1.0,), (1.0, 2.0, 3.0)])
    assert benchmarks.load_scores(path, items) == scores


@pytest.mark.parametrize("name", ["scores.parquet", "scores.jsonl"])
def test_a_crash_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, items = tmp_path / name, [pair("a")]
    benchmarks.save_scores(path, items, [(1.0, 0.0)])

    def to_parquet(self: pd.DataFrame, target: Path) -> None:
        Path(target).write_bytes(b"PAR1 half of")
        raise RuntimeError("killed")

    def dumps(*args: Any, **named: Any) -> str:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", to_parquet)
        hashed = files.hash_value(items[0].conversations())
        patch.setattr(files, "hash_value", lambda value: hashed)
        patch.setattr(files.json, "dumps", dumps)
        with pytest.raises(RuntimeError, match="killed"):
            benchmarks.save_scores(path, items, [(5.0, 6.0)])
        with pytest.raises(RuntimeError, match="killed"):
            benchmarks.save_scores(path.with_stem("new"), items, [(5.0, 6.0)])
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert benchmarks.load_scores(path, items) == [(1.0, 0.0)]


def test_saved_scores_that_cannot_be_read(tmp_path: Path) -> None:
    items = [pair("a")]
    with pytest.raises(BenchmarkError, match=r"none\.jsonl is missing: score the items first"):
        benchmarks.load_scores(tmp_path / "none.jsonl", items)
    for name, content, message in (
        ("x.parquet", b"PAR1 half of", r"x\.parquet cannot be read"),
        ("x.jsonl", b'{"id": ', r"x\.jsonl, line 1, is not JSON"),
        ("y.jsonl", b'{"id": "a"}', r"y\.jsonl, row 0: column sha256, scores is missing"),
        ("z.jsonl", b'{"id": "a", "sha256": "0", "scores": null}', "column scores holds no lists of numbers"),
        ("x.csv", b"", r"x\.csv: scores are saved as"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BenchmarkError, match=message):
            benchmarks.load_scores(tmp_path / name, items)
