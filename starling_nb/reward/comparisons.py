"""Comparisons for reward training and the table that says what the scores are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from starling_nb import chat
from starling_nb.chat import ChatFormat
from starling_nb.models import LM
from starling_nb.nectar import prompts
from starling_nb.reward import metrics
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import pack
from starling_nb.reward.training import Comparison
from starling_nb.stats import Interval, paired_difference

Scores = Sequence[Sequence[float]]


def of_rows(rows: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Nectar rows as comparisons, answers in an order that does not give the ranks away."""
    found = []
    for row in rows:
        messages = chat.from_nectar_text(row["prompt"])
        answers = sorted(row["answers"], key=lambda a: (a["model"], a["answer"]))
        found.append(
            Comparison(
                prompts.key(messages),
                messages,
                [a["answer"] for a in answers],
                [a["model"] for a in answers],
                [a["rank"] for a in answers],
            )
        )
    return found


def without(comparison: Comparison, responders: Sequence[str]) -> Comparison:
    """A comparison less the answers of some responders; the other ranks close up."""
    kept = [i for i, name in enumerate(comparison.responders) if name not in responders]
    ranks = np.argsort(np.argsort([comparison.ranks[i] for i in kept])) + 1.0
    return Comparison(
        comparison.prompt_id,
        comparison.messages,
        [comparison.answers[i] for i in kept],
        [comparison.responders[i] for i in kept],
        ranks.tolist(),
    )


def split(rows: Sequence[Mapping[str, Any]], held_out: Sequence[str]) -> dict[str, list[Comparison]]:
    """Comparisons by split of their prompt; ``train`` holds no answer of the held-out responders."""
    parts: dict[str, list[Comparison]] = {"train": [], "validation": [], "test": []}
    for comparison in of_rows(rows):
        parts[prompts.split_of(comparison.messages)].append(comparison)
    parts["train"] = [without(comparison, held_out) for comparison in parts["train"]]
    return parts


def packing_saves(chat_format: ChatFormat, comparisons: Sequence[Comparison]) -> float:
    """How many times more tokens one sequence an answer would take than packed comparisons do."""
    packed = separate = 0
    for comparison in comparisons:
        one = pack(chat_format, comparison.messages, comparison.answers)
        packed += len(one.ids)
        separate += int((one.positions[one.ends] + 1).sum())
    return separate / packed


@torch.no_grad()
def packing_check(lm: LM, comparison: Comparison, readout: str = "last_token") -> tuple[list[float], list[float]]:
    """Scores of one comparison, packed and one by one, under a fixed random head, float32."""
    import copy

    from starling_nb.blocks import run_blocks

    transformer: Any = copy.deepcopy(lm.model.model).float()
    head = torch.randn(1, transformer.config.hidden_size, generator=torch.Generator().manual_seed(0)) / 24
    model = RewardModel(transformer, lm.chat, head, readout)
    one = pack(lm.chat, comparison.messages, comparison.answers)
    states = transformer.embed_tokens(one.ids[None])
    states = run_blocks(transformer, states, one.positions[None], one.mask(), 0, len(transformer.layers))
    packed = model.v_head(one.readout(readout) @ transformer.norm(states)[0])[:, 0].tolist()
    conversations = [[*comparison.messages, {"role": "assistant", "content": answer}] for answer in comparison.answers]
    return packed, model.score(conversations)


def offsets(comparisons: Sequence[Comparison], scores: Scores) -> dict[str, float]:
    """Mean score of the data set's answers to each prompt, by prompt key.

    The K-wise likelihood is the same for scores shifted by any constant per prompt; taking this mean off makes scores
    of different prompts comparable.
    """
    return {c.prompt_id: float(np.mean(values)) for c, values in zip(comparisons, scores, strict=True)}


def baselines(train: Sequence[Comparison], test: Sequence[Comparison]) -> dict[str, Scores]:
    """Scores of the test comparisons by methods that know nothing of content."""
    surface = metrics.fit_surface(train)
    return {"longest": [metrics.longest(c) for c in test], "surface": [surface(c) for c in test]}


def kinds(table: pd.DataFrame, held_out: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Pairs by kind: all, those with a held-out responder, and two samples of the embedded model of like length."""
    better, worse = table.responder_better, table.responder_worse
    held = table[better.isin(held_out) | worse.isin(held_out)]
    same = table[better.str.startswith("smollm2") & worse.str.startswith("smollm2")]
    return {
        "all pairs": table,
        "held-out responders": held,
        "same model": same,
        "same model, same length": metrics.length_matched(same),
    }


def scoreboard(test: Sequence[Comparison], scores: Mapping[str, Scores], held_out: Sequence[str]) -> pd.DataFrame:
    """Every method on every kind of pair and on whole rankings: method, metric, value, low, high, n."""
    rows = []
    for method, values in scores.items():
        for kind, part in kinds(metrics.pairs(test, values), held_out).items():
            if len(part):
                found = metrics.mean_interval(part.right, part.prompt_id)
                rows.append({"method": method, "metric": kind, **vars(found)})
        for metric, found in metrics.evaluate(test, values).items():
            if metric != "pairwise_accuracy":
                rows.append({"method": method, "metric": metric, **vars(found)})
    table = pd.DataFrame(rows)
    table["metric"] = table.metric.replace(NAMES)
    return table


NAMES = {
    "all pairs": "pairwise_accuracy",
    "held-out responders": "held_out_responders",
    "same model": "same_model",
    "same model, same length": "same_model_same_length",
}


def of_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """The scoreboard's accuracies on the kinds of pairs, without the figures of whole rankings."""
    return table[table.metric.isin(list(NAMES.values()))]


def cell(table: pd.DataFrame, method: str, kind: str) -> Interval:
    """One cell of the scoreboard."""
    row = table[(table.method == method) & (table.metric == NAMES.get(kind, kind))].iloc[0]
    return Interval(float(row.value), float(row.low), float(row.high), int(row.n))


def lead(
    test: Sequence[Comparison],
    scores: Mapping[str, Scores],
    ours: str,
    rival: str,
    kind: str,
    held: Sequence[str],
) -> Interval:
    """Accuracy of one method minus another's on one kind of pair, paired, interval over prompts."""
    mine = kinds(metrics.pairs(test, scores[ours]), held)[kind]
    theirs = kinds(metrics.pairs(test, scores[rival]), held)[kind]
    return paired_difference(mine.right, theirs.right, clusters=mine.prompt_id)


def relative_loss(history: pd.DataFrame) -> pd.DataFrame:
    """Training losses divided by each method's first value, so that two losses fit one axis."""
    first = history.groupby("method").loss.transform("first")
    return history.assign(loss=history.loss / first)


def leads(
    test: Sequence[Comparison], scores: Mapping[str, Scores], held: Sequence[str]
) -> list[tuple[str, str, Interval]]:
    """The K-wise model's lead over each baseline on each kind of pair that is claimed: name, text, interval."""
    found = []
    for kind in ("all pairs", "held-out responders", "same model, same length"):
        for rival in ("longest", "surface"):
            gap = lead(test, scores, "k_wise", rival, kind, held)
            found.append((f"beats_{rival}.{NAMES[kind]}", f"K-wise reward - {rival} baseline, accuracy, {kind}", gap))
    return found
