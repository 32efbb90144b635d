"""How far to trust a run's judge: against the rubric on the run's own answers, against people on hand-ranked ones.

The rubric is this project's truth and not everybody's: it reads words, not meaning. People agree with it, and the judge
with them, only as far as the figures on ``hand`` say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from starling_nb import files, rubric
from starling_nb.chat import Message
from starling_nb.evaluation import agreement
from starling_nb.evaluation.judges import judging, pair_sets
from starling_nb.judge import Judge
from starling_nb.stats import Interval

CLEAR = 1.0
"""Grades of the rubric (1 to 10) between two answers from which one of them is clearly better."""
SETS = ("hand", "tricks")


def labels(prompts: Mapping[str, Sequence[Message]], answers: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """What the rubric says of two models' answers: prompt_id, first, second, their texts, winner, gap (grades).

    Args:
        prompts: conversations by id, of this project.
        answers: of two models, by id.

    Raises:
        UnknownPrompt: a prompt has no rubric.
    """
    one, other = answers
    rows = []
    for id, messages in prompts.items():
        texts = answers[one][id], answers[other][id]
        grades = [rubric.grade(rubric.find(messages), messages, text).utility for text in texts]
        gap = round(grades[0] - grades[1], 6)
        rows.append((id, one, other, *texts, "first" if gap > 0 else "second" if gap < 0 else "tie", abs(gap)))
    return pd.DataFrame(rows, columns=["prompt_id", "first", "second", "first_text", "second_text", "winner", "gap"])


def of_run(verdicts: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """A judge's verdicts in both orders beside :func:`labels`: on ("run"), figure, value, low, high, n (prompts).

    ``accuracy``: of the pairs that the rubric does not call equal; ``accuracy_clear``: of those at least :data:`CLEAR`
    grades apart; ``longer_wins``: the longer answer's accuracy on the first; and :func:`pair_sets.order_figures`. A
    figure without a pair to rest on is left out. Answers that were equal to the letter were not asked about.
    """
    read = verdicts.dropna(subset="winner")
    apart = truth[(truth["gap"] > 0) & truth["prompt_id"].isin(read["prompt_id"])]
    found: dict[str, Interval] = {}
    for figure, pairs in (("accuracy", apart), ("accuracy_clear", apart[apart["gap"] >= CLEAR])):
        if len(pairs):
            found[figure] = agreement.accuracy(verdicts, pairs).decided
    if len(apart):
        found["longer_wins"] = agreement.accuracy(agreement.longer_wins(apart), apart).accuracy
    if read["prompt_id"].duplicated().any():
        found |= pair_sets.order_figures(agreement.both_orders(verdicts))
    rows = [{"on": "run", "figure": figure, **vars(value)} for figure, value in found.items()]
    return pd.DataFrame(rows, columns=["on", "figure", "value", "low", "high", "n"])


def of_sets(judge: Judge, n: int, seed: int = 0) -> pd.DataFrame:
    """The judge on ``n`` pairs (0: all), chosen by hash, of each of :data:`SETS`: on (the set) and what
    :func:`pair_sets.figures` gives.

    Raises:
        EvaluationError: as :func:`pair_sets.figures`.
        JudgeStopped: the budget is used up, or the judge cannot be reached.
    """
    judging.register()
    found = []
    for name in SETS:
        pairs = pair_sets.read(name)
        order = pairs["pair_id"].map(files.hash_value).sort_values(kind="stable").index
        some = pairs.loc[order[: n or None]].sort_index()
        found.append(pair_sets.figures(name, pair_sets.ask(judge, some, seed=seed), some).assign(on=name))
    table = pd.concat([one.set_index("on").reset_index() for one in found], ignore_index=True)
    table.attrs = {}
    return table
