"""What notebook 03 shows of packing, labels and learning, beside the work itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from starling_nb.blocks import trunk_states
from starling_nb.chat import ChatFormat
from starling_nb.models import LM
from starling_nb.nectar import prompts
from starling_nb.reward import calibration, heads
from starling_nb.reward.calibration import Ceiling
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.metrics import MetricError, pairs
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import pack
from starling_nb.stats import mean_interval


def packing_saves(form: ChatFormat, comparisons: Sequence[Comparison]) -> float:
    """How many times more tokens one sequence an answer would take than packed comparisons do."""
    packed = separate = 0
    for comparison in comparisons:
        one = pack(form, comparison.messages, comparison.answers)
        packed += len(one.ids)
        separate += int((one.positions[one.layout.ends] + 1).sum())
    return separate / packed


@torch.no_grad()
def packing_check(lm: LM, comparison: Comparison, readout: str = "last_token") -> tuple[list[float], list[float]]:
    """Scores of one comparison, packed and one by one, under a fixed random head, float32."""
    transformer: Any = copy.deepcopy(lm.model.model).float()
    head = torch.randn(1, transformer.config.hidden_size, generator=torch.Generator().manual_seed(0)) / 24
    model = RewardModel(transformer, lm.chat, head, readout)
    one = pack(lm.chat, comparison.messages, comparison.answers)
    states = trunk_states(transformer, one.ids[None], one.positions[None], one.layout, len(transformer.layers))
    packed = model.v_head(one.readout(readout).to(states.device) @ transformer.norm(states)[0])[:, 0].tolist()
    conversations = [[*comparison.messages, {"role": "assistant", "content": answer}] for answer in comparison.answers]
    return packed, model.score(conversations)


def relative_loss(history: pd.DataFrame) -> pd.DataFrame:
    """Training losses divided by each method's first value, so that two losses fit one axis."""
    first = history.groupby("method").loss.transform("first")
    return history.assign(loss=history.loss / first)


def keyed(rankings: pd.DataFrame, every: Sequence[prompts.Prompt]) -> pd.DataFrame:
    """Rankings under the prompt keys that comparisons have, in the place of the prompts' own names."""
    keys = {one.id: prompts.key(one.messages) for one in every}
    return rankings.assign(prompt_id=rankings.prompt_id.map(keys))


def labellings(comparisons: Sequence[Comparison], rankings: pd.DataFrame) -> list[list[Comparison]]:
    """Every pass of the judge over the comparisons that all passes ranked, as labels of their own."""
    valid = rankings[rankings.ranking.notna()]
    passes = [part.set_index("prompt_id") for _, part in valid.groupby("order")]
    shared = [one for one in comparisons if all(one.prompt_id in part.index for part in passes)]

    def ranks(one: Comparison, record: Mapping[str, Any]) -> list[float]:
        place = {name: i for i, name in enumerate(record["models"])}
        order = {int(shown): float(i) for i, shown in enumerate(record["ranking"], 1)}
        return [order[place[name]] for name in one.responders]

    return [[replace(one, ranks=ranks(one, part.loc[one.prompt_id])) for one in shared] for part in passes]


def ceiling(comparisons: Sequence[Comparison], rankings: pd.DataFrame) -> Ceiling | None:
    """What the judge's noise leaves a reward model to reach on *one* of its rankings; None if it ranked only once.

    Labels that are merged from several rankings hold less noise, and more can be reached on them.
    """
    try:
        return calibration.ceiling(calibration.self_agreement(labellings(comparisons, rankings)))
    except MetricError:
        return None


def mean_curve(points: pd.DataFrame) -> pd.DataFrame:
    """A learning curve's means over seeds: size, loss, accuracy, low, high."""
    rows = []
    for (size, loss), part in points.groupby(["size", "loss"]):
        found = mean_interval(part.accuracy)
        rows.append({"size": size, "loss": loss, "accuracy": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def position_arms(
    seen: Mapping[str, heads.Read], train: Sequence[Comparison], rankings: pd.DataFrame
) -> dict[str, list[list[float]]]:
    """Scores of the test comparisons by heads on the same rankings, used in three ways.

    ``merged`` learns one ranking a prompt, the mean over the judge's passes; ``each_pass`` learns every pass as it is;
    ``position_term`` learns a number for each shown place beside it and throws that away. Without any of the rankings
    behind the comparisons, ``merged`` is alone.
    """
    arms = {"merged": (seen["train"], False)}
    if rankings.prompt_id.isin([one.prompt_id for one in train]).any():
        each = heads.by_ranking(seen["train"], train, rankings)
        arms |= {"each_pass": (each, False), "position_term": (each, True)}
    found = {}
    for name, (labels, term) in arms.items():
        head, _ = heads.best(labels, seen["validation"], "k_wise", position_term=term)
        found[name] = seen["test"].scores(head)
    return found


def claims_and_truth(comparisons: Sequence[Comparison], scores: Mapping[str, Any]) -> pd.DataFrame:
    """Calibration of several methods in one table: method, predicted, value, low, high, pairs."""
    tables = []
    for method, values in scores.items():
        bins = calibration.calibration(pairs(comparisons, values)).bins
        tables.append(bins.assign(method=method))
    return pd.concat(tables, ignore_index=True)
