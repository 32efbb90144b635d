"""Sets of labelled pairs in one shape, a judge asked about them, and stored verdicts counted by each set's protocol."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluation import small

from benchmarks import judge_accuracy
from starling_nb import files
from starling_nb.evaluation import EvaluationError, agreement
from starling_nb.evaluation.judges import judging, pair_sets
from starling_nb.evaluation.judges.pair_sets import NAMES, ON
from starling_nb.evaluation.mt_bench import pairs as mt_bench_pairs
from starling_nb.evaluation.mt_bench.official import Template
from starling_nb.judge import Judge, SimulatedJudge
from starling_nb.reward.benchmarks import BenchmarkError

PANDALM = {"idx": 7, "instruction": "do", "input": "it", "response1": "a 1", "response2": "b 2"}
AUTO_J = {"scenario": "chat", "prompt": "why?", "response 1": "so", "response 2": "no"}
JUDGE_BENCH = {"source": "law", "question": "which?", "response_A": "this", "response_B": "that", "label": "B>A"}
LLM_BAR = {"input": "do it", "output_1": "done", "output_2": "what?", "label": 2}


def pairs(*utilities: tuple[int, int, str | None]) -> pd.DataFrame:
    """A pair of answers for each two utilities, which the tests' judge reads off their ends."""
    rows = [
        (f"p{n}", f"i{n}", "", [{"role": "user", "content": f"Say {n}."}], *NAMES, f"one {a}", f"two {b}", winner)
        for n, (a, b, winner) in enumerate(utilities)
    ]
    return pd.DataFrame(rows, columns=pair_sets.COLUMNS).astype({"winner": object})


def test_public_files_come_into_one_shape(tmp_path: Path) -> None:
    files.write_json(tmp_path / "p.json", [PANDALM | {"annotator1": 2, "annotator2": 0, "annotator3": 2}])
    files.write_jsonl(tmp_path / "a.jsonl", [AUTO_J | {"label": label} for label in (0, 1, 2)])
    files.write_jsonl(tmp_path / "j.jsonl", [JUDGE_BENCH | {"pair_id": id} for id in "xy"])
    folder = tmp_path / "Adversarial" / "Manual"
    folder.mkdir(parents=True)
    files.write_json(folder / "dataset.json", [LLM_BAR, LLM_BAR, LLM_BAR | {"input": "or this"}])
    found = {
        name: pair_sets.read(name, tmp_path / file)
        for name, file in {"pandalm": "p.json", "auto_j": "a.jsonl", "judge_bench": "j.jsonl"}.items()
    } | {"llm_bar": pair_sets.read("llm_bar", folder)}
    assert {name: table["winner"].tolist() for name, table in found.items()} == {
        "pandalm": ["second"],
        "auto_j": ["first", "second", "tie"],
        "judge_bench": ["second", "second"],
        "llm_bar": ["second"] * 3,
    }
    assert all(list(table.columns) == pair_sets.COLUMNS for table in found.values())
    assert found["pandalm"]["messages"][0] == [{"role": "user", "content": "do\n\nit"}]
    assert found["judge_bench"]["pair_id"].tolist() == ["law/x", "law/y"]
    assert found["llm_bar"]["pair_id"].nunique() == 3
    assert found["llm_bar"]["subset"].unique().tolist() == ["Adversarial/Manual"]


def test_divided_people_label_nothing_and_what_is_no_vote_is_refused(tmp_path: Path) -> None:
    files.write_json(tmp_path / "p.json", [PANDALM | {"human": [1, 2, 0]}])
    assert pair_sets.read("pandalm", tmp_path / "p.json")["winner"].tolist() == [None]
    files.write_json(tmp_path / "p.json", [PANDALM | {"human": [1, 3]}])
    with pytest.raises(EvaluationError, match="3 is no vote"):
        pair_sets.read("pandalm", tmp_path / "p.json")
    files.write_json(tmp_path / "p.json", [PANDALM | {"human": [1]}] * 2)
    with pytest.raises(EvaluationError, match="two pairs have one id"):
        pair_sets.read("pandalm", tmp_path / "p.json")
    files.write_json(tmp_path / "p.json", [AUTO_J])
    with pytest.raises(BenchmarkError, match="response1"):
        pair_sets.read("pandalm", tmp_path / "p.json")
    with pytest.raises(EvaluationError, match="choose one of judge_bench"):
        pair_sets.read("mine")


def test_hand_rankings_and_tricks_are_pairs() -> None:
    hand = pair_sets.read("hand")
    assert (len(hand), hand["prompt_id"].nunique()) == (500, 50)
    row = files.read_jsonl(files.DATA / "hand_rankings.jsonl")[0]
    place = {answer: rank for rank, tied in enumerate(row["order"]) for answer in tied}
    for one in hand[hand["prompt_id"] == row["prompt_id"]].itertuples():
        i, j = (row["answers"].index(text) for text in (one.first_text, one.second_text))
        assert one.winner == ("tie" if place[i] == place[j] else "first" if place[i] < place[j] else "second")
    tricks = pair_sets.read("tricks")
    assert set(tricks["winner"]) == {"first"}
    assert tricks["subset"].nunique() > 5


def test_a_judge_is_asked_in_both_orders_by_our_prompt_and_by_fastchats() -> None:
    judging.register()
    table = pairs((9, 2, "first"), (3, 8, "first"), (2, 9, "second"))
    with SimulatedJudge(calibration=small.calibration(), truth=small.Truth()) as server:
        verdicts = pair_sets.ask(Judge(server.model, server.base_url), table)
    assert verdicts["winner"].tolist() == ["first", "second", "second", "first", "second", "first"]
    assert verdicts["first"].tolist() == ["1", "2"] * 3
    found = pair_sets.figures("judge_bench", verdicts, table).set_index("figure")
    assert found.loc["accuracy", "value"] == pytest.approx(2 / 3)
    assert (found.loc["consistent", "value"], found.loc["first_wins", "value"]) == (1, 0.5)
    prompt = Template("pair-v2", "pair", "Compare.", "{question}|{answer_a}|{answer_b}")
    write, read = pair_sets.fastchat({"pair-v2": prompt})
    assert write(table["messages"][0], "x", "y")[1]["content"] == "Say 0.|x|y"
    assert [read(reply) for reply in ("[[A]]", "[[B]]", "[[C]]")] == list(agreement.WINNERS)
    with pytest.raises(mt_bench_pairs.VerdictError):
        read("A")
    with pytest.raises(EvaluationError, match="one user turn"):
        write([*table["messages"][0]] * 3, "x", "y")


def test_replies_that_cannot_be_read_are_wrong_by_protocol_and_counted() -> None:
    judging.register()
    table = pairs(*[(9, 2, "first")] * 20)
    with SimulatedJudge(calibration=small.calibration(), truth=small.Truth(), failures={"refusal": 0.4}) as server:
        verdicts = pair_sets.ask(Judge(server.model, server.base_url), table)
    lost = int(verdicts["winner"].isna().sum())
    assert 0 < lost < 40
    found = pair_sets.figures("llm_bar", verdicts, table)
    assert found.attrs == {"counted": 40, "unreadable": lost, "unlabelled": 0}
    value = found.set_index("figure")["value"]
    assert value["accuracy"] == pytest.approx(1 - lost / 40)
    assert value["accuracy_readable"] == 1


def stored(real_data: Path, name: str, folder: str) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    table = pair_sets.read(name, real_data / folder)
    return table, dict(getattr(judge_accuracy, name)(real_data / folder, table))


def test_judge_bench_is_counted_as_its_script_counts(real_data: Path) -> None:
    """+1 for a verdict that says what the label says, -1 for the opposite; right where the sum is above zero."""
    table, judges = stored(real_data, "judge_bench", "judgebench")
    raw = pd.read_parquet(real_data / "judgebench" / "judge_and_rm_outputs.parquet")
    flip = {"A>B": "B>A", "B>A": "A>B", "A=B": "A=B"}
    for judge, verdicts in judges.items():
        right, rows = 0, raw[raw["judge"] == judge]
        for row in rows.itertuples():
            said = [row.decision_ab, flip.get(row.decision_ba)]
            right += said.count(row.label) > said.count(flip[row.label])
        found = pair_sets.figures("judge_bench", verdicts, table)
        assert found.set_index("figure").loc["accuracy", "value"] == pytest.approx(right / len(rows), abs=1e-12)
        assert found.attrs["counted"] == len(rows)
    assert set(judges) == {"claude-3-haiku-20240307", "o1-mini-2024-09-12"}
    # Of the whole set; a part is here.
    whole = {"Gemma-2-27B": 0.643, "internlm2-20b": 0.634, "Llama-3.1-8B": 0.623, "internlm2-7b": 0.594, "2B": 0.594}
    models = dict(judge_accuracy.reward_models(real_data / "judgebench", table))
    for name, value in whole.items():
        (rows,) = (rows for model, rows in models.items() if name in model)
        found_here = agreement.accuracy(rows, table, ON).accuracy
        assert found_here.low < value < found_here.high


def test_llm_bar_is_the_mean_over_both_orders(real_data: Path) -> None:
    table, judges = stored(real_data, "llm_bar", "llmbar")
    raw = pd.read_parquet(real_data / "llmbar" / "judge_verdicts.parquet").query("round == 0")
    for (judge, method), rows in raw.groupby(["judge", "method"]):
        halves = [part["winner"] == part["label"].astype(str) for _, part in rows.groupby("swapped")]
        found = pair_sets.figures("llm_bar", judges[f"{judge}, {method}"], table)
        value = found.set_index("figure")["value"]
        assert value["accuracy"] == pytest.approx(sum(half.mean() for half in halves) / 2, abs=1e-12)
        assert found.attrs["unreadable"] == (rows["winner"] == "None").sum()
    for method, accuracy, consistent in (("Vanilla", 0.845, 0.928), ("CoT", 0.813, 0.893)):
        found = pair_sets.figures("llm_bar", judges[f"GPT-4, {method}"], table).set_index("figure")
        for figure, whole in (("accuracy", accuracy), ("consistent", consistent)):
            assert found.loc[figure, "low"] < whole < found.loc[figure, "high"]
    assert found.loc["longer_wins", "high"] < 0.5  # this set is built against length


def test_pandalm_is_counted_against_the_majority(real_data: Path) -> None:
    table, judges = stored(real_data, "pandalm", "pandalm")
    raw = pd.read_parquet(real_data / "pandalm" / "testset.parquet")
    people = [Counter(list(human)).most_common(1)[0][0] for human in raw["human"]]
    said = [{"1": 1, "2": 2, "Tie": 0}.get(one) for one in raw["gpt35"]]
    hits = [one == other for one, other in zip(said, people, strict=True) if one is not None]
    found = pair_sets.figures("pandalm", judges["gpt35"], table)
    value = found.set_index("figure")
    assert value.loc["accuracy_readable", "value"] == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    assert value.loc["accuracy", "value"] == pytest.approx(sum(hits) / len(said), abs=1e-12)
    assert found.attrs == {"counted": len(said), "unreadable": said.count(None), "unlabelled": 0}
    readable = value.loc["accuracy_readable"]
    assert readable["low"] < 0.716 < readable["high"]


def test_auto_j_and_lengths(real_data: Path) -> None:
    table = pair_sets.read("auto_j", real_data / "autoj_pairwise")
    counts: defaultdict[Any, int] = defaultdict(int)
    for label in pd.read_parquet(real_data / "autoj_pairwise" / "testset.parquet")["label"]:
        counts[("first", "second", "tie")[label]] += 1
    assert table["winner"].value_counts().to_dict() == dict(counts)
    assert agreement.accuracy(agreement.longer_wins(table, ON), table, ON).decided.low > 0.5
