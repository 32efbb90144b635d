"""``tune``: prompts and a reward model become a policy that ``transformers`` reads, beside its measure."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import processes
import toy
from starling_nb import models
from starling_nb.cli import app
from starling_nb.errors import StarlingError
from starling_nb.judge import BudgetExceeded
from starling_nb.judge.simulation import serve
from starling_nb.nectar.prompts import split_of
from starling_nb.policy import checkpoint
from starling_nb.policy.recipe import Recipe, TuningError, made
from starling_nb.reward import RewardModel

QUICK = ["rollouts=16", "minibatch=8", "steps=3", "max_new_tokens=10", "trainable=last:2", "lr=3e-3", "kl=0"]


class Settled:
    """A judge that says yes to answers with a letter e."""

    asked: ClassVar[list[str]] = []

    def models(self) -> list[str]:
        return ["m"]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        self.asked.append(text)
        answer = text.partition("<answer ")[2].partition("\n")[2].partition("\n</answer")[0]
        message = {"role": "assistant", "content": f"So it is.\n[[{'yes' if 'e' in answer else 'no'}]]"}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A start model, a reward model and prompts."""
    lm = toy.lm()
    lm.model.save_pretrained(tmp_path / "base")
    lm.chat.tokenizer.save_pretrained(tmp_path / "base")
    decoder: Any = copy.deepcopy(lm.model.model)
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    RewardModel(decoder, lm.chat, head).save_pretrained(tmp_path / "reward", {"base": "toy"})
    rows = [
        {"id": f"p{i}", "messages": toy.user(f"question {i}?"), "source": ["toy"], "answers": []} for i in range(40)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def line(folder: Path, *words: Any, settings: list[str] = QUICK, out: str = "out") -> list[str]:
    told = ["tune", folder / "prompts.jsonl", "--reward", folder / "reward", "--out", folder / out]
    told += ["--base", folder / "base", *words, *(word for text in settings for word in ("--set", text))]
    return [str(word) for word in told]


def call(folder: Path, *words: Any, settings: list[str] = QUICK) -> Any:
    return CliRunner().invoke(app, line(folder, *words, settings=settings))


def test_from_prompts_and_a_reward_to_a_policy(folder: Path) -> None:
    done = call(folder, "--objective", "rloo")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(folder / "out" / "evaluation.csv").set_index("metric")
    assert set(table.index) == {"reward", "tokens", "ended", "kl"}
    tested = sum(split_of(toy.user(f"question {i}?")) == "test" for i in range(40))
    assert set(table.n) == {tested}
    assert table.value["reward"] == pytest.approx(table.after["reward"] - table.before["reward"])
    assert table.value["kl"] > 0
    assert len(pd.read_csv(folder / "out" / "curve.csv")) == 3
    whole = models.load(str(folder / "out" / "policy"), dtype="float32", threads=1)
    start = models.load(str(folder / "base"), dtype="float32", threads=1)
    laid = checkpoint.load(start, folder / "out" / "policy.safetensors")
    assert toy.changed(toy.weights(laid.model), whole.model) == set()
    changed = toy.changed(toy.weights(start.model), whole.model)
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.layers.2.", "model.norm.")) for name in changed)


def test_a_prompt_that_cannot_be_asked_does_not_stop_the_others(folder: Path) -> None:
    with (folder / "prompts.jsonl").open("a") as file:
        for i in range(3):
            messages = toy.user(f"what does </s> mean, for the {i}th time?")
            file.write(json.dumps({"id": f"bad{i}", "messages": messages, "source": ["toy"], "answers": []}) + "\n")
    done = call(folder)
    assert done.exit_code == 0, done.output
    assert "3 of 43 prompts are left out, such as bad0: " in done.output


def test_two_processes_leave_what_one_does(folder: Path) -> None:
    words = ["--objective", "rloo"]
    assert call(folder, *words).exit_code == 0
    told = processes.launch(*line(folder, *words, out="two"))
    assert told.splitlines()[-1] == str(folder / "two" / "policy")
    assert told.count("reward") == 1  # one of them speaks
    for name in ("curve.csv", "evaluation.csv"):
        alone, shared = (pd.read_csv(folder / out / name) for out in ("out", "two"))
        pd.testing.assert_frame_equal(alone, shared, rtol=1e-4, atol=1e-5)
    ours, theirs = (load_file(folder / out / "policy.safetensors") for out in ("out", "two"))
    assert ours.keys() == theirs.keys()
    # Adam divides a gradient by its own size: where that is rounding, so is the step of one weight in a thousand.
    for name, value in ours.items():
        apart = (theirs[name] - value).abs()
        assert apart.max() < 2e-4
        assert apart.mean() < 1e-6


def test_a_finished_run_is_not_run_again_and_another_one_is_not_taken_for_it(folder: Path) -> None:
    assert call(folder).exit_code == 0
    curve = (folder / "out" / "curve.csv").read_text()
    assert call(folder).exit_code == 0
    assert (folder / "out" / "curve.csv").read_text() == curve
    longer = [text.replace("steps=3", "steps=4") for text in QUICK]
    assert call(folder, settings=longer).exit_code == 0
    assert (folder / "out" / "curve.csv").read_text().startswith(curve)
    other = call(folder, settings=[*QUICK, "lam=2"])
    assert isinstance(other.exception, TuningError)
    assert "belongs to another run" in str(other.exception)


def test_the_published_recipe_tells_its_oddity_and_too_few_prompts_are_refused(folder: Path) -> None:
    done = call(folder, "--recipe", "published")
    assert done.exit_code == 0, done.output
    assert "look: hide_eos" in done.output
    (folder / "prompts.jsonl").write_text((folder / "prompts.jsonl").read_text().splitlines(keepends=True)[0])
    refused = call(folder)
    assert isinstance(refused.exception, StarlingError)
    assert "give more prompts" in str(refused.exception)


def test_a_judge_settles_a_rule_and_is_paid_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Settled.asked = []
    stop, url = serve(Settled())
    words = ["--rule", "ask:Is there a letter e? Yes = no doubt.=0.5", "--judge", f"m@{url}"]
    try:
        done = call(folder, *words)
        assert done.exit_code == 0, done.output
        assert "48 answers asked about; without a verdict, counted as no: none" in done.output
        paid = len(Settled.asked)
        assert 0 < paid <= 48
        assert all("Is there a letter e? Yes = no doubt." in text for text in Settled.asked)
        (folder / "out" / "tuning.pt").unlink()
        assert call(folder, *words).exit_code == 0
        assert len(Settled.asked) == paid
        (folder / "out" / "tuning.pt").unlink()
        (folder / "out" / "ledger.sqlite").unlink()
        broke = call(folder, *words, "--requests", "10")
        assert isinstance(broke.exception, BudgetExceeded)
        assert len(Settled.asked) == paid + 10
    finally:
        stop()
    assert "say which one" in str(call(folder, *words[:2]).exception)


def test_recipes_are_made_from_names_and_text() -> None:
    assert made("corrected", "ppo") == Recipe(objective="ppo")
    assert made("published", "apa", ["lam=2", "value_clip=none", "hide_eos=false", "value=branch"]) == Recipe.published(
        lam=2.0, value_clip=None, hide_eos=False, value="branch"
    )
    assert made("corrected", "apa", ["kl_target=4"]).kl_target == 4.0


@pytest.mark.parametrize(
    ("name", "objective", "text", "told"),
    [
        ("paper", "apa", "lam=1", "choose corrected or published"),
        ("corrected", "dpo", "lam=1", "choose apa, ppo, p3o, rloo"),
        ("corrected", "apa", "lambda=1", "unknown switch 'lambda': there are objective"),
        ("corrected", "apa", "lam=high", "not a value of type float"),
        ("corrected", "apa", "answers=1.5", "not a value of type int"),
        ("corrected", "apa", "kl_target=low", "not a value of type float"),
        ("corrected", "apa", "anchor=middle", "choose initial, rollout"),
        ("corrected", "apa", "rollouts=3", "must be a multiple"),
    ],
)
def test_what_makes_no_recipe_is_refused(name: str, objective: str, text: str, told: str) -> None:
    with pytest.raises(StarlingError, match=told):
        made(name, objective, [text])
