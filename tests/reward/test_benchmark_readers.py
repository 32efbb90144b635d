"""Readers of benchmarks: public and converted layouts, files, folders and the hub; every trouble is one clear error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from starling_nb.reward import benchmarks
from starling_nb.reward.benchmarks import BenchmarkError

HUMAN = {"prompt": "why?", "response_a": "so", "response_b": "no", "winner": "model_b", "question_id": "q"}
SCORES = ("starling_rm_34b_score_a", "starling_rm_34b_score_b")
CHOSEN = {"prompt": "why?", "chosen": "as it is", "rejected": "no"}
REWARD_BENCH = {**CHOSEN, "chosen_model": "m", "rejected_model": "n", "subset": "donotanswer", "id": 7}
RM_BENCH = {"id": "r", "prompt": "how?", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}
JUDGE_BENCH = {
    "pair_id": "p",
    "original_id": "o",
    "source": "mmlu-pro-law",
    "question": "which?",
    "response_model": "m",
    "response_A": "this",
    "response_B": "that",
    "label": "B>A",
}
LLM_BAR = {"input": "do it", "output_1": "done", "output_2": "what?", "label": 2}
HH = {
    "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: help?\n\nAssistant: gladly",
    "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: help?\n\nAssistant: no",
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def is_reward_bench(found: benchmarks.Benchmark) -> None:
    (item,) = found.items
    assert (item.id, item.subset, item.rule, item.answers) == ("7", "donotanswer", "pair", ("as it is", "no"))
    assert item.messages == ({"role": "user", "content": "why?"},)


def is_rm_bench(found: benchmarks.Benchmark) -> None:
    (item,) = found.items
    assert (item.id, item.subset, item.rule, item.answers) == ("r", "chat", "styles", tuple("abcdef"))


def is_judge_bench(found: benchmarks.Benchmark) -> None:
    (item,) = found.items
    assert (item.id, item.subset, item.right, item.answers) == ("p", "mmlu-pro-law", 1, ("this", "that"))
    assert item.messages[0]["content"] == "which?"


def is_hh(found: benchmarks.Benchmark) -> None:
    (item,) = found.items
    assert [m["role"] for m in item.messages] == ["user", "assistant", "user"]
    assert [m["content"] for m in item.messages] == ["hi", "hello", "help?"]
    assert (item.right, item.answers) == (0, ("gladly", "no"))


Check = Callable[[benchmarks.Benchmark], None]
HUB: list[tuple[str, str, str, dict[str, Any], Check]] = [
    ("reward_bench", "allenai/reward-bench", "filtered", REWARD_BENCH, is_reward_bench),
    ("rm_bench", "THU-KEG/RM-Bench", "train", RM_BENCH, is_rm_bench),
    ("judge_bench", "ScalerLab/JudgeBench", "gpt", JUDGE_BENCH, is_judge_bench),
    ("hh", "Anthropic/hh-rlhf", "test", HH, is_hh),
]


@pytest.mark.parametrize(("name", "hub", "split", "row", "right"), HUB, ids=[case[0] for case in HUB])
def test_the_hub_is_asked_for_the_split_that_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, hub: str, split: str, row: dict[str, Any], right: Check
) -> None:
    asked = []

    def load_dataset(path: str, *, split: str, cache_dir: str | None) -> list[dict[str, Any]]:
        asked.append((path, split, cache_dir))
        return [row]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    right(benchmarks.read(name, hub))
    right(benchmarks.read(name, hub, split="other", cache_dir=tmp_path))
    assert asked == [(hub, split, None), (hub, "other", str(tmp_path))]


@pytest.mark.parametrize(("name", "hub", "split", "row", "right"), HUB, ids=[case[0] for case in HUB])
def test_a_folder_in_the_hubs_layout(
    tmp_path: Path, name: str, hub: str, split: str, row: dict[str, Any], right: Check
) -> None:
    folder = tmp_path / "copy"
    write(folder / "data" / f"{split}-00000-of-00001.parquet", [row])
    write(folder / "data" / "raw-00000-of-00001.parquet", [row, row, row])
    write(folder / ".cache" / f"{split}.json", [row])
    right(benchmarks.read(name, folder))
    assert len(benchmarks.read(name, folder, split="raw").items) == 3


@pytest.mark.parametrize(("name", "hub", "split", "row", "right"), HUB, ids=[case[0] for case in HUB])
def test_the_hubs_own_loader_gives_the_same_rows(
    tmp_path: Path, name: str, hub: str, split: str, row: dict[str, Any], right: Check
) -> None:
    write(tmp_path / "copy" / "data" / f"{split}-00000-of-00001.parquet", [row])
    rows = benchmarks.from_hub(str(tmp_path / "copy"), split, tmp_path / "cache")
    assert rows == [row]
    right(benchmarks.read(name, write(tmp_path / "rows.json", rows)))


def test_a_failing_hub_tells_its_kind_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **named: Any) -> None:
        raise ConnectionError("GET https://hub/?token=hf_secret")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(BenchmarkError, match=r"own/er: .*split 'test'.*\(ConnectionError\): check the name") as caught:
        benchmarks.read("hh", "own/er")
    assert "hf_secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_llm_bar_takes_its_subsets_from_the_folders(tmp_path: Path) -> None:
    root = tmp_path / "Dataset" / "LLMBar"
    write(root / "Natural" / "dataset.json", [{**LLM_BAR, "label": 1}])
    write(root / "Adversarial" / "Neighbor" / "dataset.json", [LLM_BAR])
    found = benchmarks.read("llm_bar", root)
    assert {(i.subset, i.right) for i in found.items} == {("Natural", 0), ("Adversarial/Neighbor", 1)}
    assert len({i.id for i in found.items}) == 2
    assert found.items[0].messages[0]["content"] == "do it"


def test_llm_bar_from_the_hub_and_from_a_lone_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **named: [LLM_BAR, {**LLM_BAR, "subset": "Natural"}])
    assert [i.subset for i in benchmarks.read("llm_bar", "princeton-nlp/LLMBar").items] == ["all", "Natural"]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dataset.json", [LLM_BAR])
    assert benchmarks.read("llm_bar", "dataset.json").items[0].subset == "all"


def test_hh_in_its_public_files_and_in_ours(tmp_path: Path) -> None:
    public = tmp_path / "hh-rlhf"
    write(public / "harmless-base" / "test.jsonl.gz", [HH])
    write(public / "harmless-base" / "train.jsonl.gz", [HH] * 3)
    is_hh(benchmarks.read("hh", public))
    context = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: help?\n\nAssistant:"
    ours = {"prompt": context, "chosen": "gladly", "rejected": "no", "same_context": True, "idx": 3}
    is_hh(benchmarks.read("hh", write(tmp_path / "ours.parquet", [ours])))


def test_rm_bench_reads_the_whole_set_once(tmp_path: Path) -> None:
    write(tmp_path / "total_dataset.json", [RM_BENCH])
    write(tmp_path / "chat_filtered.json", [RM_BENCH])
    is_rm_bench(benchmarks.read("rm_bench", tmp_path))


def test_what_is_left_out_is_counted_and_visible(tmp_path: Path) -> None:
    other = HH["rejected"].replace("hi", "ho")
    silent = "\n\nHuman: hi\n\nAssistant: \n\nHuman: so?\n\nAssistant: "
    twice = "\n\nHuman: hi\n\nAssistant: one\n\nAssistant: two\n\nAssistant: "
    rows = [
        HH,
        {**HH, "rejected": other},
        {**HH, "chosen": None},
        {**HH, "chosen": HH["chosen"].removesuffix("gladly")},
        {"chosen": "no marks at all", "rejected": "none"},
        {"chosen": silent + "x", "rejected": silent + "y"},
        {"chosen": twice + "x", "rejected": twice + "y"},
    ]
    found = benchmarks.read("hh", write(tmp_path / "test.jsonl", rows))
    assert len(found.items) == 1
    assert found.skipped == {"contexts differ": 1, "empty answer": 2, "not a dialogue": 3}
    table = benchmarks.table(found, [(1.0, 0.0)])
    left_out = table[table.metric == "skipped"]
    assert dict(zip(left_out.subset, left_out.n, strict=True)) == found.skipped
    human = [HUMAN, {**HUMAN, "prompt": " "}]
    assert benchmarks.read("human", write(tmp_path / "h.parquet", human)).skipped == {"empty prompt": 1}


def test_hhh_prompts_of_several_turns_are_dialogues(tmp_path: Path) -> None:
    rows = [{**CHOSEN, "source": "honest"}, {**CHOSEN, "prompt": "hi\n\nAssistant: hello\n\nHuman: help?"}]
    first, second = benchmarks.read("hhh", write(tmp_path / "pairs.json", rows)).items
    assert (first.subset, second.subset) == ("honest", "all")
    assert [m["content"] for m in first.messages] == ["why?"]
    assert [m["content"] for m in second.messages] == ["hi", "hello", "help?"]


def test_ids_and_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "why?", "response_a": "a long one", "response_b": text} for text in ("b", "c")]
    found = benchmarks.read("verbose", write(tmp_path / "verbosity.json", rows)).items
    assert found[0].cluster == found[1].cluster
    assert found[1].id == f"{found[0].id}#2"
    assert [item.right for item in found] == [1, 1]


def test_the_safer_answer_is_right(tmp_path: Path) -> None:
    rows = [{**HUMAN, "safer_response_id": i, "better_response_id": 1 - i} for i in (0, 1)]
    found = benchmarks.read("safety", write(tmp_path / "pku_safety.parquet", rows)).items
    assert [item.right for item in found] == [0, 1]


BROKEN: list[tuple[str, str, Any, str]] = [
    ("human", "x.parquet", [{"prompt": "p"}], r"x\.parquet, row 0: column response_a, .*winner is missing.*: rename"),
    ("human", "x.parquet", [{**HUMAN, "winner": "tie"}], r"x\.parquet: column winner holds 'tie', not one of .*: mend"),
    ("human", "x.parquet", [{**HUMAN, "response_a": 3}], r"x\.parquet: column response_a holds a int, not text: mend"),
    ("reward_bench", "x.json", [{**REWARD_BENCH, "chosen": []}], r"x\.json: column chosen holds a list, not text"),
    ("rm_bench", "x.json", [{**RM_BENCH, "chosen": ["a"]}], r"item r does not have three chosen .*mend the column"),
    ("rm_bench", "x.json", [{**RM_BENCH, "rejected": None}], r"item r does not have three rejected .*mend the column"),
    ("rm_bench", "x.json", [{**RM_BENCH, "chosen": ["a", 1, "c"]}], r"column chosen\[1\] holds a int, not text"),
    ("judge_bench", "x.json", [{**JUDGE_BENCH, "label": None}], r"column label holds None, not one of"),
    ("human", "x.json", [{**HUMAN, **dict.fromkeys(SCORES, "low")}], r"x\.json: column .*_a holds 'low', not a number"),
    ("human", "x.json", [{**HUMAN, "prompt": ""}], r"no row can be used \(\{'empty prompt': 1\}\): give another file"),
    ("human", "x.json", [], r"x\.json is empty: give a file with rows"),
    ("human", "x.jsonl", b"", r"x\.jsonl is empty: give a file with rows"),
    ("human", "x.json", b"", r"x\.json cannot be read as JSON \(.*\): give the benchmark's own file"),
    ("human", "x.json", b'[{"prompt": ', r"x\.json cannot be read as JSON \(.*\): give the benchmark's own file$"),
    ("human", "x.json", b'{"prompt": "p"}', r"x\.json is not a list of objects: give the benchmark's own file"),
    ("human", "x.jsonl", b"{}\n[1", r"x\.jsonl, line 2, is not JSON \(.*\): give the benchmark's own file$"),
    ("human", "x.jsonl", b"\xff\xfe", r"x\.jsonl cannot be read \(.*\): give the benchmark's own file$"),
    ("hh", "x.jsonl.gz", b"not zipped", r"x\.jsonl\.gz cannot be read \(.*\): give the benchmark's own file$"),
    (
        "hh",
        "x.jsonl.gz",
        gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 20,
        r"x\.jsonl\.gz cannot be read \(.*\): give",
    ),
    ("human", "x.parquet", b"", r"x\.parquet cannot be read \(.*\): give the benchmark's own file$"),
    ("human", "x.parquet", b"PAR1 nothing PAR1", r"x\.parquet cannot be read \(.*\): give the benchmark's own file$"),
    ("human", "x.csv", b"prompt\n", r"x\.csv is none of \.parquet, \.json, .*: give the benchmark's own file$"),
]


@pytest.mark.parametrize(("name", "file", "content", "message"), BROKEN)
def test_every_trouble_names_the_file_and_a_remedy(
    tmp_path: Path, name: str, file: str, content: Any, message: str
) -> None:
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    with pytest.raises(BenchmarkError, match=message):
        benchmarks.read(name, path)


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"no\.jsonl is missing: give the benchmark's own file"):
        benchmarks.read("human", tmp_path / "no.jsonl")
    with pytest.raises(BenchmarkError, match=r"no\.parquet cannot be read .*: give the benchmark's own file"):
        benchmarks.read("human", tmp_path / "no.parquet")
    with pytest.raises(BenchmarkError, match=r"holds no \.parquet, .*: give a folder"):
        benchmarks.read("human", tmp_path)
    with pytest.raises(BenchmarkError, match=r"no benchmark 'humans': choose one of human, safety"):
        benchmarks.read("humans", tmp_path)
    empty = tmp_path / "none.parquet"
    pd.DataFrame(columns=list(HUMAN)).to_parquet(empty)
    with pytest.raises(BenchmarkError, match=r"none\.parquet is empty"):
        benchmarks.read("human", empty)


@pytest.mark.parametrize("file", ["x.parquet", "x.json"])
def test_stored_scores_and_a_missing_one(tmp_path: Path, file: str) -> None:
    pairs = {"u": (-1.5, 2.0), "v": (0.0, None)}
    rows = [{**HUMAN, "question_id": name, **dict(zip(SCORES, pair, strict=True))} for name, pair in pairs.items()]
    found = benchmarks.read("human", write(tmp_path / file, rows)).items
    assert benchmarks.stored(found[:1]) == [(-1.5, 2.0)]
    with pytest.raises(BenchmarkError, match=r"item v: a stored score is NaN or missing: mend the file"):
        benchmarks.stored(found)
    without = benchmarks.read("human", write(tmp_path / file, [HUMAN])).items
    with pytest.raises(BenchmarkError, match=r"item q has no stored scores: score the items"):
        benchmarks.stored(without)


def test_pair_scores(tmp_path: Path) -> None:
    pairs = [{**JUDGE_BENCH, "pair_id": p} for p in "uvw"]
    found = benchmarks.read("judge_bench", write(tmp_path / "pairs.json", pairs))
    rows = [{"pair_id": p, "judge": "rm", "score_A": 1.0, "score_B": s} for p, s in (("w", 3.0), ("u", 0.5))]
    rows.append({"pair_id": "u", "judge": "talker", "score_A": None, "score_B": None})
    path = write(tmp_path / "scores.parquet", rows)
    kept, scores = benchmarks.read_pair_scores(path, found, "rm")
    assert [item.id for item in kept.items] == ["u", "w"]
    assert scores == [(1.0, 0.5), (1.0, 3.0)]
    assert kept.skipped == {"no stored score": 1}
    assert benchmarks.table(kept, scores).iloc[0].value == 0.5
    for judge in ("talker", "nobody"):
        with pytest.raises(BenchmarkError, match=rf"no scores by judge '{judge}' .*choose one of \['rm'\]"):
            benchmarks.read_pair_scores(path, found, judge)
    half = write(tmp_path / "half.json", [{**rows[0], "score_B": None}])
    with pytest.raises(BenchmarkError, match="item w: the score is NaN"):
        benchmarks.read_pair_scores(half, found, "rm")
    with pytest.raises(BenchmarkError, match="column judge, score_A, score_B is missing"):
        benchmarks.read_pair_scores(tmp_path / "pairs.json", found, "rm")
