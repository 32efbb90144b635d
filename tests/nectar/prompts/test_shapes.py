"""Rows of published shapes become prompts and existing answers, or a named reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.nectar.prompts.shapes import SHAPES, Existing, MalformedRowError, dialogues

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip)
SAID = WORDS.filter(lambda text: bool(text) and "\n\nHuman:" not in text and "\n\nAssistant:" not in text)
FIELDS = (
    "turns",
    "chosen",
    "rejected",
    "instruction",
    "completions",
    "output",
    "prompt",
    "messages",
    "answers",
    "model",
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def written(said: list[str]) -> str:
    """A dialogue as Anthropic writes it."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(said))


@given(st.lists(SAID, min_size=1, max_size=7).filter(lambda said: len(said) % 2 == 1), SAID, SAID)
def test_two_dialogues_share_their_prompt_and_keep_both_replies(said: list[str], first: str, second: str) -> None:
    """A turn that reads like the beginning of another role cannot be told from one, so such texts are left out."""
    fields = {"chosen": written([*said, first]), "rejected": written([*said, second]), "model": "anthropic"}
    messages, answers = dialogues(fields, False)
    assert [message["content"] for message in messages] == said
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(said) // 2) + ["user"]
    assert answers == [Existing("anthropic", text) for text in dict.fromkeys([first, second])]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (written(["a", "b", "c", "d"]), written(["a", "b", "x", "d"]), "part at a user's turn"),
        (written(["a", "b", "c", "d"]), written(["a", "b"]), "the beginning of the other"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "\n\nHuman: a\n\nHuman: b\n\nAssistant: d", "do not alternate"),
        ("hello", written(["a", "b"]), "does not begin with a turn"),
        (written(["a", "b"]), None, "NoneType where text belongs"),
        ("\n\nAssistant: b", "\n\nAssistant: c", "no turns"),
        ("", "", "does not begin with a turn"),
    ],
)
def test_dialogues_that_do_not_fit_have_a_reason(chosen: Any, rejected: Any, reason: str) -> None:
    with pytest.raises(MalformedRowError, match=reason):
        dialogues({"chosen": chosen, "rejected": rejected}, False)


def test_a_dialogue_that_goes_on_after_it_parted_gives_the_replies_where_it_did() -> None:
    fields = {"chosen": written(["a", "b", "c", "d"]), "rejected": written(["a", "x", "c", "y"]), "model": "m"}
    assert dialogues(fields, False) == ([{"role": "user", "content": "a"}], [Existing("m", "b"), Existing("m", "x")])


def test_a_conversation_is_cut_at_its_first_or_last_user_turn() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]
    first, answers = SHAPES["chat"]({"turns": turns, "model": "m"}, False)
    assert first == [{"role": "user", "content": "a"}]
    assert answers == [Existing("m", "b")]
    whole, answers = SHAPES["chat"]({"turns": turns, "model": "m"}, True)
    assert [message["content"] for message in whole] == ["a", "b", "c"]
    assert answers == []


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no turns"),
        ("a text", "no list"),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "a system turn"),
        ([{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}], "first turn is the assistant's"),
        ([{"role": "user", "content": " "}], "an empty turn"),
        ([{"role": "tool", "content": "a"}], "unknown role"),
        ([{"role": "user", "content": 3}], "int where text belongs"),
        ([{"role": "user", "content": json.loads('"\\ud800"')}], "not valid Unicode"),
        ([["user", "a"]], "a turn that is no object"),
    ],
)
def test_conversations_that_do_not_fit_have_a_reason(turns: Any, reason: str) -> None:
    with pytest.raises(MalformedRowError, match=reason):
        SHAPES["chat"]({"turns": turns}, True)


def test_own_prompts_are_texts_or_messages_with_answers() -> None:
    answers = [{"model": "m", "answer": "x"}, {"model": "m", "answer": " "}, {"answer": "y"}]
    messages, found = SHAPES["plain"]({"prompt": "why?", "answers": answers}, False)
    assert messages == [{"role": "user", "content": "why?"}]
    assert found == [Existing("m", "x"), Existing("unknown", "y")]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert SHAPES["plain"]({"messages": turns}, False) == ([turns[0]], [Existing("unknown", "b")])


@given(
    st.sampled_from(sorted(SHAPES)),
    st.fixed_dictionaries(dict.fromkeys(FIELDS, ANYTHING)),
    st.booleans(),
)
def test_no_row_whatever_breaks_a_reader(shape: str, fields: dict[str, Any], whole: bool) -> None:
    try:
        messages, _ = SHAPES[shape](fields, whole)
    except MalformedRowError:
        return
    assert messages[-1]["role"] == "user"
