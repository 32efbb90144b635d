"""How a policy is tuned: every switch of the loop, and the two settings of them that have names.

``Recipe()`` is the *corrected* recipe at the embedded scale; ``Recipe.published()`` does what the released code did,
its oddities included; :func:`switches` sets them side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from starling_nb.errors import StarlingError
from starling_nb.profiles.values import parse


class TuningError(StarlingError):
    """A guard stopped the run; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """How a policy is tuned online.

    ``rollouts`` answers a step are ``answers`` to each of ``rollouts // answers`` prompts; P3O compares them in pairs,
    RLOO all of a prompt's.

    Raises:
        TuningError: numbers that do not go together; the message names them.
    """

    objective: Literal["apa", "ppo", "p3o", "rloo"] = "apa"
    steps: int = 20
    rollouts: int = 64
    answers: int = 4
    epochs: int = 1
    minibatch: int = 16
    lr: float = 5e-5
    value_lr: float = 1e-3
    lam: float = 1.0
    anchor: Literal["initial", "rollout"] = "initial"
    whiten: bool = True
    centre: bool = True
    kl: float = 0.02
    """Weight of the log-ratio in the reward; where ``kl_target`` is set, its first value."""
    kl_target: float | None = None
    """Divergence, nats an answer, that the weight is steered towards (Ziegler et al. 2019, arXiv 1909.08593)."""
    kl_horizon: int = 10_000
    """Answers over which the steered weight changes by a factor of at most e ** 0.2."""
    gae_lambda: float = 0.9
    clip: float = 0.2
    clipping: Literal["joint", "separate"] = "joint"
    """What P3O clips: the pair's difference or each answer."""
    scale: Literal["first", "running"] = "first"
    """Units of the score: spread of the first step's, then clipped; or clipped, then spread of all scores so far."""
    score_clip: float = 4.0
    missing_eos: float = -1.0
    length: float = 0.0
    """Added to the reward for every token of an answer, in the score's units; negative pays for brevity."""
    value: Literal["head", "branch"] = "head"
    """The critic: a head on the policy's states, or blocks of its own beside the policy's."""
    value_clip: float | None = None
    foresee: bool = True
    """Values start from what the reward model reads in the unfinished answer."""
    critic_warmup: int = 2
    critic_gate: bool = False
    """The policy waits while the value loss of a minibatch is above 1."""
    eos_floor: float = 0.2
    """Stop where the share of answers that end by themselves falls below this share of the first step's."""
    hide_eos: bool = False
    """Leave the end-of-turn token out of every loss, as masks made from padding do where that is the end of turn."""
    max_new_tokens: int = 80
    trainable: str = "last:4"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.answers < 1 or self.rollouts < self.answers or self.rollouts % self.answers:
            raise TuningError(f"rollouts = {self.rollouts} must be a multiple of answers = {self.answers} a prompt")
        if self.objective == "p3o" and self.answers % 2:
            raise TuningError(f"P3O compares answers in pairs: answers = {self.answers} must be even")
        if self.objective == "rloo" and self.answers < 2:
            raise TuningError(f"RLOO compares a prompt's answers: answers = {self.answers} must be 2 or more")
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl > 0):
            raise TuningError(f"kl = {self.kl} cannot be steered towards kl_target = {self.kl_target}: both above 0")

    @classmethod
    def published(cls, **changes: Any) -> Recipe:
        """What the authors' APA script and its fork of trlx did; sizes of a run are the caller's."""
        return cls(**{name: value for name, value, _ in PUBLISHED} | changes)

    @classmethod
    def of(cls, p: Any) -> Recipe:
        """The recipe named ``p.recipe`` with every switch that is also a parameter of the stage.

        Raises:
            TuningError: an unknown name, or numbers that do not go together.
        """
        return named(p.recipe, {one.name: getattr(p, one.name) for one in fields(cls) if hasattr(p, one.name)})

    @property
    def quirks(self) -> list[str]:
        """Oddities of the published code that this recipe asks for; guards warn of these and stop at all others."""
        return ["hide_eos"] if self.hide_eos else []


PUBLISHED: tuple[tuple[str, Any, str], ...] = (
    ("anchor", "rollout", "the paper anchors on the start model; on the rollouts λ only sets the pace"),
    ("lam", 1.0, "advantages in their own units"),
    ("whiten", False, "whitening makes λ a number of standard deviations"),
    ("centre", False, "a K-wise reward leaves a constant a prompt undecided: measure a prompt's answers by each other"),
    ("answers", 1, "one answer a prompt leaves nothing to measure it by"),
    ("kl", 0.01, "fixed weight of the log-ratio"),
    ("gae_lambda", 0.95, "credit for the end of an answer"),
    ("scale", "running", "a scale that moves changes what kl means from step to step"),
    ("score_clip", 10.0, "before scaling in the published code, after it in the corrected recipe"),
    ("missing_eos", 0.0, "without a penalty an answer that never ends is scored as if it had"),
    ("foresee", False, "a critic from nothing has to learn the reward model again"),
    ("value_clip", 0.2, "holds the critic back where it is far off"),
    ("critic_warmup", 0, "the gate stands for it"),
    ("critic_gate", True, "each process looks at its own minibatch"),
    ("epochs", 2, ""),
    ("lr", 2e-7, "for 7 billion weights; small models need more"),
    ("value_lr", 2e-7, "one rate for policy and critic"),
    ("trainable", "last:4", ""),
    ("hide_eos", True, "padding and end of turn are one token there, and the mask hides both"),
)
"""Switch, published value, remark. Facts from the released ``mistral_apa.py`` and the code it runs."""
SCALED = ("epochs", "lr", "value_lr", "trainable")
"""Switches of the published recipe that belong to its size; a run of another size keeps its own."""
PARTS = {
    "target": ("anchor", "lam", "whiten"),
    "baseline": ("centre", "answers"),
    "scale": ("scale", "score_clip", "kl"),
    "ending": ("missing_eos", "hide_eos"),
    "critic": ("gae_lambda", "foresee", "value_clip", "critic_warmup", "critic_gate"),
}
"""Switches of the published recipe that make one decision together."""


def switches() -> list[dict[str, Any]]:
    """Every switch in which the recipes are set on purpose: name, published, corrected, remark."""
    corrected = {field.name: field.default for field in fields(Recipe)}
    return [
        {"switch": name, "published": value, "corrected": corrected[name], "remark": remark}
        for name, value, remark in PUBLISHED
    ]


def made(name: str, objective: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by name, with switches set as text (``lam=0.5``, ``value_clip=none``).

    Raises:
        TuningError: an unknown name, objective or switch, or a value of another kind; the message says which there are.
    """
    return named(name, parsed([f"objective={objective}", *settings]))


def named(name: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe ``corrected`` or ``published`` with some switches set otherwise.

    Raises:
        TuningError: an unknown name, or numbers that do not go together.
    """
    if name not in ("corrected", "published"):
        raise TuningError(f"unknown recipe {name!r}: choose corrected or published")
    return Recipe.published(**changes) if name == "published" else Recipe(**changes)


def parsed(settings: Sequence[str]) -> dict[str, Any]:
    """Switches and their values from text such as ``lam=0.5``.

    Raises:
        TuningError: an unknown switch, or a value of another kind; the message says which there are.
    """
    found = {}
    kinds = get_type_hints(Recipe)
    for text in settings:
        switch, _, given = (part.strip() for part in text.partition("="))
        found[switch] = value = _value(switch, given)
        choices = get_args(kinds[switch]) if get_origin(kinds[switch]) is Literal else ()
        if choices and value not in choices:
            raise TuningError(f"{switch}={value}: choose {', '.join(choices)}")
    return found


def written(recipe: Recipe, name: str) -> list[str]:
    """The switches (``lam=0.5``) in which a recipe is not the one of this name, the objective apart; :func:`made` reads
    them.
    """
    usual = named(name, {})
    switches = [one.name for one in fields(Recipe) if one.name != "objective"]
    return [f"{one}={getattr(recipe, one)}" for one in switches if getattr(recipe, one) != getattr(usual, one)]


def _value(switch: str, text: str) -> Any:
    kinds = get_type_hints(Recipe)
    if switch not in kinds:
        raise TuningError(f"unknown switch {switch!r}: there are {', '.join(kinds)}")
    kind = kinds[switch]
    if get_origin(kind) is UnionType:
        if text.lower() == "none":
            return None
        kind = get_args(kind)[0]
    return text if get_origin(kind) is Literal else parse(switch, kind, text)
