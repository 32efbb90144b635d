"""Toy language models that learn in a second: three random blocks over single letters, in three families."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from starling_nb import chat
from starling_nb.chat import ChatFormat, Encoded, Message
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt
from starling_nb.reward import RewardModel
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.model import Reading

FAMILIES = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter; ``</s>`` ends a turn."""
    letters = [*string.ascii_letters, *string.digits, *" \n.,:;!?'-[]/()"]
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *letters])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


def lm(
    family: str = "llama",
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.15,
    tied: bool = False,
    **more: Any,
) -> LM:
    """A causal LM of three blocks, of one of the families or ``qwen3``; ``more`` goes into its config.

    ``spread`` is that of its random weights, larger makes it more certain; a ``tied`` one reads and writes tokens with
    the same weights.
    """
    torch.set_num_threads(1)
    words = tokenizer()
    torch.manual_seed(seed)
    own = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": spread,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": tied,
    }
    config = {**FAMILIES, "qwen3": Qwen3Config}[family](**own | more)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return LM(model.eval().requires_grad_(False), ChatFormat(words), f"toy-{family}")


def user(text: str) -> list[Message]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def prompts(texts: Sequence[str]) -> list[Prompt]:
    """Prompts without rubrics."""
    return [
        Prompt(f"p{n}", "real_user_chat", user(text), True, False, {}, "a good answer.", "a bad answer.")
        for n, text in enumerate(texts)
    ]


QUESTIONS = ["why?", "how so, then?", "what is it", "who", "tell me about the sea", "when did it end?"]


def comparisons(k: Sequence[int] = (4, 4, 3, 5)) -> list[Comparison]:
    """Ragged comparisons in which more letters e are better; ranks stand in no order."""
    found = []
    for n, answers in enumerate(k):
        texts = ["e" * i + "xyz"[i % 3] * (answers - i + n % 2) for i in range(answers)]
        order = [(i * 2 + 1) % answers if answers % 2 else answers - 1 - i for i in range(answers)]
        texts = [texts[i] for i in order]
        ranks = [float(answers - i) for i in order]
        names = [f"m{i}" for i in range(answers)]
        found.append(Comparison(f"c{n}", user(QUESTIONS[n % len(QUESTIONS)]), texts, names, ranks))
    return found


NAMES = ["smollm2-cool", "smollm2-brief", "writer-cut", "writer-reference"]


def row(question: str, best_first: list[str] = NAMES) -> dict[str, Any]:
    """A Nectar row whose answers stand in rank order; the answer's words are its place."""
    answers = [
        {"answer": " ".join(["word"] * (rank + 2)) + f" {name}", "model": name, "rank": float(rank)}
        for rank, name in enumerate(best_first, 1)
    ]
    prompt = chat.nectar_text(user(question))
    return {"prompt": prompt, "answers": answers, "turns": 1, "num_responses": 4, "source": ["x"], "good_natured": True}


ROWS = [row(f"question {i}?", NAMES if i % 3 else NAMES[::-1]) for i in range(40)]


def weights(module: Any) -> dict[str, torch.Tensor]:
    """A copy of a module's weights."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, torch.Tensor], module: Any) -> set[str]:
    """Names of the weights that are no longer what they were, bit for bit."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


class Likes(RewardModel):
    """Likes answers in which one letter is frequent: its share of the answer's letters, 0 to 1."""

    def __init__(self, policy: LM, letters: str = "e") -> None:
        super().__init__(lm(seed=99).model.model, policy.chat)
        self.letters = letters

    def read_ids(self, encoded: Sequence[Encoded], batch: int = 32) -> list[Reading]:
        """Shares of the letters that are liked, of the whole answer and of its first 1, 2, … tokens."""
        found = []
        for item in encoded:
            answer = item.ids[item.prompt_length :]
            shares = [self.share(self.chat.decode(answer[: n + 1])) for n in range(len(answer))]
            found.append(Reading(shares[-1], torch.tensor(shares)))
        return found

    def share(self, text: str) -> float:
        """Share of the letters that are liked."""
        return sum(letter in self.letters for letter in text) / max(1, len(text))
