"""What a small reward model learns from real GPT-4 rankings: beyond length, K-wise against pairs, over data and depth.

    STARLING_NB_REAL_DATA=DIR python -m benchmarks.real_labels [states|curves|train]

Data: ``alpaca_eval`` in that folder (answers of 31 models to 612 prompts, ordered by GPT-4-turbo's preference against
a common baseline). Split by prompt *and* model: the seven models of ``alpaca_eval_7wise`` are only tested, on prompts
that no training or validation row has; the others are only trained on. ``nectar_published_7wise`` is read apart.

``states`` runs the embedded backbone once and keeps, below ``outputs/real_labels``, what enters block 12 and what a
head would read after some blocks; it goes on where it was broken off. ``curves`` fits a linear head by each loss on
those readings, many times over subsets of the prompts. ``train`` trains the top blocks. All write to
``benchmarks/results/real_labels.json``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks import records
from starling_nb import files, models
from starling_nb.blocks import run_blocks
from starling_nb.errors import StarlingError
from starling_nb.progress import named, track
from starling_nb.reward import comparisons as ranked
from starling_nb.reward import heads, metrics, scoreboard, scoring, training
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.packing import READOUTS, pack, rows, together
from starling_nb.reward.scoring import Prepared
from starling_nb.reward.training import Recipe
from starling_nb.stats import mean_interval, paired_difference

FOLDER = files.ROOT / "outputs" / "real_labels"
DEPTH, ENTERS = 16, 12
"""Blocks of the backbone that are kept, and the block whose entering states are."""
READ_AFTER = (4, 8, 12, 16)
BASELINE = "gpt4_1106_preview"
"""Every preference is against it; it was not judged itself, and stands at even odds."""
K = 10
"""Answers a training prompt."""
SEEDS, SIZES = 20, (50, 100, 150, 200)
"""Subsets for each point of the curves that compare losses, and their sizes in prompts."""


def data() -> Path:
    """The folder of real data."""
    return Path(os.environ["STARLING_NB_REAL_DATA"])


def split_of(prompt_id: str) -> str:
    """Half of the prompts train, an eighth validates, the rest tests."""
    share = int(hashlib.sha256(f"real labels {prompt_id}".encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.5 else "validation" if share < 0.62 else "test"


def read() -> dict[str, list[Comparison]]:
    """Comparisons by split; ``nectar`` are the published rows."""
    source = data() / "alpaca_eval"
    answers = pd.read_parquet(source / "responses.parquet").set_index(["prompt_id", "model"]).response
    texts = pd.read_parquet(source / "prompts.parquet").set_index("prompt_id").instruction
    with gzip.open(data() / "kwise_nectar_schema" / "alpaca_eval_7wise.jsonl.gz", "rt", encoding="utf-8") as lines:
        tested = sorted(answer["model"] for answer in json.loads(next(lines))["answers"])
    parts: dict[str, list[Comparison]] = {"train": [], "validation": [], "test": []}
    for row in pd.read_parquet(source / "kwise.parquet").itertuples():
        part = split_of(row.prompt_id)
        logits = dict(zip(row.models, row.logit, strict=True)) | {BASELINE: 0.0}
        names = tested if part == "test" else sorted(set(row.models) - set(tested))
        names = [name for name in names if name in logits and np.isfinite(logits[name])]
        draw = files.rng(0, "real labels", row.prompt_id).permutation(len(names))
        chosen = [names[i] for i in draw[: {"train": K, "validation": 7, "test": 7}[part]]]
        ranks = [1.0 + sum(1.0 for other in chosen if logits[other] > logits[name]) for name in chosen]
        message = [{"role": "user", "content": texts[row.prompt_id]}]
        parts[part].append(
            Comparison(row.prompt_id, message, [answers[row.prompt_id, name] for name in chosen], chosen, ranks)
        )
    parts["nectar"] = ranked.load(data() / "kwise_nectar_schema" / "nectar_published_7wise.jsonl.gz")
    return parts


def states() -> None:
    """Run the backbone over every part, a few prompts at a time; what is done stays done."""
    lm = models.shallow(models.load(), DEPTH)
    FOLDER.mkdir(parents=True, exist_ok=True)
    dropped: dict[str, Any] = {}
    work: list[tuple[str, int, list[Comparison]]] = []
    for part, items in read().items():
        usable, dropped[part] = ranked.usable(items, lm.chat, limit=2048)
        work += [(part, place, usable[place : place + 12]) for place in range(0, len(usable), 12)]
    files.write_json(FOLDER / "dropped.json", dropped)
    work.sort(key=lambda item: (item[0] == "nectar", item[1], item[0]))
    for part, place, group in track(work, "states"):
        target = FOLDER / f"{part}-{place:04}.pt"
        if not target.exists():
            with files.replacing(target) as path:
                torch.save(_states(lm, group), path)


@torch.inference_mode()
def _states(lm: models.LM, group: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Of each comparison: its fields, its packing, states ``[T, width]`` and readings ``[depths, 2, K, width]``."""
    decoder: Any = lm.model.model
    packs = [pack(lm.chat, one.messages, one.answers) for one in group]
    found: dict[int, dict[str, Any]] = {}
    for places in rows([len(one.ids) for one in packs], 4096):
        row = together([packs[i] for i in places])
        hidden = decoder.embed_tokens(row.ids[None])
        entering, readings, start = hidden, [], 0
        for stop in READ_AFTER:
            hidden = run_blocks(decoder, hidden, row.positions[None], row.layout, start, stop)
            readings.append(torch.stack([row.readout(kind) @ hidden[0].float() for kind in ("mean", "last_token")]))
            entering, start = (hidden if stop == ENTERS else entering), stop
        cut = entering[0].half().split([len(packs[i].ids) for i in places])
        read = torch.stack(readings).split(row.layout.counts, dim=2)
        for place, own, mine in zip(places, cut, read, strict=True):
            one = group[place]
            found[place] = {**vars(one), "cut": packs[place].cut, "states": own.clone(), "readings": mine.clone()}
    return [found[place] for place in range(len(group))]


def stored(part: str) -> list[dict[str, Any]]:
    """What :func:`states` kept of a part.

    Raises:
        StarlingError: nothing is kept.
    """
    paths = sorted(FOLDER.glob(f"{part}-*.pt"))
    if not paths:
        raise StarlingError(f"{FOLDER} holds no states of {part}: run `python -m benchmarks.real_labels states` first")
    return [one for path in paths for one in torch.load(path, weights_only=True)]


def comparison(one: dict[str, Any]) -> Comparison:
    """Its ranking, without states."""
    return Comparison(**{field.name: one[field.name] for field in fields(Comparison)})


def prepared(lm: models.LM, every: Sequence[dict[str, Any]]) -> list[Prepared]:
    """Comparisons as if they came from the frozen trunk just now."""
    found = []
    for one in every:
        row = pack(lm.chat, one["messages"], one["answers"])
        found.append(Prepared(one["states"].float(), row, torch.tensor(one["ranks"], dtype=torch.float64)))
    return found


def folds(every: Sequence[Comparison], n: int = 4) -> list[tuple[list[Comparison], list[Comparison]]]:
    """Learn and measure, n times: on other prompts *and* other models, as in the test."""
    names = sorted({name for one in every for name in one.responders})
    own = {name: int(i) for i, name in zip(files.rng(0, "folds").permutation(len(names)) % n, names, strict=True)}
    found = []
    for fold in range(n):
        learn = [ranked.only(c, _at(c, own, fold, False)) for i, c in enumerate(every) if i % n != fold]
        measure = [ranked.only(c, _at(c, own, fold, True)) for i, c in enumerate(every) if i % n == fold]
        found.append(([c for c in learn if len(c.answers) > 1], [c for c in measure if len(c.answers) > 1]))
    return found


def _at(one: Comparison, own: dict[str, int], fold: int, inside: bool) -> list[int]:
    return [place for place, name in enumerate(one.responders) if (own[name] == fold) == inside]


def seen(every: Sequence[Comparison], states: dict[tuple[str, str], Tensor]) -> heads.Read:
    """What a head sees of comparisons, from states by prompt and responder."""
    return heads.stack(
        [torch.stack([states[one.prompt_id, name] for name in one.responders]) for one in every],
        [torch.tensor(one.ranks) for one in every],
    )


def choose(every: Sequence[Comparison], views: dict[str, dict[tuple[str, str], Tensor]]) -> pd.DataFrame:
    """Accuracy of every view and ridge on the folds, K-wise; the best first."""
    rows_ = []
    for view, states in views.items():
        for ridge in heads.RIDGES:
            right = [
                heads.accuracy(seen(measure, states), heads.fit(seen(learn, states), "k_wise", ridge))
                for learn, measure in folds(every)
            ]
            rows_.append({"view": view, "ridge": ridge, "accuracy": float(np.mean(right))})
    return pd.DataFrame(rows_).sort_values("accuracy", ascending=False, ignore_index=True)


def beyond_length(test: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Accuracy, that of the longest answer, their difference, and pairs within 10 % of each other's length."""
    mine = metrics.pairs(test, scores)
    theirs = metrics.pairs(test, [metrics.longest(one) for one in test])
    gap = paired_difference(mine.right, theirs.right, clusters=mine.prompt_id)
    alike = metrics.length_matched(mine, 1.1)
    found = {
        "accuracy": mean_interval(mine.right, mine.prompt_id),
        "longest": mean_interval(theirs.right, theirs.prompt_id),
        "lead": gap,
        "length_matched": mean_interval(alike.right, alike.prompt_id),
    }
    detectable = scoreboard.smallest_difference(mine.right - theirs.right, mine.prompt_id)
    return {name: one.as_dict() for name, one in found.items()} | {
        "pairs": len(mine),
        "length_matched_pairs": len(alike),
        "smallest_detectable_lead": detectable,
    }


def curves() -> None:
    """Heads on frozen states: beyond length, over data and depth; and K-wise against pairwise under three judges."""
    lm = models.shallow(models.load(), ENTERS)
    kept = {part: stored(part) for part in ("train", "validation", "test", "nectar")}
    items = {part: [comparison(one) for one in every] for part, every in kept.items()}
    views: dict[str, dict[tuple[str, str], Tensor]] = {}
    for readout in READOUTS:
        views[readout] = {}
        for part in kept:
            read_ = heads.read(lm, prepared(lm, kept[part]), readout)
            for one, states, mask in zip(items[part], read_.states, read_.mask, strict=True):
                views[readout] |= {
                    (one.prompt_id, name): own for name, own in zip(one.responders, states[mask], strict=True)
                }
    learned = items["train"] + items["validation"]
    chosen = choose(learned, views)
    view, ridge = str(chosen.view[0]), float(chosen.ridge[0])
    states = views[view]
    head = heads.fit(seen(items["train"], states), "k_wise", ridge)
    result: dict[str, Any] = {
        "backbone": lm.name,
        "comparisons": {part: len(every) for part, every in items.items()},
        "left_out": files.read_json(FOLDER / "dropped.json"),
        "cross_validation": chosen.to_dict("records"),
        "head": {
            part: beyond_length(items[part], seen(items[part], states).scores(head)) for part in ("test", "nectar")
        },
        "head_over_data": _over_data(items, states, ridge),
        "head_over_depth": _over_depth(kept, items, ridge),
        "k_wise_against_pairwise": _judges(items, states),
    }
    _keep(result)


def _over_data(items: dict[str, list[Comparison]], states: dict[tuple[str, str], Tensor], ridge: float) -> list[Any]:
    """The lead over the longest answer by number of training prompts, five subsets each."""
    found = []
    train, test = seen(items["train"], states), seen(items["test"], states)
    for size in (25, 50, 100, 200, len(train)):
        for seed in range(5 if size < len(train) else 1):
            part = train.some(files.rng(seed, "over data").permutation(len(train)).tolist()[:size])
            head = heads.fit(part, "k_wise", ridge)
            found.append({"prompts": size, "seed": seed, **beyond_length(items["test"], test.scores(head))})
    return found


def _over_depth(kept: dict[str, Any], items: dict[str, list[Comparison]], ridge: float) -> list[Any]:
    """The same by number of blocks below the head; states before the final norm, mean of both readouts."""
    found = []
    for number, depth in enumerate(READ_AFTER):
        states = {
            (one["prompt_id"], name): own
            for part in ("train", "test")
            for one in kept[part]
            for name, own in zip(one["responders"], one["readings"][number].mean(0), strict=True)
        }
        head = heads.fit(seen(items["train"], states), "k_wise", ridge)
        found.append({"blocks": depth, **beyond_length(items["test"], seen(items["test"], states).scores(head))})
    return found


def _judges(items: dict[str, list[Comparison]], states: dict[tuple[str, str], Tensor]) -> dict[str, Any]:
    """Learning curves of both losses under GPT-4's labels and under simulated judges, who label anew for every seed.

    Simulated utilities are linear in the states (a head fitted to GPT-4's labels, three times as sure), so that a head
    can express them: there Plackett-Luce labels are what the K-wise likelihood assumes. ``beyond the head`` adds to
    them what a head cannot see, GPT-4's own preferences.
    """
    read_ = {part: seen(items[part], states) for part in ("train", "validation", "test")}
    head = heads.fit(read_["train"], "k_wise", 0.1)
    linear = {part: [[3 * x for x in row] for row in one.scores(head)] for part, one in read_.items()}
    beyond = {
        part: [
            [x + 0.5 * (np.mean(one.ranks) - rank) for x, rank in zip(row, one.ranks, strict=True)]
            for row, one in zip(linear[part], items[part], strict=True)
        ]
        for part in linear
    }
    draws = {"Plackett-Luce": heads.plackett_luce_ranks, "normal noise": heads.thurstone_ranks}
    judges: dict[str, tuple[Any, Any]] = {
        "simulated, Plackett-Luce": (linear, "Plackett-Luce"),
        "simulated, normal noise": (linear, "normal noise"),
        "simulated, Plackett-Luce beyond the head": (beyond, "Plackett-Luce"),
    }
    found = {"GPT-4": _efficiency(heads.curve(read_["train"], read_["validation"], read_["test"], SIZES, SEEDS))}
    for name, (worth, kind) in judges.items():

        def relabel(one: heads.Read, part: str, seed: int, worth: Any = worth, kind: str = kind) -> heads.Read:
            return one.relabelled(draws[kind](worth[part], kind, part, seed).double())

        truth = [torch.tensor([1.0 + sum(other > x for other in row) for x in row]) for row in worth["test"]]
        test = read_["test"].relabelled(torch.nn.utils.rnn.pad_sequence(truth, batch_first=True).double())
        points = heads.curve(read_["train"], read_["validation"], test, SIZES, SEEDS, relabel=relabel)
        found[name] = _efficiency(points)
        print(name, found[name], flush=True)
    return found


def _efficiency(points: pd.DataFrame) -> dict[str, Any]:
    """How K-wise fares against pairwise on a learning curve; intervals over subsets (and labels, where drawn anew)."""
    by_seed = points.pivot_table(index="seed", columns="loss", values="accuracy")
    gaps = by_seed.k_wise - by_seed.pairwise
    gap, ratio = mean_interval(gaps), heads.label_ratio(points)
    means = points.groupby(["size", "loss"]).accuracy.mean().unstack().reset_index()
    return {
        "label_ratio": None if ratio is None else ratio.as_dict(),
        "k_wise_minus_pairwise": gap.as_dict(),
        "smallest_detectable_difference": scoreboard.smallest_difference(gaps, gaps.index),
        "accuracy": means.to_dict("records"),
    }


def train() -> None:
    """The top blocks trained on the kept states, scored on the test prompts after every epoch; goes on where it was."""
    lm = models.shallow(models.load(), DEPTH)
    kept = {part: stored(part) for part in ("train", "validation", "test", "nectar")}
    items = {part: [comparison(one) for one in every] for part, every in kept.items()}
    recipe = Recipe(
        lr=1e-4, head_lr=1e-3, weight_decay=0.1, epochs=2, batch=8, trainable=f"last:{DEPTH - ENTERS}", readout="both"
    )
    learn = prepared(lm, kept["train"])
    scorer, history, _ = training.train(lm, learn, recipe, checkpoint=FOLDER / "top.pt", report=named("top blocks"))
    found = {}
    for part in ("validation", "test", "nectar"):
        scores = scoring.predict(scorer, prepared(lm, kept[part]), torch.float32)
        found[part] = beyond_length(items[part], scores)
    curve = [{"step": one["step"], "loss": one["loss"]} for one in history]
    _keep({"top_blocks": {"recipe": asdict(recipe), "loss": curve, **found}})


def _keep(found: dict[str, Any]) -> None:
    """Put parts of the result beside those that are there; the head is that of the latest."""
    path = records.FOLDER / "real_labels.json"
    before = files.read_json(path) if path.exists() else {}
    kept = {name: part for name, part in before.items() if name not in ("git", "cpu", "cores")}
    records.keep("real_labels.json", kept | found)


if __name__ == "__main__":
    {"states": states, "curves": curves, "train": train}[sys.argv[1]]()
