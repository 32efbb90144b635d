"""The simulated judge: a real chat-completions server on this machine, for runs without network and key.

It gets the text that a real judge would get and nothing else: the stages register readers that turn a prompt
back into a conversation and its answers, and answerers that write the reply. Between the two stands a choice
model whose truth is the rubric and whose weaknesses are a :class:`~starling_nb.judge.simulation.Calibration`.
Wherever its numbers appear they are called simulated.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import numpy as np

from starling_nb.errors import StarlingError
from starling_nb.files import hash_value, rng
from starling_nb.judge.simulation.batch_server import BatchRules
from starling_nb.judge.simulation.failures import Failures
from starling_nb.judge.simulation.perception import Calibration, as_grades, count_words, overlap, perceive
from starling_nb.judge.simulation.protocol import Refused
from starling_nb.judge.simulation.server import serve

MODEL = "simulated-judge"
CHARACTERS_PER_TOKEN = 4


class Shown(Protocol):
    """What a reader finds in a prompt; where answers follow different earlier turns, ``histories`` holds the
    conversation of each."""

    @property
    def variant(self) -> str: ...  # selects the position effects
    @property
    def conversation(self) -> Sequence[Mapping[str, str]]: ...
    @property
    def answers(self) -> Sequence[str]: ...  # in shown order


@dataclass(frozen=True)
class Opinion:
    """What the judge makes of the answers, in shown order; an answerer puts it into words."""

    scores: list[float]  # perceived values in logits: from high to low they are the ranking
    grades: list[float]  # the same on the scale of utilities, 1..10
    good_natured: bool
    slip: float  # share of side remarks (pair winners) that contradict the scores
    rng: np.random.Generator  # for the answerer's own draws

    @property
    def ranking(self) -> list[int]:
        """Shown positions, best to worst."""
        return [int(i) for i in np.argsort(-np.asarray(self.scores), kind="stable")]


class Truth(Protocol):
    """Where utilities come from: ``starling_nb.rubric``, or a stand-in with the same two functions."""

    def find(self, messages: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
        """The rubric of a conversation, with the judge's own answer under ``reference`` where it has one."""

    def grade(self, rubric: Mapping[str, Any], messages: Sequence[Mapping[str, str]], answer: str) -> Any:
        """An object with ``utility``, 1..10."""


Reader = Callable[[Sequence[Mapping[str, str]]], Any]
Answerer = Callable[[Any, Opinion], str]
_readers: dict[str, tuple[Reader, Answerer]] = {}


def register(reader: Reader, answerer: Answerer) -> None:
    """Teach every simulated judge of this process a kind of prompt.

    ``reader(messages)`` gives a :class:`Shown`, or None for prompts of another kind; ``answerer(shown,
    opinion)`` writes the reply. A reader that is registered again replaces its former self.
    """
    _readers[f"{reader.__module__}.{reader.__qualname__}"] = (reader, answerer)


class SimulatedJudge:
    """``with SimulatedJudge() as server: Judge(server.model, server.base_url)``.

    Args:
        calibration: None for the one in ``data/``.
        truth: None for ``starling_nb.rubric``.
        seed: of every draw; the ``seed`` parameter of a request is a second key.
        failures: failure name → rate, see :mod:`starling_nb.judge.simulation.failures`.
        slowness: seconds that a reply takes which the failure ``slow`` strikes.
        port: 0 for any free one.
        rules: how batches run, see :class:`~starling_nb.judge.simulation.BatchRules`.

    ``served`` counts replies, ``served_by_content`` counts them by ``hash_value`` of their messages.
    """

    def __init__(
        self,
        calibration: Calibration | None = None,
        truth: Truth | None = None,
        seed: int = 0,
        failures: Mapping[str, float] | None = None,
        slowness: float = 0.5,
        port: int = 0,
        rules: BatchRules | None = None,
    ) -> None:
        self.calibration = calibration or Calibration.load()
        self.truth = truth or cast(Truth, importlib.import_module("starling_nb.rubric"))
        self.seed, self.slowness, self._port, self._rules = seed, slowness, port, rules
        self.failures = Failures(failures or {}, seed)
        settings = [self.calibration.fingerprint, seed, self.failures.rates]
        self.model = f"{MODEL}@{hash_value(settings)[:8]}"
        self.served = 0
        self.served_by_content: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._find = lru_cache(maxsize=100_000)(self._find_uncached)
        self._grade = lru_cache(maxsize=400_000)(self._grade_uncached)

    def __enter__(self) -> SimulatedJudge:
        self._stop, self.base_url = serve(self, self._port, self._rules, self.failures)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def models(self) -> list[str]:
        """Names it answers to: the plain one, and one that changes with calibration, seed and failures.

        The second keeps a ledger's replies apart when the settings change.
        """
        return [MODEL, self.model]

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to the body of a chat-completions request.

        Raises:
            Refused: with the HTTP status that says why.
        """
        messages, call_seed, limit = _checked(body, self.models())
        content = hash_value(messages)
        self._fail(content)
        shown, answerer = _read(messages)
        reply = answerer(shown, self._opinion(shown, content, call_seed))
        reply, reason = self.failures.spoil(reply, content, call_seed)
        if limit is not None and len(reply) > limit * CHARACTERS_PER_TOKEN:
            reply, reason = reply[: limit * CHARACTERS_PER_TOKEN], "length"
        with self._counting:
            self.served += 1
            self.served_by_content[content] += 1
        return _completion(body["model"], messages, reply, reason, f"{content[:16]}-{call_seed}")

    def _opinion(self, shown: Shown, content: str, call_seed: int) -> Opinion:
        conversation = _frozen(shown.conversation)
        histories = [_frozen(one) for one in getattr(shown, "histories", ())] or [conversation] * len(shown.answers)
        try:
            rubric = self._find(conversation)
            known = [self._grade(own, answer) for own, answer in zip(histories, shown.answers, strict=True)]
        except StarlingError as error:
            raise Refused(400, "unknown_prompt", str(error)) from error
        utilities, lengths, styles = zip(*known, strict=True)
        own = rng(self.seed, "call", content, call_seed)
        scores = perceive(
            utilities, lengths, styles, shown.variant, self.calibration, rng(self.seed, "order", content), own
        )
        return Opinion(
            scores=scores.tolist(),
            grades=as_grades(scores, self.calibration).tolist(),
            good_natured=rubric.get("behaviour") != "refuse",
            slip=self.calibration.slip,
            rng=own,
        )

    def _find_uncached(self, conversation: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
        return self.truth.find(_messages(conversation))

    def _grade_uncached(self, conversation: tuple[tuple[str, str], ...], answer: str) -> tuple[float, int, float]:
        """Utility, words and style of an answer."""
        rubric = self._find(conversation)
        utility = float(self.truth.grade(rubric, _messages(conversation), answer).utility)
        return utility, count_words(answer), overlap(answer, str(rubric.get("reference") or ""))

    def _fail(self, content: str) -> None:
        failure = self.failures.server(content)
        if failure == "http_429":
            raise Refused(429, "rate_limit_exceeded", "too many requests (simulated)", {"Retry-After": "0.05"})
        if failure == "http_500":
            raise Refused(500, "server_error", "the server stumbled (simulated)")
        if self.failures.slow(content):
            time.sleep(self.slowness)


def _read(messages: list[dict[str, str]]) -> tuple[Any, Answerer]:
    """What the first reader that knows this kind of prompt finds in it, and that reader's answerer."""
    for reader, answerer in _readers.values():
        if (shown := reader(messages)) is not None:
            return shown, answerer
    raise Refused(400, "unreadable_prompt", "the simulated judge cannot read this prompt: use a real judge")


def _frozen(conversation: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in conversation)


def _messages(conversation: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in conversation]


def _checked(body: Mapping[str, Any], models: list[str]) -> tuple[list[dict[str, str]], int, int | None]:
    """Messages, call seed and token limit of a request's body."""
    if body.get("model") not in models:
        raise Refused(404, "model_not_found", f"only {' and '.join(models)} live here, not {body.get('model')!r}")
    if body.get("stream") or body.get("n", 1) != 1:
        raise Refused(400, "unsupported", "the simulated judge gives one whole reply: leave out stream and n")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(item) for item in messages):
        raise Refused(400, "bad_messages", "messages must be a list of {role, content} with texts")
    seed, limit = body.get("seed") or 0, body.get("max_completion_tokens") or body.get("max_tokens")
    if type(seed) is not int or (limit is not None and (type(limit) is not int or limit < 1)):
        raise Refused(400, "bad_parameter", "seed and max_tokens must be whole numbers, max_tokens at least 1")
    return [{"role": item["role"], "content": item["content"]} for item in messages], seed, limit


def _is_message(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)


def _completion(model: str, messages: list[dict[str, str]], reply: str, reason: str, name: str) -> dict[str, Any]:
    asked = -(-sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN)
    told = -(-len(reply) // CHARACTERS_PER_TOKEN)
    choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": reason}
    return {
        "id": f"simulated-{name}",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [{**choice, "logprobs": None}],
        "usage": {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told},
    }
