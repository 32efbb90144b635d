"""Who answers: a model on this machine, or one behind an OpenAI-compatible server, each with its own settings.

Every answer lies in a ledger before it is used, so that none is paid for or computed twice. What cannot stand in a row
(:func:`fault`) is drawn again with another seed and, in the end, left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.judge.asking import Request
from starling_nb.judge.ledger import Attempt, Ledger, key
from starling_nb.nectar.candidates import Waiting

if TYPE_CHECKING:
    from starling_nb.judge.client import Judge
    from starling_nb.models import LM

TRIES = 4
"""How often one responder is asked for one answer."""
ROWS = 512
"""Answers of a local model that are sampled, and entered into its ledger, together."""
_DIALOGUE = re.compile(
    r"^\W{0,4}(?:human|assistant)\s?:|^#{2,4} ?(?:human|instruction)\b", re.IGNORECASE | re.MULTILINE
)


class FaultyAnswerError(StarlingError):
    """An answer that cannot stand in a row; the message begins with the fault's name."""


def fault(answer: str, truncated: bool = False) -> str | None:
    """Why an answer cannot stand in a row: ``empty``, ``dialogue`` (it goes on as another speaker, a known fault of
    Nectar), ``truncated``; None where it can."""
    if not answer.strip():
        return "empty"
    if _DIALOGUE.search(answer):
        return "dialogue"
    return "truncated" if truncated else None


def same(answer: str) -> str:
    """Equal for answers that differ only in white space and case."""
    return " ".join(answer.split()).casefold()


class Responder(Protocol):
    """One source of answers; ``weight`` is its chance of being picked, relative to the others."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...

    def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
        """Usable answers by prompt id; ``faults`` is called with the name of every fault met."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a model is asked. The defaults are those of Nectar's local models (temperature 0.8, 1,024 tokens)."""

    name: str
    weight: float = 1.0
    system: str = ""
    temperature: float = 0.8
    max_tokens: int = 1024
    may_be_cut: bool = False  # whether an answer that the token limit ended may stand

    def __post_init__(self) -> None:
        if not self.name or self.weight <= 0 or self.temperature < 0 or self.max_tokens < 1:
            raise StarlingError(
                f"responder {self.name!r}: a name, weight > 0, temperature >= 0 and max_tokens >= 1 are needed"
            )

    def messages(self, prompt: Waiting) -> list[Message]:
        """The conversation as this responder is shown it."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *({"role": m["role"], "content": m["content"]} for m in prompt.messages)]


@dataclass(frozen=True)
class Model:
    """A responder with settings."""

    settings: Settings

    @property
    def name(self) -> str:
        """The responder's name in the data set."""
        return self.settings.name

    @property
    def weight(self) -> float:
        """Its chance of being picked, relative to the others."""
        return self.settings.weight


@dataclass(frozen=True)
class Endpoint(Model):
    """A model behind a server; ``judge`` is the client that asks it (its ledger, limits and budget hold).

    ``twin`` counts the responders before it that ask the same model in the same way: each of them draws for itself.
    """

    judge: Judge
    twin: int = 0

    def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
        """Usable answers by prompt id.

        Raises:
            JudgeUnavailable, BudgetExceeded: asking came to an end for every request.
        """
        settings = self.settings
        own = seed + 1_000_003 * self.twin  # further apart than a request's tries, each of which adds one
        params = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": own}
        met: set[tuple[str, str, str]] = set()  # prompt, fault, reply: a reply is read more than once

        def checked(reply: str, id: str) -> str:
            if (found := fault(reply)) is not None:
                met.add((id, found, reply))
                raise FaultyAnswerError(found)
            return reply.strip()

        outcomes = self.judge.ask_all(
            Request(p.id, settings.messages(p), params, partial(checked, id=p.id), not settings.may_be_cut)
            for p in prompts
        )
        for outcome in outcomes:
            if outcome.value is None and not str(outcome.error).startswith("FaultyAnswerError"):
                faults("truncated" if str(outcome.error).startswith("TruncatedReply") else "unanswered")
        for _, found, _ in sorted(met):
            faults(found)
        return {outcome.id: outcome.value for outcome in outcomes if outcome.value is not None}


@dataclass(frozen=True)
class Local(Model):
    """A model on this machine, sampled in batches; ``ledger`` keeps its answers."""

    lm: LM
    ledger: Ledger | None = None
    progress: Callable[[int, int], None] | None = None

    def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
        """Usable answers by prompt id; a draw is decided by the responder's name, the prompt's id and the try."""
        ledger = Ledger() if self.ledger is None else self.ledger
        found: dict[str, str] = {}
        for attempt in range(TRIES):
            waiting = [prompt for prompt in prompts if prompt.id not in found]
            for prompt, text, cut in self._answers(ledger, waiting, attempt, seed):
                wrong = fault(text, cut and not self.settings.may_be_cut)
                if wrong is None:
                    found[prompt.id] = text
                else:
                    faults(wrong)
        return found

    def _answers(self, ledger: Ledger, prompts: Sequence[Any], attempt: int, seed: int) -> list[tuple[Any, str, bool]]:
        """Each prompt with an answer and whether the token limit ended it: from the ledger, or sampled now."""
        params = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens, "seed": seed}
        own = params | {"model": self.lm.fingerprint()}
        names = [key(self.name, self.settings.messages(prompt), own | {"id": prompt.id}, attempt) for prompt in prompts]
        known = {name: entry for name in names if (entry := ledger.get(name)) is not None}
        missing = [n for n, name in enumerate(names) if name not in known]
        for first in range(0, len(missing), ROWS):
            some = missing[first : first + ROWS]
            fresh = self._sample([prompts[n] for n in some], attempt, seed)
            entered = [
                Attempt(names[n], prompts[n].id, self.name, attempt, params, "reply", text, "length" if cut else "stop")
                for n, (text, cut) in zip(some, fresh, strict=True)
            ]
            ledger.append(entered)
            known |= {entry.key: entry for entry in entered}
        return [
            (prompt, known[name].reply or "", known[name].finish_reason == "length")
            for prompt, name in zip(prompts, names, strict=True)
        ]

    def _sample(self, prompts: Sequence[Any], attempt: int, seed: int) -> list[tuple[str, bool]]:
        from starling_nb import models

        if not prompts:
            return []
        samples = models.sample(
            self.lm,
            [self.lm.chat.prompt_ids(self.settings.messages(prompt)) for prompt in prompts],
            [f"{self.name}/{prompt.id}/{attempt}" for prompt in prompts],
            seed=seed,
            temperature=self.settings.temperature,
            max_new_tokens=self.settings.max_tokens,
            progress=self.progress,
        )
        return [(self.lm.chat.decode(sample.ids), not sample.finished) for sample in samples]
