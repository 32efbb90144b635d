"""Prompts are complete, and a split never moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar import prompts


def test_every_prompt_is_whole_and_belongs_to_a_family() -> None:
    found = prompts.load()
    assert len(found) >= 300
    assert {prompt.family for prompt in found} == set(prompts.FAMILIES)
    assert len({prompt.id for prompt in found}) == len({prompts.key(prompt.messages) for prompt in found}) == len(found)
    for prompt in found:
        assert prompt.messages[-1]["role"] == "user"
        assert prompt.reference.strip()
        assert prompt.flawed.strip()
        assert prompt.reference != prompt.flawed
        assert prompt.turns == (len(prompt.messages) + 1) // 2


def test_splits_are_these_and_stay_these() -> None:
    """A prompt that moved to another split would leak what was trained on into what is tested."""
    assert prompts.key(toy.user("why?")) == "056cc9f5a7bad779"
    golden = {"why?": "train", "how so?": "train", "say it": "validation", "hello": "test", "yes": "validation"}
    assert {text: prompts.split_of(toy.user(text)) for text in golden} == golden
    found = prompts.load()
    share = {
        name: sum(prompt.split == name for prompt in found) / len(found) for name in ("train", "validation", "test")
    }
    assert sum(share.values()) == pytest.approx(1.0)
    for name, due in (("train", 0.60), ("validation", 0.15), ("test", 0.25)):
        assert share[name] == pytest.approx(due, abs=0.08)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3))
def test_a_conversations_name_survives_white_space_and_case(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    other = [{"role": "user", "content": f"  {text.lower()}\n\t"} for text in texts]
    assert prompts.key(messages) == prompts.key(other)
    assert prompts.split_of(messages) == prompts.split_of(other)
    assert prompts.key([*messages, messages[0]]) != prompts.key(messages)


def test_splits_are_filters_and_limits_keep_their_choice() -> None:
    every = prompts.load()
    parts = [prompts.load(split=name) for name in ("train", "validation", "test")]
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in every)
    few, more = prompts.load(limit=20), prompts.load(limit=40)
    assert len(few) == 20
    assert {p.id for p in few} < {p.id for p in more}
    assert [p.id for p in few] == [p.id for p in every if p.id in {q.id for q in few}]
    assert len({p.family for p in more}) == len(prompts.FAMILIES)
    assert prompts.load(limit=10_000) == every


def test_rows_that_are_not_prompts_are_refused(tmp_path: Path) -> None:
    row = files.read_jsonl(files.DATA / "prompts.jsonl")[0]
    path = tmp_path / "prompts.jsonl"
    for wrong in ({k: v for k, v in row.items() if k != "rubric"}, row | {"score": 1}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(StarlingError, match="missing or unknown fields"):
            prompts.load(path)
    with pytest.raises(StarlingError, match="missing"):
        prompts.load(tmp_path / "nowhere.jsonl")


def test_the_composition_counts_every_prompt_once_a_kind() -> None:
    found = prompts.load(limit=50)
    table = prompts.composition(found)
    assert (table.groupby("kind")["count"].sum() == 50).all()
    assert set(table.kind) == {"source family", "turns", "nature", "split"}
    harmful = sum(not prompt.good_natured for prompt in found)
    assert table[table.name == "not good-natured"]["count"].sum() == harmful
