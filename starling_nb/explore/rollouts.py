"""Answers before and after tuning, side by side, coloured by what the reward model reads in them word by word."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

import pandas as pd

from starling_nb.explore.pages import Pages, escaped
from starling_nb.models import LM
from starling_nb.policy.rollouts import Rollout

RAISES, LOWERS = "1, 115, 178", "222, 143, 5"
"""Red, green and blue of the ground behind a word, from the palette of the figures."""
STRONGEST = 0.5
"""Opacity behind the word that moves the reading most: dark and light letters stay legible on it."""


@dataclass(frozen=True)
class Told:
    """An answer: rubric ``quality`` (1 to 10), ``reward``, and its tokens with what each adds to the reading."""

    quality: float
    reward: float
    tokens: list[tuple[str, float]]

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(token for token, _ in self.tokens)


@dataclass(frozen=True)
class Pair:
    """A prompt's answers before and after."""

    prompt: str
    before: Told
    after: Told


def pairs(
    lm: LM, before: Sequence[Rollout], after: Sequence[Rollout], start: pd.DataFrame, tuned: pd.DataFrame
) -> list[Pair]:
    """Answers to the same prompts, from the largest gain of quality to the largest loss; grades row by row."""
    found = [
        Pair(one.prompt.messages[-1]["content"], _told(lm, one, float(a)), _told(lm, other, float(b)))
        for one, other, a, b in zip(before, after, start.utility, tuned.utility, strict=True)
    ]
    return sorted(found, key=lambda pair: pair.before.quality - pair.after.quality)


def _told(lm: LM, rollout: Rollout, quality: float) -> Told:
    ids = rollout.sample.ids
    whole = lm.chat.decode(ids)
    # A character of several tokens is said by the last of them; what is before reads as something else.
    texts = [commonprefix([lm.chat.decode(ids[: n + 1]), whole]) for n in range(len(ids))]  # noqa: RUF071
    pieces = [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]
    readings = [0.0] * len(ids) if rollout.means is None else rollout.means.tolist()
    steps = [now - last for last, now in zip([readings[0] if readings else 0.0, *readings], readings, strict=False)]
    return Told(quality, rollout.score, list(zip(pieces, steps, strict=True)))


def pages(found: Sequence[Pair]) -> Pages[Pair]:
    """The pairs to page through; a search looks into prompts and answers."""
    return Pages(found, drawn, lambda pair: f"{pair.prompt}\n{pair.before.text}\n{pair.after.text}")


def drawn(pair: Pair) -> str:
    """A pair as HTML: blue words raise what the reward model reads, orange ones lower it."""
    widest = max([abs(step) for told in (pair.before, pair.after) for _, step in told.tokens], default=0.0) or 1.0
    cells = "".join(f"<td>{_coloured(told, widest)}</td>" for told in (pair.before, pair.after))
    heads = "".join(
        f"<th>{name}: quality {told.quality:.1f}, reward {told.reward:+.2f}</th>"
        for name, told in (("before", pair.before), ("after", pair.after))
    )
    return f"<p><b>{escaped(pair.prompt)}</b></p><table><tr>{heads}</tr><tr>{cells}</tr></table>"


def _coloured(told: Told, widest: float) -> str:
    return "".join(
        f'<span style="background: rgba({RAISES if step > 0 else LOWERS}, {STRONGEST * abs(step) / widest:.2f})" '
        f'title="{step:+.3f}">{html.escape(text)}</span>'
        for text, step in told.tokens
    )
