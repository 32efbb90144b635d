"""Exercises on notebook 07: what the published size takes."""

from __future__ import annotations

from starling_nb.teach.exercise import Exercise

MEMORY = Exercise(
    "7.1",
    "Bytes of what learns",
    minutes=10,
    text="""In mixed precision a weight that learns takes 4 bytes in float32, 4 for its gradient, and 8 for Adam's two
moments; beside it lies the 2-byte copy with which all weights are sampled. Return the bytes of a model
with `total` weights of which `learning` learn.""",
    hints=("The frozen ones take 2 bytes each.", "The copy that samples is there for those that learn, too."),
    cases=((7_000_000_000, 900_000_000), (100, 100), (100, 0)),
)


@MEMORY.solution
def training_bytes(total: int, learning: int) -> int:
    """Bytes of weights, gradients and optimiser."""
    return 2 * total + 16 * learning


@MEMORY.mistake("You give every weight a gradient and moments: the frozen ones have none.")
def _all_learn(total: int, learning: int) -> int:
    return 18 * total


@MEMORY.mistake("Adam keeps two moments a weight, 4 bytes each.")
def _one_moment(total: int, learning: int) -> int:
    return 2 * total + 12 * learning


@MEMORY.mistake("The 2-byte copy with which the learning weights are sampled is missing.")
def _no_copy(total: int, learning: int) -> int:
    return 2 * (total - learning) + 16 * learning


PASSES = Exercise(
    "7.2",
    "What a kept trunk saves",
    minutes=10,
    text="""A step runs `blocks` blocks forward over its answers once for the old policy and its reference (they part
only above the trunk), then forward and backward in each epoch; backward costs two forwards and reaches
the top blocks alone. Count in forwards of one block, above and below the cut, how many times more it
costs if the trunk is run again each time than if its states were kept while sampling.""",
    hints=(
        "Kept: old and reference tops are 2 · top, each epoch 3 · top.",
        "Again: the trunk once before, and once an epoch, on top of that.",
    ),
    cases=((32, 4, 2), (32, 4, 4), (32, 32, 2), (30, 4, 1)),
)


@PASSES.solution
def saving(blocks: int, top: int, epochs: int) -> float:
    """Cost with the trunk run again over cost with its states kept."""
    kept = 2 * top + 3 * top * epochs
    return (kept + (blocks - top) * (1 + epochs)) / kept


@PASSES.mistake("You forgot that old and reference tops run before the first epoch.")
def _epochs_alone(blocks: int, top: int, epochs: int) -> float:
    return (3 * top + blocks - top) / (3 * top)


@PASSES.mistake("You send the backward pass through the trunk: it is frozen, and needs none.")
def _backward(blocks: int, top: int, epochs: int) -> float:
    kept = 2 * top + 3 * top * epochs
    return (kept + (blocks - top) * (1 + 3 * epochs)) / kept
