"""Rollouts sampled by vLLM on the policy's own GPU, behind the interface of :func:`starling_nb.models.sample`.

Before every call the policy's weights go to vLLM in place, through its weight-transfer API (CUDA IPC: vLLM's worker
reads the trainer's memory). It samples from the whole distribution that is scored later; one pass over the trunk then
gives the states that our own sampler keeps while it samples.

Written against the public API of vLLM 0.29.0 and 0.33.0, whose signatures and sources were read; its tests run against
a double with these signatures. It has not yet been run on a GPU.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from starling_nb import files
from starling_nb.blocks import run_blocks, trunk_states
from starling_nb.errors import StarlingError
from starling_nb.models import LM, temperatures
from starling_nb.sampling import Progress, Sample


@dataclass(frozen=True)
class Sampler:
    """A running vLLM and the policy that it samples for; made by :func:`start`.

    Attributes:
        lm: the policy.
        engine: the ``vllm.LLM``.
        transfer: vLLM's trainer-side weight transfer.
    """

    lm: LM
    engine: Any
    transfer: Any

    def __call__(
        self,
        lm: LM,
        prompts: Sequence[Sequence[int]],
        ids: Sequence[str],
        *,
        seed: int = 0,
        max_new_tokens: int = 80,
        temperature: float | Sequence[float] = 1.0,
        batch: int = 16,
        capture: Collection[int] = (),
        progress: Progress | None = None,
    ) -> list[Sample]:
        """Sample one answer for each prompt from the policy as it is now.

        Arguments as for :func:`starling_nb.models.sample`, but that ``batch`` is the rows of a pass over the trunk
        (vLLM batches by itself) and ``progress`` is called once, at the end. An item's seed is decided by ``seed`` and
        its id; vLLM's kernels do not promise the same bits in another batch, so that a run that goes on need not repeat
        its answers.

        Raises:
            ModelError: as :func:`starling_nb.models.sample`.
            StarlingError: another policy than the engine's, or an answer that vLLM ended before its time.
        """
        if lm.model is not self.lm.model:
            raise StarlingError(f"this vLLM samples for {self.lm.name}, not {lm.name}: start one for that model")
        heats = temperatures(prompts, ids, max_new_tokens, temperature, batch)
        self.synchronise()
        params = [
            self._params(files.rng(seed, "vllm", i), heat, max_new_tokens) for i, heat in zip(ids, heats, strict=True)
        ]
        outputs = self.engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
        )
        samples = [self._read(prompt, out, max_new_tokens) for prompt, out in zip(prompts, outputs, strict=True)]
        if capture:
            keep_states(lm, samples, capture, batch)
        if progress is not None:
            progress(sum(len(item.ids) for item in samples), len(samples))
        return samples

    def synchronise(self) -> None:
        """Give vLLM the policy's weights, and let it forget what it has kept of prompts under the old ones."""
        self.transfer.send_weights()
        self.engine.reset_prefix_cache()

    def _params(self, rng: Any, temperature: float, max_new_tokens: int) -> Any:
        """The whole distribution: no top-k, top-p, min-p or penalty; it stops at the policy's own end of turn alone."""
        return _vllm().SamplingParams(
            temperature=float(temperature),
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            seed=int(rng.integers(2**62)),
            max_tokens=max_new_tokens,
            logprobs=0,
            ignore_eos=True,
            stop_token_ids=[self.lm.chat.eos_id],
            detokenize=False,
        )

    def _read(self, prompt: Sequence[int], output: Any, max_new_tokens: int) -> Sample:
        found = output.outputs[0]
        tokens = list(found.token_ids)
        finished = tokens[-1:] == [self.lm.chat.eos_id]
        if not finished and len(tokens) < max_new_tokens:
            raise StarlingError(
                f"vLLM ended an answer after {len(tokens)} of {max_new_tokens} tokens ({found.finish_reason}): give it "
                "a max_model_len that holds the prompts and their answers"
            )
        logprobs = [float(place[token].logprob) for token, place in zip(tokens, found.logprobs, strict=True)]
        return Sample(list(prompt), tokens, logprobs, finished)


def start(lm: LM, folder: Path, *, memory: float = 0.3, **settings: Any) -> Sampler:
    """Start vLLM beside a policy, on the same GPU and in the same type.

    Args:
        lm: the policy.
        folder: gets the model's config, which is all that vLLM reads from a file.
        memory: share of the GPU's memory that vLLM may take for weights and cache.
        settings: further arguments of ``vllm.LLM``, such as ``max_model_len``.

    Raises:
        StarlingError: vLLM is not installed, or several processes train.
    """
    vllm = _vllm()
    from vllm.config import WeightTransferConfig
    from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise StarlingError("vLLM samples for one training process: start one, or use the transformers sampler")
    # vLLM pickles the handles of the weights' memory for its own worker, and wants to be told that it may.
    os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(lm.model.config)
    config.architectures = [type(lm.model).__name__]
    config.save_pretrained(folder)
    engine = vllm.LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=str(lm.dtype).removeprefix("torch."),
        gpu_memory_utilization=memory,
        logprobs_mode="processed_logprobs",
        weight_transfer_config=WeightTransferConfig(backend="ipc"),
        **settings,
    )
    transfer = WeightTransferTrainerFactory.trainer_init(
        init_info=IPCTrainerInitInfo(rank=0), client=_Client(engine), source=ModuleSource(lm.model)
    )
    return Sampler(lm, engine, transfer)


@torch.inference_mode()
def keep_states(lm: LM, samples: Sequence[Sample], capture: Collection[int], batch: int = 16) -> None:
    """Give finished samples what enters each captured block, in one pass over right-padded rows of like length.

    The states are those that :func:`starling_nb.models.sample` keeps, ``[tokens, hidden]`` for the prompt, the answer
    and its end-of-turn token.
    """
    decoder: Any = lm.model.model
    rows = [torch.tensor([*s.prompt, *s.ids, *([] if s.finished else [lm.chat.eos_id])]) for s in samples]
    order = sorted(range(len(samples)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        ids = torch.nn.utils.rnn.pad_sequence([rows[i] for i in places], batch_first=True, padding_value=lm.chat.eos_id)
        positions = torch.arange(ids.shape[1]).expand_as(ids).to(lm.device)
        hidden, below = trunk_states(decoder, ids, positions, None, 0), 0
        for block in sorted(capture):
            hidden, below = run_blocks(decoder, hidden, positions, None, below, block), block
            for row, place in enumerate(places):
                samples[place].states[block] = hidden[row, : len(rows[place])].clone()


class _Client:
    """The four calls by which vLLM's trainer side reaches an engine in this process."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.engine.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self.engine.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.engine.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.engine.finish_weight_update(weight_version)


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise StarlingError(
            "vLLM is not installed: pip install 'starling_nb[vllm]' on a machine with a GPU, or leave the sampler out"
        ) from error
    return vllm
