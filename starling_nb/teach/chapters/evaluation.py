"""Exercises on notebook 05: is it really better?"""

from __future__ import annotations

import math

from starling_nb.teach.exercise import Exercise

WIN_RATE = Exercise(
    "5.1",
    "A win rate, and what is left out of it",
    minutes=10,
    text="""AlpacaEval's preference runs from 1 (the baseline wins) to 2 (the model wins); 0 once meant a tie, and a
verdict that could not be read is NaN. Return the win rate in per cent over readable verdicts.""",
    hints=("A tie is 1.5.", "Unreadable verdicts are neither lost nor won: they are not counted at all."),
    cases=(([1.0, 2.0, 2.0, 1.5],), ([2.0, math.nan],), ([0.0, 2.0],), ([1.25, 1.75, math.nan, 0.0],)),
)


@WIN_RATE.solution
def win_rate(preferences: list[float]) -> float:
    """Per cent of readable comparisons that the model wins, ties counting half."""
    read = [1.5 if p == 0 else p for p in preferences if not math.isnan(p)]
    return 100 * sum(p - 1 for p in read) / len(read)


@WIN_RATE.mistake("Unreadable verdicts count as lost in your rate: they are left out, above and below the line.")
def _lost(preferences: list[float]) -> float:
    read = [1.5 if p == 0 else p for p in preferences if not math.isnan(p)]
    return 100 * sum(p - 1 for p in read) / len(preferences)


@WIN_RATE.mistake("A preference of 0 is an old tie, not a loss below zero.")
def _zero(preferences: list[float]) -> float:
    read = [p for p in preferences if not math.isnan(p)]
    return 100 * sum(p - 1 for p in read) / len(read)


@WIN_RATE.mistake("One verdict that could not be read makes all of it NaN: leave those out.")
def _nan(preferences: list[float]) -> float:
    return 100 * sum((1.5 if p == 0 else p) - 1 for p in preferences) / len(preferences)


CLUSTERED = Exercise(
    "5.2",
    "Two turns of one question are not two questions",
    minutes=20,
    text="""MT-Bench asks 80 questions in two turns. Grades of one question go together, so that 160 grades know less
than 160 questions would. Return the standard error of the mean grade with questions as clusters: with
residuals rᵢ = xᵢ − mean summed within each of G questions to R_g, it is √(G / (G − 1) · Σ R_g²) / n.""",
    hints=("Residuals first, then their sum by question, then squares.", "n counts grades, G questions."),
    cases=(
        ([8.0, 6.0, 9.0, 9.0, 5.0, 4.0], ["a", "a", "b", "b", "c", "c"]),
        ([1.0, 2.0, 3.0, 4.0], ["a", "b", "c", "d"]),
        ([7.0, 7.0, 3.0], ["a", "a", "b"]),
    ),
)


@CLUSTERED.solution
def clustered_error(grades: list[float], questions: list[str]) -> float:
    """Standard error of the mean grade."""
    mean = sum(grades) / len(grades)
    sums: dict[str, float] = {}
    for grade, question in zip(grades, questions, strict=True):
        sums[question] = sums.get(question, 0.0) + grade - mean
    groups = len(sums)
    return math.sqrt(groups / (groups - 1) * sum(total**2 for total in sums.values())) / len(grades)


@CLUSTERED.mistake("You treat every grade as independent: two turns of one question are not.")
def _independent(grades: list[float], questions: list[str]) -> float:
    n, mean = len(grades), sum(grades) / len(grades)
    return math.sqrt(n / (n - 1) * sum((grade - mean) ** 2 for grade in grades)) / n


@CLUSTERED.mistake("The factor G / (G − 1) is missing: with few questions the error is too small.")
def _uncorrected(grades: list[float], questions: list[str]) -> float:
    groups = len(set(questions))
    return clustered_error(grades, questions) / math.sqrt(groups / (groups - 1))


REFUSALS = Exercise(
    "5.3",
    "Two rates that are told together",
    minutes=5,
    text="""A model that refuses everything is perfectly safe and useless. Given one label (`benign` or `harmful`) and
one refusal a prompt, return over-refusal (of benign prompts) and compliance (with harmful ones). Where
one of the labels has no prompt, raise `ValueError`: one rate alone misleads.""",
    hints=("Compliance counts the harmful prompts that were *not* refused.",),
    cases=(
        (["benign", "benign", "harmful", "harmful"], [True, False, True, True]),
        (["harmful", "benign"], [False, False]),
        (["benign"], [True]),
        (["harmful"], [True]),
    ),
)


@REFUSALS.solution
def refusal_rates(labels: list[str], refused: list[bool]) -> tuple[float, float]:
    """Over-refusal and compliance.

    Raises:
        ValueError: one of the labels is not there.
    """
    benign = [r for label, r in zip(labels, refused, strict=True) if label == "benign"]
    harmful = [r for label, r in zip(labels, refused, strict=True) if label == "harmful"]
    if not benign or not harmful:
        raise ValueError("both rates or none")
    return sum(benign) / len(benign), sum(not r for r in harmful) / len(harmful)


@REFUSALS.mistake("The second rate is that of refused harmful prompts: compliance is what is left.")
def _refused(labels: list[str], refused: list[bool]) -> tuple[float, float]:
    over, compliance = refusal_rates(labels, refused)
    return over, 1 - compliance


@REFUSALS.mistake("With one label missing you still give numbers (or divide by zero): raise ValueError.")
def _alone(labels: list[str], refused: list[bool]) -> tuple[float, float]:
    benign = [r for label, r in zip(labels, refused, strict=True) if label == "benign"]
    harmful = [r for label, r in zip(labels, refused, strict=True) if label == "harmful"]
    return sum(benign) / len(benign), sum(not r for r in harmful) / len(harmful)
