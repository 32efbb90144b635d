"""What the simulated judge makes of an answer: its true utility, seen through a judge's known weaknesses.

An answer at shown position j is perceived as

    scale * utility + length * ln(words) + self_preference * style + position[variant][j] + noise,

and the answers are ranked by that number: a Plackett-Luce choice (Luce 1959, Plackett 1975), because the
noise is Gumbel. The noise has two parts. One belongs to the request as it was shown, order included, and
comes back when the same request is sent again; the other is new with every call. The choice is exactly
Plackett-Luce where one part is switched off and close to it where both are on.
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
UTILITY_CENTER, UTILITY_SPREAD = 5.5, 2.5  # utilities 1..10 in units of their usual spread
WORDS_CENTER = 40.0  # a usual answer; the length term counts natural-log units from here


@dataclass(frozen=True)
class Calibration:
    """The simulated judge's parameters, all in logits of the choice.

    ``position`` maps a prompt variant to seven effects, one for each shown position; a variant that is not
    named has none. ``position_top`` adds to them for the first place only.
    """

    scale: float  # per spread of utility
    length: float  # per natural-log unit of words
    self_preference: float  # per unit of word overlap (F1, 0..1) with the judge's own answer
    order_noise: float  # Gumbel scale, fixed by the request as shown
    call_noise: float  # Gumbel scale, new with every call
    position: Mapping[str, Sequence[float]]
    position_top: Mapping[str, Sequence[float]] = field(default_factory=dict)
    slip: float = 0.013  # share of pair winners that contradict the final list (GPT-4: 1 to 1.5 %)
    origin: str = ""  # where the numbers come from
    assumed: Sequence[str] = ()  # the fields and variants that were not fitted

    def __post_init__(self) -> None:
        tables = [*self.position.values(), *self.position_top.values()]
        numbers = [
            self.scale,
            self.length,
            self.self_preference,
            self.order_noise,
            self.call_noise,
            self.slip,
        ]
        if any(len(effects) != POSITIONS for effects in tables):
            raise StarlingError(
                f"a judge calibration gives {POSITIONS} position effects for every variant: add the rest"
            )
        if not all(
            math.isfinite(number) for number in (*numbers, *(x for effects in tables for x in effects))
        ):
            raise StarlingError("a judge calibration holds finite numbers only: mend the one that is not")
        if self.scale <= 0 or min(self.order_noise, self.call_noise) < 0 or not 0 <= self.slip <= 1:
            raise StarlingError("a judge calibration needs scale > 0, noises >= 0 and slip between 0 and 1")

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
            raise StarlingError(
                f"{path} must be an object with the fields {', '.join(sorted(known))} and no others"
            )
        try:
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise StarlingError(
                f"{path} is not a judge calibration ({error}): restore it (git checkout)"
            ) from error


def effects(table: Mapping[str, Sequence[float]], variant: str, k: int) -> NDArray[np.float64]:
    """Position effects of ``variant`` for ``k`` shown answers, interpolated over the relative position
    0..1."""
    if k < 2 or variant not in table:
        return np.zeros(k)
    return np.interp(
        np.linspace(0, 1, k), np.linspace(0, 1, POSITIONS), np.asarray(table[variant], dtype=float)
    )


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
    quality = (np.asarray(utilities, dtype=float) - UTILITY_CENTER) / UTILITY_SPREAD
    words = np.log(np.maximum(np.asarray(lengths, dtype=float), 1) / WORDS_CENTER)
    k = quality.shape[-1]
    scores = (
        calibration.scale * quality
        + calibration.length * words
        + calibration.self_preference * np.asarray(styles, dtype=float)
        + effects(calibration.position, variant, k)
        + calibration.order_noise * (rng_order.gumbel(size=quality.shape) - np.euler_gamma)
        + calibration.call_noise * (rng_call.gumbel(size=quality.shape) - np.euler_gamma)
    )
    top = effects(calibration.position_top, variant, k)
    if top.any():  # choose the first place with the extra effects, then put it above the others
        first = np.argmax(scores + top, axis=-1, keepdims=True)
        np.put_along_axis(scores, first, scores.max(axis=-1, keepdims=True) + 1e-6, axis=-1)
    return scores


def as_grades(scores: NDArray[np.float64], calibration: Calibration) -> NDArray[np.float64]:
    """Perceived values put back on the scale of utilities, cut to 1..10."""
    return np.clip(UTILITY_CENTER + UTILITY_SPREAD * scores / calibration.scale, 1, 10)


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
