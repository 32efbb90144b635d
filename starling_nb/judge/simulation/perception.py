"""What the simulated judge makes of an answer: its true utility, seen through a judge's known weaknesses.

The judge's opinion of an answer is

    scale * utility + length * ln(words) + self_preference * style + noise,

and the answer at shown position j is perceived as

    mean opinion of the row + contrast[variant][j] * (opinion - mean) + position[variant][j].

The answers are ranked by that number: a Plackett-Luce choice (Luce 1959, Plackett 1975) where contrast is
one, because the noise is Gumbel. A contrast above one sends the answers shown there to either end of the
ranking: GPT-4 is more decided about the first answers that it reads. The noise has two parts. One belongs to
the request as it was shown, order included, and comes back when the same request is sent again; the other is
new with every call. The choice is exactly Plackett-Luce where one part is switched off and close to it where
both are on. A share ``in_order`` of requests is ranked just as shown.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starling_nb.errors import StarlingError
from starling_nb.files import DATA, hash_value, read_json

POSITIONS = 7  # how many shown positions an effect is given for
UTILITY_ENDS = 0.75, 10.25  # a little outside the scale 1..10, so that its log-odds stay finite
UTILITY_SPREAD = 1.8  # log-odds that a usual set of seven answers is spread over
WORDS_CENTER = 40.0  # a usual answer; the length term counts natural-log units from here


@dataclass(frozen=True)
class Calibration:
    """The simulated judge's parameters, all in logits of the choice.

    ``position`` maps a prompt variant to seven effects, one for each shown position; a variant that is not
    named has none. ``position_top`` adds to them for the first place only. ``contrast`` has seven factors a
    variant in the same way, one where it is not named.
    """

    scale: float  # per spread of utility
    length: float  # per natural-log unit of words
    self_preference: float  # per unit of word overlap (F1, 0..1) with the judge's own answer
    order_noise: float  # Gumbel scale, fixed by the request as shown
    call_noise: float  # Gumbel scale, new with every call
    position: Mapping[str, Sequence[float]]
    position_top: Mapping[str, Sequence[float]] = field(default_factory=dict)
    contrast: Mapping[str, Sequence[float]] = field(default_factory=dict)
    in_order: Mapping[str, float] = field(default_factory=dict)  # share of requests ranked as shown
    slip: float = 0.013  # mean share of pair winners against the list (GPT-4: 0.6 to 1.3 % by experiment)
    origin: str = ""  # where the numbers come from
    assumed: Sequence[str] = ()  # the fields and variants that were not fitted

    def __post_init__(self) -> None:
        tables = [*self.position.values(), *self.position_top.values(), *self.contrast.values()]
        numbers = [
            self.scale,
            self.length,
            self.self_preference,
            self.order_noise,
            self.call_noise,
            self.slip,
            *self.in_order.values(),
        ]
        if any(len(effects) != POSITIONS for effects in tables):
            raise StarlingError(
                f"a judge calibration gives {POSITIONS} position effects for every variant: add the rest"
            )
        if not all(math.isfinite(number) for number in (*numbers, *(x for effects in tables for x in effects))):
            raise StarlingError("a judge calibration holds finite numbers only: mend the one that is not")
        if self.scale <= 0 or min(self.order_noise, self.call_noise) < 0 or not 0 <= self.slip <= 1:
            raise StarlingError("a judge calibration needs scale > 0, noises >= 0 and slip between 0 and 1")
        shares, factors = self.in_order.values(), [x for row in self.contrast.values() for x in row]
        if any(not 0 <= share <= 1 for share in shares) or any(factor <= 0 for factor in factors):
            raise StarlingError("a judge calibration needs contrasts > 0 and in_order between 0 and 1")

    @property
    def fingerprint(self) -> str:
        """Eight hex digits that change with any parameter."""
        return hash_value(asdict(self))[:8]

    @classmethod
    def load(cls, path: Path = DATA / "judge_calibration.json") -> Calibration:
        """Read a calibration.

        Raises:
            StarlingError: the file is missing, lacks a field or has one too many.
        """
        values = read_json(path)
        known = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise StarlingError(f"{path} must be an object with the fields {', '.join(sorted(known))} and no others")
        try:
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise StarlingError(f"{path} is not a judge calibration ({error}): restore it (git checkout)") from error


def effects(table: Mapping[str, Sequence[float]], variant: str, k: int) -> NDArray[np.float64]:
    """Position effects of ``variant`` for ``k`` shown answers, interpolated over the relative position
    0..1."""
    if k < 2 or variant not in table:
        return np.zeros(k)
    return np.interp(np.linspace(0, 1, k), np.linspace(0, 1, POSITIONS), np.asarray(table[variant], dtype=float))


def log_odds(utility: NDArray[np.float64]) -> NDArray[np.float64]:
    """Utility 1..10 as log-odds on its scale: a judge tells two poor answers apart as well as two good ones."""
    low, high = UTILITY_ENDS
    return np.asarray(np.log((utility - low) / (high - utility)))


def perceive(
    utilities: ArrayLike,
    lengths: ArrayLike,
    styles: ArrayLike,
    variant: str,
    calibration: Calibration,
    rng_order: np.random.Generator,
    rng_call: np.random.Generator,
) -> NDArray[np.float64]:
    """Perceived value of every answer; sorting it from high to low is the judge's ranking.

    Args:
        utilities: true quality 1..10, shape ``[..., k]``, in shown order.
        lengths: words, same shape.
        styles: word overlap 0..1 with the judge's own answer, same shape.
        variant: prompt variant, which selects the position effects.
        calibration: the judge's parameters.
        rng_order: source of the noise that belongs to the request as shown.
        rng_call: source of the noise that belongs to this call.

    Returns:
        Logits, shape ``[..., k]``.
    """
    quality = log_odds(np.asarray(utilities, dtype=float)) / UTILITY_SPREAD
    words = np.log(np.maximum(np.asarray(lengths, dtype=float), 1) / WORDS_CENTER)
    k = quality.shape[-1]
    opinion = (
        calibration.scale * quality
        + calibration.length * words
        + calibration.self_preference * np.asarray(styles, dtype=float)
        + calibration.order_noise * (rng_order.gumbel(size=quality.shape) - np.euler_gamma)
        + calibration.call_noise * (rng_call.gumbel(size=quality.shape) - np.euler_gamma)
    )
    stretch = np.exp(effects(_logs(calibration.contrast), variant, k))
    scores = opinion + (stretch - 1) * (opinion - opinion.mean(axis=-1, keepdims=True))
    scores = scores + effects(calibration.position, variant, k)
    top = effects(calibration.position_top, variant, k)
    if top.any():  # choose the first place with the extra effects, then put it above the others
        first = np.argmax(scores + top, axis=-1, keepdims=True)
        np.put_along_axis(scores, first, scores.max(axis=-1, keepdims=True) + 1e-6, axis=-1)
    if share := calibration.in_order.get(variant, 0.0):
        as_shown = rng_order.random((*quality.shape[:-1], 1)) < share
        scores = np.where(as_shown, -np.sort(-scores, axis=-1), scores)
    return scores


def as_grades(scores: NDArray[np.float64], calibration: Calibration) -> NDArray[np.float64]:
    """Perceived values put back on the scale of utilities, cut to 1..10."""
    low, high = UTILITY_ENDS
    share = 1 / (1 + np.exp(-np.clip(UTILITY_SPREAD * scores / calibration.scale, -30, 30)))
    return np.asarray(np.clip(low + (high - low) * share, 1, 10))


def _logs(table: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {variant: [math.log(factor) for factor in factors] for variant, factors in table.items()}


def overlap(answer: str, reference: str) -> float:
    """Unigram F1 (0..1) between two texts, case ignored: the style term."""
    ours, theirs = Counter(_words(answer)), Counter(_words(reference))
    shared = (ours & theirs).total()
    return 2 * shared / (ours.total() + theirs.total()) if shared else 0.0


def count_words(text: str) -> int:
    """Words in ``text``: the length term."""
    return len(_words(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())
