"""A tiny random Llama with a word tokenizer made on the spot, and a truth for the simulated judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from starling_nb.chat import ChatFormat
from starling_nb.judge import Calibration
from starling_nb.models import LM

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Words with the space before them, numbers, marks and line ends, one token each."""
    split = pre_tokenizers.Split(_regex(), "isolated")
    words = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<end>", *sorted(words)])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<end>")
    fast.chat_template = TEMPLATE
    return fast


def _regex() -> Any:
    from tokenizers import Regex

    return Regex(r" ?\w+|\n|[^\w\n]")


def lm(texts: Iterable[str], seed: int = 0) -> LM:
    """A Llama of two blocks over the words of ``texts``."""
    torch.set_num_threads(1)
    words = tokenizer([*texts, " A B C D Answer: <user> <assistant>"])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return LM(model, ChatFormat(words), "tiny")


@dataclass(frozen=True)
class Grade:
    utility: float


class Truth:
    """An answer's utility is the number it ends with; the conversation is written into a log."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, str]]] = []

    def find(self, messages: Sequence[Mapping[str, str]]) -> Mapping[str, Any]:
        self.asked.append([dict(message) for message in messages])
        return {"behaviour": "answer"}

    def grade(self, rubric: Mapping[str, Any], messages: Sequence[Mapping[str, str]], answer: str) -> Grade:
        last = answer.split()[-1] if answer.split() else "1"
        return Grade(float(last) if last.isdigit() else 1.0)


def calibration(**changes: Any) -> Calibration:
    """A judge without noise, bias or taste, but for ``changes``."""
    plain: dict[str, Any] = {
        "scale": 2.0,
        "length": 0.0,
        "self_preference": 0.0,
        "order_noise": 0.0,
        "call_noise": 0.0,
        "position": {},
    }
    return Calibration(**(plain | changes))
