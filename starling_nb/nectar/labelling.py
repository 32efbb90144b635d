"""From candidates to labels: every prompt ranked in one or several shown orders, nothing lost, nothing asked twice.

:func:`label` first gets every verdict into the judge's ledger and then writes the data set from the ledger alone, in
the order of the candidates. So a run that was killed, by whatever path it asked, ends in the same files as one that was
not, and only the ledger grows with the number of prompts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import tee
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling_nb import progress
from starling_nb.chat import nectar_text
from starling_nb.errors import StarlingError
from starling_nb.judge import Judge, Outcome, Request
from starling_nb.nectar import judging, orders, ranking
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.dataset import nectar_row, valid
from starling_nb.nectar.schema import SCHEMA
from starling_nb.nectar.tables import ROWS, grouped, writing
from starling_nb.nectar.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

Each = Callable[[Outcome[Verdict]], object]


REPEAT = 1_000_003
"""Distance between the seeds of repeated questions: far from any seed that a judge is given."""


@dataclass(frozen=True)
class Plan:
    """How candidates are ranked.

    ``seed`` decides the shown orders, pair orders and ties; ``repeat`` asks the same questions again (the same orders,
    another sample).
    """

    variant: str = "final"  # a name in starling_nb.nectar.ranking.VARIANTS
    design: str = "random"  # a name in starling_nb.nectar.orders.DESIGNS
    passes: int = 1  # rankings of each prompt, in as many shown orders, merged by mean rank
    seed: int = 0
    repeat: int = 0
    consistent: bool = False  # leave out verdicts whose own pair winners contradict their list


@dataclass
class Labels:
    """What came of labelling: prompts, rows of the data set, rankings by their error's type ("" for valid ones)."""

    prompts: int = 0
    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def valid_share(self) -> float:
        """Share of the rankings that are permutations."""
        return self.outcomes[""] / max(1, self.outcomes.total())


def asked(candidates: Iterable[Candidates], plan: Plan) -> Iterator[tuple[Candidates, list[ranking.RankingRequest]]]:
    """Each prompt with its ranking requests, one for each pass."""
    items, shown = tee(candidates)
    drawn = orders.orders(plan.design, ((c.prompt.id, c.models) for c in shown), plan.seed, plan.passes)
    for item, passes in zip(items, drawn, strict=True):
        yield (
            item,
            [
                ranking.build(
                    item.prompt.messages,
                    item.answers,
                    plan.variant,
                    orders.pass_seed(plan.seed, number),
                    request_id=item.prompt.id,
                    shown=order,
                )
                for number, order in enumerate(passes)
            ],
        )


def requests(candidates: Iterable[Candidates], plan: Plan) -> Iterator[Request[Verdict]]:
    """What the judge is asked, prompt by prompt and pass by pass."""
    params = judging.PUBLISHED | ({"seed": REPEAT * plan.repeat} if plan.repeat else {})
    for item, passes in asked(candidates, plan):
        for request in passes:
            yield judging.to_request(request, item.prompt.id, params)


def rank(judge: Judge, candidates: Sequence[Candidates], plan: Plan, each: Each | None = None) -> pd.DataFrame:
    """Ask for every ranking of a few candidates and return them as a table, one row a ranking, passes apart.

    Columns as :func:`record`; ``ranking`` is None where the reply had none.
    """
    import pandas as pd

    outcomes = iter(judge.ask_all(requests(candidates, plan), each))
    rows = [
        record(item, request, next(outcomes), plan, number)
        for item, passes in asked(candidates, plan)
        for number, request in enumerate(passes)
    ]
    return pd.DataFrame(sorted(rows, key=lambda row: row["order"]))


def rank_with(
    judge: Judge,
    candidates: Sequence[Candidates],
    variants: Sequence[str],
    seed: int,
    counter: Callable[[int, str], Callable[[object], None]],
) -> dict[str, pd.DataFrame]:
    """Valid rankings by prompt variant, all variants on the same answers in the same shown orders."""
    n = len(candidates)
    return {name: valid(rank(judge, candidates, Plan(name, seed=seed), counter(n, name))) for name in variants}


def label(judge: Judge, candidates: Iterable[Candidates], plan: Plan, folder: Path, each: Each | None = None) -> Labels:
    """Rank candidates and write ``nectar.parquet`` and ``rankings.parquet`` into ``folder``.

    Args:
        judge: who ranks; its ledger holds what was paid for.
        candidates: gone through several times: a list, or an object whose ``__iter__`` begins anew.
        plan: how they are ranked.
        folder: where the two files go; each is replaced whole.
        each: called with every outcome as it is settled.

    Raises:
        StarlingError: ``candidates`` can be gone through only once, or a file cannot be written.
        BudgetExceeded, JudgeUnavailable: asking came to an early end; the same call goes on from there.
    """
    if iter(candidates) is candidates:
        raise StarlingError("candidates are gone through several times: give a list, or candidates.File(path)")
    _check(candidates, plan)
    prompts = length_hint(candidates)
    judge.run(
        _again(lambda: requests(candidates, plan), plan.passes * prompts),
        lambda _, outcome: each(outcome) if each else None,
    )
    report = Labels()
    with ExitStack() as stack:
        rows_out = stack.enter_context(writing(folder / "nectar.parquet", SCHEMA))
        rankings_out = stack.enter_context(writing(folder / "rankings.parquet", rankings_schema()))
        labelled = progress.track(_labelled(judge, candidates, plan, report), "writing rows", prompts, printed=False)
        for group in grouped(stack.enter_context(closing(labelled)), ROWS):
            rows_out([row for row, _ in group if row is not None])
            rankings_out([kept for _, records in group for kept in records])
    return report


def _check(candidates: Iterable[Candidates], plan: Plan) -> None:
    """Refuse, before anything is paid for, what could not be asked or written in the end."""
    orders.check(plan.design, plan.passes)
    seen: set[str] = set()
    with closing(progress.track(candidates, "checking candidates", printed=False)) as items:
        for item in items:
            try:
                ranking.check(item.prompt.messages, item.answers, plan.variant)
                orders.check(plan.design, plan.passes, len(item.answers))
                nectar_text(item.prompt.messages)
            except StarlingError as error:
                raise StarlingError(f"prompt {item.prompt.id} cannot be ranked: {error}; mend or remove it") from error
            if item.prompt.id in seen:
                raise StarlingError(f"prompt {item.prompt.id} stands there twice: rankings are joined by it; keep one")
            seen.add(item.prompt.id)


class _again:  # noqa: N801  (an iterable that begins anew)
    def __init__(self, make: Callable[[], Iterator[Any]], length: int) -> None:
        self._make, self._length = make, length

    def __iter__(self) -> Iterator[Any]:
        return self._make()

    def __length_hint__(self) -> int:
        return self._length


def _labelled(
    judge: Judge, candidates: Iterable[Candidates], plan: Plan, report: Labels
) -> Iterator[tuple[dict[str, Any] | None, list[dict[str, Any]]]]:
    """Each prompt's row, if it has one, and its rankings; read from the ledger."""
    outcomes = judge.settled(requests(candidates, plan))
    for item, passes in asked(candidates, plan):
        records = [record(item, request, next(outcomes), plan, n) for n, request in enumerate(passes)]
        report.outcomes.update((kept["error"] or "").partition(":")[0] for kept in records)
        row = nectar_row(item, [kept for kept in records if usable(kept, plan.consistent)])
        report.prompts, report.rows = report.prompts + 1, report.rows + (row is not None)
        yield row, records


def usable(kept: Mapping[str, Any], consistent: bool = False) -> bool:
    """Whether a ranking goes into the data set."""
    return kept["ranking"] is not None and not (consistent and kept["contradictions"])


def record(
    item: Candidates, request: ranking.RankingRequest, outcome: Outcome[Verdict], plan: Plan, order: int
) -> dict[str, Any]:
    """One ranking, with everything that the data set's row has no place for.

    prompt_id, variant, design, order (the pass), models (in shown order), shown (places in the candidates' answers),
    ranking (shown positions, best to worst), good_natured, pair_agreement (share of the verdict's own pair winners that
    its list follows), contradictions (how many it does not), cyclic, error, reply, request (orders of pairs and ties).
    """
    verdict = outcome.value
    return {
        "prompt_id": item.prompt.id,
        "variant": plan.variant,
        "design": plan.design,
        "order": order,
        "models": [item.models[i] for i in request.shown],
        "shown": list(request.shown),
        "ranking": None if verdict is None else list(verdict.ranking),
        "good_natured": None if verdict is None else verdict.good_natured,
        "pair_agreement": None if verdict is None else verdict.pair_agreement,
        "contradictions": None if verdict is None else verdict.contradictions,
        "cyclic": None if verdict is None else verdict.cyclic,
        "error": outcome.error,
        "reply": outcome.reply,
        "request": json.dumps(request.describe(), sort_keys=True),
    }


def rankings_schema() -> Any:
    """Columns of ``rankings.parquet``."""
    import pyarrow as pa

    places, words = pa.list_(pa.int64()), pa.list_(pa.string())
    return pa.schema(
        [
            *((name, pa.string()) for name in ("prompt_id", "variant", "design")),
            ("order", pa.int64()),
            ("models", words),
            ("shown", places),
            ("ranking", places),
            ("good_natured", pa.bool_()),
            ("pair_agreement", pa.float64()),
            ("contradictions", pa.int64()),
            ("cyclic", pa.bool_()),
            *((name, pa.string()) for name in ("error", "reply", "request")),
        ]
    )
