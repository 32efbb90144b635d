"""Writing a reward model's folder: its weights in either released spelling, and the folder whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from starling_nb import files
from starling_nb.reward.layout import HEAD, INDEX, PREFIXES, RewardError


def write_weights(folder: Path, decoder: Any, head: Tensor, layout: str, shard_bytes: int) -> None:
    """Write safetensors in one of the spellings :data:`PREFIXES`, in parts of at most ``shard_bytes`` where needed.

    Raises:
        RewardError: an unknown layout.
    """
    if layout not in PREFIXES:
        raise RewardError(f"layout={layout!r}: choose one of {', '.join(PREFIXES)}")
    weights = {f"{PREFIXES[layout]}{name}": value.contiguous() for name, value in decoder.state_dict().items()}
    weights[HEAD] = head.detach().contiguous()
    plan = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=shard_bytes
    )
    for file, names in plan.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        files.write_json(folder / INDEX, index)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, which takes its place whole when the block ends without an error.

    Raises:
        RewardError: it cannot be written.
    """
    work, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    try:
        for path in (work, old):
            shutil.rmtree(path, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        _swap(work, folder, old)
    except (OSError, SafetensorError) as error:
        raise RewardError(f"cannot write the reward model to {folder}: {error}. Free some space and rerun") from error
    finally:
        for path in (work, old):
            shutil.rmtree(path, ignore_errors=True)


def _swap(work: Path, folder: Path, old: Path) -> None:
    """Put ``work`` in the place of ``folder``; if that fails, what was there stays."""
    before = folder.exists()
    if before:
        folder.rename(old)
    try:
        work.rename(folder)
    except OSError:
        if before:
            old.rename(folder)
        raise
