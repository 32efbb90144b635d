"""The reward model: a decoder and one bias-free linear on the last token's final hidden state (Starling-RM).

Folders hold safetensors in the layout of the released models: ``transformer.*`` and ``v_head.weight``. A missing or
surplus weight is an error, never a random head.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from starling_nb import files
from starling_nb.blocks import run_blocks
from starling_nb.chat import ChatFormat, Message
from starling_nb.errors import StarlingError


class RewardError(StarlingError):
    """A reward model folder that cannot be trusted."""


class RewardModel(nn.Module):
    """Scores conversations; only differences between scores of one prompt mean anything.

    Args:
        transformer: a Hugging Face decoder (Llama, Mistral, Qwen family).
        chat: how this model reads conversations.
        v_head: ``[1, width]`` weights of the head; zeros when not given.
    """

    def __init__(self, transformer: Any, chat: ChatFormat, v_head: Tensor | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.chat = chat
        self.v_head = nn.Linear(transformer.config.hidden_size, 1, bias=False)
        with torch.no_grad():
            self.v_head.weight.copy_(torch.zeros_like(self.v_head.weight) if v_head is None else v_head)

    @torch.inference_mode()
    def score(self, conversations: Sequence[Sequence[Message]], batch: int = 32) -> list[float]:
        """Scores of finished conversations, each ending with an assistant message.

        Raises:
            RewardError: a conversation does not end with an assistant message.
        """
        if any(not c or c[-1]["role"] != "assistant" for c in conversations):
            raise RewardError("a scored conversation must end with an assistant message")
        return self.score_ids([self.chat.encode(c[:-1], c[-1]["content"]).ids for c in conversations], batch)

    @torch.inference_mode()
    def score_ids(self, sequences: Sequence[Sequence[int]], batch: int = 32) -> list[float]:
        """Scores of token sequences, read at the last token of each; independent of neighbours and padding."""
        scores = [0.0] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = max(len(sequences[i]) for i in rows)
            ids = torch.tensor([list(sequences[i]) + [0] * (width - len(sequences[i])) for i in rows])
            positions = torch.arange(width).expand(len(rows), -1)
            hidden = self.transformer.embed_tokens(ids)
            hidden = run_blocks(self.transformer, hidden, positions, None, 0, len(self.transformer.layers))
            last = hidden[torch.arange(len(rows)), torch.tensor([len(sequences[i]) - 1 for i in rows])]
            values = self.v_head(self.transformer.norm(last).float())[:, 0]
            for row, value in zip(rows, values.tolist(), strict=True):
                scores[row] = value
        return scores

    def save_pretrained(self, folder: Path, notes: dict[str, Any] | None = None) -> None:
        """Write config, tokenizer, ``model.safetensors`` and notes; the folder appears whole or not at all."""
        work = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            self.transformer.config.save_pretrained(work)
            self.chat.tokenizer.save_pretrained(work)
            weights = {f"transformer.{k}": v.contiguous() for k, v in self.transformer.state_dict().items()}
            save_file({**weights, "v_head.weight": self.v_head.weight.detach()}, work / "model.safetensors")
            (work / "starling.json").write_text(json.dumps({"template": self.chat.template, **(notes or {})}))
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise RewardError(
                f"cannot write the reward model to {folder}: {error}. Free some space and rerun"
            ) from error

    @classmethod
    def from_pretrained(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> RewardModel:
        """Load a folder, ours or one in the released layout (``transformer.*`` or ``model.model.*`` keys).

        Raises:
            RewardError: no such folder, no safetensors, or weights missing or left over.
        """
        folder = Path(path)
        if not (folder / "model.safetensors").exists():
            raise RewardError(f"{folder} holds no model.safetensors: run notebook 03, or give a reward model's folder")
        settings = files.read_json(folder / "starling.json") if (folder / "starling.json").exists() else {}
        weights = _transformer_keys(load_file(folder / "model.safetensors"))
        head = weights.pop("v_head.weight", None)
        if head is None:
            raise RewardError(f"{folder} has no v_head.weight: this is not a reward model")
        transformer = AutoModel.from_config(AutoConfig.from_pretrained(folder), attn_implementation="sdpa")
        names = {key.removeprefix("transformer.") for key in weights}
        wanted = set(transformer.state_dict())
        if names != wanted:
            gap, extra = sorted(wanted - names)[:3], sorted(names - wanted)[:3]
            raise RewardError(f"{folder}: weights missing {gap}, left over {extra}: the checkpoint is not complete")
        transformer.load_state_dict({k.removeprefix("transformer."): v for k, v in weights.items()})
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = ChatFormat(tokenizer, settings.get("template", "own"))
        return cls(transformer.to(dtype).eval().requires_grad_(False), chat, head).eval()


def _transformer_keys(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both spellings of the released checkpoints, brought to ``transformer.*``; the unused LM head is dropped."""
    renamed = {}
    for key, value in weights.items():
        if key.endswith("lm_head.weight"):
            continue
        renamed[key.replace("model.model.", "transformer.", 1) if key.startswith("model.model.") else key] = value
    return renamed
