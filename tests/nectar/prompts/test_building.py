"""The whole build: every row is accounted for, origins are merged, and the same settings give the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar import prompts
from starling_nb.nectar.prompts import Settings, build
from starling_nb.nectar.prompts.settings import DuplicateSettings, EvaluationSettings, FilterSettings, SourceSettings

WORDS = "the a of river mountain green quickly walks sings writes explain describe please why how many old new town"
LEAK = "Compose an engaging travel blog post about a recent trip to Hawaii, with cultural experiences."


def asked(name: str, number: int) -> str:
    """A made-up English request of 16 to 25 words."""
    rng = files.rng(0, name, number)
    return " ".join(str(word) for word in rng.choice(WORDS.split(), 16 + number % 10)) + f" {name} {number}?"


def own(path: Path, name: str, rows: int, *more: Any) -> SourceSettings:
    """A file of own prompts."""
    made = [{"prompt": asked(name, n), "answers": [{"model": name, "answer": f"{n}!"}]} for n in range(rows)]
    files.write_jsonl(path / f"{name}.jsonl", [*made, *more])
    return SourceSettings(name, "plain", str(path / f"{name}.jsonl"))


def settings(tmp_path: Path, **changes: Any) -> Settings:
    """Two sources with malformed, short, repeated, nearly repeated and contaminated rows."""
    near = asked("a", 9).replace("?", " indeed?")
    a = own(tmp_path, "a", 60, {"prompt": "too short"}, {"prompt": 3}, {"prompt": LEAK, "id": "x7"})
    repeat = {"prompt": asked("a", 5).upper(), "answers": [{"model": "b", "answer": "other"}], "source": ["b", "c"]}
    b = own(tmp_path, "b", 40, repeat, {"prompt": near}, {"prompt": f"Please {LEAK}"})
    files.write_jsonl(tmp_path / "eval.jsonl", [{"id": "hawaii", "turns": [LEAK, "Rewrite it."]}])
    standard: dict[str, Any] = {
        "sources": [a, b],
        "filters": FilterSettings(language=""),
        "evaluations": [EvaluationSettings("mt_bench", str(tmp_path / "eval.jsonl"))],
    }
    return Settings(**standard | changes)


def test_every_row_is_kept_or_accounted_for(tmp_path: Path) -> None:
    report = build(settings(tmp_path), tmp_path / "out" / "prompts.jsonl")
    a, b = report.sources["a"], report.sources["b"]
    assert (a.read, a.kept, a.merged, a.contaminated, a.left) == (63, 60, 0, 1, 0)
    assert a.dropped == {"too short": 1, "a int where text belongs": 1}
    assert (b.read, b.kept, b.merged, b.contaminated, b.dropped) == (43, 40, 3, 0, {})
    assert (report.exact, report.near, report.kept) == (1, 2, 100)
    assert report.contaminated == {"mt_bench": 1}
    rows = files.read_jsonl(tmp_path / "out" / "prompts.jsonl")
    assert len({row["id"] for row in rows}) == len(rows) == 100
    assert all(row["id"] == prompts.key(row["messages"]) for row in rows)
    (leak,) = files.read_jsonl(tmp_path / "out" / "prompts.jsonl.contaminated.jsonl")
    assert leak.items() >= {"evaluation": "mt_bench", "item": "hawaii", "given_id": "x7", "share": 1.0}.items()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "prompts.jsonl",
        "prompts.jsonl.contaminated.jsonl",
    ]
    json.dumps(report.as_dict())
    for one in report.sources.values():
        assert one.read == sum(one.dropped.values()) + one.merged + one.contaminated + one.left + one.kept


def test_a_merged_row_keeps_every_origin_and_answer(tmp_path: Path) -> None:
    build(settings(tmp_path), tmp_path / "prompts.jsonl")
    rows = {row["messages"][0]["content"]: row for row in files.read_jsonl(tmp_path / "prompts.jsonl")}
    merged = rows[asked("a", 5)]
    assert merged["source"] == ["a", "b", "c"]
    assert merged["answers"] == [{"model": "a", "answer": "5!"}, {"model": "b", "answer": "other"}]
    assert rows[asked("a", 9)]["source"] == ["a", "b"]
    assert rows[asked("a", 6)]["source"] == ["a"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 12 + 7, by hand?", "what is 12 + 7 by hand", True),
        ("What is 12 + 7, by hand?", "What is 12 - 7, by hand?", False),
        ("Which books teach C++ best?", "Which books teach C# best?", False),
        ("What is the half of 1.5, please?", "What is the half of 15, please?", False),
    ],
)
def test_answers_are_taken_over_by_the_same_question_alone(tmp_path: Path, one: str, other: str, same: bool) -> None:
    one, other = (f"Tell me in a few plain words, if you can: {text}" for text in (one, other))
    rows = [{"prompt": text, "answers": [{"model": "m", "answer": text[::-1]}]} for text in (one, other)]
    build(settings(tmp_path, sources=[own(tmp_path, "c", 5, *rows)]), tmp_path / "out.jsonl")
    (found,) = (row for row in files.read_jsonl(tmp_path / "out.jsonl") if row["messages"][0]["content"] == one)
    assert [answer["answer"] for answer in found["answers"]] == [one[::-1], other[::-1]][: 1 + same]


def test_answers_of_near_duplicates_can_be_left_out(tmp_path: Path) -> None:
    more = [{"prompt": asked("c", 3).replace("?", " indeed?"), "answers": [{"model": "c", "answer": "near"}]}]
    more += [{"prompt": asked("c", 4).upper(), "answers": [{"model": "c", "answer": "exact"}]}]
    given = own(tmp_path, "c", 20, *more)
    for wanted in (True, False):
        chosen = settings(tmp_path, sources=[given], duplicates=DuplicateSettings(near_answers=wanted))
        assert build(chosen, tmp_path / "out.jsonl").kept == 20
        said = {answer["answer"] for row in files.read_jsonl(tmp_path / "out.jsonl") for answer in row["answers"]}
        assert {"near", "exact"} & said == ({"near", "exact"} if wanted else {"exact"})


def test_shares_are_met_and_any_beginning_is_a_mixture(tmp_path: Path) -> None:
    a, b = own(tmp_path, "a", 600), own(tmp_path, "b", 400)
    weighted = [replace(a, weight=1.0), replace(b, weight=3.0)]
    report = build(settings_of(weighted, 400), tmp_path / "prompts.jsonl")
    found = {name: (source.kept, source.left, source.short) for name, source in report.sources.items()}
    assert found == {"a": (100, 500, 0), "b": (300, 100, 0)}
    rows = files.read_jsonl(tmp_path / "prompts.jsonl")
    assert Counter(row["source"][0] for row in rows[:100])["b"] == pytest.approx(75, abs=13)
    report = build(settings_of(weighted, 800), tmp_path / "prompts.jsonl")
    found = {name: (source.kept, source.left, source.short) for name, source in report.sources.items()}
    assert found == {"a": (400, 200, 0), "b": (400, 0, 200)}


def settings_of(sources: list[SourceSettings], rows: int, seed: int = 0) -> Settings:
    return Settings(sources, rows, seed, FilterSettings(language=""))


def test_who_is_drawn_hangs_on_seed_and_text_not_on_order(tmp_path: Path) -> None:
    own(tmp_path, "a", 200)
    path = tmp_path / "a.jsonl"
    half = [SourceSettings("a", "plain", str(path), count=100)]

    def drawn(seed: int = 0) -> list[str]:
        build(settings_of(half, 100, seed), tmp_path / "out.jsonl")
        return [row["id"] for row in files.read_jsonl(tmp_path / "out.jsonl")]

    first = drawn()
    files.write_jsonl(path, files.read_jsonl(path)[::-1])
    assert drawn() == first
    assert len(set(first) & set(drawn(1))) == pytest.approx(50, abs=20)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_same_run_gives_the_same_bytes_in_another_process(tmp_path: Path, ending: str) -> None:
    chosen = settings(tmp_path)
    build(chosen, tmp_path / f"one.{ending}")
    script = (
        "from pathlib import Path; from starling_nb.nectar.prompts import *; from starling_nb.nectar.prompts.settings "
        f"import *; build({chosen!r}, Path({str(tmp_path / f'two.{ending}')!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env={"PYTHONHASHSEED": "7"})
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    if ending == "parquet":
        rows = pq.read_table(tmp_path / "one.parquet").to_pylist()
        build(chosen, tmp_path / "one.jsonl")
        assert rows == files.read_jsonl(tmp_path / "one.jsonl")


def test_the_file_written_is_a_source_again(tmp_path: Path) -> None:
    """And a mixture of itself: nothing is lost when it is built once more."""
    report = build(settings(tmp_path), tmp_path / "one.jsonl")
    again = settings_of([SourceSettings("one", "plain", str(tmp_path / "one.jsonl"))], 0)
    assert build(again, tmp_path / "two.jsonl").kept == report.kept
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_what_cannot_be_built_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match=r"\.jsonl or \.parquet"):
        build(settings(tmp_path), tmp_path / "out" / "a.csv")
    gone = SourceSettings("gone", "plain", str(tmp_path / "gone.jsonl"))
    with pytest.raises(StarlingError, match="no file or folder"):
        build(settings(tmp_path, sources=[gone]), tmp_path / "out" / "a.jsonl")
    with pytest.raises(StarlingError, match=r"no prompt is left.*too short"):
        build(settings(tmp_path, filters=FilterSettings(shortest=9999)), tmp_path / "out" / "a.jsonl")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_the_package_is_light() -> None:
    heavy = {"pandas", "torch", "datasets", "openai", "pyarrow", "rensa", "py3langid"}
    script = f"import sys, starling_nb.nectar.prompts; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
