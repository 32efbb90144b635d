"""The reward model: a decoder and one bias-free linear on the last token's final hidden state (Starling-RM).

Folders are read in the layouts of both released models and written in either (:mod:`starling_nb.reward.layout`). A
missing or surplus weight is an error, never a random head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from starling_nb import files, models
from starling_nb.blocks import run_blocks
from starling_nb.chat import ChatError, ChatFormat, Encoded, Message
from starling_nb.reward.layout import RELEASED, RELEASED_TOKENIZER, RewardError, find, load, read_tokenizer
from starling_nb.reward.packing import READOUTS
from starling_nb.reward.reading import COLUMN, PUBLISHED, Values, batches, cut, padded
from starling_nb.reward.saving import replacing, write_weights

__all__ = ["PUBLISHED", "READOUTS", "Reading", "RewardError", "RewardModel"]


class Reading(NamedTuple):
    """The score of one answer, and the head's mean over its first 1, 2, … tokens ``[answer tokens]``.

    A decoder is causal: what it reads in an unfinished answer costs nothing more, and foretells the score.
    """

    score: float
    means: Tensor


class RewardModel(nn.Module):
    """Scores conversations; only differences between scores of one prompt mean anything.

    ``truncated`` counts the conversations that the last call cut on the left.

    Args:
        transformer: a Hugging Face decoder (Llama, Mistral, Qwen family).
        chat: how this model reads conversations.
        v_head: ``[1, width]`` weights of the head; zeros when not given.
        readout: ``"last_token"``, ``"mean"`` over the answer's tokens, ``"both"``, or ``"last_column"`` as the card of
            Starling-RM-7B-alpha does (:data:`PUBLISHED`).
        column: tokens to which ``"last_column"`` pads; a longer text loses its oldest tokens, as on that card.

    Raises:
        RewardError: an unknown readout, or a column beyond the decoder's window.
    """

    def __init__(
        self,
        transformer: Any,
        chat: ChatFormat,
        v_head: Tensor | None = None,
        readout: str = "last_token",
        column: int = COLUMN,
    ) -> None:
        super().__init__()
        if readout not in READOUTS + PUBLISHED:
            raise RewardError(f"readout={readout!r}: choose one of {', '.join(READOUTS + PUBLISHED)}")
        self.transformer = transformer
        self.chat, self.readout, self.column = chat, readout, column
        self.truncated = 0
        if readout in PUBLISHED:
            self._check_column()
        self.v_head = nn.Linear(transformer.config.hidden_size, 1, bias=False)
        with torch.no_grad():
            self.v_head.weight.copy_(torch.zeros_like(self.v_head.weight) if v_head is None else v_head)
        self.v_head.to(transformer.device)

    @property
    def window(self) -> int:
        """Tokens that the decoder can read, see :func:`starling_nb.models.window`."""
        return models.window(self.transformer.config)

    def score(
        self,
        conversations: Sequence[Sequence[Message]],
        batch: int = 32,
        *,
        truncate: bool = False,
        limit: int | None = None,
    ) -> list[float]:
        """Scores of finished conversations, each ending with an assistant message.

        Args:
            conversations: messages; any number, of any lengths.
            batch: conversations computed at a time, at most; fewer where they are long.
            truncate: whether a prompt that does not fit loses its oldest tokens (a leading BOS stays). With
                ``"last_column"`` texts are cut to the column in any case.
            limit: tokens of a conversation, at most; the decoder's :attr:`window` if None or larger.

        Raises:
            RewardError: a conversation does not end with an assistant message, is too long (without ``truncate``), has
                an answer that leaves no room for its prompt, or has a score that is not a number.
        """
        limit = min(limit or self.window, self.window)
        return self.score_ids(self._fitting(self._encoded(conversations), limit, truncate), batch)

    def score_sampled(self, conversations: Sequence[Sequence[Message]], batch: int = 32) -> list[float]:
        """:meth:`score` of what another model has sampled: an answer loses what would be read as control tokens, and
        what is too long its oldest tokens.
        """
        said = [[*c[:-1], {**c[-1], "content": self.chat.without_controls(c[-1]["content"])}] for c in conversations]
        return self.score(said, batch, truncate=True)

    def faults(self, prompts: Sequence[Sequence[Message]]) -> list[str]:
        """Why no answer to a prompt could be scored; empty where any can. One for each of ``prompts``."""
        return [self.chat.fault(messages) for messages in prompts]

    def fingerprint(self) -> str:
        """:func:`starling_nb.models.fingerprint`: of decoder and head."""
        return models.fingerprint(self)

    def score_ids(self, encoded: Sequence[Encoded], batch: int = 32) -> list[float]:
        """Scores of prompts with answers as token ids; independent of neighbours and padding.

        Raises:
            RewardError: a score is not a finite number, or a token is not the decoder's.
        """
        scores = [reading.score for reading in self.read_ids(encoded, batch)]
        if wrong := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
            raise RewardError(f"the score of conversation {wrong[0]} is not a number: load in float32, or train again")
        return scores

    def read_ids(self, encoded: Sequence[Encoded], batch: int = 32) -> list[Reading]:
        """Scores as :meth:`score_ids`, and what the head reads on the way."""
        return [self._reading(values) for values in self._values(encoded, batch, self.readout in PUBLISHED)]

    def readouts(self, conversations: Sequence[Sequence[Message]], batch: int = 32) -> pd.DataFrame:
        """What each place of reading gives for the same texts, cut to the column: one row a conversation.

        Columns: ``tokens`` (after cutting), ``last_token``, ``mean``, ``last_column`` and ``difference``
        (``last_column`` less ``last_token``).

        Raises:
            RewardError: a conversation does not end with an assistant message, or the column is beyond the window.
        """
        self._check_column()
        encoded = self._encoded(conversations)
        rows = [(float(v.answer[-1]), float(v.answer.mean()), v.column) for v in self._values(encoded, batch, True)]
        found = pd.DataFrame(rows, columns=["last_token", "mean", "last_column"])
        found.insert(0, "tokens", [min(len(item.ids), self.column) for item in encoded])
        return found.assign(difference=found.last_column - found.last_token)

    def read(self, states: Tensor, first: int, spans: Sequence[tuple[int, int]]) -> list[Reading]:
        """Readings of padded states ``[rows, tokens, width]`` at block ``first``; answers are ``[start, end)``.

        Raises:
            RewardError: the score is read at the last column, whose token is not among these.
        """
        if self.readout in PUBLISHED:
            raise RewardError("last_column is read beside the text: score texts or ids, or take readout='last_token'")
        positions = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        values = self._head_on(states, positions, None, first)
        return [self._reading(Values(row[a:b], math.nan)) for row, (a, b) in zip(values, spans, strict=True)]

    @torch.inference_mode()
    def _values(self, encoded: Sequence[Encoded], batch: int, wide: bool) -> list[Values]:
        """The head's values, in the given order; ``wide`` reads the last column too and cuts texts to it."""
        if wide:
            self.truncated = sum(len(item.ids) > self.column for item in encoded)
            encoded = [cut(item, self.column, self.chat.tokenizer.bos_token_id) for item in encoded]
        found: dict[int, Values] = {}
        for rows in batches([len(item.ids) + wide for item in encoded], batch):
            found |= zip(rows, self._one_batch([encoded[i] for i in rows], wide), strict=True)
        return [found[i] for i in range(len(encoded))]

    def _one_batch(self, items: Sequence[Encoded], wide: bool) -> list[Values]:
        ids, positions, mask, last = padded(items, self.column if wide else None)
        if int(ids.max()) >= self.transformer.embed_tokens.num_embeddings:
            raise RewardError(f"token {int(ids.max())} has no embedding here: give the tokenizer of this model")
        device = self.v_head.weight.device
        states = self.transformer.embed_tokens(ids.to(device))
        values = self._head_on(states, positions.to(device), None if mask is None else mask.to(device), 0)
        return [
            Values(row[item.prompt_length : len(item.ids)], float(row[place]) if wide else math.nan)
            for row, item, place in zip(values, items, last, strict=True)
        ]

    @torch.inference_mode()
    def _head_on(self, states: Tensor, positions: Tensor, mask: Tensor | None, first: int) -> Tensor:
        """``[rows, tokens]`` on the CPU: the head on the normed states that leave the decoder."""
        hidden = run_blocks(self.transformer, states, positions, mask, first, len(self.transformer.layers))
        values: Tensor = self.v_head(self.transformer.norm(hidden).float())[..., 0].cpu()
        return values

    def _reading(self, values: Values) -> Reading:
        """Of the head's values at one answer."""
        means = values.answer.cumsum(0) / torch.arange(1, len(values.answer) + 1)
        last, mean = float(values.answer[-1]), float(means[-1])
        score = {"last_token": last, "mean": mean, "both": (last + mean) / 2, "last_column": values.column}
        return Reading(score[self.readout], means)

    def _encoded(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded]:
        if any(not c or c[-1]["role"] != "assistant" for c in conversations):
            raise RewardError("a scored conversation must end with an assistant message")
        found = []
        for i, c in enumerate(conversations):
            try:
                found.append(self.chat.encode(c[:-1], c[-1]["content"]))
            except ChatError as error:
                raise RewardError(f"conversation {i}: {error}") from error
        return found

    def _fitting(self, encoded: list[Encoded], limit: int, truncate: bool) -> list[Encoded]:
        """All within ``limit`` tokens, or an error; what is read at the last column is cut there, later."""
        long = [i for i, item in enumerate(encoded) if len(item.ids) > limit and self.readout not in PUBLISHED]
        bos = self.chat.tokenizer.bos_token_id
        for i in long:
            if not truncate:
                raise RewardError(
                    f"conversation {i} takes {len(encoded[i].ids)} tokens of {limit}: pass truncate=True to cut its "
                    "prompt on the left, or leave it out"
                )
            if encoded[i].answer_length + 1 + (encoded[i].ids[0] == bos) > limit:
                raise RewardError(
                    f"the answer of conversation {i} takes {encoded[i].answer_length} tokens and leaves no room for "
                    f"its prompt within {limit}: leave it out"
                )
            encoded[i] = cut(encoded[i], limit, bos)
        self.truncated = len(long)
        return encoded

    def _check_column(self) -> None:
        if not 2 <= self.column <= self.window:
            raise RewardError(f"column={self.column}: choose from 2 to {self.window}, what the decoder can read")

    def save_pretrained(
        self,
        folder: str | Path,
        notes: dict[str, Any] | None = None,
        *,
        layout: str = "34b",
        shard_bytes: int = 5 * 10**9,
    ) -> None:
        """Write config, tokenizer, safetensors and notes; the folder appears whole or not at all.

        Args:
            folder: is replaced if it exists.
            notes: what else ``starling.json`` is to say; the model card takes ``base``, ``data``,
                ``loss`` and ``recipe`` from there.
            layout: how the weights are spelled, ``"34b"`` (``transformer.*``) or ``"7b-alpha"`` (``model.model.*``).
            shard_bytes: of one file of weights, at most.

        Raises:
            RewardError: an unknown layout, or the folder cannot be written.
        """
        own = {"template": self.chat.template, "readout": self.readout, "column": self.column}
        with replacing(Path(folder)) as work:
            self.transformer.config.save_pretrained(work)
            self.chat.tokenizer.save_pretrained(work)
            write_weights(work, self.transformer, self.v_head.weight, layout, shard_bytes)
            files.write_json(work / "starling.json", {**(notes or {}), **own})

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        template: str | None = None,
        tokenizer: str | Path | None = None,
        readout: str | None = None,
        column: int | None = None,
        revision: str | None = None,
    ) -> RewardModel:
        """Load a folder or a repository of the hub, ours or in a released layout; onto the GPU where there is one.

        Args:
            path: a folder, else a hub id; a folder of that name comes first.
            dtype: of the decoder; the head stays float32.
            template: how this model reads conversations; by default what the folder's own notes say, else
                ``"llama2"`` where the config is that of Starling-RM-7B-alpha, else the tokenizer's template.
            tokenizer: folder or hub id of the tokenizer, where the model's folder has none; by default
                ``meta-llama/Llama-2-7b-chat-hf`` where the config is that of Starling-RM-7B-alpha.
            readout: as the notes say, else ``"last_token"``.
            column: as the notes say, else 2048.
            revision: branch, tag or commit on the hub.

        Raises:
            StarlingError: no such model, no tokenizer, or weights that :func:`starling_nb.reward.layout.load` refuses.
        """
        folder = find(path, revision)
        notes = files.read_json(folder / "starling.json") if (folder / "starling.json").exists() else {}
        if not isinstance(notes, dict):
            raise RewardError(f"{folder / 'starling.json'} holds no notes: restore it, or remove it")
        transformer, head = load(folder, dtype, models.device())
        named = RELEASED in (getattr(transformer.config, "architectures", None) or [])
        template = template or notes.get("template") or ("llama2" if named else "own")
        chat = ChatFormat(read_tokenizer(folder, tokenizer, RELEASED_TOKENIZER if named else None), template)
        readout, column = readout or notes.get("readout", "last_token"), column or notes.get("column", COLUMN)
        return cls(transformer.eval().requires_grad_(False), chat, head, readout, column).eval()
