"""Cures of position bias compared at equal judge tokens, on judges that differ in kind and on a reward model.

A cure is a way of asking (prompt variant), an order in which answers are shown, a number of passes, and a way of making
a label of the verdicts. What a cure costs is counted in tokens: a longer prompt or a second pass buys fewer prompts.
What it is worth is what a reward model learns from its labels. Random error shrinks with the number of labels, and so
the worth is told as a share of labels: a share of 0.9 is as good as nine tenths of the labels of a judge without bias.
Bias that goes with the answering models does not shrink; it turns the reward model towards their traits (``tilt``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from starling_nb import files
from starling_nb.bias.correction import cross_corrected, reward_weights
from starling_nb.bias.plackett_luce import RIDGE
from starling_nb.bias.simulation import JUDGES, Asking, Judge, World, asking, rankings, shown_orders, tau, world
from starling_nb.bias.tables import BiasError, Floats, Ints, Rankings
from starling_nb.judge.simulation.judge import CHARACTERS_PER_TOKEN
from starling_nb.nectar import dataset, prompts, ranking
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.judging import write_reply
from starling_nb.progress import track

DRAWS = 1000
"""Bootstrap samples of the replicates."""


@dataclass(frozen=True)
class Cure:
    """A way to a label: orders by ``design`` (``fixed``: the order in which answers are given, or a name in
    :data:`starling_nb.nectar.orders.DESIGNS`), ``passes`` a prompt, the judge's prompt ``variant``, and the ``label``:

    ``ranks``, mean rank over the passes, equal ones as the first pass has them; ``likelihood``, every verdict enters
    the reward model's likelihood beside a position term; ``posterior``, corrected, with effects from other prompts.
    """

    design: str = "random"
    passes: int = 1
    variant: str = "naive"
    label: str = "ranks"


CURES: dict[str, Cure] = {
    "fixed order": Cure("fixed"),
    "fixed order, position term": Cure("fixed", label="likelihood"),
    "random order": Cure(),
    "balanced orders": Cure("balanced"),
    "position term": Cure(label="likelihood"),
    "corrected rankings": Cure(label="posterior"),
    "two passes": Cure("two_pass", 2),
    "two passes, position term": Cure("two_pass", 2, label="likelihood"),
    "two passes, corrected": Cure("two_pass", 2, label="posterior"),
    **{f"cyclic {m}": Cure("cyclic", m) for m in range(2, 8)},
    "random pair order": Cure(variant="final"),
    "random tie-break": Cure(variant="random_tie_break"),
    "random tie-break, position term": Cure(variant="random_tie_break", label="likelihood"),
}
FAIR, RANDOM = "fair judge", "random order"
"""What the others are measured by: the same judge freed of every effect of the place and asked once a prompt by the
naive prompt; and the same judge as it is, asked once in a random order."""


@dataclass(frozen=True)
class Labels:
    """Verdicts of one cure on n prompts, ``order`` and ``shown`` ``[passes, n, K]``, and the label that they make:
    ``ranks`` ``[n, K]`` of the answers, 0 the best. ``spread`` is the posterior's, where there is one."""

    cure: Cure
    order: Ints
    shown: Ints
    ranks: Ints
    spread: float | None = None

    def weights(self, features: Floats, ridge: float = RIDGE) -> Floats:
        """``[d]`` the linear reward model of greatest likelihood, for features ``[n, K, d]`` of the answers."""
        n, k = self.ranks.shape
        if self.cure.label != "likelihood":
            table = Rankings(np.argsort(self.ranks, axis=1), np.full(n, k), np.arange(n))
            return reward_weights(table, features, False, ridge).weights
        seen = features[np.arange(n)[:, None], self.shown].reshape(-1, k, features.shape[2])
        return reward_weights(rankings(self.order, self.shown), seen, True, ridge).weights


def tokens(candidates: Sequence[Candidates], variant: str) -> float:
    """Mean tokens of one label: request and reply, counted as the simulated judge counts them (four characters each).

    Raises:
        BiasError: no candidates.
    """
    if not candidates:
        raise BiasError("tokens are counted on prompts with their answers: give at least one")
    found = []
    for item in candidates:
        request = ranking.build(item.prompt.messages, item.answers, variant, 0, item.prompt.id)
        pairs = request.pairs or list(itertools.combinations(range(request.k), 2))
        reply = write_reply(variant, range(request.k), True, [(a, b, a) for a, b in pairs], [5] * request.k)
        asked = sum(len(message["content"]) for message in request.messages)
        found.append(-(-asked // CHARACTERS_PER_TOKEN) - (-len(reply) // CHARACTERS_PER_TOKEN))
    return float(np.mean(found))


def give_labels(
    cure: Cure,
    judge: Judge,
    asked: Asking,
    quality: Floats,
    shown: Ints,
    generator: np.random.Generator,
    spread: float | None = None,
) -> Labels:
    """Ask the judge in every pass and make the label.

    Args:
        cure: says how the label is made.
        judge, asked: who is asked, and what the prompt variant does to that judge.
        quality: ``[n, K]`` of the answers, logits.
        shown: ``[passes, n, K]`` the answer at each position.
        generator: of the judge's noise.
        spread: of the posterior; None estimates it.

    Raises:
        BiasError: an unknown kind of label.
    """
    if cure.label not in ("ranks", "likelihood", "posterior"):
        raise BiasError(f"unknown kind of label {cure.label!r}: choose ranks, likelihood or posterior")
    rows = np.arange(quality.shape[0])[:, None]
    order = np.stack([judge(quality[rows, places], asked, generator) for places in shown])
    if cure.label == "posterior":
        table = rankings(order, shown)
        found = cross_corrected(table, spread=spread, answer=shown.reshape(table.order.shape))
        return Labels(cure, order, shown, np.argsort(found.order, axis=1), found.spread)
    ranks = np.argsort(np.take_along_axis(shown, order, axis=2), axis=2)
    merged = ranks.mean(0) + ranks[0] / (2 * len(shown) * quality.shape[1])  # less than any step of the mean
    return Labels(cure, order, shown, np.argsort(np.argsort(merged, axis=1), axis=1))


def compare(
    budget_tokens: float,
    judges: Sequence[str] = tuple(JUDGES),
    cures: Sequence[str] = tuple(CURES),
    replicates: int = 20,
    seed: int = 0,
    *,
    front: float = 1.0,
    spread: float = 3.0,
    unseen: float = 0.5,
    k: int = 7,
    features: int = 12,
    held_out: int = 1000,
    costs: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Every cure on every judge, in worlds drawn anew for every replicate, all at the same judge tokens.

    Args:
        budget_tokens: what every cure may spend.
        judges, cures: names in :data:`starling_nb.bias.simulation.JUDGES` and in :data:`CURES`.
        replicates: worlds, at least two.
        seed: of everything.
        front, spread, unseen, k, features: of the worlds, see :func:`starling_nb.bias.simulation.world`.
        held_out: prompts on which the reward models are judged.
        costs: tokens of a label by variant; by default those of this project's prompts and answers.

    Returns:
        Columns ``judge``, ``cure``, ``metric`` (see :func:`measures`), ``value``, ``low``, ``high`` (95 %, bootstrap
        over replicates), ``prompts``, ``labels`` (replies) and ``tokens`` (spent). Every judge has the rows of
        :data:`FAIR` and :data:`RANDOM` as well.

    Raises:
        BiasError: unknown names, fewer than two replicates, or a budget that buys fewer than 20 prompts.
    """
    if unknown := (set(judges) - set(JUDGES)) | (set(cures) - set(CURES)):
        raise BiasError(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join([*JUDGES, *CURES])}")
    costs = measured(k) if costs is None else costs
    arms = {FAIR: CURES[RANDOM], RANDOM: CURES[RANDOM], **{name: CURES[name] for name in cures}}
    sizes = {name: int(budget_tokens // (costs[cure.variant] * cure.passes)) for name, cure in arms.items()}
    if replicates < 2 or min(sizes.values()) < 20:
        raise BiasError(f"{replicates} replicates of {sizes}: take at least 2, and a budget of 20 prompts a cure")
    found: dict[tuple[str, str], list[Floats]] = {(judge, name): [] for judge in judges for name in arms}
    for number in track(range(replicates), "cures"):
        size, draw = max(sizes.values()), files.rng(seed, "world", number)
        whole = world(size + held_out, draw, k=k, features=features, spread=spread, unseen=unseen, front=front)
        bench = _Bench(whole.part(slice(size)), whole.part(slice(size, None)), seed, number)
        for judge, name in found:
            found[judge, name].append(bench.measure(JUDGES[judge], arms[name], sizes[name], name == FAIR))
    asked = {name: sizes[name] * cure.passes for name, cure in arms.items()}
    spent = {name: (sizes[name], asked[name], asked[name] * costs[cure.variant]) for name, cure in arms.items()}
    return _summary({key: np.array(rows) for key, rows in found.items()}, spent, seed)


class _Bench:
    """One world: prompts to label, prompts held out, and the noise, which is the same for every cure."""

    def __init__(self, train: World, test: World, seed: int, number: int) -> None:
        self.train, self.test, self.seed, self.number = train, test, seed, number
        self.orders: dict[tuple[str, int, str], Ints] = {}
        centred = test.features - test.features.mean(1, keepdims=True)
        place = np.broadcast_to(asking("naive", test.quality.shape[1]).position, test.quality.shape)
        pull = np.linalg.lstsq(centred.reshape(-1, centred.shape[2]), place.ravel(), rcond=None)[0]
        truth = train.weights / np.linalg.norm(train.weights)
        aside = pull - (pull @ truth) * truth
        self.aside = aside / np.linalg.norm(aside)  # what the given order would teach beside the truth

    def shown(self, cure: Cure, n: int, draw: str) -> Ints:
        """``[passes, n, K]``: the orders of the first n prompts; ``draw`` names one of several independent draws."""
        key = (cure.design, cure.passes, draw)
        if key not in self.orders or self.orders[key].shape[1] < n:
            first = self.generator("orders", draw).random(self.train.quality.shape)[:n].argsort(1)
            seed = int(self.generator("balanced", draw).integers(2**31))
            self.orders[key] = shown_orders(cure.design, cure.passes, first, self.train.model[:n], seed)
        return self.orders[key][:, :n]

    def generator(self, *names: str) -> np.random.Generator:
        """Of this world."""
        return files.rng(self.seed, "world", self.number, *names)

    def measure(self, judge: Judge, cure: Cure, n: int, fair: bool) -> Floats:
        """The numbers of :func:`measures` before they are averaged and compared."""
        part, asked = self.train.part(slice(n)), asking(cure.variant, self.train.quality.shape[1])
        asked = asked.fair if fair else asked
        shown, other = self.shown(cure, n, "one"), self.shown(cure, n, "two")
        unbiased, quality = replace(cure, label="ranks"), part.quality
        label = give_labels(cure, judge, asked, quality, shown, self.generator("noise"))
        again = give_labels(cure, judge, asked, quality, shown, self.generator("noise again"), label.spread)
        apart = give_labels(cure, judge, asked, quality, other, self.generator("noise elsewhere"), label.spread)
        plain = give_labels(unbiased, judge, asked.fair, quality, shown, self.generator("noise"))
        moved = np.take_along_axis(label.ranks - plain.ranks, shown[0], axis=1)
        learned, truth = label.weights(part.features), part.weights
        cosine = learned @ truth / np.linalg.norm(learned) / np.linalg.norm(truth)
        found = (
            float(np.mean(moved.mean(0) ** 2 - moved.var(0, ddof=1) / n)),
            tau(label.ranks, again.ranks),
            tau(label.ranks, apart.ranks),
            tau(-label.ranks, quality),
            (1 + tau(self.test.features @ learned, self.test.quality)) / 2,
            1 - cosine**2,
            learned @ truth / (truth @ truth),
            learned @ self.aside / (learned @ truth) * np.linalg.norm(truth),
            (learned @ learned) * (1 - cosine**2) / (truth @ truth),
        )
        return np.array(found)


def measures(own: Floats, random: Floats, fair: Floats) -> dict[str, Floats]:
    """The table's metrics, from means over replicates ``[draws, 9]`` of a cure and of what it is measured by.

    ``position_effect``: root mean square over places (of the first pass) of the mean rank less what the same judge with
    the same noise would have given without effects of the place, freed of sampling noise; ranks. ``retest_tau``,
    ``other_order_tau``, ``truth_tau``: agreement of the label with one made anew in the same orders, with one made in
    orders drawn apart, and with the truth. ``accuracy``: of the reward model on held-out pairs; ``accuracy_gain``: less
    that of random order. ``angle_error``: 1 - cos^2 between fitted and true weights. ``equivalent_share``: the fair
    judge's angle error over this one; as it falls as 1 / n, the share of labels that the bias leaves.
    ``share_of_random``: the same against random order. ``scale``: length of the weights along the true ones, and
    ``variance``: their mean square across them, both relative to the fair judge's; the share is about scale^2 over
    variance. ``tilt``: tangent of the turn towards the traits of the models in front.
    """
    return {
        "position_effect": np.sqrt(np.maximum(own[:, 0], 0)),
        "retest_tau": own[:, 1],
        "other_order_tau": own[:, 2],
        "truth_tau": own[:, 3],
        "accuracy": own[:, 4],
        "accuracy_gain": own[:, 4] - random[:, 4],
        "angle_error": own[:, 5],
        "equivalent_share": fair[:, 5] / own[:, 5],
        "share_of_random": random[:, 5] / own[:, 5],
        "scale": own[:, 6] / fair[:, 6],
        "tilt": own[:, 7],
        "variance": own[:, 8] / fair[:, 8],
    }


def _summary(
    found: Mapping[tuple[str, str], Floats], spent: Mapping[str, tuple[int, int, float]], seed: int
) -> pd.DataFrame:
    """Means over replicates with percentile intervals; all cells are resampled alike, so that ratios are paired."""
    n = len(next(iter(found.values())))
    drawn = files.rng(seed, "cures", "bootstrap").multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    means = {key: np.vstack([rows.mean(0), drawn @ rows]) for key, rows in found.items()}
    rows = []
    for judge, name in found:
        for metric, values in measures(means[judge, name], means[judge, RANDOM], means[judge, FAIR]).items():
            low, high = np.quantile(values[1:], [0.025, 0.975])
            rows.append((judge, name, metric, float(values[0]), float(low), float(high), *spent[name]))
    columns = ["judge", "cure", "metric", "value", "low", "high", "prompts", "labels", "tokens"]
    return pd.DataFrame(rows, columns=columns)


@lru_cache(maxsize=8)
def measured(k: int = 7) -> Mapping[str, float]:
    """Tokens of a label by prompt variant, on this project's prompts with K of their answers."""
    found = dataset.candidates_of(dataset.load(files.DATA / "nectar_mini.parquet"), prompts.load())[:100]
    cut = [Candidates(item.prompt, item.models[:k], item.answers[:k]) for item in found]
    return {variant: tokens(cut, variant) for variant in ranking.VARIANTS}
