"""Exactly K distinct usable answers, whoever gives them; the embedded pool's picks and writers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from starling_nb import models
from starling_nb.errors import StarlingError
from starling_nb.judge import Judge, Ledger
from starling_nb.judge.connect import DOLLARS
from starling_nb.judge.simulation import serve
from starling_nb.models import Sample
from starling_nb.nectar import prompts, responses
from starling_nb.nectar.candidates import Candidates, Conversation
from starling_nb.nectar.responses import (
    Endpoint,
    Local,
    Report,
    Settings,
    embedded,
    fault,
    fill,
    making,
    weighted_order,
)

PROMPTS = prompts.load(limit=30)
POOL = embedded.pool(None, PROMPTS)  # type: ignore[arg-type]
BY_NAME = {responder.name: responder for responder in POOL}


def asks(n: int) -> list[Conversation]:
    return [Conversation(f"p{i}", [{"role": "user", "content": f"question {i}"}], ["forum"]) for i in range(n)]


@dataclass
class Scripted:
    """Says what its script says."""

    name: str
    script: Callable[[str], str | None]
    weight: float = 1.0
    asked: list[str] = field(default_factory=list)

    def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
        self.asked += [prompt.id for prompt in prompts]
        found = {prompt.id: self.script(prompt.id) for prompt in prompts}
        return {id: text for id, text in found.items() if text is not None}


def plain(name: str) -> Scripted:
    return Scripted(name, lambda id: f"{name} says {id}")


def in_order(prompt_id: str, responders: Sequence[Any], k: int, seed: int) -> list[Any]:
    return list(responders)


# ── the embedded pool ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prompt_id", [prompt.id for prompt in PROMPTS[:5]])
def test_five_models_and_two_writers_come_first_and_then_everyone_else(prompt_id: str, seed: int) -> None:
    order = embedded.order(prompt_id, POOL, 7, seed)
    picked = [responder.name for responder in order[:7]]
    assert sum(name.startswith("writer") for name in picked) == 2
    assert sorted(r.name for r in order) == sorted(BY_NAME)
    assert order == embedded.order(prompt_id, POOL, 7, seed)


def test_weights_decide_who_is_picked() -> None:
    counts = Counter(r.name for n in range(600) for r in embedded.order(f"prompt {n}", POOL)[:7])
    assert counts["smollm2-default"] == 600
    assert counts["writer-courteous"] > 3 * counts["writer-cut"]
    assert {r.name for r in embedded.order("a", POOL)[:7]} != {r.name for r in embedded.order("b", POOL)[:7]}


@pytest.mark.parametrize("k", [0, 30])
def test_rows_that_the_pool_cannot_fill_are_refused(k: int) -> None:
    with pytest.raises(StarlingError, match="more responders than the pool"):
        embedded.order("a", POOL, k)


def test_writers_write_from_the_prompts_own_texts() -> None:
    written = {name: BY_NAME[name].answer(PROMPTS, 0, print) for name in BY_NAME if name.startswith("writer")}
    for prompt in PROMPTS:
        assert written["writer-reference"][prompt.id] == prompt.reference
        assert written["writer-flawed"][prompt.id] == prompt.flawed
        assert written["writer-courteous"][prompt.id].startswith(prompt.reference)
        cut = written["writer-cut"][prompt.id]
        assert prompt.reference.split()[: len(cut.split()) - 1] == cut.split()[:-1]
        assert 0 < len(cut.split()) <= max(1, 0.75 * len(prompt.reference.split()))
        other = written["writer-off-topic"][prompt.id]
        assert other != prompt.reference
        source = next(p for p in PROMPTS if p.reference == other)
        family = [p for p in PROMPTS if p.family == prompt.family]
        assert len(family) == 1 or source.family == prompt.family
    alone = BY_NAME["writer-off-topic"].answer(PROMPTS[:1], 0, print)
    assert alone[PROMPTS[0].id] == written["writer-off-topic"][PROMPTS[0].id]


# ── local models ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_models_answers_do_not_depend_on_who_else_is_asked() -> None:
    lm = toy.lm(seed=3)
    asked = Settings("toy", 1.0, "be brief", 1.0, 12, may_be_cut=True)
    together = Local(asked, lm).answer(PROMPTS[:6], 0, print)
    assert Local(asked, lm).answer(PROMPTS[2:4], 0, print) == {
        p.id: together[p.id] for p in PROMPTS[2:4] if p.id in together
    }
    assert Local(asked, lm).answer(PROMPTS[:6], 1, print) != together
    assert Local(Settings("other", 1.0, "be brief", 1.0, 12, True), lm).answer(PROMPTS[:6], 0, print) != together


def test_the_system_text_is_part_of_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def listen(lm: models.LM, asked: list[list[int]], ids: list[str], **_: Any) -> list[Sample]:
        seen.extend(lm.chat.tokenizer.decode(one) for one in asked)
        return [Sample(one, [5, 2]) for one in asked]

    monkeypatch.setattr(models, "sample", listen)
    for system in ("be brief", ""):
        Local(Settings("toy", system=system, may_be_cut=True), toy.lm()).answer(toy.prompts(["why?"]), 0, print)
    assert seen[0] == "[s]be brief</s>[u]why?</s>[a]"
    assert seen[-1] == "[u]why?</s>[a]"


def test_empty_and_cut_answers_are_drawn_again_three_times_and_then_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def mute(lm: models.LM, prompts: list[list[int]], ids: list[str], **_: Any) -> list[Sample]:
        asked.append(ids)
        good = lm.chat.tokenizer("yes")["input_ids"]
        made = [Sample(p, good if "p2" not in name else []) for p, name in zip(prompts, ids, strict=True)]
        for sample, name in zip(made, ids, strict=True):
            sample.finished = not ("p1" in name and name != "toy/p1/2")
        return made

    monkeypatch.setattr(models, "sample", mute)
    faults: list[str] = []
    local = Local(Settings("toy"), toy.lm(), Ledger(tmp_path / "l.sqlite"))
    found = local.answer(toy.prompts(["a", "b", "c"]), 0, faults.append)
    assert found == {"p0": "yes", "p1": "yes"}
    assert [len(names) for names in asked] == [3, 2, 2, 1]
    assert asked[1] == ["toy/p1/1", "toy/p2/1"]
    assert Counter(faults) == {"truncated": 2, "empty": 4}
    again = Local(Settings("toy"), toy.lm(), Ledger(tmp_path / "l.sqlite")).answer(
        toy.prompts(["a", "b", "c"]), 0, print
    )
    assert again == found
    assert len(asked) == 4  # everything came from the ledger


def test_answers_of_a_local_model_are_kept_as_they_come_and_are_that_model_s_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sample, asked = models.sample, list[int]()

    def counted(lm: models.LM, prompts: list[list[int]], *given: Any, **how: Any) -> list[Sample]:
        asked.append(len(prompts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return sample(lm, prompts, *given, **how)

    monkeypatch.setattr(models, "sample", counted)
    monkeypatch.setattr("starling_nb.nectar.responses.responders.ROWS", 2)
    questions, how = toy.prompts([f"why {n}" for n in range(6)]), Settings("toy", max_tokens=8, may_be_cut=True)
    with pytest.raises(KeyboardInterrupt):
        Local(how, toy.lm(), Ledger(tmp_path / "l.sqlite")).answer(questions, 0, print)
    Local(how, toy.lm(), Ledger(tmp_path / "l.sqlite")).answer(questions, 0, print)
    assert asked[3] == 2, "four of six were there"
    before, other = len(asked), toy.lm()
    other.model.lm_head.weight.data.mul_(-1)  # type: ignore[union-attr, operator]
    Local(how, other, Ledger(tmp_path / "l.sqlite")).answer(questions, 0, print)
    assert asked[before : before + 3] == [2, 2, 2], "another model under the same name is asked itself"


# ── endpoints ────────────────────────────────────────────────────────────────────────────────────────────────────


class Endless:
    """A server whose first answers are faulty: ``p0`` empty, ``p1`` a dialogue, ``p2`` cut off, ``p3`` always so."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []

    def models(self) -> list[str]:
        return ["m"]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        question, seed = body["messages"][-1]["content"], body["seed"]
        faulty = {"question 0": "", "question 1": "Yes.\n\nHuman: and then?", "question 2": "It is because"}
        text, reason = faulty.get(question, f"An answer to {question}."), "stop"
        if question == "question 3":
            text, reason = "and so on", "length"
        elif question in faulty and seed > 5:
            text = f"A good answer to {question}."
        elif question == "question 2":
            reason = "length"
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def test_a_server_answers_with_its_own_settings_and_its_faults_are_replaced(tmp_path: Path) -> None:
    backend = Endless()
    stop, url = serve(backend)
    try:
        judge = Judge("m", url, ledger=tmp_path / "l.sqlite", attempts=responses.responders.TRIES)
        remote = Endpoint(Settings("remote", system="be kind", temperature=0.1, max_tokens=99), judge)
        faults: list[str] = []
        found = remote.answer(asks(5), 5, faults.append)
    finally:
        stop()
    assert found == {
        **{f"p{i}": f"A good answer to question {i}." for i in range(3)},
        "p4": "An answer to question 4.",
    }
    assert {"empty", "dialogue", "truncated"} <= set(faults)
    body = backend.bodies[0]
    assert (body["temperature"], body["max_tokens"]) == (0.1, 99)
    assert body["messages"][0] == {"role": "system", "content": "be kind"}


def test_paid_responders_share_the_dollars_that_the_environment_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float | None] = []

    def begun(prompts: Any, responders: Sequence[Any], *rest: Any, **named: Any) -> Any:
        found.extend(one.judge.spending.budget.dollars for one in responders)
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "fill", begun)
    monkeypatch.setenv(DOLLARS, "50")
    (tmp_path / "prompts.jsonl").write_text("")
    who = {"a": "gpt-4o", "b": "gpt-4", "c": "vicuna@http://127.0.0.1:8000/v1"}
    named = making.Responders([making.Asked(name, who=one) for name, one in who.items()])
    with pytest.raises(KeyboardInterrupt):
        making.make(tmp_path / "prompts.jsonl", named, tmp_path / "out.jsonl")
    assert found == [25.0, 25.0, None]


def test_responders_that_ask_one_model_alike_draw_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, found = Endless(), []

    def begun(prompts: Any, responders: Sequence[Any], *rest: Any, **named: Any) -> Any:
        for one in responders:
            one.answer(asks(1), 5, print)
        found.extend(one.twin for one in responders)
        raise KeyboardInterrupt

    stop, url = serve(backend)
    monkeypatch.setattr(making, "fill", begun)
    (tmp_path / "prompts.jsonl").write_text("")
    named = [making.Asked(name, who=f"m@{url}") for name in "ab"]
    named.append(making.Asked("c", who=f"m@{url}", temperature=0.1))
    with pytest.raises(KeyboardInterrupt):
        making.make(tmp_path / "prompts.jsonl", making.Responders(named), tmp_path / "out.jsonl")
    stop()
    assert found == [0, 1, 0]
    assert {(5, 0.8), (1_000_008, 0.8), (5, 0.1)} <= {(body["seed"], body["temperature"]) for body in backend.bodies}


def test_two_servers_that_call_their_models_alike_are_refused(tmp_path: Path) -> None:
    who = ("m@http://127.0.0.1:8000/v1", "m@http://localhost:8000/v1/", "m@http://127.0.0.1:8001/v1")
    named = [making.Asked(name, who=one) for name, one in zip("abc", who, strict=True)]
    with pytest.raises(StarlingError, match="both call a model m: let one serve another name"):
        making.make(tmp_path / "prompts.jsonl", making.Responders(named), tmp_path / "out.jsonl")
    making._told_apart(making.Responders(named[:2]))


# ── filling ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_prompt_gets_exactly_k_distinct_answers_in_the_order_of_those_asked() -> None:
    pool = [plain(name) for name in "abcd"]
    report = Report()
    found = list(fill(asks(5), pool, 3, order=in_order, report=report))
    assert [item.models for item in found] == [["a", "b", "c"]] * 5
    assert all(item.answers == [f"{m} says {item.prompt.id}" for m in item.models] for item in found)
    assert pool[3].asked == []
    assert (report.filled, report.short, dict(report.kept)) == (5, [], {"a": 5, "b": 5, "c": 5})


def test_a_faulty_answer_is_told_when_it_comes() -> None:
    class Failing(Scripted):
        def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
            faults("truncated")
            assert told == [(0, "f")]
            return {}

    told: list[tuple[int, str]] = []
    pool = [Failing("f", lambda id: None), plain("a"), plain("b")]
    list(fill(asks(1), pool, 2, order=in_order, progress=lambda number, name: told.append((number, name))))
    assert told == [(0, "f"), (0, "f"), (1, "a"), (1, "b")]


def test_faulty_answers_and_repetitions_are_replaced_and_counted_and_never_passed_on() -> None:
    pool = [
        plain("a"),
        Scripted("echo", lambda id: f"A  says {id}"),
        Scripted("mute", lambda id: "  "),
        Scripted("bleeds", lambda id: "Sure.\n\nHuman: more"),
        Scripted("absent", lambda id: None),
        plain("b"),
        plain("c"),
    ]
    report = Report()
    (one,) = fill(asks(1), pool, 3, order=in_order, report=report)
    assert one.models == ["a", "b", "c"]
    assert report.faults == {("echo", "duplicate"): 1, ("mute", "empty"): 1, ("bleeds", "dialogue"): 1}


def test_a_prompt_that_runs_out_of_responders_is_left_out_and_told() -> None:
    pool = [plain("a"), Scripted("b", lambda id: None if id == "p1" else f"b {id}")]
    report = Report()
    assert [item.prompt.id for item in fill(asks(3), pool, 2, report=report)] == ["p0", "p2"]
    assert (report.filled, report.short) == (2, ["p1"])


def test_existing_answers_come_first_one_of_each_model_before_a_second() -> None:
    had = [("x", "one"), ("x", "two"), ("x", ""), ("y", "three"), ("z", "ONE "), ("y", "four")]
    report = Report()
    (one,) = fill(asks(1), [plain("a")], 4, existing=lambda prompt: had, report=report)
    assert list(zip(one.models, one.answers, strict=True)) == [
        ("x", "one"),
        ("y", "three"),
        ("x", "two"),
        ("y", "four"),
    ]
    assert report.faults == {("x", "empty"): 1, ("z", "duplicate"): 1}
    (pruned,) = fill(asks(1), [], 2, existing=lambda prompt: had)
    assert pruned.models == ["x", "y"]


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(2, 5))
def test_whatever_is_said_k_distinct_usable_answers_or_none(data: st.DataObject, k: int) -> None:
    say = st.sampled_from(["", " ", "yes", "YES", "no", "maybe", "Human: hm", "a\n\nAssistant: b", None, "so", "thus"])
    said = data.draw(st.lists(st.lists(say, min_size=3, max_size=3), min_size=k, max_size=8))
    pool = [Scripted(f"r{n}", lambda id, texts=texts: texts[int(id[1:])]) for n, texts in enumerate(said)]  # type: ignore[misc]
    report = Report()
    found = list(fill(asks(3), pool, k, report=report))
    for item in found:
        assert len(item.answers) == len({responses.same(a) for a in item.answers}) == len(set(item.models)) == k
        assert not any(fault(answer) for answer in item.answers)
    assert report.filled == len(found)
    assert report.filled + len(report.short) == 3
    for i in range(3):  # a prompt is left out only if it could not be filled
        usable = {responses.same(t[i]) for t in said if t[i] is not None and not fault(t[i])}
        assert (f"p{i}" in report.short) == (len(usable) < k)


def test_choices_are_weighted_and_keyed_by_the_prompt_not_by_the_calls() -> None:
    pool = [plain("common"), plain("rare"), plain("other")]
    pool[1].weight = 0.05
    firsts = Counter(weighted_order(f"p{i}", pool, 2, 0)[0].name for i in range(500))
    assert firsts["rare"] < 50
    assert firsts["common"] > 150
    everyone = {item.prompt.id: item for item in fill(asks(20), pool, 2)}
    assert [everyone["p7"], everyone["p3"]] == list(fill([asks(20)[7], asks(20)[3]], pool, 2))


def test_bad_settings_are_refused() -> None:
    for wrong in ({"name": ""}, {"name": "a", "weight": 0.0}, {"name": "a", "max_tokens": 0}):
        with pytest.raises(StarlingError, match="a name, weight > 0"):
            Settings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(StarlingError, match="same name"):
        list(fill(asks(1), [plain("a"), plain("a")], 2))
    with pytest.raises(StarlingError, match="2 to 26"):
        list(fill(asks(1), [plain("a")], 1))


def test_what_cannot_stand_in_a_row() -> None:
    for fine in ("yes", "Humans: a short history", "He said: human: yes", "Answer: 42", "# Human rights\nare"):
        assert fault(fine) is None, fine
    for text in ("", " \n", "\u200b"[:0]):
        assert fault(text) == "empty"
    for text in ("a\n\nHuman: b", "Assistant: hello", "a\nHuman : b", "ok\n### Human: next", "### Instruction: more"):
        assert fault(text) == "dialogue", text
    assert fault("and then", truncated=True) == "truncated"


def test_candidates_come_back_from_their_file(tmp_path: Path) -> None:
    from starling_nb.nectar import candidates

    made = [Candidates(p, ["a", "b"], [f"one\n{p.id}", "zwei é"]) for p in asks(2500)]
    assert candidates.write(iter(made), tmp_path / "c.parquet") == 2500
    file = candidates.File(tmp_path / "c.parquet")
    assert len(file) == 2500
    assert list(file) == list(file) == made
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:500])
    for name in ("bad.parquet", "none.parquet"):
        with pytest.raises(StarlingError, match=f"{name} is .*starling-nb respond"):
            list(candidates.File(tmp_path / name))
    assert json.dumps(made[0].prompt.messages)
