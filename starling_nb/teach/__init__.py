"""Exercises beside the notebooks: write a piece of the system yourself, and be told what went wrong.

``starling-nb teach build`` writes a sheet a chapter, for students and for teachers. In a sheet every exercise is a stub
and a call of :func:`check` below it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from starling_nb import progress
from starling_nb.teach.exercise import Exercise, ExerciseError

__all__ = ["CHAPTERS", "Exercise", "ExerciseError", "check", "exercises"]

CHAPTERS = (
    "dataset_construction",
    "positional_bias",
    "reward_training",
    "policy_tuning",
    "evaluation",
    "overoptimization",
    "scaling_out",
)


def exercises() -> dict[str, list[Exercise]]:
    """All exercises in order, by chapter."""
    found = {name: import_module(f"starling_nb.teach.chapters.{name}") for name in CHAPTERS}
    return {name: [x for x in vars(chapter).values() if isinstance(x, Exercise)] for name, chapter in found.items()}


def check(number: str, answer: Callable[..., Any]) -> bool:
    """Whether ``answer`` solves the exercise of that number; says so, or what is wrong with it.

    Raises:
        ExerciseError: there is no such exercise; in a batch run also where the answer is wrong.
    """
    every = {one.number: one for part in exercises().values() for one in part}
    if number not in every:
        raise ExerciseError(f"there is no exercise {number}: choose from {', '.join(every)}")
    wrong = every[number].verdict(answer)
    if wrong and progress.headless():
        raise ExerciseError(f"exercise {number}: {wrong}")
    print(f"exercise {number}: {wrong or 'right'}")
    return not wrong
