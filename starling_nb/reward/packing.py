"""K answers share one prompt: a comparison is one packed sequence.

The prompt stands once, then every answer, each seeing the prompt and itself; positions restart after the prompt for
each answer. Scores equal those of K separate sequences, for 1.3 to 3.5 times fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starling_nb.chat import ChatFormat, Message
from starling_nb.errors import StarlingError

READOUTS = ("last_token", "mean", "both")


@dataclass(frozen=True)
class Packed:
    """One comparison as one sequence of T tokens with K answers.

    ``ids``, ``positions`` and ``segments`` are ``[T]``; a token's segment is 0 in the prompt and k + 1 in answer k;
    ``ends`` ``[K]`` are the places of the last token of each answer, where its score is read.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    ends: Tensor

    def readout(self, kind: str) -> Tensor:
        """``[K, T]``: what is read of the T hidden states for each answer.

        ``"last_token"`` takes its last token (Starling-RM), ``"mean"`` the mean over its tokens, ``"both"`` the mean
        of these two: how an answer ends, and what it says.

        Raises:
            StarlingError: another kind.
        """
        if kind not in READOUTS:
            raise StarlingError(f"readout={kind!r}: choose one of {', '.join(READOUTS)}")
        last = torch.nn.functional.one_hot(self.ends, len(self.ids)).float()
        mine = (self.segments[None, :] == torch.arange(1, len(self.ends) + 1)[:, None]).float()
        mean = mine / mine.sum(1, keepdim=True)
        return {"last_token": last, "mean": mean, "both": (last + mean) / 2}[kind]

    def mask(self) -> Tensor:
        """``[1, 1, T, T]``: True where the row token may look at the column token."""
        same = self.segments[:, None] == self.segments[None, :]
        prompt = self.segments[None, :] == 0
        causal = torch.ones(len(self.ids), len(self.ids), dtype=torch.bool).tril()
        return ((same | prompt) & causal)[None, None]


def pack(chat: ChatFormat, messages: Sequence[Message], answers: Sequence[str], limit: int = 2048) -> Packed:
    """Pack one comparison.

    Raises:
        StarlingError: no answers, or the prompt and its longest answer exceed ``limit`` positions (no answer is
            ever cut silently).
    """
    if not answers:
        raise StarlingError("a comparison needs at least one answer")
    prompt = chat.prompt_ids(messages)
    bodies = [chat.encode(messages, answer).ids[len(prompt) :] for answer in answers]
    longest = len(prompt) + max(len(body) for body in bodies)
    if longest > limit:
        raise StarlingError(
            f"a prompt and an answer take {longest} tokens, more than {limit}: shorten them or raise limit"
        )
    ids, positions, segments, ends = list(prompt), list(range(len(prompt))), [0] * len(prompt), []
    for number, body in enumerate(bodies, 1):
        ids += body
        positions += range(len(prompt), len(prompt) + len(body))
        segments += [number] * len(body)
        ends.append(len(ids) - 1)
    return Packed(torch.tensor(ids), torch.tensor(positions), torch.tensor(segments), torch.tensor(ends))
