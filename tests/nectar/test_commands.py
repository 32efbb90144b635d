"""prompts → respond → judge from the command line, with the simulated judge and with a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import toy
from benchmarks import synthetic
from starling_nb import cli, files, models
from starling_nb.errors import StarlingError
from starling_nb.judge import Judge, Ledger
from starling_nb.nectar import candidates, dataset, judging, labelling, prompts
from starling_nb.nectar.responses import making
from starling_nb.nectar.responses.filling import Report

MINI = files.DATA / "nectar_mini.parquet"
EMBEDDED = files.cache_dir() / models.EMBEDDED


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=True)


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """A prompt file made by the command from 12 of our prompts, each with its seven committed answers."""
    rows = [
        {
            "messages": item.prompt.messages,
            "answers": [{"model": m, "answer": a} for m, a in zip(item.models, item.answers, strict=True)],
        }
        for item in dataset.candidates_of(dataset.load(MINI)[:12], prompts.load())
    ]
    files.write_jsonl(tmp_path / "ours.jsonl", rows)
    source = '[[sources]]\nname = "ours"\nlike = "plain"\npath = "ours.jsonl"\nwhole = true\n[filters]\nshortest = 5\n'
    (tmp_path / "prompts.toml").write_text(source)
    done = run("prompts", tmp_path / "prompts.toml", "--out", tmp_path / "prompts.parquet")
    assert done.exit_code == 0, done.output
    assert "ours: 12 read, 12 kept, 0 merged, dropped: none" in done.output
    return tmp_path / "prompts.parquet"


def test_three_commands_make_a_data_set_and_the_third_pays_nothing_twice(collected: Path, tmp_path: Path) -> None:
    (tmp_path / "responders.toml").write_text("responders = []\n")
    made, out = tmp_path / "c.parquet", tmp_path / "nectar"
    done = run("respond", collected, "--responders", tmp_path / "responders.toml", "--out", made, "--k", 5)
    assert done.exit_code == 0, done.output
    assert "12 prompts with 5 answers; 0 could not be filled" in done.output
    assert {len(item.answers) for item in candidates.File(made)} == {5}
    asked = ("judge", made, "--judge", "simulated", "--out", out, "--design", "two_pass", "--passes", 2)
    told = run(*asked, "--forecast")
    assert told.exit_code == 0
    assert "24 requests" in told.output
    assert not (out / "nectar.parquet").exists()
    done = run(*asked)
    assert done.exit_code == 0, done.output
    assert "paid now: 24 requests" in done.output
    assert "12 rows of 12 prompts; invalid rankings: none" in done.output
    assert {"nectar.parquet", "rankings.parquet", "preferences.parquet", "README.md"} <= {p.name for p in out.iterdir()}
    assert "Simulated judge" in (out / "README.md").read_text()
    before = (out / "nectar.parquet").read_bytes()
    again = run(*asked)
    assert "paid now: 0 requests" in again.output
    assert (out / "nectar.parquet").read_bytes() == before
    stopped = run(*asked[:5], tmp_path / "other", "--requests", 3)
    assert "budget is used up" in str(stopped.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prompts", "none.toml"), "none.toml is missing"),
        (("respond", "none.parquet", "--responders", "none.toml"), "none.toml is missing"),
        (
            ("judge", "none.parquet", "--judge", "simulated"),
            "none.parquet is missing: make it with starling-nb respond",
        ),
        (("judge", "some.parquet", "--judge", " "), "judge is empty"),
        (("judge", "some.parquet", "--judge", "m@http://me:secret@host/v1"), "no keys or passwords"),
        (("judge", "some.parquet", "--judge", "simulated", "--replay"), "replay answers from a ledger alone"),
    ],
)
def test_bad_input_is_one_message_that_says_what_to_do(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    candidates.write(synthetic.Many(1), tmp_path / "some.parquet")
    done = run(*words)
    assert isinstance(done.exception, StarlingError)
    assert said in str(done.exception)
    assert "secret" not in str(done.exception)


def test_a_file_of_own_prompts_needs_no_settings(tmp_path: Path) -> None:
    files.write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "Why?"}, {"prompt": "Wer ist das, und warum so spät?"}])
    done = run("prompts", tmp_path / "mine.jsonl", "--out", tmp_path / "prompts.parquet")
    assert done.exit_code == 0, done.output
    assert "prompts.parquet: 2 prompts" in done.output
    missing = run("prompts", tmp_path / "none.jsonl", "--out", tmp_path / "prompts.parquet")
    assert "none.jsonl" in str(missing.exception)


def test_who_cuts_answers_hears_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(filled=1, short=["p"], faults=Counter({("small", "truncated"): 3, ("small", "empty"): 1}))
    monkeypatch.setattr(making, "make", lambda *_: report)
    done = run("respond", "p.parquet", "--responders", files.DATA / "recipes" / "own_responders.toml")
    assert "small empty 1, small truncated 3\ntruncated answers were drawn again: raise max_tokens" in done.output
    report.faults.pop(("small", "truncated"))
    assert (
        "drawn again" not in run("respond", "p", "--responders", files.DATA / "recipes" / "own_responders.toml").output
    )


def test_responders_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, said in [
        ('[[responders]]\nname = "a"', "either who"),
        ('[[responders]]\nname = "a"\nwho = "m"\nmodel = "embedded"', "either who"),
        ('[[responders]]\nwho = "m"', "lacks name"),
        ('[[responders]]\nname = "a"\nwho = "m"\ntemprature = 1', "unknown name temprature"),
        ('[[responders]]\nname = "a"\nwho = "m"\ntemperature = "hot"', "has to be float"),
    ]:
        path.write_text(text)
        with pytest.raises(StarlingError, match=said):
            making.Responders.from_toml(path)


def test_a_model_on_this_machine_is_loaded_once_for_all_its_responders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(*name: str) -> models.LM:
        loaded.append(*name or ("embedded",))
        return toy.lm(seed=3)

    monkeypatch.setattr(models, "load", load)
    row = {"id": "p", "messages": [{"role": "user", "content": "why?"}], "source": ["x"], "answers": []}
    files.write_jsonl(tmp_path / "p.jsonl", [row])
    names = ["a", "b", "c"]
    asked = [making.Asked(name, temperature=1.5, max_tokens=9, may_be_cut=True, model="embedded") for name in names]
    report = making.make(tmp_path / "p.jsonl", making.Responders(asked), tmp_path / "c.parquet", k=2)
    assert loaded == ["embedded"]
    assert report.filled == 1
    assert len(next(iter(candidates.File(tmp_path / "c.parquet"))).answers) == 2
    (tmp_path / "torn.jsonl").write_text(json.dumps({"id": "p"}) + "\n")
    with pytest.raises(StarlingError, match=r"torn\.jsonl has a row without id, messages, source, answers"):
        making.make(tmp_path / "torn.jsonl", making.Responders(asked), tmp_path / "d.parquet", k=2)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """``transformers serve`` with the embedded model: somebody else's OpenAI-compatible server."""
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn: pip install -e .[dev]")
    if not (EMBEDDED / "complete.json").exists():
        pytest.skip("the embedded model is not there yet: make reproduce fetches it")
    port = 18_000 + os.getpid() % 10_000
    line = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(EMBEDDED), "--host", "127.0.0.1"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    child = subprocess.Popen(
        [*line, "--port", str(port)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    opener, deadline = build_opener(ProxyHandler({})), time.monotonic() + 90
    try:
        while True:
            assert child.poll() is None, "transformers serve ended by itself"
            assert time.monotonic() < deadline, "transformers serve did not start within 90 s"
            try:
                with opener.open(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert answer.status == 200
                    break
            except (URLError, OSError):
                time.sleep(0.2)
        yield f"{EMBEDDED}@http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait()


def test_a_real_server_answers_and_judges_through_the_same_setting(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(judging.PUBLISHED, "max_tokens", 48)
    questions = ["Name three fruits that grow on trees.", "Why does ice float on water in winter?"]
    files.write_jsonl(
        tmp_path / "p.jsonl",
        [
            {"id": str(n), "messages": [{"role": "user", "content": q}], "source": ["x"], "answers": []}
            for n, q in enumerate(questions)
        ],
    )
    systems = {  # this server decodes greedily whatever the temperature: only the system text tells responders apart
        "plain": "",
        "echo": "",
        "teacher": "You are a patient teacher. Explain simply.",
        "pirate": "You are a pirate and answer like one.",
        "poet": "You answer in verse.",
        "child": "You are five years old.",
    }
    asked = "".join(
        f"[[responders]]\nname = {json.dumps(name)}\nwho = {json.dumps(server)}\nsystem = {json.dumps(text)}\n"
        "max_tokens = 16\nmay_be_cut = true\nconcurrency = 2\n"
        for name, text in systems.items()
    )
    (tmp_path / "r.toml").write_text(asked)
    made = tmp_path / "c.parquet"
    report = making.make(tmp_path / "p.jsonl", making.Responders.from_toml(tmp_path / "r.toml"), made, k=3)
    items = list(candidates.File(made))
    assert (report.filled, report.short) == (2, [])
    assert not any({"plain", "echo"} <= set(item.models) for item in items)  # they say the same
    assert all(len(item.answers) == len(set(item.answers)) == 3 and set(item.models) <= set(systems) for item in items)
    replies = Ledger(tmp_path / "c.ledger.sqlite").counts()["reply"]
    again = making.make(tmp_path / "p.jsonl", making.Responders.from_toml(tmp_path / "r.toml"), made, k=3)
    assert again.kept == report.kept
    assert Ledger(tmp_path / "c.ledger.sqlite").counts() == {"reply": replies}
    model, _, url = server.rpartition("@")
    judge = Judge(model, url, ledger=tmp_path / "l.sqlite", concurrency=1)
    labels = labelling.label(judge, items, labelling.Plan(variant="naive"), tmp_path)
    assert labels.outcomes.total() == 2
    table = pd.read_parquet(tmp_path / "rankings.parquet")
    assert judge.ledger.counts() == {"reply": 2}
    for record in table.to_dict("records"):
        assert record["reply"]
        if record["ranking"] is None:
            assert record["error"].partition(":")[0].endswith("Error")
        else:
            assert sorted(record["ranking"]) == [0, 1, 2]
