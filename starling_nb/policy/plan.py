"""What a run of tuning needs before it is started: memory a card by component, operations, time and money.

Bytes of weights, optimiser and caches follow from shapes alone; time is a model (matrix products at a share of the
card's rate, one read of the weights a decoded token) and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starling_nb.blocks import Trainable
from starling_nb.errors import StarlingError
from starling_nb.policy.hydra import TokenLogprobs


class PlanError(StarlingError):
    """A run that does not fit, or a number that makes none."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-shaped decoder and its head."""

    vocabulary: int
    width: int
    inner: int
    blocks: int
    heads: int
    key_heads: int
    tied: bool = False
    biased: bool = False
    """Whether queries, keys and values have biases (Qwen2)."""

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a Hugging Face config."""
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            bool(config.tie_word_embeddings),
            config.model_type == "qwen2",
        )

    @property
    def key_width(self) -> int:
        """Numbers in a token's keys, and in its values."""
        return self.width // self.heads * self.key_heads

    @property
    def block(self) -> int:
        """Weights of one block."""
        attention = 2 * self.width**2 + 2 * self.width * self.key_width
        biases = self.width + 2 * self.key_width if self.biased else 0
        return attention + 3 * self.width * self.inner + 2 * self.width + biases

    @property
    def table(self) -> int:
        """Weights of the embeddings, and of a head of its own."""
        return self.vocabulary * self.width

    @property
    def weights(self) -> int:
        """All weights, the head's where it is not the embeddings."""
        return self.blocks * self.block + self.table * (1 if self.tied else 2) + self.width


OPENCHAT = Shape(32_002, 4096, 14_336, 32, 32, 8)
"""openchat/openchat_3.5: Mistral-7B and two tokens."""
LLAMA = Shape(32_000, 4096, 11_008, 32, 32, 32)
"""Llama-2-7B, on which Starling-RM-7B-alpha stands; its head of 4,096 weights is not counted."""


@dataclass(frozen=True)
class Card:
    """One GPU: memory in bytes, bfloat16 operations and bytes read a second, dollars an hour."""

    memory: float
    rate: float
    bandwidth: float
    dollars: float = 0.0


CARDS = {"a100": Card(80e9, 312e12, 2.04e12, 2.0), "h100": Card(80e9, 989e12, 3.35e12, 3.5)}
"""Data sheets of the 80 GB models (dense); dollars are a guess to be replaced by your own price."""


@dataclass(frozen=True)
class Run:
    """A run of tuning: ``ranks`` cards train, ``reward_cards`` serve the reward model (0: it lies beside the policy).

    Memory is counted at the longest prompt and answer, time at the mean ones.
    """

    policy: Shape = OPENCHAT
    reward: Shape = LLAMA
    trainable: str = "last:4"
    ranks: int = 7
    reward_cards: int = 1
    rows: int = 64
    """Answers a rank samples for one set of rollouts."""
    together: int = 4
    """Answers sampled, and sequences trained on, at a time by a rank."""
    epochs: int = 2
    updates: int = 10_000
    longest: tuple[int, int] = (1124, 1024)
    mean: tuple[int, int] = (200, 350)
    branch: bool = False
    sharded: bool = True
    """The optimiser's state is spread over the ranks (ZeRO-1, FSDP)."""
    used: float = 0.4
    """Share of the card's rate that large matrix products reach."""
    kept_free: float = 0.1
    """Share of the memory that stays free for fragments and the framework."""

    @property
    def top(self) -> tuple[int, int]:
        """Weights copied above the trunk, and those of them that learn."""
        part, block = Trainable.parse(self.trainable, self.policy.blocks), self.policy.block
        copied = (self.policy.blocks - part.start) * block + self.policy.width
        if part.rank:
            w, k, m = self.policy.width, self.policy.key_width, self.policy.inner
            pairs = [(w, w), (w, k), (w, k), (w, w), (w, m), (w, m), (m, w)]
            adapters = sum(part.rank * (a + b) for a, b in pairs) * self.policy.blocks
            return copied + adapters, adapters
        return copied, (part.stop - part.start) * block + self.policy.width

    @property
    def phases(self) -> float:
        """Sets of rollouts in the run."""
        return self.updates / (self.rows / self.together * self.epochs)


def memory(run: Run) -> dict[str, float]:
    """Bytes on one training card, by component; what a card that serves the reward model holds stands apart.

    ``activations`` is an estimate, all others are shapes times bytes.
    """
    shape, (copied, learning) = run.policy, run.top
    tokens, wide = sum(run.longest), shape.width
    critic = 2 * wide**2 + 2 * wide + 2 * wide + 1 + (copied if run.branch else 0)
    learned = learning + critic
    per_token = 10 * wide + 4 * shape.key_width + 4 * shape.inner
    depth = shape.blocks - _start(run)
    found = {
        "sampled policy, bfloat16": 2.0 * shape.weights,
        "policy's top, float32": 4.0 * copied,
        "reference's top, float32": 4.0 * (depth * shape.block + wide),
        "critic, float32": 4.0 * critic,
        "gradients, float32": 4.0 * learned,
        "optimiser, float32": 8.0 * learned / (run.ranks if run.sharded else 1),
        "keys and values, bfloat16": 2.0 * 2 * shape.blocks * shape.key_width * run.together * (tokens + 1),
        "trunk states of all rollouts, bfloat16": 2.0 * run.rows * tokens * wide,
        "activations (estimate)": 4.0 * run.together * tokens * per_token * depth * (2 if run.branch else 1),
        "logits of a chunk": 6.0 * TokenLogprobs.CHUNK * shape.vocabulary,
    }
    if not run.reward_cards:
        found["reward model, bfloat16"] = 2.0 * (run.reward.weights - run.reward.table)
    return found


def operations(run: Run) -> dict[str, float]:
    """Floating point operations of one set of rollouts on one rank, by phase."""
    tokens, top = sum(run.mean) * run.rows, (run.policy.blocks - _start(run)) * run.policy.block
    head = 2.0 * run.policy.table * run.mean[1] * run.rows
    tops = 2 if run.branch else 1
    return {
        "sampling": 2.0 * (run.policy.weights - run.policy.table) * tokens,
        "reward": 2.0 * run.reward.blocks * run.reward.block * tokens,
        "old and reference": 2.0 * top * (tops + 1) * tokens + 2 * head,
        "update": run.epochs * (6.0 * top * tops * tokens + 2 * head),
    }


def seconds(run: Run, card: Card) -> dict[str, float]:
    """Seconds of one set of rollouts by phase: products at ``used`` of the rate, the weights read once a new token."""
    done = {name: count / (card.rate * run.used) for name, count in operations(run).items()}
    passes = run.mean[1] * -(-run.rows // run.together)
    read = 2.0 * (run.policy.weights - run.policy.table) + 4.0 * run.policy.blocks * run.policy.key_width * (
        run.together * (run.mean[0] + run.mean[1] / 2)
    )
    done["sampling"] = max(done["sampling"], passes * read / (0.7 * card.bandwidth))
    done["reward"] *= run.ranks / run.reward_cards if run.reward_cards else 1
    return done


@dataclass(frozen=True)
class Plan:
    """What a run takes: bytes a training card by component, seconds a set of rollouts by phase, hours, dollars."""

    memory: Mapping[str, float]
    seconds: Mapping[str, float]
    hours: float
    dollars: float


def plan(run: Run, card: Card) -> Plan:
    """Add a run up.

    Raises:
        PlanError: it does not fit the card; the message says by how much, and what to change.
    """
    if min(run.ranks, run.rows, run.together, run.epochs, run.updates) < 1 or run.reward_cards < 0:
        raise PlanError("ranks, rows, together, epochs and updates are 1 or more, reward_cards 0 or more")
    needed, room = memory(run), card.memory * (1 - run.kept_free)
    if sum(needed.values()) > room:
        raise PlanError(_too_large(run, card, needed))
    serving = 2.0 * (run.reward.weights - run.reward.table)
    if run.reward_cards and serving > room:
        raise PlanError(f"the reward model needs {_gb(serving)} of {_gb(room)} on its card: choose a smaller one")
    phases = seconds(run, card)
    hours = sum(phases.values()) * run.phases / 3600
    return Plan(needed, phases, hours, hours * (run.ranks + run.reward_cards) * card.dollars)


def card(name: str, memory: float | None = None, dollars: float | None = None) -> Card:
    """A card by name, with another memory (gigabytes) or price (dollars an hour) where given.

    Raises:
        PlanError: an unknown name, or a number that is none.
    """
    if name not in CARDS:
        raise PlanError(f"unknown card {name!r}: choose {' or '.join(CARDS)}, and --memory and --price for your own")
    if (memory is not None and not memory > 0) or (dollars is not None and not dollars >= 0):
        raise PlanError("--memory is gigabytes above 0, --price dollars of 0 or more")
    found = CARDS[name]
    found = found if memory is None else replace(found, memory=memory * 1e9)
    return found if dollars is None else replace(found, dollars=dollars)


def told(run: Run, card: Card) -> str:
    """A plan in lines: memory by component, operations and seconds by phase, hours, dollars.

    Raises:
        PlanError: as :func:`plan`.
    """
    found, counts = plan(run, card), operations(run)
    lines = [f"Memory of a training card, {_gb(sum(found.memory.values()))} of {_gb(card.memory)}:"]
    lines += [f"  {name:42} {_gb(size):>9}" for name, size in found.memory.items()]
    lines.append(f"A set of rollouts ({run.rows} answers a card), {sum(found.seconds.values()):.0f} s:")
    lines += [f"  {name:42} {counts[name] / 1e12:7.0f} TFLOP {time:6.1f} s" for name, time in found.seconds.items()]
    lines.append(f"{run.updates} updates: {run.phases:.0f} sets, {found.hours:.1f} hours, {found.dollars:.0f} dollars.")
    lines.append(
        f"Time is a model: products at {run.used:.0%} of the data sheet's rate, answers of {run.mean[1]} tokens. "
        f"Memory is for {run.longest[0]} + {run.longest[1]} tokens. Dollars are at {card.dollars:g} an hour and card, "
        "a guess unless you gave --price."
    )
    return "\n".join(lines)


def _too_large(run: Run, card: Card, needed: Mapping[str, float]) -> str:
    """By how much, what is largest, and the first changes after which it fits."""
    largest = sorted(needed, key=lambda name: -needed[name])[:3]
    changes = {
        "--together 1": replace(run, together=1),
        f"--rows {max(1, run.rows // 4)}": replace(run, rows=max(1, run.rows // 4)),
        "--trainable last:1": replace(run, trainable="last:1"),
        "--trainable lora:16": replace(run, trainable="lora:16"),
        "--reward-cards 1": replace(run, reward_cards=max(1, run.reward_cards)),
    }
    room = card.memory * (1 - run.kept_free)
    enough = [name for name, one in changes.items() if sum(memory(one).values()) <= room]
    smaller = "together, rows and trainable last:1"
    return (
        f"a training card would hold {_gb(sum(needed.values()))}, {_gb(room)} are there: "
        + ", ".join(f"{name} {_gb(needed[name])}" for name in largest)
        + (f". It fits with {' or '.join(enough)}" if enough else f". Lower {smaller} at once, or take a larger card")
    )


def _start(run: Run) -> int:
    return Trainable.parse(run.trainable, run.policy.blocks).start


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
