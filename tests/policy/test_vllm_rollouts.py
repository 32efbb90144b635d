"""vLLM's sampler against a double with vLLM's signatures: whole distribution, fresh weights, the states of our own.

The double's names and arguments are those of vLLM 0.29.0 and 0.33.0. Its engine begins with weights of its own, gets
the policy's only through the weight-transfer calls, keeps what it knows of prompts until it is told to forget it, and
samples token by token from what its parameters say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from starling_nb import models
from starling_nb.errors import StarlingError
from starling_nb.models import LM, ModelError, Sample
from starling_nb.policy import running, tuning
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.rollouts import vllm as vllm_rollouts
from starling_nb.policy.rollouts.vllm import keep_states, start
from starling_nb.policy.running import Plan


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


@dataclass
class WeightTransferConfig:
    backend: str = "nccl"


@dataclass
class IPCTrainerInitInfo:
    rank: int = field(kw_only=True)
    packed: bool = False


class ModuleSource:
    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module


class LLMDouble:
    """``vllm.LLM``: arguments beyond these would be refused here as an unknown one is there."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        load_format: str = "auto",
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.92,
        logprobs_mode: str = "raw_logprobs",
        weight_transfer_config: WeightTransferConfig | None = None,
        max_model_len: int = 512,
    ) -> None:
        config = json.loads((Path(model) / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert (skip_tokenizer_init, load_format) == (True, "dummy")  # nothing but a config lies in the folder
        self.model = toy.lm(seed=77, dtype=getattr(torch, dtype), spread=0.5).model
        self.share, self.mode, self.limit = gpu_memory_utilization, logprobs_mode, max_model_len
        self.backend = weight_transfer_config.backend if weight_transfer_config else None
        self.calls: list[str] = []
        self.params: list[SamplingParams] = []
        self.prefixes: dict[tuple[int, ...], Tensor] = {}

    def init_weight_transfer_engine(self, request: dict[str, Any]) -> None:
        assert request == {"init_info": {"packed": False}}
        self.calls.append("init")

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, request: dict[str, Any]) -> None:
        assert self.calls[-1] == "start"
        self.calls.append("update")
        self.model.load_state_dict(request["update_info"]["weights"], strict=False)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        assert self.calls[-1] == "update"
        self.calls.append("finish")

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.prefixes.clear()
        return True

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: Any = None,
        tokenization_kwargs: Any = None,
        mm_processor_kwargs: Any = None,
    ) -> list[RequestOutput]:
        assert sampling_params is not None
        self.params = list(sampling_params)
        pairs = zip(prompts, sampling_params, strict=True)
        return [self._complete(prompt["prompt_token_ids"], params) for prompt, params in pairs]

    @torch.no_grad()
    def _complete(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
        assert params.seed is not None
        drawn, tokens = torch.Generator().manual_seed(params.seed), list[int]()
        found: list[dict[int, Logprob]] = []
        reason = "length"
        while len(tokens) < (params.max_tokens or 0) and len(prompt) + len(tokens) < self.limit:
            ids = torch.tensor([[*prompt, *tokens]])
            logits = self.model(input_ids=ids).logits[0, -1].float()
            if not tokens:
                logits = self.prefixes.setdefault(tuple(prompt), logits)
            scored = torch.log_softmax(logits / (params.temperature or 1.0), -1)
            token = int(torch.multinomial(scored.exp(), 1, generator=drawn) if params.temperature else logits.argmax())
            told = scored if self.mode == "processed_logprobs" else torch.log_softmax(logits, -1)
            tokens.append(token)
            found.append({token: Logprob(float(told[token]))})
            if token in (params.stop_token_ids or ()):
                reason = "stop"
                break
        return RequestOutput([CompletionOutput(0, "", tokens, None, found, reason)])


class Transfer:
    """vLLM's trainer side, but that the weights travel as tensors and not as handles."""

    def __init__(self, client: Any, source: ModuleSource) -> None:
        self.client, self.source = client, source

    @classmethod
    def trainer_init(cls, init_info: IPCTrainerInitInfo, *, client: Any, source: ModuleSource) -> Transfer:
        assert init_info.rank == 0
        client.init_weight_transfer_engine({"packed": init_info.packed})
        return cls(client, source)

    def send_weights(self) -> None:
        weights = {name: value.detach().clone() for name, value in self.source.module.named_parameters()}
        self.client.start_weight_update()
        self.client.update_weights({"weights": weights})
        self.client.finish_weight_update()


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLMDouble, "SamplingParams": SamplingParams},
        "vllm.config": {"WeightTransferConfig": WeightTransferConfig},
        "vllm.distributed": {},
        "vllm.distributed.weight_transfer": {"ModuleSource": ModuleSource, "WeightTransferTrainerFactory": Transfer},
        "vllm.distributed.weight_transfer.ipc_engine": {"IPCTrainerInitInfo": IPCTrainerInitInfo},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def asked(lm: LM) -> list[list[int]]:
    return [lm.chat.prompt_ids(prompt.messages) for prompt in toy.prompts(toy.QUESTIONS)]


def plain(lm: LM, sample: Sample, temperature: float = 1.0) -> list[float]:
    """The log-probabilities of a sample's tokens by one plain forward pass."""
    ids = torch.tensor([[*sample.prompt, *sample.ids]])
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0, len(sample.prompt) - 1 : -1].float()
    found: list[float] = (
        torch.log_softmax(logits / temperature, -1).gather(-1, ids[0, len(sample.prompt) :, None])[:, 0].tolist()
    )
    return found


@pytest.mark.usefixtures("_vllm")
def test_answers_are_the_policys_own_with_their_log_probabilities(tmp_path: Path) -> None:
    lm = toy.lm(seed=3)
    sampler = start(lm, tmp_path / "config", memory=0.25)
    assert (sampler.engine.share, sampler.engine.backend, sampler.engine.calls) == (0.25, "ipc", ["init"])
    told: list[tuple[int, int]] = []
    names = [f"{i}" for i in range(6)]
    found = sampler(lm, asked(lm), names, max_new_tokens=60, progress=lambda *done: told.append(done))
    assert told == [(sum(len(sample.ids) for sample in found), 6)]
    assert {sample.finished for sample in found} == {True, False}
    for sample, prompt in zip(found, asked(lm), strict=True):
        assert sample.prompt == prompt
        assert sample.logprobs == pytest.approx(plain(lm, sample), abs=1e-4)
        assert sample.ids.count(lm.chat.eos_id) == sample.finished
        assert sample.ids[-1] == lm.chat.eos_id if sample.finished else len(sample.ids) == 60
    neutral = SamplingParams(max_tokens=60, logprobs=0, detokenize=False)
    for params in sampler.engine.params:
        assert (params.ignore_eos, params.stop_token_ids) == (True, [lm.chat.eos_id])
        params.seed, params.ignore_eos, params.stop_token_ids = None, False, None
        assert params == neutral  # no top-k, no top-p, no penalty


@pytest.mark.usefixtures("_vllm")
def test_every_call_samples_from_the_weights_of_now(tmp_path: Path) -> None:
    lm = toy.lm(seed=3)
    sampler = start(lm, tmp_path)
    before = sampler(lm, asked(lm), list("abcdef"), max_new_tokens=8)
    with torch.no_grad():
        for weight in lm.model.model.layers[2].parameters():
            weight.mul_(1.5)
    after = sampler(lm, asked(lm), list("abcdef"), max_new_tokens=8)
    assert sampler.engine.calls == ["init", *["start", "update", "finish"] * 2]
    assert [sample.logprobs for sample in after] != [sample.logprobs for sample in before]
    for sample in after:
        assert sample.logprobs == pytest.approx(plain(lm, sample), abs=1e-4)
    with pytest.raises(StarlingError, match="start one for that model"):
        sampler(toy.lm(seed=3), asked(lm), list("abcdef"))


@pytest.mark.usefixtures("_vllm")
def test_an_answers_draw_is_decided_by_its_name_and_the_seed(tmp_path: Path) -> None:
    lm = toy.lm(seed=3)
    sampler = start(lm, tmp_path)
    prompts = asked(lm)[:1] * 4
    found = sampler(lm, prompts, list("abcd"), max_new_tokens=12)
    turned = sampler(lm, prompts[:2], ["d", "a"], max_new_tokens=12)
    assert [sample.ids for sample in turned] == [found[3].ids, found[0].ids]
    assert len({tuple(sample.ids) for sample in found}) == 4
    assert sampler(lm, prompts[:1], ["a"], seed=1, max_new_tokens=12)[0].ids != found[0].ids
    heated = sampler(lm, prompts, list("abcd"), max_new_tokens=12, temperature=[0.0, 0.5, 1.0, 2.0])
    assert heated[0].ids == models.sample(lm, prompts[:1], ["x"], max_new_tokens=12, temperature=0.0)[0].ids
    assert heated[2].ids == found[2].ids
    for sample, heat in zip(heated, (1.0, 0.5, 1.0, 2.0), strict=True):
        assert sample.logprobs == pytest.approx(plain(lm, sample, heat), abs=1e-4)
    with pytest.raises(ModelError, match="distinct id"):
        sampler(lm, prompts, list("aacd"))
    with pytest.raises(ModelError, match="temperature of at least 0"):
        sampler(lm, prompts, list("abcd"), temperature=-1)


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_one_pass_over_the_trunk_keeps_what_our_own_sampler_keeps(family: str, batch: int) -> None:
    lm = toy.lm(family, seed=3)
    due = models.sample(lm, asked(lm), list("abcdef"), max_new_tokens=70, capture={1, 2})
    assert {sample.finished for sample in due} == {True, False}
    found = [Sample(one.prompt, one.ids, one.logprobs, one.finished) for one in due]
    keep_states(lm, found, {2, 1}, batch)
    for one, other in zip(found, due, strict=True):
        assert one.states.keys() == other.states.keys()
        for block, states in one.states.items():
            torch.testing.assert_close(states, other.states[block], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("_vllm")
def test_an_answer_cut_by_the_engine_is_an_error(tmp_path: Path) -> None:
    lm = toy.lm(seed=3)
    sampler = start(lm, tmp_path, max_model_len=20)
    with pytest.raises(StarlingError, match=r"of 40 tokens \(length\): give it a max_model_len"):
        sampler(lm, asked(lm), list("abcdef"), max_new_tokens=40)


@pytest.mark.usefixtures("_vllm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tuning_runs_on_its_rollouts_and_the_guards_are_quiet(dtype: torch.dtype, tmp_path: Path) -> None:
    lm = toy.lm(dtype=dtype)
    sampler = start(lm, tmp_path)
    recipe = Recipe(steps=3, rollouts=16, lr=3e-3, critic_warmup=0, max_new_tokens=6, trainable="last:2")
    before = toy.weights(lm.model)
    found = tuning.tune(lm, toy.Likes(lm, "aeiou"), toy.prompts(toy.QUESTIONS), recipe, sampler=sampler)
    assert max(record["sampler_gap"] for record in found.history) < (0.2 if dtype == torch.bfloat16 else 1e-4)
    assert found.history[-1]["kl"] > 0
    assert toy.changed(before, lm.model)
    assert sampler.engine.calls.count("finish") == 3


@pytest.mark.usefixtures("_vllm")
def test_the_command_starts_it_with_room_for_the_longest_answer(tmp_path: Path) -> None:
    lm, prompts = toy.lm(), toy.prompts(toy.QUESTIONS)
    plan = Plan(tmp_path, "", tmp_path, recipe=Recipe(max_new_tokens=7), sampler="vllm")
    sampler = running._sampler(plan, lm, prompts)
    assert isinstance(sampler, vllm_rollouts.Sampler)
    longest = max(len(lm.chat.prompt_ids(prompt.messages)) for prompt in prompts)
    assert sampler.engine.limit == longest + 7
    assert running._sampler(Plan(tmp_path, "", tmp_path), lm, prompts) is models.sample
    with pytest.raises(StarlingError, match="choose own or vllm"):
        running._sampler(replace(plan, sampler="sglang"), lm, prompts)  # type: ignore[arg-type]


def test_what_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(StarlingError, match=r"pip install 'starling_nb\[vllm\]'"):
        start(toy.lm(), tmp_path)


@pytest.mark.usefixtures("_vllm")
def test_several_training_processes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_rollouts.torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(vllm_rollouts.torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(StarlingError, match="one training process"):
        start(toy.lm(), tmp_path)
