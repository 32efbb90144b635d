"""Evaluation items inside prompts are found, chance is not, and the report says which words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar import prompts
from starling_nb.nectar.prompts import RawPrompt
from starling_nb.nectar.prompts.decontamination import EvaluationIndex, Overlap
from starling_nb.nectar.prompts.settings import DecontaminationSettings, EvaluationSettings, own_benches

ITEM = "Compose an engaging travel blog post about a recent trip to Hawaii, with cultural experiences and sights."


def index(*texts: str, **settings: object) -> EvaluationIndex:
    made = EvaluationIndex(DecontaminationSettings(**settings))  # type: ignore[arg-type]
    for number, text in enumerate(texts):
        made.add("bench", str(number), text)
    return made


def find(made: EvaluationIndex, *said: str) -> Overlap | None:
    return made.find([{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)])


def test_an_item_is_found_whatever_its_dress() -> None:
    made = index("Say hello to the nice people over there, please, and wave.", ITEM)
    found = find(made, f"Hi! {ITEM.upper().replace(' ', '  ')} Thanks.")
    assert found == Overlap("bench", "1", " ".join(re.findall(r"\w+", ITEM.lower())), 1.0)
    assert find(made, "Hello", "Hi.", ITEM) == found
    assert find(made, "Hello", ITEM, "Thank you!") is None  # an assistant's words are no prompt
    assert find(made, "Compose a travel blog post about a trip to Norway, with cultural experiences.") is None


def test_the_share_of_the_item_decides() -> None:
    """17 words; a shared run of 9 is more than half of them and one of 8 is less."""
    words = ITEM.split()
    assert len(words) == 17
    found = find(index(ITEM), " ".join(words[:9]) + " something else")
    assert found is not None
    assert found.share == pytest.approx(9 / 17)
    assert find(index(ITEM), " ".join(words[:8]) + " something else") is None
    assert find(index(ITEM, share=0.0), " ".join(words[:8]) + " something else") is not None
    assert find(index(ITEM, words=13), " ".join(words[:12])) is None


def test_two_runs_add_up_and_the_longer_one_is_reported() -> None:
    words = [f"w{number}" for number in range(40)]
    found = find(index(" ".join(words)), " ".join([*words[:9], "x", *words[20:32]]))
    assert found is not None
    assert found.share == pytest.approx(21 / 40)
    assert found.words == " ".join(words[20:32])


def test_short_items_count_whole_and_only_where_they_are_most_of_the_turn() -> None:
    made = index("What is it?", "Name a red fruit.")
    assert find(made, "what is IT") == Overlap("bench", "0", "what is it", 1.0)
    assert find(made, "Please name a red fruit for me!") == Overlap("bench", "1", "name a red fruit", 1.0)
    assert find(made, "I found a thing in the cellar and wonder: what is it and where did it come from?") is None
    assert find(made, "what is") is None


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.lists(st.sampled_from("abcd"), min_size=4, max_size=20))
def test_shares_are_those_of_a_plain_count(asked: list[str], item: list[str]) -> None:
    grams = {tuple(asked[i : i + 4]) for i in range(len(asked) - 3)}
    covered = {i + j for i in range(len(item) - 3) for j in range(4) if tuple(item[i : i + 4]) in grams}
    found = find(index(" ".join(item), words=4, share=0.01), " ".join(asked))
    assert (found.share if found else 0.0) == pytest.approx(len(covered) / len(item))
    assert found is None or found.words in " ".join(item)


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"question_id": 81, "turns": ["one two", "three"], "category": "x"}, ["one two", "three"]),
        ({"id": 81, "question": "one two", "choices": ["a", "b"]}, ["one two"]),
        ({"id": 81, "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ["a"]),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_texts_are_found_in_the_usual_columns(
    tmp_path: Path, row: dict[str, object], texts: list[str], ending: str
) -> None:
    path = tmp_path / f"set.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    made = index()
    assert made.add_file(EvaluationSettings("bench", str(path))) == len(texts)
    assert [" ".join(item.words) for item in made.items] == texts
    assert {(item.evaluation, item.name) for item in made.items} == {("bench", "81")}


def test_evaluation_files_that_do_not_fit_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"said": "x"}')
    (tmp_path / "a.parquet").write_text("x")
    made = index()
    assert made.add_file(EvaluationSettings("a", str(tmp_path / "a.jsonl"), ["said"])) == 1
    for name, said in (
        ("a.jsonl", "no texts"),
        ("a.parquet", "cannot be read"),
        ("b.parquet", "cannot be read"),
        ("b.jsonl", "missing"),
        ("a.csv", "has to be"),
    ):
        with pytest.raises(StarlingError, match=said):
            made.add_file(EvaluationSettings("a", str(tmp_path / name)))


def test_our_prompts_hold_no_relative_of_our_benches() -> None:
    made = index()
    assert sum(made.add_file(bench) for bench in own_benches()) >= 500
    assert [prompt.id for prompt in prompts.load() if made.find(prompt.messages)] == []
    asked = files.read_jsonl(files.DATA / "bench_instructions.jsonl")[0]["messages"]
    found = made.find(asked)
    assert found is not None
    assert (found.evaluation, found.item, found.share) == ("bench_instructions", "i01", 1.0)


def test_real_prompts_overlap_real_evaluations_as_a_plain_count_says(real_data: Path) -> None:
    """The 80 Vicuna questions are relatives of MT-Bench and AlpacaEval; MMLU is there as noise."""
    sets = {"mt_bench": "mt_bench/questions", "alpaca_eval": "alpaca_eval/prompts", "mmlu": "capability/mmlu_test"}
    made = index()
    for name, path in sets.items():
        made.add_file(EvaluationSettings(name, str(real_data / f"{path}.parquet")))
    pool = list(prompts.read("pool", real_data / "prompts/prompts.parquet", like="plain"))
    vicuna = [item for item in pool if isinstance(item, RawPrompt) and item.source == ["vicuna_80"]]
    assert len(vicuna) >= 60  # of 80; the others are held out
    items = [item.words for item in made.items if item.evaluation != "mmlu"]
    found = set()
    for place, item in enumerate(vicuna):
        overlap = made.find(item.messages)
        if overlap and overlap.evaluation != "mmlu":
            found.add(place)
    assert found == {place for place, item in enumerate(vicuna) if _plain_overlap(item, items)}
    assert len(found) >= 0.9 * len(vicuna)
    others = [item for item in pool if isinstance(item, RawPrompt) and item.source == ["t0_p3_sample"]]
    assert sum(made.find(item.messages) is not None for item in others[:500]) < 25


def _plain_overlap(item: RawPrompt, items: list[tuple[str, ...]]) -> bool:
    """The rule once more, by plain search in text."""
    asked = re.findall(r"\w+", item.messages[0]["content"].lower())
    text = f" {' '.join(asked)} "
    for words in items:
        if len(words) < 8:
            if f" {' '.join(words)} " in text and 2 * len(words) >= len(asked):
                return True
            continue
        covered = [False] * len(words)
        for start in range(len(words) - 7):
            if f" {' '.join(words[start : start + 8])} " in text:
                covered[start : start + 8] = [True] * 8
        if sum(covered) >= 0.5 * len(words):
            return True
    return False
