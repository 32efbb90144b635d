"""What the simulated judge needs for this stage: reading the two kinds of prompt back, and writing the
replies.

It sees the text that a real judge sees. A prompt that was changed anywhere outside its fenced texts is not
read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starling_nb.chat import Message
from starling_nb.evaluation import alpaca_eval, mt_bench
from starling_nb.judge import fences, simulation

TURNS = ("system", "user", "assistant")


@dataclass(frozen=True)
class Shown:
    """A prompt of this stage, read back; ``variant`` names position effects of the judge's calibration."""

    variant: str
    conversation: list[Message]
    answers: list[str]


def read_grading(messages: Sequence[Mapping[str, str]]) -> Shown | None:
    """The conversation and answer of an MT-Bench request; None for prompts of another kind."""
    return _read(messages, mt_bench.SYSTEM, "grading", [["answer"], ["reference", "answer"]])


def read_comparison(messages: Sequence[Mapping[str, str]]) -> Shown | None:
    """The conversation and both answers, in shown order, of an AlpacaEval request; None for others."""
    return _read(messages, alpaca_eval.SYSTEM, "comparison", [["answer_a", "answer_b"]])


def write_grade(shown: Shown, opinion: simulation.Opinion) -> str:
    """The grade, a whole number as GPT-4 mostly gives it, after a sentence."""
    grade = max(1, min(10, round(opinion.grades[0])))
    verdict = "falls short of" if grade < 4 else "partly meets" if grade < 8 else "meets"
    return f"Measured by what was asked, the answer {verdict} the request.\n[[{grade}]]"


def write_comparison(shown: Shown, opinion: simulation.Opinion) -> str:
    """The winner of the opinion's draw, after a sentence."""
    winner = "AB"[opinion.ranking[0]]
    return f"Answer {winner} serves the user better.\n[[{winner}]]"


def register() -> None:
    """Teach every simulated judge of this process to grade and to compare; again changes nothing."""
    simulation.register(read_grading, write_grade)
    simulation.register(read_comparison, write_comparison)


def _read(
    messages: Sequence[Mapping[str, str]], template: str, variant: str, endings: Sequence[list[str]]
) -> Shown | None:
    """The blocks of a request: turns of a conversation, then one of ``endings``."""
    if [message["role"] for message in messages] != ["system", "user"]:
        return None
    code = fences.find_code(messages[0]["content"], template)
    blocks = fences.read(messages[1]["content"], code) if code else None
    if blocks is None:
        return None
    turns = [block for block in blocks if block.kind in TURNS]
    rest = blocks[len(turns) :]
    if not turns or [block.kind for block in rest] not in endings:
        return None
    conversation = [{"role": block.kind, "content": block.text} for block in turns]
    return Shown(variant, conversation, [block.text for block in rest if block.kind.startswith("answer")])
