"""Judges with a known truth: worlds of answers whose quality is known, and six ways in which a judge may rank them.

A cure for position bias that is built on the Plackett-Luce model looks perfect on a Plackett-Luce judge. The judges
here therefore differ in kind: other noise, effects that depend on quality, effects that change from prompt to prompt,
and one whose bias has a mechanism (a bonus for what was read first, and ties) but no position effects at all. How large
the effects are is taken from the calibration of the simulated judge, which was fitted to GPT-4's logs. Nothing is asked
over a network: thousands of prompts are ranked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from starling_nb import files
from starling_nb.bias.tables import BiasError, Floats, Ints, Rankings
from starling_nb.judge import Calibration
from starling_nb.judge.simulation.perception import effects
from starling_nb.nectar import orders
from starling_nb.nectar.ranking import VARIANTS, standing_order

MODEL_SHARE = 0.25
"""Share of the features' variance that lies between models; a model's answers resemble each other."""
BONUS_SHARE = 0.5
"""Share of the linear part of a variant's effects that the pairwise judge's bonus makes; its ties make the rest."""
TIE = 0.5
"""Logits: the pairwise judge calls a smaller difference a tie."""
ANSWER_NOISE, PAIR_NOISE = 1.0, 0.9
"""Standard deviations of the pairwise judge's noise, an answer and a pair: without bias it agrees with the truth about
as often as the other judges do."""
VARIATION, REACH = 0.75, 3.0
"""Random effects: their standard deviation as a share of the mean effects' size, and how many places they reach over.
"""
LEAN: dict[str, float] = {"shown": 1.0, "": 0.8, "random": 0.65, "drawn": 0.5}
"""How likely the answer shown earlier wins a tie, by rule: the shown order; nothing said; the judge's own draw, which
is not quite random (both assumed); an order drawn for the request. ``standing`` is one order for all requests."""


@dataclass(frozen=True)
class Asking:
    """What a way of asking does to a judge that is shown K answers.

    Attributes:
        position: ``[K]`` effects of the places, logits, mean zero.
        contrast: ``[K]`` factors by which differences of opinion count at each place; one is neutral.
        ties: the rule that settles ties: ``standing`` or a key of :data:`LEAN`.
    """

    position: Floats
    contrast: Floats
    ties: str

    @property
    def fair(self) -> Asking:
        """The same without any effect of the place; ties are settled by an order drawn for each request."""
        return Asking(np.zeros_like(self.position), np.ones_like(self.contrast), "drawn")

    @property
    def slope(self) -> float:
        """Logits a place: the linear part of the effects."""
        place = np.arange(len(self.position)) - (len(self.position) - 1) / 2
        return float(place @ self.position / (place @ place))


def asking(variant: str, k: int = 7, calibration: Calibration | None = None) -> Asking:
    """The effects of a prompt variant as fitted to the logs; what holds for the first place alone is left out.

    Raises:
        BiasError: an unknown variant, or fewer than two answers.
    """
    if variant not in VARIANTS or k < 2:
        raise BiasError(f"variant {variant!r} with K = {k}: choose one of {', '.join(VARIANTS)} and K of at least 2")
    table = _calibration() if calibration is None else calibration
    position = effects(table.position, variant, k)
    contrast = effects(table.contrast, variant, k) if variant in table.contrast else np.ones(k)
    return Asking(position - position.mean(), contrast, VARIANTS[variant].ties)


Judge = Callable[[Floats, Asking, np.random.Generator], Ints]
"""Quality ``[n, K]`` in shown order to rankings ``[n, K]``: shown positions, best to worst. What a judge draws does not
depend on how it is asked, so that equal generators compare a biased judge with itself made fair."""


def plackett_luce(quality: Floats, asked: Asking, generator: np.random.Generator) -> Ints:
    """Position effects and Gumbel noise of scale one: exactly the Plackett-Luce model (Luce 1959, Plackett 1975)."""
    return _ranked(quality + asked.position + generator.gumbel(size=quality.shape))


def fair(quality: Floats, asked: Asking, generator: np.random.Generator) -> Ints:
    """A Plackett-Luce judge that does not look at places, however it is asked."""
    return plackett_luce(quality, asked.fair, generator)


def thurstone(quality: Floats, asked: Asking, generator: np.random.Generator) -> Ints:
    """Position effects and Gaussian noise of the variance of a Gumbel of scale one (Thurstone 1927, case V)."""
    return _ranked(quality + asked.position + generator.normal(scale=np.pi / np.sqrt(6), size=quality.shape))


def interaction(quality: Floats, asked: Asking, generator: np.random.Generator) -> Ints:
    """Differences of opinion count more at some places than at others, as ``Calibration.contrast`` has it."""
    opinion = quality + generator.gumbel(size=quality.shape)
    mean = opinion.mean(1, keepdims=True)
    return _ranked(mean + asked.contrast * (opinion - mean) + asked.position)


def random_effects(quality: Floats, asked: Asking, generator: np.random.Generator) -> Ints:
    """Effects drawn anew for every ranking around the variant's own, alike at neighbouring places."""
    k = quality.shape[1]
    noise, drawn = generator.gumbel(size=quality.shape), generator.normal(size=quality.shape)
    place = np.arange(k)
    root = np.linalg.cholesky(np.exp(-np.abs(place[:, None] - place) / REACH))
    size = VARIATION * float(np.sqrt(np.mean(asked.position**2)))
    return _ranked(quality + asked.position + size * drawn @ root.T + noise)


def pairwise_ties(quality: Floats, asked: Asking, generator: np.random.Generator) -> Ints:
    """Compares all pairs, adds a bonus for the answer shown first, settles small differences by the tie rule.

    Answers are ordered by the pairs that they win (Copeland 1951), equal numbers by the tie rule again. The bonus gives
    :data:`BONUS_SHARE` of the linear part of the variant's effects: of K - 1 comparisons, the first answer has the
    bonus in all and the last in none. A rule that leans to the shown order follows it in some requests and draws an
    order in the others.
    """
    n, k = quality.shape
    seen = quality + ANSWER_NOISE * generator.normal(size=quality.shape)
    first, second = np.triu_indices(k, 1)
    noise = PAIR_NOISE * generator.normal(size=(n, len(first)))
    drawn, follows = generator.random((n, k)).argsort(1), generator.random((n, 1))
    if asked.ties == "standing":
        turn = np.broadcast_to(np.argsort(standing_order(k)), (n, k))
    elif asked.ties in LEAN:
        turn = np.where(follows < 2 * LEAN[asked.ties] - 1, np.arange(k), drawn)
    else:
        raise BiasError(f"unknown tie rule {asked.ties!r}: choose standing or one of {', '.join(map(repr, LEAN))}")
    gap = seen[:, first] - seen[:, second] + noise - BONUS_SHARE * asked.slope * (k - 1) / 2
    wins = np.where(np.abs(gap) < TIE, turn[:, first] < turn[:, second], gap > 0)
    points = wins @ np.eye(k)[first] + ~wins @ np.eye(k)[second]
    return _ranked(points - turn / (2 * k))


JUDGES: dict[str, Judge] = {
    "plackett_luce": plackett_luce,
    "thurstone": thurstone,
    "pairwise_ties": pairwise_ties,
    "interaction": interaction,
    "random_effects": random_effects,
    "fair": fair,
}


@dataclass(frozen=True)
class World:
    """n prompts with K answers each, in the order in which they were given.

    Attributes:
        features: ``[n, K, d]``, the traits that a reward model sees, each of variance one.
        quality: ``[n, K]``, logits: ``features @ weights`` and an independent rest.
        model: ``[n, K]`` number of the answering model; the models of a prompt are distinct.
        weights: ``[d]``, the truth.
    """

    features: Floats
    quality: Floats
    model: Ints
    weights: Floats

    def part(self, rows: slice) -> World:
        """Some of the prompts."""
        return replace(self, features=self.features[rows], quality=self.quality[rows], model=self.model[rows])


def world(
    n: int,
    generator: np.random.Generator,
    *,
    k: int = 7,
    features: int = 12,
    spread: float = 3.0,
    unseen: float = 0.5,
    models: int = 10,
    front: float = 0.0,
) -> World:
    """Draw a world: a model's answers share traits, and quality is linear in them but for a part that no trait tells.

    Args:
        n: prompts.
        generator: of all draws.
        k, features, models: answers a prompt, traits, models to draw from.
        spread: standard deviation of quality, logits. At three, Plackett-Luce judges with the calibrated effects agree
            with themselves in other orders, and rank by place, about as GPT-4 does in the logs.
        unseen: share of the variance of quality that no trait tells; a half lets the best linear reward model be right
            on three pairs of four.
        front: how far the better models stand in front in the given order: logits of standing earlier, a standard
            deviation of model quality. Zero: any order is as likely as another. Negative: they stand at the back.

    Raises:
        BiasError: fewer models than answers, or a share that is none.
    """
    if models < k or k < 2 or not 0 <= unseen < 1:
        raise BiasError(
            f"{models} models, {k} answers, {unseen} unseen: take 2 answers, as many models or more, a share < 1"
        )
    weights = generator.normal(size=features)
    weights *= spread * np.sqrt(1 - unseen) / np.linalg.norm(weights)
    profiles = generator.normal(size=(models, features))
    profiles = np.sqrt(MODEL_SHARE) * (profiles - profiles.mean(0)) / profiles.std(0)
    strength = profiles @ weights / np.std(profiles @ weights)
    model = generator.random((n, models)).argsort(1)[:, :k]
    given = np.argsort(-(front * strength[model] + generator.gumbel(size=(n, k))), axis=1)
    model = np.take_along_axis(model, given, axis=1)
    traits = profiles[model] + generator.normal(scale=np.sqrt(1 - MODEL_SHARE), size=(n, k, features))
    rest = generator.normal(scale=spread * np.sqrt(unseen), size=(n, k))
    return World(traits, traits @ weights + rest, model, weights)


def rankings(order: Ints, shown: Ints, model: Ints | None = None) -> Rankings:
    """Verdicts as a table, pass after pass over the same prompts; models, where given, are named by their numbers.

    Args:
        order: ``[passes, n, K]`` or ``[n, K]``, shown positions from best to worst.
        shown: of the same shape, the answer at each position.
        model: ``[n, K]`` the model of each answer.
    """
    n, k = order.shape[-2:]
    order, shown = order.reshape(-1, k), shown.reshape(-1, k)
    prompt, length = np.tile(np.arange(n), len(order) // n), np.full(len(order), k)
    if model is None:
        return Rankings(order, length, prompt, prompts=list(range(n)))
    names = [str(number) for number in range(int(model.max()) + 1)]
    return Rankings(order, length, prompt, model[prompt[:, None], shown], names, list(range(n)))


def shown_orders(design: str, passes: int, first: Ints, model: Ints, seed: int) -> Ints:
    """``[passes, n, K]``, the answer at each position, by a design of :mod:`starling_nb.nectar.orders` or ``fixed``.

    Args:
        design: ``fixed`` shows the answers in the order in which they were given.
        passes: rankings a prompt.
        first: ``[n, K]`` a random order of each prompt, from which the designs within a prompt start.
        model: ``[n, K]`` the answering models, which ``balanced`` balances.
        seed: of what else is drawn.

    Raises:
        StarlingError: an unknown design, or a number of passes that it does not have.
    """
    n, k = first.shape
    if design == "fixed":
        return np.broadcast_to(np.arange(k), (passes, n, k))
    orders.check(design, passes, k)
    if design == "two_pass":
        return np.stack([first, first[:, ::-1]])
    if design == "cyclic":
        return np.stack([np.roll(first, -(number * k // passes), axis=1) for number in range(passes)])
    if design == "random":
        draw = files.rng(seed, "more orders")
        return np.stack([first, *(draw.random((n, k)).argsort(1) for _ in range(passes - 1))])
    rows = [(str(i), [str(name) for name in names]) for i, names in enumerate(model.tolist())]
    return np.array(list(orders.orders(design, rows, seed, passes))).transpose(1, 0, 2)


def tau(a: Floats | Ints, b: Floats | Ints) -> float:
    """Kendall's tau-a of each row of ``[n, K]``, averaged."""
    first, second = np.triu_indices(a.shape[1], 1)
    return float((np.sign(a[:, first] - a[:, second]) * np.sign(b[:, first] - b[:, second])).mean())


def _ranked(values: Floats) -> Ints:
    """``[n, K]`` places by falling value."""
    return np.argsort(-values, axis=1, kind="stable")


@lru_cache(maxsize=1)
def _calibration() -> Calibration:
    return Calibration.load()
