"""K answers share one prompt: a comparison is packed once as a prompt and its answers, and several share a row.

Every answer sees the prompt and itself; positions restart after the prompt for each. Scores equal those of K separate
sequences, for 1.3 to 3.5 times fewer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starling_nb.chat import ChatFormat, Message
from starling_nb.errors import StarlingError
from starling_nb.shared_prompt import Layout, Tree, join

READOUTS = ("last_token", "mean", "both")


@dataclass(frozen=True)
class Packed:
    """A row of T tokens: one comparison, or several behind one another.

    ``ids`` is ``[T]``; the layout says which token belongs where, and serves as the mask; ``cut`` counts prompt tokens
    that were left out on the left so that the answers fit.
    """

    ids: Tensor
    layout: Layout
    cut: int = 0

    @property
    def positions(self) -> Tensor:
        """``[T]``: places, restarting after the prompt for each answer."""
        return self.layout.positions

    @property
    def segments(self) -> Tensor:
        """``[T]``: 0 in a prompt, k in the row's k-th answer."""
        return self.layout.segments

    def readout(self, kind: str) -> Tensor:
        """``[answers, T]``: what is read of the T hidden states for each answer.

        ``"last_token"`` takes its last token (Starling-RM), ``"mean"`` the mean over its tokens, ``"both"`` the mean
        of these two: how an answer ends, and what it says.

        Raises:
            StarlingError: another kind.
        """
        if kind not in READOUTS:
            raise StarlingError(f"readout={kind!r}: choose one of {', '.join(READOUTS)}")
        ends = self.layout.ends
        last = torch.nn.functional.one_hot(ends, len(self.ids)).float()
        mine = (self.segments[None, :] == torch.arange(1, len(ends) + 1)[:, None]).float()
        mean = mine / mine.sum(1, keepdim=True)
        return {"last_token": last, "mean": mean, "both": (last + mean) / 2}[kind]


def pack(chat: ChatFormat, messages: Sequence[Message], answers: Sequence[str], limit: int = 2048) -> Packed:
    """Pack one comparison.

    No answer is ever cut. A prompt that leaves no room for the longest answer loses its oldest tokens (a leading BOS
    stays), and ``cut`` says how many.

    Args:
        chat: how the model reads conversations.
        messages: the conversation, ending with the user.
        answers: K answers, each closed by the end-of-turn token.
        limit: positions that a prompt with its longest answer may take.

    Raises:
        StarlingError: no answers, or an answer that fills the limit without any prompt.
    """
    if not answers:
        raise StarlingError("a comparison needs at least one answer")
    whole = chat.prompt_ids(messages)
    bodies = [chat.encode(messages, answer).ids[len(whole) :] for answer in answers]
    prompt = _fitting(chat, whole, max(len(body) for body in bodies), limit)
    ids = [*prompt, *(token for body in bodies for token in body)]
    tree = Tree(len(prompt), tuple(len(body) for body in bodies))
    return Packed(torch.tensor(ids), Layout((tree,)), len(whole) - len(prompt))


def _fitting(chat: ChatFormat, prompt: list[int], longest: int, limit: int) -> list[int]:
    """The prompt, or so much of its end as leaves room for the longest answer."""
    if len(prompt) + longest <= limit:
        return prompt
    start = prompt[:1] if prompt[0] == chat.tokenizer.bos_token_id else []
    room = limit - longest - len(start)
    if room < 1:
        raise StarlingError(
            f"an answer takes {longest} tokens and leaves no room for its prompt within {limit}: leave it out "
            "(comparisons.usable does, and counts) or raise the limit"
        )
    return start + prompt[-room:]


def together(parts: Sequence[Packed]) -> Packed:
    """Several packed comparisons in one row, in the given order; its layout's masks live as long as the row."""
    ids = torch.cat([part.ids for part in parts])
    return Packed(ids, join([part.layout for part in parts]), sum(part.cut for part in parts))


def rows(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Which comparisons share a row: places in ``sizes`` (tokens), shortest first, each row within ``budget`` tokens.

    A comparison that is larger than the budget has a row of its own.
    """
    found: list[list[int]] = []
    filled = 0
    for place in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if not found or filled + sizes[place] > budget:
            found.append([])
            filled = 0
        found[-1].append(place)
        filled += sizes[place]
    return found
