"""What a plan is made from: the sizes of a decoder, and what a card can hold and do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from starling_nb.errors import StarlingError


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
    def decoder(self) -> int:
        """All weights but the head's."""
        return self.blocks * self.block + self.table + self.width

    @property
    def weights(self) -> int:
        """All weights, the head's where it is not the embeddings."""
        return self.decoder + (0 if self.tied else self.table)

    @property
    def products(self) -> int:
        """Weights that a token is multiplied with on its way to the next one: the blocks and the head."""
        return self.blocks * self.block + self.table


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


def card(name: str, memory: float | None = None, dollars: float | None = None, here: Card | None = None) -> Card:
    """A card by name, with another memory (gigabytes) or price (dollars an hour) where given; ``here`` is a name too
    where this machine has been measured (:func:`starling_nb.policy.scaling.speed.limits`).

    Raises:
        PlanError: an unknown name, or a number that is none.
    """
    cards = CARDS | ({} if here is None else {"here": here})
    if name not in cards:
        raise PlanError(f"unknown card {name!r}: choose {', '.join(CARDS)} or here, with --memory and --price")
    if (memory is not None and not memory > 0) or (dollars is not None and not dollars >= 0):
        raise PlanError("--memory is gigabytes above 0, --price dollars of 0 or more")
    found = cards[name]
    found = found if memory is None else replace(found, memory=memory * 1e9)
    return found if dollars is None else replace(found, dollars=dollars)
