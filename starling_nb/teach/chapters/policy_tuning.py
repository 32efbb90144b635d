"""Exercises on notebook 04: what an objective asks of a policy."""

from __future__ import annotations

import math

from starling_nb.teach.exercise import Exercise

OPTIMUM = Exercise(
    "4.1",
    "Where APA wants to be",
    minutes=15,
    text="""APA pulls log π(a) towards log π₀(a) + A(a) / λ by a squared error. Return the policy that meets this for
every action as nearly as a distribution can: π₀ · exp(A / λ), normalised. A large λ stays near the start.""",
    hints=("Compute the unnormalised weights first.", "A distribution sums to 1: divide by Z."),
    cases=(
        ([0.5, 0.5], [1.0, -1.0], 1.0),
        ([0.2, 0.3, 0.5], [1.0, 0.0, -1.0], 0.5),
        ([0.9, 0.1], [0.0, 0.0], 2.0),
        ([0.25] * 4, [2.0, 1.0, 0.0, -3.0], 4.0),
    ),
)


@OPTIMUM.solution
def apa_optimum(start: list[float], advantages: list[float], lam: float) -> list[float]:
    """Probabilities of the actions."""
    weights = [p * math.exp(a / lam) for p, a in zip(start, advantages, strict=True)]
    return [weight / sum(weights) for weight in weights]


@OPTIMUM.mistake("λ divides the advantage: yours multiplies, so that a large λ would go further away.")
def _multiplied(start: list[float], advantages: list[float], lam: float) -> list[float]:
    weights = [p * math.exp(a * lam) for p, a in zip(start, advantages, strict=True)]
    return [weight / sum(weights) for weight in weights]


@OPTIMUM.mistake("These do not sum to 1: divide by their sum.")
def _unnormalised(start: list[float], advantages: list[float], lam: float) -> list[float]:
    return [p * math.exp(a / lam) for p, a in zip(start, advantages, strict=True)]


@OPTIMUM.mistake("The start model is missing: an action that it never takes gains nothing from a good advantage.")
def _no_start(start: list[float], advantages: list[float], lam: float) -> list[float]:
    weights = [math.exp(a / lam) for a in advantages]
    return [weight / sum(weights) for weight in weights]


GAE = Exercise(
    "4.2",
    "Advantages, from the last token backwards",
    minutes=20,
    text="""Generalised advantage estimation for one answer: δₜ = rₜ + γ·Vₜ₊₁ − Vₜ, and Aₜ = δₜ + γλ·Aₜ₊₁. After the
last token there is nothing: value and advantage are 0. Return A for every token.""",
    hints=("Walk from the last token to the first.", "Keep the next value and the next advantage in two variables."),
    cases=(
        ([0.0, 0.0, 1.0], [0.2, 0.4, 0.6], 1.0, 0.95),
        ([0.0, 0.0, 1.0], [0.2, 0.4, 0.6], 0.9, 0.0),
        ([1.0], [0.5], 1.0, 0.9),
        ([0.1, -0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0], 0.9, 0.5),
    ),
)


@GAE.solution
def gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The advantage of each token."""
    found = [0.0] * len(rewards)
    value = advantage = 0.0
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + gamma * value - values[step]
        advantage = delta + gamma * lam * advantage
        found[step], value = advantage, values[step]
    return found


@GAE.mistake("At the last token you look at a value that is not there (your own, or the first): it is 0.")
def _wraps(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    found, advantage, n = [0.0] * len(rewards), 0.0, len(rewards)
    for step in reversed(range(n)):
        delta = rewards[step] + gamma * values[(step + 1) % n] - values[step]
        advantage = delta + gamma * lam * advantage
        found[step] = advantage
    return found


@GAE.mistake("γ is missing before the next advantage: later errors fade by γ·λ a step.")
def _no_gamma(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    found, value, advantage = [0.0] * len(rewards), 0.0, 0.0
    for step in reversed(range(len(rewards))):
        advantage = rewards[step] + gamma * value - values[step] + lam * advantage
        found[step], value = advantage, values[step]
    return found


@GAE.mistake("These are the returns: take the value of each token off, or add none.")
def _returns(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    return [a + v for a, v in zip(gae(rewards, values, gamma, lam), values, strict=True)]


CLIP = Exercise(
    "4.3",
    "PPO takes the worse of two",
    minutes=10,
    text="""For one token: the ratio is exp(new − old log-probability). PPO maximises the *smaller* of ratio · A and
clip(ratio, 1 − ε, 1 + ε) · A. Return the loss, its negative.""",
    hints=("With a negative advantage the smaller one is the more negative one.", "min of both, then the sign."),
    cases=((0.5, 0.0, 1.0, 0.2), (0.5, 0.0, -1.0, 0.2), (-0.5, 0.0, 1.0, 0.2), (-0.5, 0.0, -1.0, 0.2), (0, 0, 2, 0.1)),
)


@CLIP.solution
def ppo_loss(new: float, old: float, advantage: float, clip: float) -> float:
    """The loss of a token from its log-probabilities."""
    ratio = math.exp(new - old)
    clipped = min(max(ratio, 1 - clip), 1 + clip)
    return -min(ratio * advantage, clipped * advantage)


@CLIP.mistake("You always use the clipped ratio: then a step back from a bad place has no gradient either.")
def _clipped(new: float, old: float, advantage: float, clip: float) -> float:
    return -min(max(math.exp(new - old), 1 - clip), 1 + clip) * advantage


@CLIP.mistake("You take the larger of the two: the objective is the pessimistic one.")
def _larger(new: float, old: float, advantage: float, clip: float) -> float:
    ratio = math.exp(new - old)
    return -max(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)


@CLIP.mistake("The sign: a loss is minimised, the objective is maximised.")
def _maximised(new: float, old: float, advantage: float, clip: float) -> float:
    return -ppo_loss(new, old, advantage, clip)


DIVERGENCE = Exercise(
    "4.4",
    "A divergence that is never negative",
    minutes=10,
    text="""From tokens *the policy sampled*, log p − log q estimates KL(policy ‖ reference) but is often negative.
With d = log p − log q return exp(−d) − 1 + d for every token: the same mean, never below 0.""",
    hints=("`math.expm1(x)` is exp(x) − 1, exact near 0.",),
    cases=(([-1.0, -2.0], [-1.5, -1.0]), ([-0.5], [-0.5]), ([-3.0, -0.1, -2.0], [-1.0, -0.2, -2.5])),
)


@DIVERGENCE.solution
def kl_estimates(policy: list[float], reference: list[float]) -> list[float]:
    """One estimate a token, nats."""
    gaps = [p - q for p, q in zip(policy, reference, strict=True)]
    return [math.expm1(-gap) + gap for gap in gaps]


@DIVERGENCE.mistake("This is log p − log q itself: right on average, and negative on every token that got less likely.")
def _plain(policy: list[float], reference: list[float]) -> list[float]:
    return [p - q for p, q in zip(policy, reference, strict=True)]


@DIVERGENCE.mistake("The sign of d is turned: this estimates a divergence under the reference's own samples.")
def _reversed(policy: list[float], reference: list[float]) -> list[float]:
    return kl_estimates(reference, policy)


MASK = Exercise(
    "4.5",
    "The token that must not be masked",
    minutes=10,
    text="""Many models pad with their end-of-turn token. Build the mask of an answer `[length of the row]` from its
**length**: true for its own tokens, the end of turn among them. Masked by token id, no answer would ever
learn to stop.""",
    hints=("Token ids do not decide: position does.",),
    cases=(([5, 6, 2, 2, 2], 3, 2), ([2, 5, 2], 3, 2), ([5, 6, 7], 3, 2), ([2, 2], 1, 2)),
)


@MASK.solution
def answer_mask(tokens: list[int], length: int, eos: int) -> list[bool]:
    """True where a token belongs to the answer; ``tokens`` are padded with ``eos``."""
    return [place < length for place in range(len(tokens))]


@MASK.mistake("You hide every end of turn, the real one too: the answer never learns to end.")
def _by_token(tokens: list[int], length: int, eos: int) -> list[bool]:
    return [token != eos for token in tokens]


@MASK.mistake("The last token of the answer, its end of turn, is left out: the score sits there.")
def _one_less(tokens: list[int], length: int, eos: int) -> list[bool]:
    return [place < length - 1 for place in range(len(tokens))]
