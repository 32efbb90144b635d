"""A talk remembers, takes back and answers again; what is typed and what is said can do no harm in a page."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

import toy
from starling_nb import cli_models, models
from starling_nb.cli import app
from starling_nb.errors import StarlingError
from starling_nb.explore.talk import HELP, Talk, held
from starling_nb.explore.talk_view import TalkView
from starling_nb.models import LM
from starling_nb.policy import checkpoint
from starling_nb.policy.hydra import Hydra


@pytest.fixture(scope="module")
def lm() -> LM:
    return toy.lm(seed=3)


def talk(*lms: LM, **settings: object) -> Talk:
    named = {f"model {n}": lm for n, lm in enumerate(lms)}
    return Talk(named, **{"temperature": 1.0, "max_new_tokens": 12, **settings})  # type: ignore[arg-type]


def test_a_model_is_asked_with_all_that_was_said(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = lm.chat.prompt_ids
    monkeypatch.setattr(lm.chat, "prompt_ids", lambda messages: asked.append(len(messages)) or plain(messages))
    one = talk(lm)
    first = one.say(" What is red? ")
    one.say("And blue?")
    assert asked == [1, 3]
    assert one.turns == 2
    said = one.messages["model 0"]
    assert [message["role"] for message in said] == ["user", "assistant"] * 2
    assert said[0]["content"] == "What is red?"
    assert said[1]["content"] == first["model 0"]


def test_the_same_words_get_the_same_answer_and_another_when_asked_again(lm: LM) -> None:
    one, other = talk(lm), talk(lm)
    first = one.say("Name a colour")
    assert other.say("Name a colour") == first
    assert any(one.again() != first for _ in range(3))
    assert one.turns == 1
    one.undo()
    one.undo()
    assert (one.turns, one.messages) == (0, {"model 0": []})


def test_each_model_remembers_its_own_answers_and_the_systems_words(lm: LM) -> None:
    two = talk(lm, toy.lm(seed=4), system="Be brief")
    two.say("What is red?")
    two.say("And blue?")
    both = list(two.messages.values())
    assert [message["role"] for message in both[0]] == ["system", "user", "assistant", "user", "assistant"]
    assert both[0][2] != both[1][2]
    two.new()
    assert list(two.messages.values()) == [[{"role": "system", "content": "Be brief"}]] * 2


def test_what_cannot_be_done_is_said(lm: LM) -> None:
    with pytest.raises(StarlingError, match="nobody to talk to"):
        Talk({})
    with pytest.raises(StarlingError, match="ask one"):
        talk(lm).again()
    with pytest.raises(StarlingError, match="say something"):
        talk(lm).say("  ")


def test_a_talk_goes_on_after_an_answer_without_words(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    one = talk(lm)
    with monkeypatch.context() as silent:
        silent.setattr("starling_nb.evaluation.answering.answer", lambda lm, asked, **how: dict.fromkeys(asked, ""))
        assert set(one.say("What is red?").values()) == {""}
    assert one.say("And blue?")
    assert one.turns == 2


def test_a_table_of_it_holds_no_markup_but_its_own(lm: LM) -> None:
    one = talk(lm)
    one.say("<script>alert(1)</script>\nand more")
    one.messages["model 0"][-1]["content"] = "<img src=x>"
    text = one.to_html()
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<br>and more" in text


def test_a_terminal_takes_orders_and_words(lm: LM) -> None:
    one = talk(lm)
    told = list(held(one, ["What is red?\n", "/again\n", "\n", "/undo\n", "/again\n", "/what\n", "/quit\n", "more\n"]))
    assert len(told) == 5
    assert told[2:] == ["(0 turns)", "there is no question to answer again: ask one", HELP]
    two = talk(lm, lm)
    (answers,) = held(two, ["What is red?"])
    assert [line.split(":")[0] for line in answers.splitlines() if line.startswith("model")] == ["model 0", "model 1"]


def test_the_command_talks_to_a_start_model_and_what_was_tuned_from_it(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(Hydra(lm, "last:1"), tmp_path / "policy.safetensors", lm.name)
    monkeypatch.setattr(models, "load", lambda name, template: lm)
    line = ["chat", "--policy", str(tmp_path / "policy.safetensors"), "--beside", "--tokens", "8"]
    done = CliRunner().invoke(app, line, input="What is red?\n/quit\n")
    assert done.exit_code == 0, done.output
    assert "tuned:" in done.output
    assert "start:" in done.output


def test_a_line_is_asked_for_only_where_somebody_types(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = io.StringIO("hello\n")
    monkeypatch.setattr("sys.stdin", typed)
    assert cli_models.input_line() == "hello\n"
    assert cli_models.input_line() == ""
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(typed, "isatty", lambda: True)
    cli_models.input_line()
    assert capsys.readouterr().out == "> "


def test_the_view_says_what_is_typed_and_has_a_twin_without_widgets(lm: LM) -> None:
    view = TalkView(talk(lm))
    view.line.value = "What is red?"
    assert view.line.value == ""
    assert view.talk.turns == 1
    assert "What is red?" in view.shown.value
    before = view.shown.value
    view.buttons["undo"].click()
    assert view.shown.value != before
    view.buttons["again"].click()
    assert "ask one" in view.told.value
    view.buttons["new"].click()
    assert view.told.value == ""
    bundle = view._repr_mimebundle_()
    assert bundle["text/html"] == view.talk.to_html()
    assert bundle["text/plain"] == "a talk of 0 turns"
    assert "application/vnd.jupyter.widget-view+json" in bundle
