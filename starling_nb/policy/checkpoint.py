"""A tuned policy as a small file: the blocks that were trained, to be laid over their start model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy.hydra import Hydra


def save(hydra: Hydra, path: Path, base: str, reward: str = "") -> None:
    """Write the top blocks, in float32 as they were trained, where they belong, and which reward model they followed
    (empty: that of the run)."""
    parts = {"layers": hydra.top.plain(), "norm": hydra.top.norm}
    named = {f"{part}.{name}": value for part, one in parts.items() for name, value in one.state_dict().items()}
    weights = {name: value.detach().float().contiguous() for name, value in named.items()}
    with files.replacing(path) as part:
        save_file(weights, part, metadata={"base": base, "start": str(hydra.start), "reward": reward})


def load(lm: LM, path: Path) -> LM:
    """``lm`` with the tuned blocks laid over it; it shares the blocks below.

    Raises:
        StarlingError: the file is missing, is not a policy, belongs to another start model, or is not complete.
    """
    try:
        with safe_open(path, "pt") as archive:
            note = archive.metadata() or {}
            weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except Exception as error:
        raise StarlingError(f"{path} is not a tuned policy ({error}): run notebook 04 again") from error
    if note.get("base") != lm.name:
        raise StarlingError(f"{path} was tuned from {note.get('base')}, not {lm.name}: load that model")
    start = int(note["start"])
    found = lm.from_block(start)
    state = found.model.model.state_dict()
    placed = {name if name.startswith("norm.") else _shifted(name, start): value for name, value in weights.items()}
    tuned = {name for name in state if name.startswith("norm.") or _block(name) >= start}
    if placed.keys() != tuned or any(state[name].shape != value.shape for name, value in placed.items()):
        raise StarlingError(f"{path} does not fit the blocks from {start} of {lm.name}: run notebook 04 again")
    with torch.no_grad():
        for name, value in placed.items():
            state[name].copy_(value)
    return found


def followed(path: Path, own: Path) -> str | Path:
    """The reward model that a policy's file names; ``own``, that of its run, where it names none."""
    with safe_open(path, "pt") as archive:
        return (archive.metadata() or {}).get("reward") or own


def _block(name: str) -> int:
    """The block that a weight of the decoder belongs to; -1 for those that belong to none."""
    return int(name.split(".")[1]) if name.startswith("layers.") else -1


def _shifted(name: str, start: int) -> str:
    """``layers.0.…`` of the top is ``layers.<start>.…`` of the decoder."""
    layers, index, rest = name.split(".", 2)
    return f"{layers}.{int(index) + start}.{rest}"
