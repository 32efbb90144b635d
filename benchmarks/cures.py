"""Which cure of position bias is worth its tokens? Simulated judges, in simulated worlds and on a real model's states.

    python -m benchmarks.cures [--replicates 200]

Four parts, all written to ``benchmarks/results/cures.json``:

``judges``: every cure on every judge at equal tokens, as :func:`starling_nb.bias.cures.compare` has it; ``worlds``:
the main cures where answers are alike, where features tell all of quality, where the better models stand at the back or
nowhere or are better than features tell, and with five times the tokens. ``large_sample``: what random order and the
position term cost by theory, from the sandwich variance (White 1982) of one large sample. ``model``: the same judges
rank the answers of ``nectar_mini`` by the rubric's utility; a linear reward model on frozen states of the embedded
model learns from each cure's labels and is judged by the rubric on prompts that it has not seen. States are computed
once and kept in the cache. About 20 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import records
from benchmarks.judge_simulation import Answers, load_answers
from starling_nb import files
from starling_nb.bias import cures, simulation
from starling_nb.bias.cures import CURES, FAIR, RANDOM, Cure
from starling_nb.bias.plackett_luce import Design, fit
from starling_nb.judge import Calibration
from starling_nb.judge.simulation.perception import UTILITY_SPREAD, log_odds
from starling_nb.nectar import prompts
from starling_nb.progress import track

Floats = NDArray[np.float64]
PROMPTS = 600
"""What the budget buys where every label is one naive verdict."""
MAIN = ("fixed order", "fixed order, position term", "position term", "two passes", "cyclic 7", "random tie-break")
WORLDS: dict[str, dict[str, Any]] = {
    "better models at the back": {"front": -1.0},
    "given order says nothing": {"front": 0.0},
    "alike answers": {"spread": 1.0},
    "features tell all": {"unseen": 0.0},
    "alike answers, features tell all": {"spread": 1.0, "unseen": 0.0},
    "five times the tokens": {"times": 5.0},
}
TOLD = ("position_effect", "truth_tau", "accuracy", "equivalent_share", "share_of_random", "scale", "tilt")
"""Metrics that are kept of the worlds."""
DEPTH, READOUT = 16, "mean"  # where profiles/laptop.toml reads the embedded model
DIMENSIONS, RIDGE = 128, 10.0
"""Principal directions; nats a squared weight. Chosen on validation prompts, by the fair and the random-order arm."""
FIRST, LAST = "fixed order, better models first", "fixed order, better models last"
MODEL_ARMS: dict[str, Cure] = {
    FAIR: CURES[RANDOM],
    f"{FAIR}, half the tokens": CURES[RANDOM],
    FIRST: CURES["fixed order"],
    f"{FIRST}, position term": CURES["fixed order, position term"],
    LAST: CURES["fixed order"],
    f"{LAST}, position term": CURES["fixed order, position term"],
    **{
        name: CURES[name]
        for name in (RANDOM, "position term", "corrected rankings", "two passes", "two passes, position term")
    },
    **{name: CURES[name] for name in ("cyclic 7", "random pair order", "random tie-break")},
}
DRAWS = 2000


def compared(judge: str, names: Sequence[str], replicates: int, about: Mapping[str, Any]) -> pd.DataFrame:
    """One judge's table; of other worlds than the usual one less of it."""
    rest = {key: value for key, value in about.items() if key != "times"}
    budget = PROMPTS * about.get("times", 1.0) * cures.measured()["naive"]
    table = cures.compare(budget, [judge], names, replicates, **rest)
    return table[table.metric.isin(TOLD)] if about else table


def large_sample(judge: str, n: int = 40_000) -> dict[str, dict[str, float]]:
    """Share of labels left, variance and scale against the fair judge, per prompt, in the limit of many prompts."""
    about = simulation.world(n, files.rng(0, "large sample"))
    shown = files.rng(0, "large sample", "orders").random(about.quality.shape).argsort(1)
    rows, asked = np.arange(n)[:, None], simulation.asking("naive")
    quality, seen, truth = about.quality[rows, shown], about.features[rows, shown], about.weights
    across = np.eye(len(truth)) - np.outer(truth, truth) / (truth @ truth)

    def limits(order: NDArray[np.intp], term: bool) -> tuple[float, float]:
        factors = [(order, order.shape[1])] if term else []
        fitted = fit(Design(np.ones(order.shape, dtype=bool), factors, [seen[rows, order]]))
        pull, weights = fitted.influence(np.arange(n))[:, -len(truth) :], fitted.theta[-len(truth) :]
        return float(np.trace(across @ pull.T @ pull)), float(weights @ truth / (truth @ truth))

    play = partial(simulation.JUDGES[judge], quality)
    fair = play(asked.fair, files.rng(0, "large sample", judge))
    biased = play(asked, files.rng(0, "large sample", judge))
    variance, scale = limits(fair, False)
    found = {}
    for name, term in ((RANDOM, False), ("position term", True)):
        v, s = limits(biased, term)
        share = (variance / scale**2) / (v / s**2)
        found[name] = {"equivalent_share": share, "variance": v / variance, "scale": s / scale}
    return found


def states(answers: Answers) -> NDArray[np.float32]:
    """``[prompts, 7, width]``: the embedded model's states, mean over each answer after :data:`DEPTH` blocks; kept."""
    path = files.cache_dir() / f"cures-{answers.fingerprint[:12]}-{DEPTH}-{READOUT}.npy"
    if not path.exists():
        from starling_nb import models
        from starling_nb.blocks import trunk_states
        from starling_nb.reward.packing import pack

        lm = models.load()
        decoder: Any = lm.model.model
        rows = []
        for item in track(answers.candidates, "states"):
            one = pack(lm.chat, item.prompt.messages, item.answers)
            hidden = trunk_states(decoder, one.ids[None], one.positions[None], one.mask(), DEPTH)[0].float().cpu()
            rows.append((one.readout(READOUT) @ hidden).numpy())
        with files.replacing(path) as part, part.open("wb") as stream:
            np.save(stream, np.stack(rows))
    found: NDArray[np.float32] = np.load(path)
    return found


@dataclass(frozen=True)
class Real:
    """Prompts with seven answers each, the answers of better models first.

    ``features`` ``[n, 7, d]``, ``quality`` ``[n, 7]`` in the judge's logits, ``utilities`` ``[n, 7]`` of the rubric,
    ``model`` ``[n, 7]``; ``train`` and ``test`` are the numbers of prompts.
    """

    features: Floats
    quality: Floats
    utilities: Floats
    model: NDArray[np.intp]
    train: NDArray[np.intp]
    test: NDArray[np.intp]

    @classmethod
    def of(cls, answers: Answers, states: NDArray[np.float32], heldout: str = "test") -> Real:
        """Principal directions of the training answers' differences within prompts, each of variance one."""
        split = np.array([prompts.split_of(item.prompt.messages) for item in answers.candidates])
        train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == heldout)
        centred = states.astype(float) - states.mean(1, keepdims=True)
        _, size, axes = np.linalg.svd(centred[train].reshape(-1, centred.shape[2]), full_matrices=False)
        features = centred @ axes[:DIMENSIONS].T / size[:DIMENSIONS] * np.sqrt(7 * len(train))
        quality = Calibration.load().scale * log_odds(answers.utilities) / UTILITY_SPREAD
        names = np.array([item.models for item in answers.candidates])
        model = np.unique(names, return_inverse=True)[1].reshape(names.shape)
        gap = quality[train] - quality[train].mean(1, keepdims=True)
        strength = np.bincount(model[train].ravel(), gap.ravel()) / np.bincount(model[train].ravel())
        order = np.argsort(-strength[model], axis=1)
        sort = partial(np.take_along_axis, indices=order, axis=1)
        seen = features[np.arange(len(order))[:, None], order]
        return cls(seen, sort(quality), sort(answers.utilities), sort(model), train, test)

    def turned(self) -> Real:
        """The answers of better models last."""
        back = slice(None), slice(None, None, -1)
        features, quality, utilities, model = self.features[back], self.quality[back], self.utilities[back], self.model
        return Real(features, quality, utilities, model[back], self.train, self.test)


def learned(real: Real, judge: str, name: str, number: int) -> tuple[Floats, float, float]:
    """One reward model: right pairs of each test prompt ``[P]``, spread of its scores, and its favour: how far it sees
    the three answers of better models above those of the poorer three, in spreads."""
    cure, costs = MODEL_ARMS[name], cures.measured()
    part = real.turned() if name.startswith(LAST) else real
    size = int(len(real.train) * costs["naive"] / costs[cure.variant] / cure.passes / (2 if "half" in name else 1))
    chosen = files.rng(0, "chosen", number).permutation(real.train)[:size]
    first = files.rng(0, "orders", number).random((size, 7)).argsort(1)
    shown = simulation.shown_orders(cure.design, cure.passes, first, part.model[chosen], number)
    asked = simulation.asking(cure.variant)
    asked = asked.fair if name.startswith(FAIR) else asked
    noise = files.rng(0, "noise", number)
    label = cures.give_labels(cure, simulation.JUDGES[judge], asked, part.quality[chosen], shown, noise)
    scores = real.features[real.test] @ label.weights(part.features[chosen], RIDGE)
    i, j = np.triu_indices(7, 1)
    truth = np.sign(real.utilities[real.test][:, i] - real.utilities[real.test][:, j])
    right = ((np.sign(scores[:, i] - scores[:, j]) == truth) & (truth != 0)).sum(1).astype(float)
    spread = float(np.sqrt(scores.var(1).mean()))
    return right, spread, float((scores[:, :3].mean() - scores[:, -3:].mean()) / spread)


def model_table(real: Real, judge: str, replicates: int) -> pd.DataFrame:
    """Accuracy, its gain over random order, and scale (ratio) and favour (difference) against the fair judge's.

    Intervals of the accuracies come from resampling replicates and test prompts together, the others' from replicates.
    """
    utilities = real.utilities[real.test]
    i, j = np.triu_indices(7, 1)
    pairs = (utilities[:, i] != utilities[:, j]).sum(1)
    draw = files.rng(0, "two ways")
    runs = np.vstack([np.ones(replicates), draw.multinomial(replicates, [1 / replicates] * replicates, DRAWS)])
    over = np.vstack([np.ones(len(pairs)), draw.multinomial(len(pairs), [1 / len(pairs)] * len(pairs), DRAWS)])
    means = {}
    for name in MODEL_ARMS:
        found = [learned(real, judge, name, number) for number in range(replicates)]
        right, spread, favour = (np.array(values) for values in zip(*found, strict=True))
        accuracy = ((runs @ right) * over).sum(1) / (over @ pairs) / replicates
        means[name] = accuracy, runs @ spread / replicates, runs @ favour / replicates
    rows = []
    for name, (accuracy, spread, favour) in means.items():
        measured = {
            "accuracy": accuracy,
            "accuracy_gain": accuracy - means[RANDOM][0],
            "scale": spread / means[FAIR][1],
            "favour": favour - means[FAIR][2],
        }
        for metric, values in measured.items():
            low, high = np.quantile(values[1:], [0.025, 0.975])
            rows.append((judge, name, metric, values[0], low, high))
    return pd.DataFrame(rows, columns=["judge", "cure", "metric", "value", "low", "high"])


def lines(table: pd.DataFrame) -> list[str]:
    """A table as lines of comma-separated values, numbers to four digits: small in JSON, and pandas reads it."""
    return table.drop(columns=["labels", "tokens"], errors="ignore").round(4).to_csv(index=False).splitlines()


def tasks(replicates: int, real: Real) -> Iterator[tuple[str, Any]]:
    """Name of the part, and what computes a piece of it."""
    for judge in simulation.JUDGES:
        yield "judges", partial(compared, judge, list(CURES), replicates, {})
    for world, about in WORLDS.items():
        for judge in ("plackett_luce", "pairwise_ties"):
            yield f"worlds/{world}", partial(compared, judge, MAIN, replicates // 2, about)
    for judge in simulation.JUDGES:
        if judge != "fair":
            yield "model", partial(model_table, real, judge, replicates // 2)


def main() -> None:
    """Run the parts on two processes, keep what they found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=200)
    replicates = parser.parse_args().replicates
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the processes share the cores
    answers = load_answers()
    real = Real.of(answers, states(answers))
    parts: dict[str, list[pd.DataFrame]] = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        running = [(name, pool.submit(task)) for name, task in tasks(replicates, real)]
        limits = {judge: pool.submit(large_sample, judge) for judge in simulation.JUDGES if judge != "fair"}
        for name, task in running:
            parts.setdefault(name, []).append(task.result())
            print(f"{name}: {len(parts[name])}", flush=True)
        theory = {judge: task.result() for judge, task in limits.items()}
    tables = {name: lines(pd.concat(found)) for name, found in parts.items()}
    about = {
        "replicates": {"judges": replicates, "worlds": replicates // 2, "model": replicates // 2},
        "tokens_a_label": cures.measured(),
        "model": {"train": len(real.train), "test": len(real.test), "dimensions": DIMENSIONS, "ridge": RIDGE},
    }
    records.keep("cures.json", {"settings": about, "large_sample": theory, "tables": tables})


if __name__ == "__main__":
    main()
