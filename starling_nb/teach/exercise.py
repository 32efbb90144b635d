"""One exercise: what is asked, a solution, and the mistakes that people make, each with what to tell them.

Solution and mistakes are functions that run. An answer is right where it does as the solution does on every case; where
it does as a known mistake does, the mistake's own hint is given.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starling_nb.errors import StarlingError

F = TypeVar("F", bound=Callable[..., Any])


class ExerciseError(StarlingError):
    """An unknown exercise, or, in a batch run, a wrong answer."""


@dataclass
class Exercise:
    """An exercise.

    Attributes:
        number: chapter and place in it (``3.1``).
        title: in a few words.
        minutes: about how long it takes.
        text: what is asked, Markdown.
        hints: one after another, each tells more.
        cases: arguments on which answers are compared.
    """

    number: str
    title: str
    minutes: int
    text: str
    hints: Sequence[str]
    cases: Sequence[tuple[Any, ...]]
    mistakes: list[tuple[Callable[..., Any], str]] = field(default_factory=list)
    _solution: Callable[..., Any] | None = None

    def solution(self, function: F) -> F:
        """Decorates the function that solves it; its name, signature and docstring are the stub's."""
        self._solution = function
        return function

    def mistake(self, hint: str) -> Callable[[F], F]:
        """Decorates a wrong solution; ``hint`` is told to whoever hands in one that does the same."""

        def keep(function: F) -> F:
            self.mistakes.append((function, hint))
            return function

        return keep

    @property
    def solved(self) -> Callable[..., Any]:
        """The solution."""
        assert self._solution is not None, f"exercise {self.number} has no solution"
        return self._solution

    @property
    def source(self) -> str:
        """The solution's source, without decorator."""
        lines = textwrap.dedent(inspect.getsource(self.solved)).splitlines()
        return "\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("def ")) :])

    @property
    def stub(self) -> str:
        """The source with signature and docstring alone, and a line that raises where the answer belongs."""
        function = ast.parse(self.source).body[0]
        assert isinstance(function, ast.FunctionDef)
        head = self.source.splitlines()[: function.body[0].end_lineno]
        return "\n".join([*head, f'    raise NotImplementedError("exercise {self.number}")'])

    def verdict(self, answer: Callable[..., Any]) -> str:
        """What is wrong with an answer, or nothing."""
        due = [_outcome(self.solved, case) for case in self.cases]
        found = [_outcome(answer, case) for case in self.cases]
        if any(isinstance(one, NotImplementedError) for one in found):
            return "not written yet: put your lines in the place of the one that raises"
        places = [i for i, (a, b) in enumerate(zip(found, due, strict=True)) if not same(a, b)]
        if not places:
            return self._changed(answer)
        for wrong, hint in self.mistakes:
            if all(same(one, _outcome(wrong, case)) for one, case in zip(found, self.cases, strict=True)):
                return hint
        first = places[0]
        given = ", ".join(map(repr, self.cases[first]))
        return f"for ({given}) it gives {_told(found[first])}, and {_told(due[first])} is due"

    def _changed(self, answer: Callable[..., Any]) -> str:
        given = copy.deepcopy(list(self.cases))
        for case in given:
            _outcome(answer, case, kept=False)
        untouched = all(same(list(a), list(b)) for a, b in zip(given, self.cases, strict=True))
        return "" if untouched else "right, but it changes its arguments: work on a copy"


def same(one: Any, other: Any) -> bool:
    """Equality to rounding: of numbers, of sequences item by item, of mappings, of errors by their kind."""
    if isinstance(one, Exception) or isinstance(other, Exception):
        return type(one) is type(other)
    if hasattr(one, "tolist") or hasattr(other, "tolist"):
        return same(*(x.tolist() if hasattr(x, "tolist") else x for x in (one, other)))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and bool(one == other)


def _outcome(function: Callable[..., Any], case: tuple[Any, ...], kept: bool = True) -> Any:
    """What a function returns or raises on a case, of which it gets a copy."""
    try:
        return function(*(copy.deepcopy(case) if kept else case))
    except Exception as error:
        return error


def _told(outcome: Any) -> str:
    return f"{type(outcome).__name__} ({outcome})" if isinstance(outcome, Exception) else repr(outcome)
