"""The simulated judge, many rankings at a time: what it does with this project's own answers.

The same choice model as behind the judge's server (:mod:`starling_nb.judge.simulation`), without requests and replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import judge_logs
from starling_nb import files, rubric
from starling_nb.judge.simulation import Calibration, count_words, overlap, perceive
from starling_nb.nectar import dataset, prompts

Floats = NDArray[np.float64]
MINI = files.DATA / "nectar_mini.parquet"


@dataclass(frozen=True)
class Answers:
    """What the judge can see of ``n`` prompts' answers; arrays ``[n, 7]``."""

    candidates: Sequence[dataset.Candidates]
    utilities: Floats
    lengths: Floats
    styles: Floats
    characters: Floats

    @classmethod
    def of(cls, candidates: Sequence[dataset.Candidates]) -> Answers:
        """Grade every answer by the rubric of its prompt."""

        def table(value: Any) -> Floats:
            return np.array([[value(c.prompt, answer) for answer in c.answers] for c in candidates], dtype=float)

        return cls(
            candidates,
            table(lambda p, answer: rubric.grade(rubric.find(p.messages), p.messages, answer).utility),
            table(lambda p, answer: count_words(answer)),
            table(lambda p, answer: overlap(answer, p.reference)),
            table(lambda p, answer: len(answer)),
        )

    @property
    def fingerprint(self) -> str:
        """A hash of prompts and answers, whatever their ranks and order."""
        return files.hash_value(sorted([item.prompt.id, *sorted(item.answers)] for item in self.candidates))


def load_answers(path: Path = MINI) -> Answers:
    """Answers of a Nectar parquet file."""
    return Answers.of(dataset.candidates_of(dataset.load(path), prompts.load()))


@dataclass(frozen=True)
class Judged:
    """Simulated rankings; arrays ``[n * rounds, 7]`` over answers, prompts running fastest."""

    answers: Answers
    scores: Floats
    places: NDArray[np.intp]  # where each answer was shown

    @cached_property
    def ranks(self) -> NDArray[np.intp]:
        return (-self.scores).argsort(1, kind="stable").argsort(1)

    @cached_property
    def one_hot(self) -> Floats:
        """``[rankings, 49]``: shown position x rank."""
        rank_at = np.empty_like(self.ranks)
        np.put_along_axis(rank_at, self.places, self.ranks, 1)
        return np.eye(7)[rank_at].reshape(-1, 49)

    def by_prompt(self, values: Floats) -> Floats:
        """Mean over the rounds."""
        means: Floats = values.reshape(-1, len(self.answers.utilities)).mean(0)
        return means


def judge(
    answers: Answers, calibration: Calibration, variant: str, rounds: int, order: str = "one", call: str = "one"
) -> Judged:
    """Rank every prompt's answers ``rounds`` times, each time in a new order.

    Equal ``order`` shows the same orders again; equal ``call`` as well repeats the very same calls.
    """
    shape = (rounds * len(answers.utilities), 7)
    places = files.rng(0, "places", order).random(shape).argsort(1)
    shown = places.argsort(1)
    utilities, lengths, styles = (
        np.take_along_axis(np.tile(values, (rounds, 1)), shown, 1)
        for values in (answers.utilities, answers.lengths, answers.styles)
    )
    own = files.rng(0, "order", order), files.rng(0, "call", order, call)
    scores = perceive(utilities, lengths, styles, variant, calibration, *own)
    return Judged(answers, np.take_along_axis(scores, places, 1), places)


def tau(a: NDArray[Any], b: NDArray[Any]) -> Floats:
    """Kendall's tau-a of every row."""
    i, j = np.triu_indices(a.shape[1], 1)
    taus: Floats = (np.sign(a[:, i] - a[:, j]) * np.sign(b[:, i] - b[:, j])).mean(1)
    return taus


def agreement(answers: Answers, calibration: Calibration, rounds: int, variant: str = "final") -> dict[str, Floats]:
    """Measures of one variant by prompt: with itself, with ``final`` in another order, with length, with the rubric."""
    once = judge(answers, calibration, variant, rounds)
    again = judge(answers, calibration, variant, rounds, call="two")
    other = judge(answers, calibration, "final", rounds, order="two")
    i, j = np.triu_indices(7, 1)
    characters, truth = (np.tile(x, (rounds, 1)) for x in (answers.characters, answers.utilities))
    gaps = characters[:, i] - characters[:, j]
    longer = np.where(gaps == 0, np.nan, (gaps > 0) == (once.scores[:, i] > once.scores[:, j]))
    return {
        "retest_tau": once.by_prompt(tau(once.scores, again.scores)),
        "other_order_tau": once.by_prompt(tau(once.scores, other.scores)),
        "longer_wins": once.by_prompt(np.nanmean(longer, axis=1)),
        "rubric_tau": once.by_prompt(tau(once.scores, truth)),
        "rubric_best_first": once.by_prompt((once.scores.argmax(1) == truth.argmax(1)).astype(float)),
    }


def word_regression(answers: Answers, calibration: Calibration, rounds: int = 2) -> dict[str, dict[str, float]]:
    """:func:`judge_logs.regress` on simulated final rankings; the writer's reference stands for the judge's own."""
    judged = judge(answers, calibration, "final", rounds)
    rows = []
    for i, (ranks, places) in enumerate(zip(judged.ranks, judged.places, strict=True)):
        item = answers.candidates[i % len(answers.candidates)]
        if item.prompt.reference in item.answers:
            shown = places.argsort()
            texts, models = [item.answers[a] for a in shown], [item.models[a] for a in shown]
            own = texts.index(item.prompt.reference)
            ranking = places[ranks.argsort()].tolist()
            rows.append((item.prompt.id, judge_logs.describe(texts, models, ranking, texts[own], [own])))
    return judge_logs.regress(rows)
