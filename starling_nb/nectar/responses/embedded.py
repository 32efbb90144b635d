"""The embedded pool: one small model under six ways of asking (and a livelier one in reserve), and five writers.

The writers derive an answer from the prompt's own texts: a good answer and a fluent wrong one written by hand, the good
one with a courteous close, one cut off mid-sentence, and a good answer to another question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts import Prompt
from starling_nb.nectar.responses.responders import Local, Responder, Settings

if TYPE_CHECKING:
    from starling_nb.models import LM

_BRIEF = "Answer in one or two short, complete sentences."
_TEACHER = "You are a patient teacher. Explain simply and give a reason."
_CAREFUL = "Help with honest questions. Politely refuse anything harmful or illegal."

MODELS = (  # the small model stops rarely by itself: a cut answer may stand
    Settings("smollm2-default", 1e6, "", 1.0, 64, True),
    Settings("smollm2-cool", 1.0, "", 0.7, 64, True),
    Settings("smollm2-steady", 1.0, "", 0.3, 64, True),
    Settings("smollm2-lively", 1.0, "", 1.4, 24, True),
    Settings("smollm2-brief", 1.0, _BRIEF, 1.2, 24, True),
    Settings("smollm2-teacher", 1.0, _TEACHER, 0.8, 80, True),
    Settings("smollm2-careful", 1.0, _CAREFUL, 0.7, 48, True),
)
WRITERS = {"reference": 2.0, "courteous": 3.0, "flawed": 3.0, "cut": 0.5, "off_topic": 1.0}
"""Weight of each writer."""
MODELS_PER_ROW = 5
CLOSINGS = (
    "I hope this helps. If anything is unclear, just ask and I will gladly explain it in more detail.",
    "Let me know if you would like to hear more about this, or if you had something else in mind.",
    "Please tell me if you need anything else, and I will do my best to help you with that too.",
)


@dataclass(frozen=True)
class Writer:
    """Derives an answer from the prompt's own texts, or (``off_topic``) from those of ``others``."""

    kind: str
    others: Sequence[Prompt]

    @property
    def name(self) -> str:
        """The responder's name in the data set."""
        return f"writer-{self.kind.replace('_', '-')}"

    @property
    def weight(self) -> float:
        """Its chance of being picked, relative to the other writers."""
        return WRITERS[self.kind]

    def answer(self, prompts: Sequence[Any], seed: int, faults: Callable[[str], object]) -> dict[str, str]:
        """Answers by prompt id."""
        return {prompt.id: self._write(prompt, seed) for prompt in prompts}

    def _write(self, prompt: Prompt, seed: int) -> str:
        if self.kind in ("reference", "flawed"):
            return str(getattr(prompt, self.kind))
        generator = files.rng(seed, "writer", self.kind, prompt.id)
        if self.kind == "courteous":
            return f"{prompt.reference} {CLOSINGS[int(generator.integers(len(CLOSINGS)))]}"
        if self.kind == "cut":
            words = prompt.reference.split()
            return " ".join(words[: max(1, int(len(words) * generator.uniform(0.15, 0.4)))]).rstrip(".!?")
        others = [other for other in self.others if other.id != prompt.id and other.family == prompt.family]
        if not others:
            others = [other for other in self.others if other.id != prompt.id] or [prompt]
        return others[int(generator.integers(len(others)))].reference


def pool(lm: LM, others: Sequence[Prompt]) -> list[Responder]:
    """Every embedded responder: the small model's ways of being asked, then the writers."""
    return [*(Local(settings, lm) for settings in MODELS), *(Writer(kind, others) for kind in WRITERS)]


def order(prompt_id: str, responders: Sequence[Responder], k: int = 7, seed: int = 0) -> list[Responder]:
    """Who is asked for one row's answers: five model settings and two writers for K = 7, then everyone else.

    Raises:
        StarlingError: the pool is too small for ``k`` answers.
    """
    writers = [responder for responder in responders if isinstance(responder, Writer)]
    models = [responder for responder in responders if responder not in writers]
    n_models = round(k * MODELS_PER_ROW / 7)
    if not (0 < n_models <= len(models) and k - n_models <= len(writers)):
        raise StarlingError(f"{k} answers a prompt need more responders than the pool of {len(responders)} has")

    def draw(group: Sequence[Responder], n: int) -> list[Responder]:
        uniforms = files.rng(seed, "pick", prompt_id, group[0].name).random(len(group))
        keys = {r.name: u ** (1 / r.weight) for r, u in zip(group, uniforms, strict=True)}
        return sorted(group, key=lambda r: -keys[r.name])[:n]

    picked = draw(models, n_models) + draw(writers, k - n_models)
    return [*picked, *(responder for responder in responders if responder not in picked)]
