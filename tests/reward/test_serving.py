"""A served reward model: the same scores as beside the policy, and a reason for whatever goes wrong."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread, Timer

import pytest
import torch

import toy
from starling_nb.nectar import prompts
from starling_nb.policy.rollouts import RewardOnTrunk, collect
from starling_nb.reward import RewardError, RewardModel, serving
from starling_nb.reward.serving import Served

TALKS = [[*toy.user(f"question {i}?"), {"role": "assistant", "content": "an answer " * i}] for i in range(1, 9)]


@pytest.fixture(scope="module")
def reward() -> RewardModel:
    lm = toy.lm()
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    return RewardModel(lm.model.model, lm.chat, head)


@pytest.fixture
def address(reward: RewardModel) -> Iterator[str]:
    stop, where = serving.serve(reward, "toy")
    yield where
    stop()


def test_scores_are_those_of_the_model_whoever_asks(reward: RewardModel, address: str) -> None:
    served = serving.load(address)
    assert isinstance(served, Served)
    assert (served.name, served.fingerprint()) == ("toy", reward.fingerprint())
    alone = [reward.score_sampled([talk])[0] for talk in TALKS]
    assert served.score_sampled(TALKS) == pytest.approx(alone, rel=1e-5)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda talk: served.score_sampled([talk])[0], TALKS * 3))
    assert together == pytest.approx(alone * 3, rel=1e-5)


def test_what_is_no_address_is_a_folder(reward: RewardModel, tmp_path: Path) -> None:
    reward.save_pretrained(tmp_path / "reward", {"base": "toy"})
    for name in (tmp_path / "reward", str(tmp_path / "reward")):
        found = serving.load(name, dtype=torch.float32)
        assert isinstance(found, RewardModel)
        assert found.fingerprint() == reward.fingerprint()


def test_rollouts_are_scored_as_texts(reward: RewardModel, address: str) -> None:
    lm = toy.lm()
    asked = prompts.load(limit=4)
    found = collect(lm, asked, [p.id for p in asked], seed=0, max_new_tokens=8, capture={1})
    RewardOnTrunk(Served(address), lm, 1)(found)
    texts = [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in found]
    assert [r.score for r in found] == pytest.approx(reward.score_sampled(texts), rel=1e-5)
    assert all(r.means is None for r in found)


def test_a_sampled_text_loses_its_control_tokens(reward: RewardModel) -> None:
    mark = reward.chat.tokenizer.eos_token
    plain, marked = ([*toy.user("why?"), {"role": "assistant", "content": text}] for text in ("so", f"s{mark}o"))
    assert reward.score_sampled([marked]) == reward.score_sampled([plain])


def test_the_server_listens_on_the_loopback_interface_alone(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (toy.user("why?"), "must end with an assistant message"),
        ([{"role": "user"}], "content"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_reason(address: str, talk: list[dict[str, str]], reason: str) -> None:
    with pytest.raises(RewardError, match=f"refuses: .*{reason}"):
        Served(address).score_sampled([talk])  # type: ignore[list-item]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"conversations": 3}'])
def test_a_broken_request_leaves_the_server_at_work(address: str, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, data=body)
    assert json.loads(caught.value.read())["error"]
    assert len(Served(address).score_sampled(TALKS)) == len(TALKS)


def test_a_server_that_is_gone_is_named_with_what_to_do(reward: RewardModel) -> None:
    stop, where = serving.serve(reward, "toy")
    served = Served(where)
    with pytest.raises(RewardError, match=r"port \d+ cannot be used"):
        serving.serve(reward, "toy", int(where.rpartition(":")[2]))
    stop()
    for ask in (lambda: served.score_sampled(TALKS), lambda: Served(where)):
        with pytest.raises(RewardError, match=f"no reward model answers at {where} .*serve-reward"):
            ask()


def test_a_server_that_is_still_reading_its_model_is_waited_for(
    reward: RewardModel, capsys: pytest.CaptureFixture[str]
) -> None:
    stop, where = serving.serve(reward, "toy")
    stop()
    port, stops = int(where.rpartition(":")[2]), []
    starter = Timer(0.5, lambda: stops.append(serving.serve(reward, "toy", port)[0]))
    starter.start()
    assert Served(where, wait=30.0).name == "toy"
    starter.join()
    stops[0]()
    assert capsys.readouterr().err == f"waiting for the reward model at {where}\n"


@pytest.mark.parametrize(
    "wrong",
    [
        "https://127.0.0.1:1",
        "http://",
        "127.0.0.1:1",
        "http://127.0.0.1:1/v1",
        "http://h:port",
        "HTTPS://h",
        "http://h:99999",
    ],
)
def test_what_is_no_address_is_refused(wrong: str) -> None:
    with pytest.raises(RewardError, match="give http://host:port"):
        Served(wrong)
    with pytest.raises(RewardError, match="give http://host:port"):
        serving.load(wrong)


class Stranger(BaseHTTPRequestHandler):
    """A server of something else."""

    said = b"{}"

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("said", [b"{}", b'{"scores": [1.0]}', b'{"scores": [1, 2, 3, 4, 5, 6, 7, NaN]}', b"<html>"])
def test_a_server_of_something_else_gives_no_scores(said: bytes) -> None:
    with HTTPServer(("127.0.0.1", 0), type("Own", (Stranger,), {"said": said})) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for ask in (Served.score_sampled, Served.faults):
            with pytest.raises(RewardError, match=r"is it ours|no reward model answers"):
                ask(Served(f"http://127.0.0.1:{server.server_port}"), TALKS)
        server.shutdown()
