"""Stored verdicts of judges on pairs with a label, and the simulated judge on ours: right, consistent, first or second.

    STARLING_NB_REAL_DATA=FOLDER python -m benchmarks.judge_accuracy

``FOLDER`` holds ``judgebench``, ``llmbar``, ``pandalm`` and ``autoj_pairwise``: pairs as
:func:`starling_nb.evaluation.judges.pair_sets.read` takes them and, beside the first three, stored verdicts. Every set
is counted by its own protocol. Aggregates only are written, to ``benchmarks/results/judge_accuracy.json``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import records
from starling_nb.errors import StarlingError
from starling_nb.evaluation import agreement
from starling_nb.evaluation.judges import judging, pair_sets
from starling_nb.evaluation.judges.pair_sets import NAMES, ON
from starling_nb.judge.connect import connect
from starling_nb.stats import Interval

Verdicts = Iterator[tuple[str, pd.DataFrame]]
DECISIONS = {"A>B": "first", "B>A": "second", "A=B": "tie"}
OWN = ("hand", "tricks")


def judge_bench(folder: Path, pairs: pd.DataFrame) -> Verdicts:
    """Judges asked in both orders; ``decision_ba`` says A for the answer that was then shown first."""
    stored = pd.read_parquet(folder / "judge_and_rm_outputs.parquet")
    named = pairs.assign(stored=pairs["pair_id"].str.rpartition("/")[2])[[*ON, "stored"]]
    rows = named.merge(stored, left_on="stored", right_on="pair_id", suffixes=("", "_stored"))
    for judge, own in rows[rows["score_A"].isna()].groupby("judge"):
        orders = (("decision_ab", NAMES), ("decision_ba", NAMES[::-1]))
        yield str(judge), pd.concat([_shown(own, order, own[column].map(DECISIONS)) for column, order in orders])


def reward_models(folder: Path, pairs: pd.DataFrame) -> Verdicts:
    """The answer with the higher score wins; the shown order is of no account."""
    stored = pd.read_parquet(folder / "judge_and_rm_outputs.parquet").dropna(subset=["score_A", "score_B"])
    named = pairs.assign(stored=pairs["pair_id"].str.rpartition("/")[2])[[*ON, "stored"]]
    rows = named.merge(stored, left_on="stored", right_on="pair_id", suffixes=("", "_stored"))
    for judge, own in rows.groupby("judge"):
        above = own["score_A"] > own["score_B"]
        winner = above.map({True: "first", False: "second"}).where(own["score_A"] != own["score_B"], "tie")
        yield str(judge), _shown(own, NAMES, winner)


def llm_bar(folder: Path, pairs: pd.DataFrame) -> Verdicts:
    """First verdicts by judge and method; the stored winner is named by answer, ``None`` where none was found."""
    stored = pd.read_parquet(folder / "judge_verdicts.parquet").query("round == 0")
    stored = stored.assign(pair_id=stored["subset"] + "/" + stored["idx"].astype(str))
    rows = stored.merge(pairs[list(ON)], on="pair_id")
    for (judge, method), own in rows.groupby(["judge", "method"]):
        parts = []
        for swapped, order in ((False, NAMES), (True, NAMES[::-1])):
            half = own[own["swapped"] == swapped]
            parts.append(_shown(half, order, half["winner"].map(dict(zip(order, agreement.WINNERS, strict=False)))))
        yield f"{judge}, {method}", pd.concat(parts)


def pandalm(folder: Path, pairs: pd.DataFrame) -> Verdicts:
    """Two judges in one order; anything but a number or ``Tie`` is no verdict."""
    stored = pd.read_parquet(folder / "testset.parquet")
    rows = stored.assign(pair_id=stored["idx"].astype(str)).merge(pairs[list(ON)], on=list(ON))
    for judge in ("gpt35", "pandalm7b"):
        said = {"1": "first", "2": "second", "0": "tie", "Tie": "tie"}
        yield judge, _shown(rows, NAMES, rows[judge].astype(str).map(said))


def _shown(rows: pd.DataFrame, order: tuple[str, ...], winner: pd.Series) -> pd.DataFrame:
    return rows[list(ON)].assign(first=order[0], second=order[1], winner=winner.to_numpy())


def told(name: str, verdicts: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """The figures of a judge on a set, and what they rest on; the longer answer's stand by themselves."""
    found = pair_sets.figures(name, verdicts, pairs)
    numbers = {row.figure: _numbers(Interval(row.value, row.low, row.high, row.n)) for row in found.itertuples()}
    spare = {"longer_wins"} | (set() if found.attrs["unreadable"] else {"accuracy_readable"})
    return found.attrs | {figure: value for figure, value in numbers.items() if figure not in spare}


def _numbers(found: Interval) -> dict[str, Any]:
    return {key: value if value is None else round(value, 4) for key, value in found.as_dict().items()}


def stored(root: Path) -> dict[str, Any]:
    """Every judge whose verdicts are stored, by set; JudgeBench also by the model that wrote the pairs."""
    found: dict[str, Any] = {}
    for name, folder, read in (
        ("judge_bench", "judgebench", judge_bench),
        ("llm_bar", "llmbar", llm_bar),
        ("pandalm", "pandalm", pandalm),
    ):
        pairs = pair_sets.read(name, root / folder)
        found[name] = {judge: told(name, rows, pairs) for judge, rows in read(root / folder, pairs)}
    pairs = pair_sets.read("judge_bench", root / "judgebench")
    found["judge_bench, reward models"] = {
        judge: _numbers(agreement.accuracy(rows, pairs, ON).accuracy)
        for judge, rows in reward_models(root / "judgebench", pairs)
    }
    return found


def lengths(root: Path) -> dict[str, Any]:
    """How often the longer answer is the better one, ties left out, by set."""
    places = {"judge_bench": "judgebench", "llm_bar": "llmbar", "pandalm": "pandalm", "auto_j": "autoj_pairwise"}
    found = {}
    for name in pair_sets.SETS:
        pairs = pair_sets.read(name, root / places[name] if name in places else "")
        found[name] = _numbers(agreement.accuracy(agreement.longer_wins(pairs, ON), pairs, ON).decided)
    return found


def simulated() -> dict[str, Any]:
    """The simulated judge on the sets of this project, asked in both orders."""
    judging.register()
    with connect("simulated") as judge:
        return {
            name: told(name, pair_sets.ask(judge, pairs), pairs) for name in OWN for pairs in [pair_sets.read(name)]
        }


if __name__ == "__main__":
    root = os.environ.get("STARLING_NB_REAL_DATA")
    if not root:
        raise StarlingError("set STARLING_NB_REAL_DATA to the folder that holds judgebench, llmbar, pandalm, …")
    result = {
        "what": "verdicts of judges on labelled pairs (a part of each set), by each set's own protocol",
        "origin": "ScalerLab/JudgeBench e2c52c28, princeton-nlp/LLMBar 900616bf, WeOpenML/PandaLM 3871806e, "
        "GAIR-NLP/auto-j 2ae17a39 (all on github.com); hand and tricks are in data/",
        "rules": {name: agreement.RULES[one.rule] for name, one in pair_sets.SETS.items()},
        "stored": stored(Path(root)),
        "simulated judge": simulated(),
        "the longer answer": lengths(Path(root)),
    }
    records.keep("judge_accuracy.json", result)
