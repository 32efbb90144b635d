"""Get a causal language model and its tokenizer, and sample from it.

``load`` reads the embedded model (:mod:`starling_nb.embedded_model`), any folder or a hub id; the model goes onto the
GPU where there is one. :func:`sample` draws from exactly the distribution that is scored later: no top-k, no top-p,
temperature applied to the logits, randomness keyed by ``(seed, item id)``.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from starling_nb import embedded_model, files
from starling_nb.blocks import trunk_states
from starling_nb.chat import ChatFormat
from starling_nb.embedded_model import EMBEDDED
from starling_nb.errors import ModelError
from starling_nb.sampling import Progress, Sample, decode, draw

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["EMBEDDED", "LM", "ModelError", "Sample", "draw", "load", "native_dtype", "sample"]

PLAIN_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass
class LM:
    """A causal language model, its way of writing conversations and where it came from."""

    model: PreTrainedModel
    chat: ChatFormat
    name: str

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def window(self) -> int:
        """:func:`window` of the model."""
        return window(self.model.config)

    def fingerprint(self) -> str:
        """:func:`fingerprint` of the model."""
        return fingerprint(self.model)

    def from_block(self, start: int) -> LM:
        """A copy to be overwritten from block ``start`` on: those blocks and the final norm are its own, all else is
        shared."""
        model: Any = self.model
        own = {id(w) for part in (*model.model.layers[start:], model.model.norm) for w in part.parameters()}
        shared = {id(weight): weight for weight in model.parameters() if id(weight) not in own}
        return LM(copy.deepcopy(model, shared), self.chat, self.name)

    def accelerator(self) -> Accelerator:
        """A fresh :class:`accelerate.Accelerator` on this model's device, in mixed precision where it is bfloat16."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # One process has one AcceleratorState, which would refuse a second model of another type.
        AcceleratorState._reset_state()
        precision = "bf16" if self.dtype == torch.bfloat16 else "no"
        return Accelerator(cpu=self.device.type == "cpu", mixed_precision=precision)


def window(config: Any) -> int:
    """Tokens that a decoder can read: its positions, or its sliding window where that is shorter."""
    sliding = getattr(config, "sliding_window", None)
    return int(min(config.max_position_embeddings, sliding or math.inf))


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of every weight tensor's first values and of the sum of all its bits: any training gives another."""
    return files.hash_value(
        [[weight.detach().flatten()[:8].double().tolist(), _bits(weight)] for weight in module.parameters()]
    )


def _bits(weight: torch.Tensor) -> int:
    """The sum of a tensor's bytes, read as whole numbers of eight where they can be: exact in any order."""
    flat = weight.detach().contiguous().flatten()
    whole = torch.int64 if flat.numel() * flat.element_size() % 8 == 0 else torch.uint8
    return int(flat.view(whole).sum(dtype=torch.int64))


def shallow(lm: LM, depth: int) -> LM:
    """The same model with only its first ``depth`` blocks, weights shared: a smaller backbone for a reward model.

    At 135M parameters the middle of the network tells good answers from bad ones better than its end
    (``benchmarks/readout_probe.py`` measures it), and half the blocks cost half the time.

    Raises:
        ModelError: ``depth`` is not between 1 and the number of blocks.
    """
    blocks = lm.model.config.num_hidden_layers
    if not 1 <= depth <= blocks:
        raise ModelError(f"depth = {depth}: choose from 1 to {blocks}, the blocks of {lm.name}")
    config = copy.deepcopy(lm.model.config)
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]
    with torch.device("meta"):
        model: Any = type(lm.model)(config)
    model.model.load_state_dict(
        {name: value for name, value in lm.model.model.state_dict().items() if name in model.model.state_dict()},
        assign=True,
    )
    model.model.rotary_emb = lm.model.model.rotary_emb
    model.lm_head = lm.model.lm_head
    return LM(model.eval().requires_grad_(False), lm.chat, f"{lm.name}, first {depth} blocks")


def load(name: str = EMBEDDED, *, dtype: str = "auto", template: str = "own", threads: int = 2) -> LM:
    """Load a causal LM from the embedded wheel, a local folder or the hub.

    Args:
        name: ``"smollm2-135m"``, a folder, or a hub id.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"auto"`` (see :func:`native_dtype`).
        template: chat template, see :class:`starling_nb.chat.ChatFormat`.
        threads: torch threads on the CPU; results are bit-identical only for equal thread counts.

    Raises:
        ModelError: unknown dtype, the model is in none of these places, or it is of another build than Llama, Mistral
            and Qwen; the message names the next step.
    """
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ModelError(f"unknown dtype {dtype!r}: choose auto, float32 or bfloat16")
    _quiet()
    torch.set_num_threads(threads)
    source = embedded_model.folder() if name == EMBEDDED else name
    kind = native_dtype() if dtype == "auto" else getattr(torch, dtype)
    try:
        tokenizer = read_tokenizer(source)
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=kind, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model {name!r} cannot be loaded from {source}: {str(error).splitlines()[0]}\n"
            "Give a folder with config.json, tokenizer.json and safetensors weights, or a hub id while the network "
            "and huggingface.co can be reached."
        ) from error
    model = model.to(device())
    _built_plainly(model, name)
    return LM(model.eval().requires_grad_(False), ChatFormat(tokenizer, template), name)


@torch.inference_mode()
def _built_plainly(model: Any, name: str) -> None:
    """Refuse a model whose logits are not what its blocks, one after the other, and its head's weights make of a text:
    one that scales or caps them somewhere would be sampled from and read wrongly, without a word."""
    ids = torch.arange(4, device=model.device)[None]
    try:
        hidden = trunk_states(model.model, ids, ids, None, len(model.model.layers))
        ours = (model.model.norm(hidden) @ model.lm_head.weight.T).float()
    except (AttributeError, TypeError) as error:
        raise ModelError(f"the model {name!r} is built otherwise than Llama, Mistral and Qwen ({error})") from error
    theirs = model(input_ids=ids).logits.float()
    if model.lm_head.bias is not None or (ours - theirs).abs().max() > 0.05 * theirs.abs().max():
        raise ModelError(
            f"the model {name!r} ({model.config.model_type}) scales, caps or shifts its logits: choose one that is "
            "built as Llama, Mistral or Qwen"
        )


def read_tokenizer(source: str | Path) -> Any:
    """The tokenizer of a folder or a hub id, as its own files say.

    transformers 5 takes a plain tokenizer beside a Qwen config for Qwen's own, and would split text as that does.

    Raises:
        OSError, ValueError, TypeError, KeyError, ImportError: whatever transformers makes of a source without one.
    """
    told = Path(source) / "tokenizer_config.json"
    plain = told.exists() and files.read_json(told).get("tokenizer_class") in PLAIN_TOKENIZERS
    return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(source)


def device() -> str:
    """Where models go: onto the GPU of this process (``accelerate launch`` counts them) where there is one."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def native_dtype() -> torch.dtype:
    """bfloat16 on a GPU and on a CPU that multiplies it natively (AVX512-BF16 or AMX), else float32.

    The hardware decides, not a timing: a probe on a busy machine would choose now this type, now that, and two runs of
    one seed would differ.
    """
    if torch.cuda.is_available():
        return torch.bfloat16
    has = (getattr(torch.cpu, name, lambda: False) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.bfloat16 if any(ask() for ask in has) else torch.float32


def _quiet() -> None:
    hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def sample(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    seed: int = 0,
    max_new_tokens: int = 80,
    temperature: float | Sequence[float] = 1.0,
    batch: int = 128,
    capture: Collection[int] = (),
    progress: Progress | None = None,
) -> list[Sample]:
    """Sample one answer for each prompt.

    Args:
        lm: the model.
        prompts: token ids, one list an item.
        ids: one name an item; with ``seed`` it decides the item's randomness, whatever the batch or order.
        seed: see ``ids``.
        max_new_tokens: cap on answer tokens, the end-of-turn token included.
        temperature: logits are divided by it; 0 means greedy; one for all items, or one an item.
        batch: sequences in flight; where some end, the next prompts take their places.
        capture: indices of decoder blocks whose input states are kept (see :class:`Sample`).
        progress: called with (sampled tokens, items done) after every decoding step.

    Returns:
        One :class:`Sample` an item, in the given order.

    Raises:
        ModelError: ids that are not distinct, one a prompt; or a cap, a batch or a temperature out of range.
    """
    heats = temperatures(prompts, ids, max_new_tokens, temperature, batch)
    samples = [Sample(list(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), list(prompts[i]), ids[i]))
    numbers = [files.rng(seed, "sample", ids[i]).random(max_new_tokens) for i in order]
    decode(
        lm.model,
        lm.chat.eos_id,
        [samples[i] for i in order],
        torch.from_numpy(np.stack(numbers)) if numbers else torch.empty(0, max_new_tokens),
        torch.tensor([heats[i] for i in order]),
        rows=batch,
        capture=capture,
        progress=progress,
    )
    return samples


def temperatures(
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    max_new_tokens: int,
    temperature: float | Sequence[float],
    batch: int,
) -> list[float]:
    """One temperature an item, after a look at what :func:`sample` is asked for.

    Raises:
        ModelError: as :func:`sample`.
    """
    if len(prompts) != len(ids) or len(set(ids)) != len(ids):
        raise ModelError("sampling needs exactly one distinct id for each prompt")
    heats = list(temperature) if isinstance(temperature, Sequence) else [temperature] * len(prompts)
    if len(heats) != len(prompts):
        raise ModelError(f"{len(heats)} temperatures for {len(prompts)} prompts: give one for all, or one a prompt")
    if max_new_tokens < 1 or batch < 1 or not all(heat >= 0 for heat in heats):
        raise ModelError("sampling needs max_new_tokens and batch of at least 1 and a temperature of at least 0")
    return heats
