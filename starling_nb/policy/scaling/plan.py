"""What a run of tuning needs before it is started: memory a card by component, operations, time and money.

Bytes of weights, optimiser and caches follow from shapes alone; time is a model (matrix products at a share of the
card's rate, or the weights read once a decoded token) and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from starling_nb.blocks import Trainable
from starling_nb.policy.hydra import TokenLogprobs
from starling_nb.policy.scaling.shapes import CARDS, LLAMA, OPENCHAT, Card, PlanError, Shape, card

__all__ = ["CARDS", "LLAMA", "OPENCHAT", "Card", "Plan", "PlanError", "Run", "Shape", "card"]

SAMPLING = ("keys and values",)
LEARNING = ("gradients, float32", "activations (estimate)", "logits of a chunk")
"""Components of memory that are there only while answers are sampled, and only while they are learned from."""


@dataclass(frozen=True)
class Run:
    """A run of tuning: ``ranks`` cards train, ``reward_cards`` serve the reward model (0: it lies beside the policy).

    Memory is counted at the longest prompt and answer, operations at the mean ones.
    """

    policy: Shape = OPENCHAT
    reward: Shape = LLAMA
    trainable: str = "last:4"
    ranks: int = 7
    reward_cards: int = 1
    rows: int = 64
    """Answers a rank samples for one set of rollouts."""
    together: int = 4
    """Sequences that a rank trains on at a time."""
    flight: int = 64
    """Answers that a rank samples at a time; the authors' code took 4."""
    answers: int = 1
    """Answers to a prompt, which is read once for all of them that are sampled, or learned from, together."""
    epochs: int = 2
    updates: int = 10_000
    longest: tuple[int, int] = (1124, 1024)
    mean: tuple[int, int] = (200, 350)
    shared: int = 0
    """Blocks of the reward model that are the policy's trunk, and are not run again."""
    branch: bool = False
    sharded: bool = False
    """Gradients and optimiser are spread over the ranks (``zero2``, ``fsdp2``). What the latter spares of
    weights is not counted."""
    width: int = 2
    """Bytes of a weight of the sampled policy and the reward model: 2 in bfloat16, 4 in float32."""
    used: float = 0.4
    """Share of the card's rate that large matrix products reach."""
    read: float = 0.7
    """Share of the card's bandwidth that decoding reaches."""
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
    def depth(self) -> int:
        """Blocks above the trunk."""
        return self.policy.blocks - Trainable.parse(self.trainable, self.policy.blocks).start

    @property
    def shards(self) -> int:
        """Ranks that share gradients and optimiser."""
        return self.ranks if self.sharded else 1

    @property
    def phases(self) -> float:
        """Sets of rollouts in the run."""
        return self.updates / (self.rows / self.together * self.epochs)


def memory(run: Run) -> dict[str, float]:
    """Bytes on one training card, by component; what a card that serves the reward model holds stands apart.

    ``activations`` is an estimate, all others are shapes times bytes. :data:`SAMPLING` and :data:`LEARNING` are never
    there at once: :func:`peak`.
    """
    shape, (copied, learning) = run.policy, run.top
    tokens, wide = sum(run.longest), shape.width
    learned_from = run.together * (run.longest[1] + run.longest[0] / min(run.answers, run.together))
    reference = run.depth * shape.block + wide
    critic = 2 * wide**2 + 2 * wide + 2 * wide + 1 + (reference if run.branch else 0)
    learned = learning + critic
    per_token = 10 * wide + 4 * shape.key_width + 4 * shape.inner
    kept = 2 if 0 < run.shared < shape.blocks - run.depth else 1
    found = {
        "sampled policy": 1.0 * run.width * shape.weights,
        "policy's top, float32": 4.0 * copied,
        "reference's top, float32": 4.0 * reference,
        "critic, float32": 4.0 * critic,
        "optimiser, float32": 8.0 * learned / run.shards,
        "trunk states of the rollouts": 1.0 * run.width * run.rows * tokens * wide * kept,
        "keys and values": 2.0 * run.width * shape.blocks * shape.key_width * run.flight * (tokens + 1),
        "gradients, float32": 4.0 * learned / run.shards,
        "activations (estimate)": 4.0 * learned_from * per_token * run.depth * (2 if run.branch else 1),
        "logits of a chunk": (4.0 + run.width) * TokenLogprobs.CHUNK * shape.vocabulary,
    }
    if not run.reward_cards:
        found["reward model"] = 1.0 * run.width * run.reward.decoder
    return found


def peak(needed: Mapping[str, float]) -> float:
    """Most bytes that are held at once, of the components of :func:`memory`."""
    phases = [sum(needed[name] for name in names) for names in (SAMPLING, LEARNING)]
    return sum(needed.values()) - min(phases)


def operations(run: Run) -> dict[str, float]:
    """Floating point operations of one set of rollouts on one rank, by phase."""
    tokens, top = sum(run.mean) * run.rows, _top_products(run)
    head = 2.0 * run.policy.table * run.mean[1] * run.rows
    tops = 2 if run.branch else 1
    return {
        "sampling": 2.0 * run.policy.products * run.rows * (run.mean[1] + run.mean[0] / run.answers),
        "reward": 2.0 * (run.reward.blocks - run.shared) * run.reward.block * tokens,
        "old and reference": 2.0 * top * (tops + 1) + 2 * head,
        "update": run.epochs * (6.0 * top * tops + 2 * head),
    }


def _top_products(run: Run) -> float:
    """Weights times the tokens that meet them, of one pass of a top over one set of rollouts.

    Answers of a minibatch share their prompt, and the last feed-forward part meets answers only.
    """
    prompt, answer = run.mean
    prompts = run.rows * prompt / min(run.answers, run.together)
    every = run.depth * run.policy.block * (run.rows * answer + prompts)
    return every - 3.0 * run.policy.width * run.policy.inner * prompts


def reads(run: Run) -> float:
    """Bytes that sampling one set of rollouts reads on one rank: the weights once a step, every answer's cache."""
    shape, (prompt, answer) = run.policy, run.mean
    steps = run.longest[1] * -(-run.rows // run.flight)
    cache = 2.0 * shape.blocks * shape.key_width * (prompt + answer / 2)
    return run.width * (shape.products * steps + cache * answer * run.rows)


def seconds(run: Run, card: Card, shares: Mapping[str, float] | None = None) -> dict[str, float]:
    """Seconds of one set of rollouts by phase: products at ``used`` of the rate, or the weights read once a new token.

    ``shares`` holds, by phase, the share of the card's limit that was measured, and takes the place of ``used`` and
    ``read``.
    """
    counts, share = operations(run), shares or dict.fromkeys(operations(run), run.used)
    done = {name: count / (card.rate * share[name]) for name, count in counts.items()}
    done["sampling"] = max(
        done["sampling"], reads(run) / (card.bandwidth * (share["sampling"] if shares else run.read))
    )
    done["reward"] *= run.ranks / run.reward_cards if run.reward_cards else 1
    return done


@dataclass(frozen=True)
class Plan:
    """What a run takes: bytes a training card by component, seconds a set of rollouts by phase, hours, dollars."""

    memory: Mapping[str, float]
    seconds: Mapping[str, float]
    hours: float
    dollars: float


def plan(run: Run, card: Card, shares: Mapping[str, float] | None = None) -> Plan:
    """Add a run up; ``shares`` as for :func:`seconds`.

    Raises:
        PlanError: it does not fit the card; the message says by how much, and what to change.
    """
    if min(run.ranks, run.rows, run.together, run.flight, run.epochs, run.updates) < 1 or run.reward_cards < 0:
        raise PlanError("ranks, rows, together, flight, epochs and updates are 1 or more, reward_cards 0 or more")
    needed, room = memory(run), card.memory * (1 - run.kept_free)
    if peak(needed) > room:
        raise PlanError(_too_large(run, card, needed))
    serving = run.width * run.reward.decoder
    if run.reward_cards and serving > room:
        raise PlanError(f"the reward model needs {_gb(serving)} of {_gb(room)} on its card: choose a smaller one")
    phases = seconds(run, card, shares)
    hours = sum(phases.values()) * run.phases / 3600
    return Plan(needed, phases, hours, hours * (run.ranks + run.reward_cards) * card.dollars)


def told(run: Run, card: Card) -> str:
    """A plan in lines: memory by component, operations and seconds by phase, hours, dollars.

    Raises:
        PlanError: as :func:`plan`.
    """
    found, counts = plan(run, card), operations(run)
    lines = [f"Memory of a training card, {_gb(peak(found.memory))} of {_gb(card.memory)} at most at once:"]
    lines += [f"  {name:42} {_gb(size):>9}{_when(name)}" for name, size in found.memory.items()]
    lines.append(f"A set of rollouts ({run.rows} answers a card), {sum(found.seconds.values()):.0f} s:")
    lines += [f"  {name:42} {counts[name] / 1e12:7.0f} TFLOP {time:6.1f} s" for name, time in found.seconds.items()]
    lines.append(f"{run.updates} updates: {run.phases:.0f} sets, {found.hours:.1f} hours, {found.dollars:.0f} dollars.")
    lines.append(
        f"Time is a model: products at {run.used:.0%} of the card's rate, reading at {run.read:.0%} of its "
        f"bandwidth, answers of {run.mean[1]} tokens, {run.flight} sampled at a time. "
        f"Memory is for {run.longest[0]} + {run.longest[1]} tokens. Dollars are at {card.dollars:g} an hour and card, "
        "a guess unless you gave --price."
    )
    return "\n".join(lines)


def _when(name: str) -> str:
    return "  while sampling" if name in SAMPLING else "  while learning" if name in LEARNING else ""


def _too_large(run: Run, card: Card, needed: Mapping[str, float]) -> str:
    """By how much, what is largest, and the first changes after which it fits."""
    largest = sorted(needed, key=lambda name: -needed[name])[:3]
    changes = {
        "--together 1": replace(run, together=1),
        f"--flight {max(1, run.flight // 4)}": replace(run, flight=max(1, run.flight // 4)),
        f"--rows {max(1, run.rows // 4)}": replace(run, rows=max(1, run.rows // 4)),
        "--trainable last:1": replace(run, trainable="last:1"),
        "--trainable lora:16": replace(run, trainable="lora:16"),
        "--reward-cards 1": replace(run, reward_cards=max(1, run.reward_cards)),
    }
    room = card.memory * (1 - run.kept_free)
    enough = [name for name, one in changes.items() if peak(memory(one)) <= room]
    smaller = "together, flight, rows and trainable last:1"
    return (
        f"a training card would hold {_gb(peak(needed))}, {_gb(room)} are there: "
        + ", ".join(f"{name} {_gb(needed[name])}" for name in largest)
        + (f". It fits with {' or '.join(enough)}" if enough else f". Lower {smaller} at once, or take a larger card")
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
