"""The reward model: a decoder and one bias-free linear on the last token's final hidden state (Starling-RM).

Folders hold safetensors in the layout of the released models: ``transformer.*`` and ``v_head.weight``. A missing or
surplus weight is an error, never a random head.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from starling_nb import files
from starling_nb.blocks import run_blocks
from starling_nb.chat import ChatFormat, Encoded, Message
from starling_nb.errors import StarlingError
from starling_nb.reward.packing import READOUTS


class RewardError(StarlingError):
    """A reward model folder that cannot be trusted."""


class Reading(NamedTuple):
    """The score of one answer, and the head's mean over its first 1, 2, … tokens ``[answer tokens]``.

    A decoder is causal: what it reads in an unfinished answer costs nothing more, and foretells the score.
    """

    score: float
    means: Tensor


class RewardModel(nn.Module):
    """Scores conversations; only differences between scores of one prompt mean anything.

    Args:
        transformer: a Hugging Face decoder (Llama, Mistral, Qwen family).
        chat: how this model reads conversations.
        v_head: ``[1, width]`` weights of the head; zeros when not given.
        readout: ``"last_token"`` as the released models, ``"mean"`` over the answer's tokens, or ``"both"``.
    """

    def __init__(
        self, transformer: Any, chat: ChatFormat, v_head: Tensor | None = None, readout: str = "last_token"
    ) -> None:
        super().__init__()
        if readout not in READOUTS:
            raise RewardError(f"readout={readout!r}: choose one of {', '.join(READOUTS)}")
        self.transformer = transformer
        self.chat, self.readout = chat, readout
        self.v_head = nn.Linear(transformer.config.hidden_size, 1, bias=False)
        with torch.no_grad():
            self.v_head.weight.copy_(torch.zeros_like(self.v_head.weight) if v_head is None else v_head)
        self.v_head.to(transformer.device)

    @torch.inference_mode()
    def score(self, conversations: Sequence[Sequence[Message]], batch: int = 32) -> list[float]:
        """Scores of finished conversations, each ending with an assistant message.

        Raises:
            RewardError: a conversation does not end with an assistant message.
        """
        if any(not c or c[-1]["role"] != "assistant" for c in conversations):
            raise RewardError("a scored conversation must end with an assistant message")
        return self.score_ids([self.chat.encode(c[:-1], c[-1]["content"]) for c in conversations], batch)

    def score_ids(self, encoded: Sequence[Encoded], batch: int = 32) -> list[float]:
        """Scores of prompts with answers as token ids; independent of neighbours and padding."""
        return [reading.score for reading in self.read_ids(encoded, batch)]

    @torch.inference_mode()
    def read_ids(self, encoded: Sequence[Encoded], batch: int = 32) -> list[Reading]:
        """Scores as :meth:`score_ids`, and what the head reads on the way."""
        readings: dict[int, Reading] = {}
        device = self.v_head.weight.device
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(encoded[i].ids) for i in rows], batch_first=True)
            states = self.transformer.embed_tokens(padded.to(device))
            spans = [(encoded[i].prompt_length, len(encoded[i].ids)) for i in rows]
            readings |= zip(rows, self.read(states, 0, spans), strict=True)
        return [readings[i] for i in range(len(encoded))]

    def read(self, states: Tensor, first: int, spans: Sequence[tuple[int, int]]) -> list[Reading]:
        """Readings of padded states ``[rows, tokens, width]`` at block ``first``; answers are ``[start, end)``."""
        positions = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        hidden = run_blocks(self.transformer, states, positions, None, first, len(self.transformer.layers))
        values = self.v_head(self.transformer.norm(hidden).float())[..., 0].cpu()
        return [self._reading(row[start:end]) for row, (start, end) in zip(values, spans, strict=True)]

    def _reading(self, values: Tensor) -> Reading:
        """Of the head's values at the tokens of one answer."""
        means = values.cumsum(0) / torch.arange(1, len(values) + 1)
        last, mean = float(values[-1]), float(means[-1])
        return Reading({"last_token": last, "mean": mean, "both": (last + mean) / 2}[self.readout], means)

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
            (work / "starling.json").write_text(
                json.dumps({"template": self.chat.template, "readout": self.readout, **(notes or {})})
            )
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise RewardError(
                f"cannot write the reward model to {folder}: {error}. Free some space and rerun"
            ) from error

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, dtype: torch.dtype = torch.float32, template: str | None = None
    ) -> RewardModel:
        """Load a folder, ours or one in the released layout (``transformer.*`` or ``model.model.*`` keys).

        Args:
            path: the folder; its weights may lie in several safetensors files.
            dtype: of the decoder; the head stays float32.
            template: how this model reads conversations; by default what the folder's own notes say, else the
                tokenizer's template.

        Raises:
            RewardError: no such folder, no safetensors, or weights missing, left over or of another shape.
        """
        folder = Path(path)
        weights = _read(folder)
        head = weights.pop("v_head.weight", None)
        if head is None:
            raise RewardError(f"{folder} has no v_head.weight: this is not a reward model")
        # Made in its type, not cast to it: a cast would also round the rotary frequencies.
        config = AutoConfig.from_pretrained(folder)
        transformer = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
        _check_complete(folder, weights | {"v_head": head}, transformer)
        transformer.load_state_dict(weights)
        notes = files.read_json(folder / "starling.json") if (folder / "starling.json").exists() else {}
        chat = ChatFormat(AutoTokenizer.from_pretrained(folder), template or notes.get("template", "own"))
        transformer = transformer.to("cuda" if torch.cuda.is_available() else "cpu")
        readout = notes.get("readout", "last_token")
        return cls(transformer.eval().requires_grad_(False), chat, head, readout).eval()


def _read(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder under the decoder's own names, and ``v_head.weight``.

    Both spellings of the released checkpoints are read; the unused LM head and stored rotary frequencies are dropped.
    """
    paths = sorted(folder.glob("model*.safetensors"))
    if not paths:
        raise RewardError(f"{folder} holds no model.safetensors: run notebook 03, or give a reward model's folder")
    weights: dict[str, Tensor] = {}
    for key, value in (item for path in paths for item in load_file(path).items()):
        if key.endswith(("lm_head.weight", "rotary_emb.inv_freq")):
            continue
        name = key.removeprefix("transformer.").removeprefix("model.model.")
        if name in weights and not torch.equal(weights[name], value):
            raise RewardError(f"{folder} holds two different weights for {name}: the checkpoint cannot be trusted")
        weights[name] = value
    return weights


def _check_complete(folder: Path, weights: dict[str, Tensor], transformer: Any) -> None:
    """Refuse weights that do not fill the decoder and the head exactly."""
    wanted = {name: value.shape for name, value in transformer.state_dict().items()}
    wanted["v_head"] = torch.Size([1, transformer.config.hidden_size])
    gap, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if gap or extra:
        raise RewardError(f"{folder}: weights missing {gap[:3]}, left over {extra[:3]}: the checkpoint is not complete")
    other = [name for name, shape in wanted.items() if weights[name].shape != shape]
    if other:
        raise RewardError(f"{folder}: {other[0]} has shape {list(weights[other[0]].shape)}, not that of config.json")
