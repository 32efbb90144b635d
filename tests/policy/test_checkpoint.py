"""A tuned policy is a small file that fits its own start model and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy import checkpoint
from starling_nb.policy.hydra import Hydra


def tuned(lm: LM, trainable: str = "last:2") -> Hydra:
    """A hydra whose top has moved."""
    hydra = Hydra(lm, trainable)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hydra.top.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return hydra


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_the_file_lays_the_tuned_blocks_over_a_copy_of_the_start_model(family: str, tmp_path: Path) -> None:
    lm = toy.lm(family)
    before = toy.weights(lm.model)
    hydra = tuned(lm)
    checkpoint.save(hydra, tmp_path / "policy.safetensors", base=lm.name)
    assert checkpoint.followed(tmp_path / "policy.safetensors", tmp_path / "own") == tmp_path / "own"
    checkpoint.save(hydra, tmp_path / "policy.safetensors", lm.name, "hub/reward")
    assert checkpoint.followed(tmp_path / "policy.safetensors", tmp_path / "own") == "hub/reward"
    found = checkpoint.load(lm, tmp_path / "policy.safetensors")
    assert toy.changed(before, lm.model) == set()
    changed = toy.changed(before, found.model)
    assert changed == {
        name for name in before if name.startswith(("model.layers.1.", "model.layers.2.", "model.norm."))
    }
    hydra.top.write_into(lm.model.model)
    for name, value in lm.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name
    assert found.name == lm.name
    assert found.chat is lm.chat


@pytest.mark.parametrize("trainable", ["lora:2", "blocks:0-1", "full"])
def test_whatever_was_trained_comes_back_as_plain_blocks(trainable: str, tmp_path: Path) -> None:
    lm = toy.lm(tied=True)
    hydra = tuned(lm, trainable)
    checkpoint.save(hydra, tmp_path / "policy.safetensors", base=lm.name)
    found = checkpoint.load(lm, tmp_path / "policy.safetensors")
    hydra.top.write_into(lm.model.model)
    assert toy.changed(toy.weights(lm.model), found.model) == set()


def test_a_bfloat16_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    lm = toy.lm(dtype=torch.bfloat16)
    hydra = tuned(lm)
    checkpoint.save(hydra, tmp_path / "policy.safetensors", base=lm.name)
    found = checkpoint.load(lm, tmp_path / "policy.safetensors")
    hydra.top.write_into(lm.model.model)
    assert toy.changed(toy.weights(lm.model), found.model) == set()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    lm = toy.lm()
    path = tmp_path / "policy.safetensors"
    with pytest.raises(StarlingError, match="not a tuned policy"):
        checkpoint.load(lm, path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(StarlingError, match="not a tuned policy"):
        checkpoint.load(lm, path)
    checkpoint.save(tuned(lm), path, base=lm.name)
    with pytest.raises(StarlingError, match="was tuned from toy-llama, not toy-qwen2"):
        checkpoint.load(toy.lm("qwen2"), path)
    whole = load_file(path)
    note = {"base": lm.name, "start": "1"}
    wrongs = [
        {name: value for name, value in whole.items() if name != "norm.weight"},
        {name: value for name, value in whole.items() if not name.startswith("layers.1.")},
        whole | {"layers.2.mlp.up_proj.weight": torch.ones(48, 32)},
        whole | {"norm.weight": torch.ones(31)},
    ]
    for wrong in wrongs:
        save_file(wrong, path, metadata=note)
        with pytest.raises(StarlingError, match="does not fit"):
            checkpoint.load(lm, path)
