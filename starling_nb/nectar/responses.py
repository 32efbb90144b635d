"""Exactly K answers for each prompt, from a pool of responders.

The embedded pool is one small model under six ways of asking (and a livelier one in reserve), and four writers: a good
answer and a fluent wrong one written by hand, an answer cut off mid-sentence, and a good answer to another question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts import Prompt

if TYPE_CHECKING:
    from starling_nb.models import LM


@dataclass(frozen=True)
class Responder:
    """One source of answers.

    A model responder has sampling settings; a writer (``writes``) derives its answer from the prompt's own texts.
    ``weight`` is its chance of being picked for a row, relative to the others of its group.
    """

    name: str
    weight: float
    temperature: float = 0.0
    max_new_tokens: int = 80
    system: str = ""
    writes: str = ""


RESPONDERS = (
    Responder("smollm2-default", 1e6, 1.0, 64),
    Responder("smollm2-cool", 1.0, 0.7, 64),
    Responder("smollm2-steady", 1.0, 0.3, 64),
    Responder("smollm2-lively", 1.0, 1.4, 24),
    Responder("smollm2-brief", 1.0, 1.2, 24, system="Answer in one or two short, complete sentences."),
    Responder("smollm2-teacher", 1.0, 0.8, 80, system="You are a patient teacher. Explain simply and give a reason."),
    Responder(
        "smollm2-careful",
        1.0,
        0.7,
        48,
        system="Help with honest questions. Politely refuse anything harmful or illegal.",
    ),
    Responder("writer-reference", 2.0, writes="reference"),
    Responder("writer-courteous", 3.0, writes="courteous"),
    Responder("writer-flawed", 3.0, writes="flawed"),
    Responder("writer-cut", 0.5, writes="cut"),
    Responder("writer-off-topic", 1.0, writes="off_topic"),
)
MODELS_PER_ROW = 5
CLOSINGS = (
    "I hope this helps. If anything is unclear, just ask and I will gladly explain it in more detail.",
    "Let me know if you would like to hear more about this, or if you had something else in mind.",
    "Please tell me if you need anything else, and I will do my best to help you with that too.",
)


def pick(prompt_id: str, k: int = 7, seed: int = 0) -> list[Responder]:
    """The K responders of one row: five model settings and two writers for K = 7, decided by the prompt's id."""
    models = [responder for responder in RESPONDERS if not responder.writes]
    writers = [responder for responder in RESPONDERS if responder.writes]
    n_models = round(k * MODELS_PER_ROW / 7)
    if not (0 < n_models <= len(models) and k - n_models <= len(writers)):
        raise StarlingError(f"{k} answers a prompt need more responders than the pool of {len(RESPONDERS)} has")

    def draw(group: Sequence[Responder], n: int) -> list[Responder]:
        uniforms = files.rng(seed, "pick", prompt_id, group[0].name).random(len(group))
        keys = {r.name: u ** (1 / r.weight) for r, u in zip(group, uniforms, strict=True)}
        return sorted(group, key=lambda r: -keys[r.name])[:n]

    return draw(models, n_models) + draw(writers, k - n_models)


def respond(
    lm: LM,
    prompts: Sequence[Prompt],
    responder: Responder,
    *,
    others: Sequence[Prompt] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Answers of one responder by prompt id; a model's empty answers are drawn again, up to three times.

    ``others`` are the prompts from which an off-topic writer may take its answer (by default, ``prompts``).
    """
    if responder.writes:
        return {prompt.id: _write(prompt, others or prompts, responder.writes, seed) for prompt in prompts}
    from starling_nb import models

    answers: dict[str, str] = {}
    for attempt in range(4):
        waiting = [prompt for prompt in prompts if not usable(answers.get(prompt.id, ""))]
        if not waiting:
            break
        samples = models.sample(
            lm,
            [lm.chat.prompt_ids(_with_system(prompt.messages, responder.system)) for prompt in waiting],
            [f"{responder.name}/{prompt.id}/{attempt}" for prompt in waiting],
            seed=seed,
            temperature=responder.temperature,
            max_new_tokens=responder.max_new_tokens,
            progress=progress,
        )
        for prompt, sample in zip(waiting, samples, strict=True):
            answers[prompt.id] = lm.chat.decode(sample.ids)
    return {key: answer for key, answer in answers.items() if usable(answer)}


def usable(answer: str) -> bool:
    """Whether an answer can stand in a row: not empty and without the role marks of a dialogue."""
    return bool(answer.strip()) and "\n\nHuman:" not in answer and "\n\nAssistant:" not in answer


def _with_system(messages: Sequence[Message], system: str) -> list[Message]:
    return [{"role": "system", "content": system}, *messages] if system else list(messages)


def _write(prompt: Prompt, prompts: Sequence[Prompt], kind: str, seed: int) -> str:
    if kind in ("reference", "flawed"):
        return str(getattr(prompt, kind))
    generator = files.rng(seed, "writer", kind, prompt.id)
    if kind == "courteous":
        return f"{prompt.reference} {CLOSINGS[int(generator.integers(len(CLOSINGS)))]}"
    if kind == "cut":
        words = prompt.reference.split()
        return " ".join(words[: max(1, int(len(words) * generator.uniform(0.15, 0.4)))]).rstrip(".!?")
    others = [other for other in prompts if other.id != prompt.id and other.family == prompt.family]
    if not others:
        others = [other for other in prompts if other.id != prompt.id] or [prompt]
    return others[int(generator.integers(len(others)))].reference
