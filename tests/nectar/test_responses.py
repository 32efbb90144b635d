"""Seven distinct responders a row, and answers that can stand in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb import models
from starling_nb.errors import StarlingError
from starling_nb.models import Sample
from starling_nb.nectar import prompts, responses
from starling_nb.nectar.responses import RESPONDERS, Responder

BY_NAME = {responder.name: responder for responder in RESPONDERS}
PROMPTS = prompts.load(limit=30)


@given(st.text(max_size=10), st.integers(0, 3))
def test_a_row_has_seven_distinct_responders_five_of_them_models(prompt_id: str, seed: int) -> None:
    picked = responses.pick(prompt_id, seed=seed)
    assert len({responder.name for responder in picked}) == 7
    assert sum(not responder.writes for responder in picked) == 5
    assert picked == responses.pick(prompt_id, seed=seed)


def test_who_is_picked_follows_the_weights() -> None:
    counts = Counter(responder.name for n in range(600) for responder in responses.pick(f"prompt {n}"))
    assert counts["smollm2-default"] == 600
    for group in (True, False):
        named = sorted((r.weight, counts[r.name]) for r in RESPONDERS if bool(r.writes) == group)
        assert all(count > 0 for _, count in named)
        assert named[0][1] < named[-1][1]
    assert {r.name for r in responses.pick("a")} != {r.name for r in responses.pick("b")}


@pytest.mark.parametrize("k", [2, 3, 4, 7])
def test_other_row_sizes(k: int) -> None:
    assert len(set(responses.pick("a", k))) == k


@pytest.mark.parametrize("k", [0, 30])
def test_rows_that_the_pool_cannot_fill_are_refused(k: int) -> None:
    with pytest.raises(StarlingError, match="more responders than the pool"):
        responses.pick("a", k)


def test_writers_write_from_the_prompts_own_texts() -> None:
    written = {r.writes: responses.respond(None, PROMPTS, r) for r in RESPONDERS if r.writes}  # type: ignore[arg-type]
    for prompt in PROMPTS:
        assert written["reference"][prompt.id] == prompt.reference
        assert written["flawed"][prompt.id] == prompt.flawed
        cut = written["cut"][prompt.id]
        assert prompt.reference.split()[: len(cut.split()) - 1] == cut.split()[:-1]
        assert 0 < len(cut.split()) <= max(1, 0.75 * len(prompt.reference.split()))
        other = written["off_topic"][prompt.id]
        assert other != prompt.reference
        source = next(p for p in PROMPTS if p.reference == other)
        family = [p for p in PROMPTS if p.family == prompt.family]
        assert len(family) == 1 or source.family == prompt.family
    alone = responses.respond(None, PROMPTS[:1], BY_NAME["writer-off-topic"], others=PROMPTS)  # type: ignore[arg-type]
    assert alone[PROMPTS[0].id] == written["off_topic"][PROMPTS[0].id]


def test_a_models_answers_do_not_depend_on_who_else_is_asked() -> None:
    lm = toy.lm(seed=3)
    responder = Responder("toy", 1.0, temperature=1.0, max_new_tokens=12, system="be brief")
    together = responses.respond(lm, PROMPTS[:6], responder)
    assert responses.respond(lm, PROMPTS[2:4], responder) == {p.id: together[p.id] for p in PROMPTS[2:4]}
    assert responses.respond(lm, PROMPTS[:6], responder, seed=1) != together
    assert responses.respond(lm, PROMPTS[:6], Responder("other", 1.0, 1.0, 12, "be brief")) != together


def test_the_system_text_is_part_of_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def listen(lm: models.LM, asked: list[list[int]], ids: list[str], **_: Any) -> list[Sample]:
        seen.extend(lm.chat.tokenizer.decode(one) for one in asked)
        return [Sample(one, [5, 2]) for one in asked]

    monkeypatch.setattr(models, "sample", listen)
    lm = toy.lm()
    responses.respond(lm, toy.prompts(["why?"]), Responder("toy", 1.0, system="be brief"))
    responses.respond(lm, toy.prompts(["why?"]), Responder("toy", 1.0))
    assert seen == ["[s]be brief</s>[u]why?</s>[a]", "[u]why?</s>[a]"]


def test_empty_answers_are_drawn_again_three_times_and_then_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def mute(lm: models.LM, prompts: list[list[int]], ids: list[str], **_: Any) -> list[Sample]:
        asked.append(ids)
        good = lm.chat.tokenizer("yes")["input_ids"]
        return [
            Sample(p, good if "p0" in name or name == "toy/p1/2" else []) for p, name in zip(prompts, ids, strict=True)
        ]

    monkeypatch.setattr(models, "sample", mute)
    found = responses.respond(toy.lm(), toy.prompts(["a", "b", "c"]), Responder("toy", 1.0))
    assert found == {"p0": "yes", "p1": "yes"}
    assert [len(names) for names in asked] == [3, 2, 2, 1]
    assert asked[1] == ["toy/p1/1", "toy/p2/1"]


def test_what_can_stand_in_a_row() -> None:
    assert responses.usable("yes")
    for wrong in ("", " \n", "a\n\nHuman: b", "a\n\nAssistant:"):
        assert not responses.usable(wrong)
