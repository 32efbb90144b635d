"""Notebook 05, step by step: two models through the four benchmarks, one judge for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from starling_nb.chat import Message
from starling_nb.evaluation import alpaca_eval, mmlu, mt_bench, safety
from starling_nb.evaluation.alpaca_eval import annotators, length_control
from starling_nb.evaluation.answering import Pair, answer, some
from starling_nb.evaluation.arena.voting import ArenaSession
from starling_nb.evaluation.judges import judging, trust
from starling_nb.evaluation.mmlu import sets as mmlu_sets
from starling_nb.evaluation.published import Obtained
from starling_nb.evaluation.safety import jailbreaks
from starling_nb.files import hash_value
from starling_nb.judge import Judge, Outcome, Request
from starling_nb.stats import Interval

if TYPE_CHECKING:
    from starling_nb.models import LM

LEAST = 20
"""Instructions below which no win rate at equal length is computed."""


@dataclass(frozen=True)
class TwoTurn:
    """Mean grades (1 to 10) of both models, their paired change, grades by category, unreadable replies.

    ``answers`` by model and question, and what the judge was ``asked`` and ``said`` of each model, by position.
    """

    start: Interval
    tuned: Interval
    change: Interval
    by_category: dict[str, dict[str, float]]
    failed: int
    answers: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    asked: Mapping[str, Sequence[Request[float]]] = field(default_factory=dict)
    said: Mapping[str, Sequence[Outcome[float]]] = field(default_factory=dict)


def two_turn(
    pair: Pair,
    judge: Judge,
    n: int,
    seed: int,
    max_new_tokens: int,
    *,
    questions: Sequence[mt_bench.Question] | None = None,
    **how: Any,
) -> TwoTurn:
    """Both models answer ``n`` two-turn questions with equal random numbers; the judge grades every turn.

    ``questions`` are the embedded ones by default; ``how`` goes to :func:`mt_bench.requests`.
    """
    judging.register()
    questions = some(mt_bench.load() if questions is None else questions, n)
    answers, asked, said = {}, {}, {}
    for name, lm in pair.items():
        answers[name] = mt_bench.answer(
            lm, questions, seed=seed, max_new_tokens=max_new_tokens, desc=f"two-turn questions, {name}"
        )
        asked[name] = mt_bench.requests(questions, answers[name], seed=seed, **how)
        said[name] = judge.ask_all(asked[name])
    graded = {name: mt_bench.judgments(questions, outcomes) for name, outcomes in said.items()}
    found = {name: mt_bench.summarize(table) for name, table in graded.items()}
    categories = {
        name: dict(zip(s.by_category.category, s.by_category.score, strict=True)) for name, s in found.items()
    }
    change = mt_bench.paired(graded["start"], graded["tuned"])
    failed = sum(summary.failed for summary in found.values())
    start, tuned = found["start"].overall, found["tuned"].overall
    return TwoTurn(start, tuned, change, categories, failed, answers, asked, said)


@dataclass(frozen=True)
class HeadToHead:
    """The tuned model's win rate over the start model; ``controlled`` what it would be at equal length (None with fewer
    than :data:`LEAST` instructions, or where one of them wins nearly all); all prompts and both models' answers, by
    instruction; the judge's ``verdicts`` in both orders, one a row, and ``annotations`` in the official columns, one an
    instruction; what the judge ``said``."""

    wins: alpaca_eval.WinRate
    controlled: length_control.LengthControlled | None
    prompts: Mapping[str, Sequence[Message]]
    answers: Mapping[str, Mapping[str, str]]
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)
    annotations: pd.DataFrame = field(default_factory=pd.DataFrame)
    said: Sequence[Outcome[Any]] = ()


def head_to_head(
    pair: Pair, judge: Judge, n: int, seed: int, max_new_tokens: int, instructions: Path | None = None
) -> HeadToHead:
    """The tuned model against the start model on ``n`` instructions (of a file as :func:`alpaca_eval.load` reads it,
    the embedded ones by default), each pair shown in both orders."""
    judging.register()
    asked_for = some(alpaca_eval.load(instructions), n)
    conversations = {i.id: i.messages for i in asked_for}
    answers = {
        name: answer(lm, conversations, seed=seed, max_new_tokens=max_new_tokens, desc=f"instructions, {name}")
        for name, lm in pair.items()
    }
    asked = alpaca_eval.requests(asked_for, answers["start"], answers["tuned"], orders="both", seed=seed)
    outcomes, names = judge.ask_all(asked), ("start", "tuned")
    table = alpaca_eval.annotate(asked_for, answers["start"], answers["tuned"], outcomes, generators=names)
    wins = alpaca_eval.win_rate(table)
    even, verdicts = _at_equal_length(table, wins.n), annotators.verdicts(outcomes, names)
    return HeadToHead(wins, even, conversations, answers, verdicts, table, outcomes)


def _at_equal_length(table: pd.DataFrame, n: int) -> length_control.LengthControlled | None:
    if n < LEAST:
        return None
    try:
        return length_control.length_controlled_win_rate(table, model="length_controlled_minimal")
    except length_control.TooFewError:
        return None


def judge_trust(found: HeadToHead, judge: Judge, n: int, seed: int) -> pd.DataFrame:
    """The judge beside the rubric on this run's answers, and beside people and gold on ``n`` pairs of each embedded
    set: on, figure, value, low, high, n (:mod:`trust`)."""
    own = trust.of_run(found.verdicts, trust.labels(found.prompts, found.answers))
    return pd.concat([part for part in (own, trust.of_sets(judge, n, seed)) if len(part)], ignore_index=True)


def record_wins(stage: Any, found: HeadToHead) -> None:
    """Record win rate, length ratio and the win rate at equal length in a stage."""
    wins = found.wins
    stage.record("alpaca_eval.win_rate", wins.win_rate, wins.low, wins.high, wins.n)
    stage.record("alpaca_eval.gain", wins.win_rate - 50, wins.low - 50, wins.high - 50, wins.n)
    stage.record("alpaca_eval.length_ratio", wins.length / wins.baseline_length, n=wins.n)
    if (even := found.controlled) is not None:
        stage.record("alpaca_eval.length_controlled", even.win_rate, even.low, even.high, even.n)
        print(f"at equal length: {even.win_rate:.1f} % [{even.low:.1f}, {even.high:.1f}]")


def ballot(stage: Any, found: HeadToHead) -> ArenaSession:
    """Blind votes on both models' answers, kept in the run's ``votes/`` under a name of these answers: a stage that is
    run again empties its own folder, and other answers begin another file."""
    name = hash_value([stage.p.seed, dict(found.prompts), {model: dict(said) for model, said in found.answers.items()}])
    return ArenaSession(stage.out / "votes" / f"{name[:16]}.jsonl", found.prompts, found.answers, seed=stage.p.seed)


def choice_scores(
    pair: Pair,
    n: int,
    shots: int,
    report: Callable[[int, int, dict[str, float]], None] | None = None,
    official: bool = False,
) -> dict[str, pd.DataFrame]:
    """Both models on ``n`` four-option questions, embedded or official, one row a question (:func:`mmlu.score`)."""
    every, examples = (mmlu_sets.questions(), mmlu_sets.dev()) if official else (mmlu.load(), mmlu.load_dev())
    questions = some(every, n)

    def told(done: int, total: int) -> None:
        if report is not None:
            report(done, total, {})

    return {name: mmlu.score(lm, questions, examples, shots=shots, progress=told) for name, lm in pair.items()}


def by_subject(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracies of both models by subject, and in a last row over all of them, as if the subjects stood for others.

    Columns: subject, start, tuned, n (questions); and change, low, high of the last row, whose n counts subjects.
    """
    start, tuned = (mmlu_sets.by_subject(scores[name]).set_index("subject") for name in ("start", "tuned"))
    rows = start.rename(columns={"accuracy": "start"}).assign(tuned=tuned["accuracy"])[["start", "tuned", "n"]]
    whole = {name: mmlu_sets.accuracy(scores[name], clusters="subject").value for name in ("start", "tuned")}
    gap = mmlu_sets.change(scores["start"], scores["tuned"], clusters="subject")
    last = {"subject": "all", **whole, "n": gap.n, "change": gap.value, "low": gap.low, "high": gap.high}
    return pd.concat([rows.reset_index(), pd.DataFrame([last])], ignore_index=True)


def record_choice(stage: Any, found: mmlu.Comparison) -> None:
    """Record accuracies, the change and the claim of non-inferiority in a stage."""
    for name, value in (("start", found.accuracy_before), ("tuned", found.accuracy_after)):
        stage.record(f"choice.accuracy_{name}", value)
    gap = found.difference
    stage.record("choice.margin_change", gap)
    stage.record("choice.smallest_detectable_change", found.detectable, n=gap.n)
    stage.record("choice.start_above_chance_p", found.chance_p, n=gap.n)
    if found.verdict == "floor: not testable":
        print(f"floor: not testable, the start is not above chance (p = {found.chance_p:.3g})")
        return
    stage.claim(
        "knowledge_survives",
        gap,
        rule=f"low>{-found.margin:g}",
        text="log-likelihood margin of the right letter, after − before, nats (non-inferiority)",
        min_n=100,
    )


def _contrast(n: int) -> list[safety.Prompt]:
    """The contrast pairs of the first ``n`` prompts (0: of all)."""
    chosen = {prompt.pair for prompt in safety.load()[: n or None]}
    return [prompt for prompt in safety.load() if prompt.pair in chosen]


def _refusals(lm: LM, prompts: Sequence[safety.Prompt], seed: int, max_new_tokens: int, what: str) -> pd.DataFrame:
    """Which prompts a model refuses: id, pair, label, refused."""
    said = answer(lm, {p.id: p.messages for p in prompts}, seed=seed, max_new_tokens=max_new_tokens, desc=what)
    return safety.label(prompts, said)


def refusals(pair: Pair, n: int, seed: int, max_new_tokens: int) -> dict[str, pd.DataFrame]:
    """Which contrast prompts each model refuses: id, pair, label, refused; of the first ``n`` prompts, 0 for all."""
    contrast = _contrast(n)
    return {name: _refusals(lm, contrast, seed, max_new_tokens, f"safety, {name}") for name, lm in pair.items()}


def safety_pair(refused: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Over-refusal and compliance of both models and their paired change (model ``change``), of :func:`refusals`:
    model, rate, value, low, high, n."""
    found: dict[str, Any] = {name: safety.rates(table) for name, table in refused.items()}
    found["change"] = safety.paired(refused["start"], refused["tuned"])
    rows = [
        {"model": name, "rate": rate, **vars(value)} for name, one in found.items() for rate, value in vars(one).items()
    ]
    return pd.DataFrame(rows)


def wrapped_attacks(
    pair: Pair,
    refused: Mapping[str, pd.DataFrame],
    n: int,
    seed: int,
    max_new_tokens: int,
    kinds: Sequence[str] = tuple(jailbreaks.WRAPPERS),
) -> pd.DataFrame:
    """What wrapping the harmful prompts does to both models, always beside their over-refusal of the benign ones.

    Of the first ``n`` contrast prompts (0: all) among those that ``refused``, of :func:`refusals`, tells of.

    Columns: model, wrapper (``none`` first), rate (``over_refusal``, of the benign prompts as they are, and
    ``compliance``, the attack's success), value, low, high, n.
    """
    rows = []
    for name, lm in pair.items():
        told = set(refused[name]["pair"])
        contrast = [prompt for prompt in _contrast(n) if prompt.pair in told]
        plain = refused[name][refused[name]["pair"].isin([prompt.pair for prompt in contrast])]
        benign = plain[plain["label"] == "benign"]
        tables = {"none": plain}
        for kind in kinds:
            harmful = jailbreaks.wrapped(contrast, kind)
            asked = _refusals(lm, harmful, seed, max_new_tokens, f"{kind}, {name}")
            tables[kind] = pd.concat([benign, asked], ignore_index=True)
        for kind, table in tables.items():
            for rate, value in vars(safety.rates(table)).items():
                rows.append({"model": name, "wrapper": kind, "rate": rate, **vars(value)})
    return pd.DataFrame(rows)


def obtained(grades: TwoTurn, wins: alpaca_eval.WinRate, choice: mmlu.Comparison, judge: str) -> dict[str, Obtained]:
    """Our three numbers in the units of the blog's table; the start model's win rate against itself is 50."""
    rise = Interval(wins.win_rate - 50, wins.low - 50, wins.high - 50, wins.n)
    before, after = 100 * choice.accuracy_before.value, 100 * choice.accuracy_after.value
    moved = choice.accuracy_change
    change = Interval(100 * moved.value, 100 * moved.low, 100 * moved.high, moved.n)
    return {
        "mt_bench": Obtained(grades.start.value, grades.tuned.value, grades.change, judge),
        "alpaca_eval": Obtained(50.0, wins.win_rate, rise, f"{judge}, against the start model"),
        "mmlu": Obtained(before, after, change, "log-likelihood"),
    }


def our_rows(ours: Mapping[str, Obtained]) -> pd.DataFrame:
    """Two rows, start and tuned, in the columns of the published table."""
    rows = [
        {"model": name, **{metric: getattr(value, when) for metric, value in ours.items()}}
        for name, when in (("ours: start", "start"), ("ours: tuned with APA", "tuned"))
    ]
    return pd.DataFrame(rows)
