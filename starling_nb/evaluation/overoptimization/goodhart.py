"""Notebook 06, step by step: answers and what every measure makes of them, policies past the tuned one, planted worlds.

``proxy`` is the reward model that chose or trained, ``other`` one that learned from labels the proxy never saw,
``judge`` a judge's grade and ``rubric`` the rubric's, both 1 to 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError, mt_bench
from starling_nb.evaluation.judges import judging
from starling_nb.evaluation.overoptimization import chosen, run, spread, verdicts
from starling_nb.evaluation.overoptimization import fits as goodhart_fits
from starling_nb.evaluation.overoptimization.fits import Form
from starling_nb.evaluation.tables import need
from starling_nb.judge import Judge, Request, fences
from starling_nb.models import LM, shallow
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy import measure
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.offline.baselines import best_of_n_kl, extrapolate
from starling_nb.policy.rollouts import RewardOnTrunk, Rollout, shared_blocks
from starling_nb.reward import RewardModel, comparisons, heads, scoring
from starling_nb.stats import Interval, proportion_interval, share_interval

MEASURES = ("proxy", "other", "judge", "rubric")
GOLD = MEASURES[1:]


@dataclass(frozen=True)
class Panel:
    """Who measures: the ``proxy`` and the ``other`` reward model, and a judge."""

    proxy: RewardModel
    other: RewardModel
    judge: Judge
    seed: int
    max_new_tokens: int

    def measured(self, lm: LM, start: LM, prompts: Sequence[Prompt], samples: int, name: str) -> pd.DataFrame:
        """``samples`` answers of a policy a prompt at temperature 1, one row each: columns as :func:`table`, and kl.

        ``kl`` is the exact divergence from ``start`` summed over the answer, nats; policies meet equal random numbers.
        """
        most = min(len(self.proxy.transformer.layers), len(lm.model.model.layers) - 1)
        block = shared_blocks(lm.model.model, start.model.model, most)
        models = {"proxy": self.proxy, "other": self.other}
        scorers = {key: RewardOnTrunk(model, lm, block) for key, model in models.items()}
        rollouts = measure.held_out(
            lm,
            prompts,
            samples=samples,
            seed=self.seed,
            max_new_tokens=self.max_new_tokens,
            capture=set.union(*(scorer.capture for scorer in scorers.values())),
            desc=f"answers, {name}",
        )
        kl = [0.0] * len(rollouts)
        if lm is not start:
            kl = measure.sequence_kl(Hydra.between(lm, start, block), rollouts, lm.dtype)
        return table(rollouts, samples, scorers, graded(rollouts, self.judge)).assign(kl=kl)


def other_reward(lm: LM, rows: Path, like: RewardModel, n: int, named: Callable[[str], Any]) -> RewardModel:
    """A reward model from labels that no other learned from: a head on the frozen backbone, fitted on validation rows.

    It has the depth and the place of reading of ``like``, whose training rows it never sees. One half of the rows
    chooses the ridge for the other, then all are fitted.

    Raises:
        EvaluationError: fewer than four rows.
    """
    backbone = shallow(lm, len(like.transformer.layers))
    found = comparisons.read(rows, lm.chat, ())[0]["validation"][:n]
    if len(found) < 4:
        raise EvaluationError(f"{len(found)} validation rows are too few for another reward model: rank more prompts")
    ready = scoring.prepare(backbone, found, "head", named("trunk, other labels"))
    seen = heads.read(backbone, ready, like.readout)
    _, ridge = heads.best(seen.some(range(0, len(seen), 2)), seen.some(range(1, len(seen), 2)), "k_wise")
    head = heads.fit(seen, "k_wise", ridge)
    return RewardModel(backbone.model.model, lm.chat, head[None].float(), like.readout).eval()


def table(
    rollouts: Sequence[Rollout], samples: int, scorers: Mapping[str, RewardOnTrunk], grades: Sequence[float]
) -> pd.DataFrame:
    """One row an answer: prompt_id, sample, text, words, proxy, other, judge (NaN without a readable grade), rubric."""
    found = measure.grade(rollouts)
    scores = {}
    for name, scorer in scorers.items():
        scorer(rollouts)
        scores[name] = [rollout.score for rollout in rollouts]
    told = {"sample": [i % samples for i in range(len(rollouts))], "text": [rollout.text for rollout in rollouts]}
    own = found[["prompt_id", "words"]].assign(**told, **scores, judge=list(grades), rubric=found.utility)
    return own[["prompt_id", "sample", "text", "words", *MEASURES]]


def graded(rollouts: Sequence[Rollout], judge: Judge) -> list[float]:
    """The judge's grade of each answer, 1 to 10, asked as in :mod:`mt_bench`; NaN where the reply holds none."""
    judging.register()
    asked = [
        Request(
            f"{r.prompt.id}/{place}",
            grading(r.prompt.messages, r.text),
            {"temperature": 0.0, "max_tokens": 512},
            mt_bench.parse,
        )
        for place, r in enumerate(rollouts)
    ]
    return [float("nan") if outcome.value is None else outcome.value for outcome in judge.ask_all(asked)]


def grading(messages: Sequence[Message], answer: str) -> list[Message]:
    """The judge's messages for one answer to a conversation of any length."""
    blocks = [*(fences.Block(m["role"], m["content"]) for m in messages), fences.Block("answer", answer)]
    return fences.messages(mt_bench.SYSTEM, blocks)


def beyond(start: LM, tuned: LM, alphas: Sequence[float]) -> dict[str, LM]:
    """Policies along the way from the start through the tuned model and past it, by name (ExPO, arXiv 2404.16792).

    They stand in for a longer run where there is none; 0 is the tuned model itself, by which the others are measured.

    Raises:
        EvaluationError: it is not among them.
    """
    if 0 not in alphas:
        raise EvaluationError(f"beyond = {list(alphas)}: 0, the tuned model itself, has to be among them")
    return {f"APA × {1 + alpha:g}": extrapolate(start, tuned, alpha) if alpha else tuned for alpha in alphas}


def numbers(samples: int) -> list[int]:
    """Powers of two from 2 to ``samples``, and ``samples`` itself."""
    return sorted({2**k for k in range(1, samples.bit_length()) if 2**k <= samples} | {samples})


@dataclass(frozen=True)
class Watched:
    """Two ways of optimising, watched: ``points`` of the curves in standard deviations of the start's answers
    (:func:`spread`), ``verdicts`` of the monitor in each measure's own unit, and what was ``left_out`` by way."""

    points: pd.DataFrame
    verdicts: pd.DataFrame
    left_out: Mapping[str, Mapping[str, int]]

    @property
    def said(self) -> dict[tuple[str, str], str]:
        """(way, gold measure) → the monitor's words."""
        return {(row.way, row.measure): row.said for row in self.verdicts.itertuples() if row.measure != "proxy"}

    @property
    def rows(self) -> pd.DataFrame:
        """What to record: kind, way, measure, value, low, high, n of each curve's last gain, and of its fall."""
        last = self.points.groupby(["way", "measure"], sort=False).tail(1).rename(columns={"gain": "value"})
        falls = self.verdicts.rename(columns={"fall": "value", "fall_low": "low", "fall_high": "high"})
        both = pd.concat([last.assign(kind="gain_at_the_end"), falls.assign(kind="fall")], ignore_index=True)
        return both[["kind", "way", "measure", "value", "low", "high", "n"]]

    def gain(self, way: str, measure: str) -> Interval:
        """The last gain of a curve, SD."""
        row = self.rows.set_index(["kind", "way", "measure"]).loc[("gain_at_the_end", way, measure)]
        return Interval(row.value, row.low, row.high, int(row.n))


def watch(start: pd.DataFrame, after: Mapping[str, pd.DataFrame], way: str) -> Watched:
    """The best of n of the start's answers by the proxy, and a run's policies, whose way has a name, by all measures.

    n goes up to what nine in ten prompts have of answers that every measure judged, so that a few unreadable grades do
    not cost half of the prompts.

    Raises:
        EvaluationError: as :func:`chosen` and :func:`run`.
    """
    judged = start[list(MEASURES)].notna().all(axis=1).groupby(start.prompt_id).sum()
    samples = int(np.quantile(judged, 0.1, method="lower"))
    curves = [chosen(start, "proxy", MEASURES, numbers(samples)), run(start, after, MEASURES, way)]
    units = spread(start, MEASURES)
    return Watched(
        pd.concat([curve.table(units) for curve in curves], ignore_index=True),
        pd.concat([verdicts(curve) for curve in curves], ignore_index=True),
        {curve.way: dict(curve.left_out) for curve in curves},
    )


def recorded(path: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The start's answers and a run's, policy by policy, as ``benchmarks/overoptimization.py`` measured them.

    Raises:
        EvaluationError: the table has other columns, or no answers of the start.
    """
    table = pd.read_parquet(path)
    need(table, ["policy", "prompt_id", "sample", "kl", *MEASURES], "the recorded answers")
    policies = {str(name): own for name, own in table.groupby("policy", sort=False)}
    if "start" not in policies:
        raise EvaluationError(f"{path} holds no answers of the start: measure a run again")
    return policies.pop("start"), policies


def agreement(answers: pd.DataFrame, measures: Sequence[str] = MEASURES[:3]) -> pd.DataFrame:
    """How often each measure orders two answers to one prompt as the rubric does: measure, value, low, high, n.

    Pairs that are equal to the rubric are left out, pairs equal to the measure count one half. Intervals over prompts.
    """
    rows = []
    for name in measures:
        right, prompts = [], []
        for prompt, own in answers[np.isfinite(answers[name])].groupby("prompt_id"):
            truth, said = (np.sign(own[c].to_numpy()[:, None] - own[c].to_numpy()) for c in ("rubric", name))
            pairs = np.triu(truth != 0, 1)
            right += (0.5 + 0.5 * (truth * said)[pairs]).tolist()
            prompts += [prompt] * int(pairs.sum())
        rows.append({"measure": name, **vars(share_interval(right, prompts))})
    return pd.DataFrame(rows)


def deceived(answers: pd.DataFrame, prompts: Sequence[Prompt], gold: str = "rubric", n: int = 4) -> pd.DataFrame:
    """The proxy's favourites that gold thinks least of, against the mean of their prompt's answers.

    Columns: prompt, favourite, proxy_above (over the mean of the prompt's answers), gold, gold_mean; worst first.
    """
    texts = {prompt.id: prompt.messages[-1]["content"] for prompt in prompts}
    judged = answers.dropna(subset=["proxy", gold])
    best = judged.loc[judged.groupby("prompt_id").proxy.idxmax()].set_index("prompt_id")
    means = judged.groupby("prompt_id")[["proxy", gold]].mean()
    found = pd.DataFrame(
        {
            "prompt": [texts[id] for id in best.index],
            "favourite": best.text,
            "proxy_above": (best.proxy - means.proxy).round(2),
            gold: best[gold].round(1),
            f"{gold}_mean": means[gold].round(1),
        }
    )
    return found.iloc[(found[gold] - found[f"{gold}_mean"]).argsort(kind="stable")[:n]].reset_index(drop=True)


SHAPES: dict[str, Callable[[Any], Any]] = {
    "no effect": lambda d: 0 * d,
    "rises": lambda d: d / 2,
    "levels off": lambda d: 1 - np.exp(-2 * d),
}
PEAKED: dict[Form, tuple[float, float]] = {"best_of_n": (1.6, 0.8), "rl": (1.0, 1.0)}


def planted(worlds: int, prompts: int = 60, noise: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """What the monitor says of worlds whose truth is known: form, shape, peak, alarms, covered, worlds.

    Each prompt's gold gain is the truth plus a random walk over the points that ends with SD ``noise``. ``alarms`` is
    the share in which a turn was called, ``covered`` that whose interval held the planted peak (NaN without one).
    """
    ways: dict[Form, Any] = {
        "best_of_n": np.sqrt([best_of_n_kl(n) for n in numbers(64)]),
        "rl": np.array([0.3, 0.6, 1.0, 1.5, 2.0, 2.6]),
    }
    rows = []
    for form, d in ways.items():
        truths = {name: shape(d) for name, shape in SHAPES.items()}
        truths["peak"] = goodhart_fits.basis(form, d) @ np.array(PEAKED[form])
        top = float(goodhart_fits.peaks(form, *PEAKED[form], float(d[-1])))
        for shape, truth in truths.items():
            found = []
            for world in range(worlds):
                steps = files.rng(seed, "planted", form, shape, world).normal(size=(prompts, len(d)))
                gains = truth + noise * np.cumsum(steps, 1) / np.sqrt(len(d))
                found.append(goodhart_fits.stop(form, d, gains, seed=world, draws=400))
            alarms = sum(one.verdict == "turned" for one in found)
            held = sum(one.fit.peak.low <= top <= one.fit.peak.high for one in found)
            peak = (top, held / worlds) if shape == "peak" else (float("nan"), float("nan"))
            rows.append((form, shape, peak[0], alarms / worlds, peak[1], worlds))
    return pd.DataFrame(rows, columns=["form", "shape", "peak", "alarms", "covered", "worlds"])


def false_alarms(found: pd.DataFrame) -> Interval:
    """Share of turns called in all planted worlds without one, Wilson's interval."""
    rows = found[found["shape"] != "peak"]
    return proportion_interval(round(float((rows.alarms * rows.worlds).sum())), int(rows.worlds.sum()))


def coverage(found: pd.DataFrame) -> Interval:
    """Share of worlds with a planted peak in which its interval held it, Wilson's interval."""
    rows = found[found["shape"] == "peak"]
    return proportion_interval(round(float((rows.covered * rows.worlds).sum())), int(rows.worlds.sum()))
