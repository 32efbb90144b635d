"""Exercises on notebook 03: from rankings to a score."""

from __future__ import annotations

import math

from starling_nb.teach.exercise import Exercise

K_WISE = Exercise(
    "3.1",
    "The K-wise loss",
    minutes=15,
    text="""Plackett and Luce: the best answer is chosen among all with probability softmax(scores), the next among
those that are left, and so on. Given the scores of K answers from best to worst, return the negative log-
likelihood of the ranking divided by the K − 1 choices (the last one is no choice). Scores of 1,000 must
not overflow.""",
    hints=(
        "The choice at place `i` has the logits `scores[i:]`.",
        "log-sum-exp: take the largest score off before `exp`, and add it again after `log`.",
    ),
    cases=(([2.0, 1.0, 0.0],), ([0.0, 0.0],), ([0.0, 3.0, -1.0, 0.5],), ([1000.0, 999.0, 0.0],), ([-3.0, 2.0],)),
)


@K_WISE.solution
def k_wise_loss(scores: list[float]) -> float:
    """Mean negative log-likelihood of a choice, nats; scores from the best answer to the worst."""
    total = 0.0
    for place in range(len(scores) - 1):
        left = scores[place:]
        top = max(left)
        total += top + math.log(sum(math.exp(score - top) for score in left)) - scores[place]
    return total / (len(scores) - 1)


def _log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


@K_WISE.mistake("Every choice competes with all answers in your loss: those already placed are gone.")
def _all_compete(scores: list[float]) -> float:
    choices = range(len(scores) - 1)
    return sum(_log_sum_exp(scores) - scores[i] for i in choices) / len(choices)


@K_WISE.mistake("You sum over the choices: divide by K − 1, or long rankings weigh more than short ones.")
def _summed(scores: list[float]) -> float:
    return sum(_log_sum_exp(scores[i:]) - scores[i] for i in range(len(scores) - 1))


@K_WISE.mistake("You divide by K. The last answer is no choice: K − 1.")
def _by_k(scores: list[float]) -> float:
    return sum(_log_sum_exp(scores[i:]) - scores[i] for i in range(len(scores))) / len(scores)


@K_WISE.mistake("The sign is turned: a better fit has to give a smaller loss.")
def _turned(scores: list[float]) -> float:
    return -k_wise_loss(scores)


@K_WISE.mistake("Right for small scores, but exp(1000) overflows: take the largest score off first.")
def _overflows(scores: list[float]) -> float:
    choices = range(len(scores) - 1)
    return sum(math.log(sum(math.exp(s) for s in scores[i:])) - scores[i] for i in choices) / len(choices)


CONSTANT = Exercise(
    "3.2",
    "What a ranking loss never sees",
    minutes=10,
    text="""Add any constant to all scores of one prompt, and the K-wise loss is the same. So a prompt's level means
nothing, and an RL run that compares answers to *different* prompts would learn from noise. Take off each
prompt's mean: given one prompt name and one score an answer, return the centred scores.""",
    hints=("Collect the scores by prompt first.", "An answer alone in its prompt gets 0."),
    cases=(
        (["a", "a", "b", "b"], [1.0, 3.0, 10.0, 14.0]),
        (["a", "b", "a"], [1.0, 5.0, 2.0]),
        (["a"], [4.0]),
    ),
)


@CONSTANT.solution
def centred(prompts: list[str], scores: list[float]) -> list[float]:
    """Each score less the mean of its prompt's."""
    own: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, scores, strict=True):
        own.setdefault(prompt, []).append(score)
    return [score - sum(own[prompt]) / len(own[prompt]) for prompt, score in zip(prompts, scores, strict=True)]


@CONSTANT.mistake("You take off the mean of all answers: levels of prompts are still in there.")
def _one_mean(prompts: list[str], scores: list[float]) -> list[float]:
    mean = sum(scores) / len(scores)
    return [score - mean for score in scores]


LAST = Exercise(
    "3.3",
    "Mend a padding bug",
    minutes=10,
    text="""The score is read at an answer's **last token**. Rows of a batch are padded on the right to one length,
with a token that may well be the end of turn itself. Given the rows' lengths and hidden values
`[rows][places]`, return the value at each row's last real token.""",
    hints=("Index −1 is padding in all rows but the longest.", "Lengths decide, never the token ids."),
    cases=(
        ([3, 1, 2], [[1.0, 2.0, 3.0, 9.0], [4.0, 7.0, 8.0, 9.0], [5.0, 6.0, 8.0, 9.0]]),
        ([2, 2], [[1.0, 2.0], [3.0, 4.0]]),
    ),
)


@LAST.solution
def last_values(lengths: list[int], hidden: list[list[float]]) -> list[float]:
    """The value at each row's last real token."""
    return [row[length - 1] for row, length in zip(hidden, lengths, strict=True)]


@LAST.mistake("You read the last place of the row: that is padding wherever the row is shorter than the longest.")
def _padding(lengths: list[int], hidden: list[list[float]]) -> list[float]:
    return [row[-1] for row in hidden]


@LAST.mistake("One too far: a row of n tokens ends at index n − 1.")
def _beyond(lengths: list[int], hidden: list[list[float]]) -> list[float]:
    return [row[length] for row, length in zip(hidden, lengths, strict=True)]


LENGTH = Exercise(
    "3.4",
    "Break a reward model with a ruler",
    minutes=10,
    text="""Before a reward model is called good it has to beat *longer is better*. Given the lengths of the better
and the worse answer of each pair, return the accuracy of that rule; equal lengths count half, as a coin
would.""",
    hints=("A tie is worth one half.",),
    cases=(([10, 20, 30], [5, 25, 30]), ([7], [7]), ([3, 9], [1, 2]), ([1, 2], [5, 6])),
)


@LENGTH.solution
def longer_is_better(better: list[int], worse: list[int]) -> float:
    """Accuracy of the rule that the longer answer wins."""
    points = [(a > b) + 0.5 * (a == b) for a, b in zip(better, worse, strict=True)]
    return sum(points) / len(points)


@LENGTH.mistake("You give ties to the rule: a coin is right half the time.")
def _ties_won(better: list[int], worse: list[int]) -> float:
    return sum(a >= b for a, b in zip(better, worse, strict=True)) / len(better)


@LENGTH.mistake("You count ties as lost: a coin is right half the time.")
def _ties_lost(better: list[int], worse: list[int]) -> float:
    return sum(a > b for a, b in zip(better, worse, strict=True)) / len(better)
