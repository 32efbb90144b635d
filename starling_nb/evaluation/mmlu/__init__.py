"""Knowledge by multiple choice, the way MMLU is asked (Hendrycks et al. 2021, arXiv 2009.03300).

Five solved examples of the subject, the question, four lettered choices and ``Answer:``; the model's choice
is the letter it finds likeliest. No judge is involved, and no chat template unless asked for. Tuning should
leave knowledge alone, so the question is not "better?" but "no worse?": :func:`compare` tests that, on the mean
log-likelihood margin, which moves long before a letter flips.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor
from transformers import DynamicCache

from starling_nb import files
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.tables import same_items
from starling_nb.models import LM
from starling_nb.stats import Interval, paired_difference, proportion_interval, share_change

LETTERS = "ABCD"
CHANCE = 1 / len(LETTERS)
COLUMNS = ("id", "subject", "choice", "correct", "margin", "mean_margin")
POWER = 2.8  # 1.96 + 0.84 standard errors: two-sided 5 % level, 80 % power
Verdict = Literal["holds", "fails", "floor: not testable"]


@dataclass(frozen=True)
class Question:
    """A question with four choices; ``answer`` is the index of the right one."""

    id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Comparison:
    """Whether knowledge survived.

    ``difference`` is the mean change of the log-likelihood margin, nats; ``margin`` the loss that would be
    accepted; ``chance_p`` the one-sided binomial p-value that the start does better than guessing;
    ``detectable`` the smallest true change that a test on these questions finds four times in five, nats.
    """

    verdict: Verdict
    difference: Interval
    margin: float
    accuracy_before: Interval
    accuracy_after: Interval
    accuracy_change: Interval
    chance_p: float
    detectable: float


def load(path: Path | None = None) -> list[Question]:
    """Read questions: rows with id, subject, question, choices and answer (an index or a letter).

    Raises:
        EvaluationError: a row lacks a field, or has not four choices and one right answer.
    """
    path = path or files.DATA / "bench_multiple_choice.jsonl"
    questions = []
    for row in files.read_jsonl(path):
        try:
            answer = LETTERS.index(row["answer"]) if isinstance(row["answer"], str) else int(row["answer"])
            question = Question(row["id"], row["subject"], row["question"], tuple(row["choices"]), answer)
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{path}: a question has no usable {error}: mend the row") from error
        if len(question.choices) != len(LETTERS) or not 0 <= answer < len(LETTERS):
            raise EvaluationError(f"{path}: question {question.id} needs four choices and an answer from 0 to 3")
        questions.append(question)
    return questions


def load_dev() -> list[Question]:
    """The embedded solved examples, five for each subject."""
    return load(files.DATA / "bench_multiple_choice_dev.jsonl")


def prompt(question: Question, examples: Sequence[Question]) -> str:
    """The text up to and including the last ``Answer:``."""
    subject = question.subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}."
    solved = [f"{_body(example)} {LETTERS[example.answer]}" for example in examples]
    return "\n\n".join([head, *solved, _body(question)])


def _body(question: Question) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True)]
    return "\n".join([question.question, *lines, "Answer:"])


@torch.inference_mode()
def score(
    lm: LM,
    questions: Sequence[Question],
    examples: Sequence[Question],
    *,
    shots: int = 5,
    batch: int = 32,
    reuse: bool = True,
    chat: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Ask every question, ``batch`` at a time, after the first ``shots`` examples of its subject.

    With ``reuse`` the tokens that a subject's prompts begin with are run once instead of once a question; the
    numbers are the same up to rounding. With ``chat`` the whole text is one user's turn in the model's chat
    template, and the letter opens its answer; published figures are without. ``progress`` is called with
    (questions done, questions).

    Returns:
        One row a question, in the given order: id, subject, choice (letter), correct, and in nats
        ``margin``, the right letter's log-likelihood minus the largest of the others', and ``mean_margin``,
        minus their mean. A tie for the first place is not correct.

    Raises:
        EvaluationError: a subject has fewer than ``shots`` examples, or the tokenizer splits the letters.
    """
    texts = [prompt(question, _shown(question, examples, shots)) for question in questions]
    ids, letters = (_encode_chat if chat else _encode)(lm, texts)
    logits = torch.empty(len(questions), len(LETTERS))
    done = 0
    for subject in dict.fromkeys(question.subject for question in questions):
        rows = [n for n, question in enumerate(questions) if question.subject == subject]
        rows.sort(key=lambda n: len(ids[n]))
        shared = _shared_length([ids[n] for n in rows]) if reuse else 0
        cache = _prefix_cache(lm, ids[rows[0]][:shared]) if shared else None
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            logits[part] = _letter_logits(lm, [ids[n][shared:] for n in part], letters, cache, shared)
            done += len(part)
            if progress is not None:
                progress(done, len(questions))
    return _table(questions, logits)


def _shown(question: Question, examples: Sequence[Question], shots: int) -> list[Question]:
    same = [example for example in examples if example.subject == question.subject and example.id != question.id]
    if len(same) < shots:
        raise EvaluationError(f"{shots} shots asked for, but {question.subject} has {len(same)} examples: lower shots")
    return same[:shots]


def _encode(lm: LM, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """Token ids of the prompts, and the ids of the four letters as they follow ``Answer:``."""
    tokenizer: Any = lm.chat.tokenizer
    ids: list[list[int]] = [tokenizer(text)["input_ids"] for text in texts]
    letters = []
    for letter in LETTERS if texts else "":
        longer = tokenizer(f"{texts[0]} {letter}")["input_ids"]
        if longer[:-1] != ids[0]:
            raise EvaluationError(f"the tokenizer of {lm.name} does not write ' {letter}' as one token after 'Answer:'")
        letters.append(int(longer[-1]))
    if len(set(letters)) != len(letters):
        raise EvaluationError(f"the tokenizer of {lm.name} writes two of the letters {LETTERS} alike")
    return ids, letters


def _encode_chat(lm: LM, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """As :func:`_encode`, every prompt a user's turn and the letters first tokens of the answer."""
    turns = [[{"role": "user", "content": text}] for text in texts]
    letters = []
    for letter in LETTERS if turns else "":
        whole = lm.chat.encode(turns[0], letter)
        if whole.answer_length != 2:  # the letter and the end of the turn
            raise EvaluationError(f"the tokenizer of {lm.name} does not write {letter!r} as one token of an answer")
        letters.append(whole.ids[-2])
    if len(set(letters)) != len(letters):
        raise EvaluationError(f"the tokenizer of {lm.name} writes two of the letters {LETTERS} alike")
    return [lm.chat.prompt_ids(turn) for turn in turns], letters


def _shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, leaving at least one of every row."""
    length = 0
    for column in zip(*(row[:-1] for row in rows), strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _prefix_cache(lm: LM, ids: Sequence[int]) -> DynamicCache:
    model: Any = lm.model
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return cache


def _letter_logits(
    lm: LM, rows: Sequence[Sequence[int]], letters: Sequence[int], cache: DynamicCache | None, past: int
) -> Tensor:
    """Logits of the letters after each row, ``[rows, 4]``, float32.

    Rows are padded on the right, where causal attention never looks; the prefix's keys and values are copied.
    """
    model: Any = lm.model
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=model.device)
    positions = torch.arange(past, past + width, device=model.device).expand(len(rows), -1)
    if cache is not None:
        cache = copy.deepcopy(cache)
        cache.batch_repeat_interleave(len(rows))
    out = model.model(
        input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state
    last = out[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
    # bfloat16 logits come in steps of 1/8 and tie too often: the four that count are made in float32.
    return F.linear(last.float(), model.lm_head.weight[list(letters)].float()).cpu()


def _table(questions: Sequence[Question], logits: Tensor) -> pd.DataFrame:
    right = torch.tensor([question.answer for question in questions], dtype=torch.long)[:, None]
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, right, False)
    mine = logits.gather(1, right)[:, 0]
    rivals = logits[others].view(len(questions), len(LETTERS) - 1)
    margin = (mine - rivals.amax(1)).numpy().astype(float)
    columns: Mapping[str, Any] = {
        "id": [question.id for question in questions],
        "subject": [question.subject for question in questions],
        "choice": [LETTERS[n] for n in logits.argmax(1).tolist()],
        "correct": margin > 0,
        "margin": margin,
        "mean_margin": (mine - rivals.mean(1)).numpy().astype(float),
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def accuracy(scores: pd.DataFrame) -> Interval:
    """Share of right answers, 0..1, with its Wilson interval."""
    return proportion_interval(int(scores["correct"].sum()), len(scores))


def compare(before: pd.DataFrame, after: pd.DataFrame, margin: float = 0.1, *, seed: int = 0) -> Comparison:
    """Paired non-inferiority of the mean log-likelihood margin, question by question.

    ``holds`` where the interval of the change lies wholly above ``-margin`` nats, ``fails`` where it does
    not: no proof of "no worse" is no proof. Where the start cannot be told from guessing (one-sided
    binomial p ≥ 0.05) there is nothing to lose, and the verdict says so.

    Args:
        before: scores of the start, as :func:`score` gives them.
        after: scores of the tuned model on the same questions.
        margin: the loss that would be accepted, nats, > 0.
        seed: of the bootstrap.

    Raises:
        EvaluationError: the two hold different questions or fewer than two, or the margin is not positive.
    """
    both = same_items(before, after, "questions")
    if len(both) < 2:
        raise EvaluationError("one question says nothing of a change: score both models on two at least")
    if not margin > 0:
        raise EvaluationError(f"a margin of {margin} nats accepts no loss at all: give a positive one")
    new, old = both["mean_margin_after"].to_numpy(), both["mean_margin_before"].to_numpy()
    difference = paired_difference(new, old, seed=seed)
    chance_p = float(binomtest(int(before["correct"].sum()), len(before), CHANCE, alternative="greater").pvalue)
    verdict: Verdict = "holds" if difference.low > -margin else "fails"
    return Comparison(
        verdict=verdict if chance_p < 0.05 else "floor: not testable",
        difference=difference,
        margin=margin,
        accuracy_before=accuracy(before),
        accuracy_after=accuracy(after),
        accuracy_change=share_change(both["correct_after"].astype(float) - both["correct_before"].astype(float)),
        chance_p=chance_p,
        detectable=POWER * float(np.std(new - old, ddof=1)) / len(both) ** 0.5,
    )
