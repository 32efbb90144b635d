"""Folders of reward models: which files hold the weights, under which names, and whether they can be trusted.

Read are the layouts that were released: Starling-RM-7B-alpha (one torch file; ``transformer.*``, ``model.model.*`` or
both, beside an LM head that nobody uses) and Starling-RM-34B (safetensors in parts; ``transformer.*``); both with
``v_head.weight``. Names and shapes are checked before anything is read, and then each weight is read, cast and placed
by itself, so that a model is never held twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel

from starling_nb import files, hub, models
from starling_nb.errors import StarlingError

PREFIXES = {"34b": "transformer.", "7b-alpha": "model.model."}
"""How a layout spells the decoder's weights."""
HEAD = "v_head.weight"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Decoders that are run block by block as they would be run whole; others scale or mix states in ways of their own."""
RELEASED = "LLMForSequenceRegression"
"""The class that the config of Starling-RM-7B-alpha names; no release of transformers has it."""
RELEASED_TOKENIZER = "meta-llama/Llama-2-7b-chat-hf"
"""Starling-RM-7B-alpha comes without a tokenizer; its card reads with this one."""
LLAMA_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "vocab_size",
)
SMALL_FILES = ("*.json", "tokenizer*", "*.jinja", "*.txt")
SAFE_FILES = ("model*.safetensors",)
INDEX = "model.safetensors.index.json"
TORCH_FILES = ("*model.bin", "pytorch_model-*.bin", "*.pt")
NO_WEIGHTS = ("optimizer.pt", "scheduler.pt", "training_args.pt")
"""What a trainer leaves beside its weights."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class RewardError(StarlingError):
    """A reward model, or something given to it, that cannot be trusted."""


class Weight(NamedTuple):
    """A weight in a file, not read yet."""

    file: str
    key: str
    shape: list[int]
    read: Callable[[], Tensor]


def find(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a reward model: a local one, else one fetched from the hub.

    Torch files are fetched only where there are no safetensors.

    Raises:
        StarlingError: it is in neither place.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not isinstance(path, str) or path.count("/") != 1 or path[0] in "/.~":
        raise RewardError(
            f"there is no folder {path}: run notebook 03, or give a reward model's folder or a hub id (owner/name)"
        )
    folder = hub.fetch(path, revision, SMALL_FILES + SAFE_FILES)
    return (
        folder if any(folder.glob(SAFE_FILES[0])) else hub.fetch(path, revision, SMALL_FILES + TORCH_FILES, NO_WEIGHTS)
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, safetensors before torch files.

    Raises:
        RewardError: there are none, one that the index names is missing, or it is not clear which file is meant.
    """
    for index, parts in (
        (INDEX, SAFE_FILES[0]),
        ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ):
        if (folder / index).is_file():
            return _indexed(folder, index)
        if found := sorted(folder.glob(parts)):
            of = re.search(r"-of-(\d+)\.", found[0].name)
            if of and len(found) != int(of[1]):
                raise RewardError(f"{folder} holds {len(found)} of the {int(of[1])} parts: fetch the model again")
            return found
    found = [path for path in folder.glob("*") if path.name.endswith(("model.bin", ".pt"))]
    found = sorted(path for path in found if path.name not in NO_WEIGHTS)
    if len(found) > 1:
        raise RewardError(f"{folder} holds {' and '.join(path.name for path in found)}: leave the one with the weights")
    if not found:
        raise RewardError(
            f"{folder} holds no model.safetensors and no torch file named …model.bin or ….pt: run notebook 03, or give "
            "a reward model's folder"
        )
    return found


def _indexed(folder: Path, index: str) -> list[Path]:
    told = files.read_json(folder / index)
    places = told.get("weight_map") if isinstance(told, dict) else None
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise RewardError(f"{folder / index} names no files of this folder: restore it")
    if gone := [name for name in names if not (folder / name).is_file()]:
        raise RewardError(f"{folder}: {gone[0]}, which {index} names, is missing: fetch the model again")
    return [folder / name for name in names]


def read_config(folder: Path) -> Any:
    """The decoder's configuration; one that names no ``model_type`` is Llama's where all of Llama's fields are there.

    Raises:
        StarlingError: no ``config.json``, an unknown model type, or none and other fields than Llama's.
    """
    fields = files.read_json(folder / "config.json")
    if not isinstance(fields, dict):
        raise RewardError(f"{folder / 'config.json'} is no configuration: restore it")
    kind = fields.get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        raise RewardError(f"{folder / 'config.json'} has model_type {kind!r}, which this transformers does not know")
    if kind is None:
        gone = [name for name in LLAMA_FIELDS if name not in fields]
        named = fields.get("architectures") or [RELEASED]
        if gone or fields.get("sliding_window") or not named[0].startswith((RELEASED, "Llama")):
            lacking = f" and lacks {', '.join(gone)}" if gone else ""
            raise RewardError(
                f"{folder / 'config.json'} names no model_type{lacking}, so that it cannot be read as Llama's: add "
                '"model_type" ("llama", "mistral", "qwen2", …) and whatever else is missing'
            )
    return CONFIG_MAPPING[kind or "llama"].from_dict(fields)


def read_tokenizer(folder: Path, given: str | Path | None = None, usual: str | None = None) -> Any:
    """The tokenizer that is given, a folder or a hub id, else the one of the folder, else the ``usual`` one.

    Raises:
        RewardError: there is none, or it cannot be read.
    """
    if given is None and not any((folder / name).exists() for name in TOKENIZER_FILES):
        given = usual
        if given is None:
            raise RewardError(
                f"{folder} has no tokenizer: pass tokenizer=, a folder or a hub id (for Starling-RM-7B-alpha "
                f"{RELEASED_TOKENIZER})"
            )
    source = folder if given is None else given
    try:
        return models.read_tokenizer(source)
    except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
        raise RewardError(
            f"{source} gives no tokenizer ({type(error).__name__}): pass another as tokenizer="
        ) from error


def check_family(config: Any, name: str | Path) -> None:
    """Refuse a decoder that would not be run as it is meant.

    Raises:
        RewardError: it is of none of :data:`FAMILIES`.
    """
    if config.model_type not in FAMILIES:
        raise RewardError(f"{name}: {config.model_type} cannot be read, only {', '.join(FAMILIES)}")


def load(folder: Path, dtype: torch.dtype, device: str) -> tuple[Any, Tensor]:
    """The decoder of a folder, in ``dtype``, and its score head, float32 ``[1, width]``; both on ``device``.

    Raises:
        StarlingError: weights that are missing, left over, of another shape, not finite or spelled twice and not alike,
            a file that cannot be read, or a config of something that is no decoder.
    """
    config = read_config(folder)
    check_family(config, folder)
    found = _by_name(weight_files(folder))
    with torch.device("meta"):
        decoder: Any = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
    _check_complete(folder, found, decoder)
    head = _value(folder, HEAD, found.pop(HEAD), torch.float32, device)
    values = {name: _value(folder, name, places, dtype, device) for name, places in found.items()}
    decoder.load_state_dict(values, assign=True)
    # Made anew, not cast: its frequencies lie in no file, and a cast to 16 bits would round the positions.
    decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config).to(device)
    return decoder, head


def _by_name(paths: list[Path]) -> dict[str, list[Weight]]:
    """Weights under the decoder's own names, and the head; LM head and stored rotary frequencies are passed over."""
    found: dict[str, list[Weight]] = {}
    for weight in (one for path in paths for one in _weights_in(path)):
        if not weight.key.endswith(("lm_head.weight", "rotary_emb.inv_freq")):
            prefix = next((prefix for prefix in PREFIXES.values() if weight.key.startswith(prefix)), "")
            found.setdefault(weight.key[len(prefix) :], []).append(weight)
    return found


def _weights_in(path: Path) -> list[Weight]:
    if path.suffix != ".safetensors":
        values = _torch_file(path)
        return [Weight(path.name, key, list(v.shape), partial(values.__getitem__, key)) for key, v in values.items()]
    try:
        handle = safe_open(path, framework="pt")
        return [
            Weight(path.name, key, list(handle.get_slice(key).get_shape()), partial(handle.get_tensor, key))
            for key in handle.keys()  # noqa: SIM118 - a handle is no mapping
        ]
    except (SafetensorError, OSError) as error:
        raise RewardError(f"{path} is damaged ({error}): fetch or train the model again") from error


def _torch_file(path: Path) -> dict[str, Tensor]:
    """Weights of a torch file, mapped, not read; code that such a file may hold is never run."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many types; their texts tell how to switch the protection off
        raise RewardError(
            f"{path} cannot be read as plain weights ({type(error).__name__}): it is damaged, of an old format, or "
            "holds code, which is not run. Fetch it again, or have its maker save the weights as safetensors"
        ) from None
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise RewardError(f"{path} holds more than weights by name: have its maker save the state dict alone")
    return dict(values)


def _check_complete(folder: Path, found: Mapping[str, list[Weight]], decoder: Any) -> None:
    """Refuse weights that do not fill the decoder and the head exactly."""
    if HEAD not in found:
        raise RewardError(f"{folder} has no {HEAD}: this is not a reward model")
    wanted = {name: list(value.shape) for name, value in decoder.state_dict().items()}
    wanted[HEAD] = [1, decoder.config.hidden_size]
    gap, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if gap or extra:
        raise RewardError(
            f"{folder}: weights missing {gap[:3]}, left over {extra[:3]}: fetch all files again, or give the "
            "config.json that belongs to them"
        )
    for name, shape in wanted.items():
        for weight in found[name]:
            if weight.shape != shape:
                raise RewardError(
                    f"{folder}: {name} has shape {weight.shape} in {weight.file}, not {shape} as config.json says: "
                    "give the config.json that belongs to these weights"
                )


def _value(folder: Path, name: str, places: list[Weight], dtype: torch.dtype, device: str) -> Tensor:
    """One weight, its own copy, checked; wherever it is spelled twice both must say the same."""
    raw = places[0].read()
    if not raw.is_floating_point():
        raise RewardError(f"{folder}: {name} is {raw.dtype}: give the model's weights before they were quantised")
    value = raw.to(device, dtype, copy=True)
    if not bool(value.isfinite().all()):
        finite = bool(raw.isfinite().all())
        remedy = f"is too large for {dtype}: load in float32" if finite else "is not a number: fetch or train it again"
        raise RewardError(f"{folder}: {name} in {places[0].file} {remedy}")
    for other in places[1:]:
        again = other.read()
        wide = torch.promote_types(again.dtype, raw.dtype)
        if again.data_ptr() != raw.data_ptr() and not torch.equal(again.to(wide), raw.to(wide)):
            raise RewardError(
                f"{folder} holds two different weights for {name}, {places[0].key} in {places[0].file} and {other.key} "
                f"in {other.file}: the checkpoint cannot be trusted; fetch it again or ask its maker which is meant"
            )
    return value
