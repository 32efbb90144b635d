"""The simulated judge, reached by text alone: it reads what is asked, answers in form, fails in every way."""

import copy
import http.client
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from starling_nb.errors import StarlingError
from starling_nb.judge import Calibration, Judge, SimulatedJudge, register, wire
from starling_nb.judge.simulation import Refused
from starling_nb.judge.simulation.failures import NAMES, TEXT
from starling_nb.nectar.judging import to_request
from starling_nb.nectar.ranking import LETTERS, VARIANTS, RankingRequest, build, parse, read_verdict

FAIR = Calibration(scale=2.0, length=0.0, self_preference=0.0, order_noise=0.0, call_noise=0.3, position={}, slip=0.0)
NOISY = Calibration(
    scale=0.4,
    length=0.1,
    self_preference=0.2,
    order_noise=0.7,
    call_noise=0.5,
    position={"naive": [1.4, 1.2, 0.5, 0.0, -0.7, -1.1, -1.3], "final": [0.0] * 7},
)


class Truth:
    """Utility is the number that an answer ends with; questions about the moon are unknown."""

    def __init__(self) -> None:
        self.graded = 0

    def find(self, messages: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
        if "moon" in messages[-1]["content"]:
            raise StarlingError("this prompt has no rubric: use a real judge")
        return {
            "behaviour": "refuse" if "steal" in messages[-1]["content"] else "answer",
            "reference": "own words",
        }

    def grade(self, rubric: Mapping[str, Any], messages: Sequence[Mapping[str, str]], answer: str) -> Any:
        self.graded += 1
        found = re.search(r"(\d+)$", answer)
        return SimpleNamespace(utility=float(found[1]) if found else 1.0)


ANSWERS = [f"this is worth {n}" for n in (4, 9, 1, 7, 10, 3, 6)]


def ask(
    variant: str = "final",
    question: str = "How do tides work?",
    answers: Sequence[str] = ANSWERS,
    seed: int = 0,
) -> RankingRequest:
    return build([{"role": "user", "content": question}], answers, variant, seed)


def body(server: SimulatedJudge, request: RankingRequest, **params: Any) -> dict[str, Any]:
    return {"model": server.model, "messages": request.messages, **params}


def reply(server: SimulatedJudge, request: RankingRequest, **params: Any) -> str:
    return str(server.complete(body(server, request, **params))["choices"][0]["message"]["content"])


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_PAUSE", 0.01)


@pytest.fixture(scope="module")
def fair() -> Iterator[SimulatedJudge]:
    with SimulatedJudge(FAIR, Truth()) as server:
        yield server


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_answered_in_its_form_through_the_client(fair: SimulatedJudge, variant: str) -> None:
    request = ask(variant)
    outcome = Judge(fair.model, fair.base_url).ask_all([to_request(request, "one")])[0]
    verdict = outcome.value
    assert verdict is not None
    assert verdict.good_natured is True
    worth = [int(ANSWERS[i].split()[-1]) for i in request.to_answers(verdict.ranking)]
    assert stats.kendalltau(worth, range(7)).statistic < -0.7
    assert (verdict.pairs is not None) == (VARIANTS[variant].first == "pairs")
    assert (verdict.scores is not None) == (VARIANTS[variant].first == "scores")
    if request.pairs is not None:
        assert [(a, b) for a, b, _ in verdict.pairs or []] == request.pairs
    places = {position: place for place, position in enumerate(verdict.ranking)}
    for a, b, winner in verdict.pairs or []:
        assert winner == min(a, b, key=places.__getitem__)
    if verdict.scores is not None:
        in_order = [verdict.scores[position] for position in verdict.ranking]
        assert in_order == sorted(in_order, reverse=True)
        assert in_order[0] == 10
    assert outcome.usage["prompt_tokens"] >= sum(len(m["content"]) for m in request.messages) // 4
    assert outcome.usage["completion_tokens"] > 0


def test_ill_natured_requests_are_called_so(fair: SimulatedJudge) -> None:
    assert read_verdict(reply(fair, ask(question="Help me steal a car")), 7).good_natured is False


@pytest.mark.parametrize("k", [2, 3, 11, 26])
def test_any_number_of_answers(fair: SimulatedJudge, k: int) -> None:
    request = ask(answers=[f"worth {n % 10 + 1}" for n in range(k)])
    assert sorted(parse(reply(fair, request), k)) == list(range(k))


def test_the_same_text_gets_the_same_reply_and_another_seed_another() -> None:
    one, two, three = (SimulatedJudge(NOISY, Truth(), seed=seed) for seed in (0, 0, 1))
    request = ask()
    assert reply(one, request) == reply(two, request)
    calls = {reply(one, request, seed=seed) for seed in range(10)}
    assert len(calls) > 5
    assert reply(one, request) != reply(three, request)
    assert len({one.model, two.model, three.model}) == 2


def test_it_reads_the_answers_in_the_text_and_not_their_letters(fair: SimulatedJudge) -> None:
    request = ask()
    before = parse(reply(fair, request), 7)
    swapped = copy.deepcopy(request)
    best, worst = (ANSWERS[request.shown[before[i]]] for i in (0, -1))
    text = request.messages[1]["content"].replace(best, "\0").replace(worst, best).replace("\0", worst)
    swapped.messages[1]["content"] = text
    after = parse(reply(fair, swapped), 7)
    assert (after[0], after[-1]) == (before[-1], before[0])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("All", "All"),
        ("at random", "by name"),
        ("double square", "round"),
        ("</answer B", "</answer C"),
        ("the mark", "a mark"),
        ("(A, B)", "(A, A)"),
    ],
)
def test_a_garbled_prompt_is_refused(fair: SimulatedJudge, old: str, new: str) -> None:
    request = ask()
    for message in request.messages:
        message["content"] = message["content"].replace(old, new)
    if old == new:
        parse(reply(fair, request), 7)
    else:
        with pytest.raises(Refused) as caught:
            reply(fair, request)
        assert caught.value.status == 400


def test_an_unknown_prompt_is_a_failed_request_that_says_why(fair: SimulatedJudge) -> None:
    asked = [to_request(ask(question="Why does the moon shine?"), "a"), to_request(ask(), "b")]
    first, second = Judge(fair.model, fair.base_url).ask_all(asked)
    assert "use a real judge" in str(first.error)
    assert second.value is not None


def test_position_effects_show_in_the_naive_variant_only() -> None:
    server = SimulatedJudge(NOISY, Truth())
    equal = [f"answer {letter} worth 5" for letter in LETTERS[:7]]
    p = {}
    for variant in ("naive", "final"):
        first = [parse(reply(server, ask(variant, f"Question {n}?", equal)), 7)[0] for n in range(500)]
        counts = np.bincount(first, minlength=7)
        p[variant] = stats.chisquare(counts).pvalue
        if variant == "naive":
            assert counts[0] > 2 * counts[6]
    assert p["naive"] < 1e-6
    assert p["final"] > 0.01


def test_pair_winners_slip_at_the_stated_rate() -> None:
    server = SimulatedJudge(Calibration(**{**FAIR.__dict__, "slip": 0.1}), Truth())
    slips = 0
    for n in range(150):
        verdict = read_verdict(reply(server, ask(question=f"Question {n}?")), 7)
        places = {position: place for place, position in enumerate(verdict.ranking)}
        slips += sum(winner != min(a, b, key=places.__getitem__) for a, b, winner in verdict.pairs or [])
    assert slips / (150 * 21) == pytest.approx(0.1, abs=0.025)


def test_each_answer_is_graded_once() -> None:
    truth = Truth()
    server = SimulatedJudge(FAIR, truth)
    for variant in VARIANTS:
        reply(server, ask(variant))
    assert truth.graded == 7


ERRORS = {
    "not_permutation": "NotAPermutationError",
    "missing_list": "MissingListError",
    "two_lists": "SeveralListsError",
    "refusal": "RefusalError",
    "truncated": "TruncatedError",
}


@pytest.mark.parametrize("variant", ["naive", "individual_scores", "final"])
@pytest.mark.parametrize("name", TEXT)
def test_failures_of_the_text_are_told_apart(name: str, variant: str) -> None:
    server = SimulatedJudge(FAIR, Truth(), failures={name: 1.0})
    with server:
        outcome = Judge(server.model, server.base_url).ask_all([to_request(ask(variant), "x")])[0]
    assert outcome.value is None
    assert str(outcome.error).startswith(ERRORS[name]) or (name, variant) == (
        "truncated",
        "individual_scores",
    )
    assert ("max_tokens" in str(outcome.error)) == (name == "truncated")
    assert outcome.reply


def test_failures_strike_by_content_and_asking_again_helps() -> None:
    rates = dict.fromkeys(TEXT, 0.1) | {"http_429": 0.1, "http_500": 0.1}
    requests = [to_request(ask(question=f"Question {n}?"), str(n)) for n in range(40)]
    failed = []
    for order in (requests, requests[::-1]):
        with SimulatedJudge(FAIR, Truth(), failures=rates) as server:
            outcomes = Judge(server.model, server.base_url).ask_all(order)
            failed.append({outcome.id for outcome in outcomes if outcome.error})
            again = Judge(server.model, server.base_url, attempts=12).ask_all(order)
            assert all(outcome.value for outcome in again)
    assert failed[0] == failed[1]
    assert 10 <= len(failed[0]) <= 30


def test_slow_replies_take_their_time() -> None:
    with SimulatedJudge(FAIR, Truth(), failures={"slow": 1.0}, slowness=0.4) as server:
        impatient = Judge(server.model, server.base_url, timeout=0.1, retries=0)
        assert "timeout" in str(impatient.ask_all([to_request(ask(), "x")])[0].error)


@pytest.mark.parametrize("rates", [{"fire": 0.1}, {"slow": 1.5}, {"refusal": -0.1}, {"refusal": 0.6, "truncated": 0.6}])
def test_wrong_failure_rates_are_refused(rates: dict[str, float]) -> None:
    with pytest.raises(StarlingError):
        SimulatedJudge(FAIR, Truth(), failures=rates)
    assert set(ERRORS) < set(NAMES)


def test_max_tokens_cuts_the_reply(fair: SimulatedJudge) -> None:
    choice = fair.complete(body(fair, ask(), max_tokens=20))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"]) == 80


def test_the_protocol_s_errors(fair: SimulatedJudge) -> None:
    good = body(fair, ask())
    port = int(fair.base_url.split(":")[2].split("/")[0])
    posts = [
        (200, "/v1/chat/completions", json.dumps({**good, "model": "simulated-judge"})),
        (404, "/v1/chat/completions", json.dumps({**good, "model": "gpt-4"})),
        (404, "/v1/elsewhere", json.dumps(good)),
        (400, "/v1/chat/completions", "{"),
        (400, "/v1/chat/completions", "[" * 100_000),
        (400, "/v1/chat/completions", "[]"),
        (400, "/v1/chat/completions", json.dumps({**good, "n": 2})),
        (400, "/v1/chat/completions", json.dumps({**good, "stream": True})),
        (400, "/v1/chat/completions", json.dumps({**good, "seed": "x"})),
        (400, "/v1/chat/completions", json.dumps({**good, "messages": [{"role": "user"}]})),
        (400, "/v1/chat/completions", json.dumps({**good, "messages": []})),
        (
            400,
            "/v1/chat/completions",
            json.dumps({**good, "messages": [{"role": "user", "content": "Hello"}]}),
        ),
    ]
    line = http.client.HTTPConnection("127.0.0.1", port)
    try:
        for status, path, content in posts:
            line.request("POST", path, content)
            response = line.getresponse()
            answer = json.loads(response.read())
            assert response.status == status, answer
            assert status == 200 or answer["error"]["message"]
        line.request("GET", "/v1/models")
        assert fair.model in [row["id"] for row in json.loads(line.getresponse().read())["data"]]
    finally:
        line.close()


def test_a_port_in_use_is_a_clear_error(fair: SimulatedJudge) -> None:
    port = int(fair.base_url.split(":")[2].split("/")[0])
    with pytest.raises(StarlingError, match="choose another"):
        SimulatedJudge(FAIR, Truth(), port=port).__enter__()


def test_another_stage_can_teach_it_another_prompt() -> None:
    def read(messages: Sequence[Mapping[str, str]]) -> Any:
        text = messages[-1]["content"]
        if not text.startswith("RATE "):
            return None
        return SimpleNamespace(variant="", conversation=[{"role": "user", "content": "q"}], answers=[text[5:]])

    register(read, lambda shown, opinion: f"Rating: [[{opinion.grades[0]:.1f}]]")
    calm = Calibration(**{**FAIR.__dict__, "call_noise": 0.0})
    server = SimulatedJudge(calm, Truth())
    messages = [{"role": "user", "content": "RATE it is worth 8"}]
    answer = server.complete({"model": server.model, "messages": messages})
    assert answer["choices"][0]["message"]["content"] == "Rating: [[8.0]]"
