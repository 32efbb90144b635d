"""The decoding loop: answers drawn from exactly the distribution that is scored later.

Prompts are padded on the left, positions are explicit, and one uniform number decides one token, so that an answer
does not depend on its neighbours. A prompt with several answers is read once. Rows leave the batch when they have
nothing left to do, and the next prompts take their places.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from starling_nb.decoding import folded, slab_cache

Progress = Callable[[int, int], None]


@dataclass
class Sample:
    """One sampled answer.

    ``ids`` are the answer's tokens (the end-of-turn token included when ``finished``); ``logprobs`` their
    log-probabilities under the sampling distribution, nats; ``states`` what enters each captured block, by its index:
    ``[tokens, hidden]`` for the prompt, the answer and its end-of-turn token (also where the cap cut the answer
    before it).
    """

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    states: dict[int, Tensor] = field(default_factory=dict)


def draw(logits: Tensor, uniforms: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution; one uniform number decides one token.

    Args:
        logits: ``[rows, vocabulary]``, float32.
        uniforms: ``[rows]`` in [0, 1).
        temperature: ``[rows]``; 0 takes the largest logit.

    Returns:
        Token ids ``[rows]`` and their log-probabilities ``[rows]`` in nats (at temperature 0: under temperature 1).
    """
    greedy = temperature == 0
    if bool(((temperature != 1) & ~greedy).any()):
        logits = logits / torch.where(greedy, 1.0, temperature)[:, None].to(logits)
    heights = torch.sub(logits, logits.amax(-1, keepdim=True)).exp_()
    chosen, total = _invert(heights, uniforms)
    if bool(greedy.any()):
        chosen = torch.where(greedy, logits.argmax(-1), chosen)
    return chosen, (heights.gather(-1, chosen[:, None])[:, 0] / total).log().float()


def _invert(heights: Tensor, uniforms: Tensor, width: int = 256) -> tuple[Tensor, Tensor]:
    """The token at which each row's running sum passes its uniform share of the whole, and the whole, float64.

    Sums of blocks of ``width`` tokens come first, then one block is looked at closely: a tenth of the work of a running
    sum over the vocabulary.
    """
    rows = torch.arange(len(heights), device=heights.device)
    blocks = F.pad(heights, (0, -heights.shape[-1] % width)).view(len(heights), -1, width)
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniforms.to(sums) * sums[:, -1]
    block = torch.searchsorted(sums, target[:, None], right=True)[:, 0].clamp(max=sums.shape[-1] - 1)
    before = torch.where(block > 0, sums[rows, block - 1], 0.0)
    inner = blocks[rows, block].cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(inner, (target - before)[:, None], right=True)[:, 0].clamp(max=width - 1)
    return (block * width + place).clamp(max=heights.shape[-1] - 1), sums[:, -1]


@torch.inference_mode()
def decode(
    model: Any,
    eos: int,
    samples: Sequence[Sample],
    uniforms: Tensor,
    temperatures: Tensor,
    *,
    rows: int = 128,
    capture: Collection[int] = (),
    progress: Progress | None = None,
) -> None:
    """Fill ``samples``, in their order, as rows come free.

    Args:
        model: a Hugging Face causal LM.
        eos: the token that ends an answer.
        samples: answers to be filled; their prompts are given.
        uniforms: ``[samples, most answer tokens]`` in [0, 1), one number a token.
        temperatures: ``[samples]``, as for :func:`draw`.
        rows: answers in flight, at most.
        capture: indices of the decoder blocks whose input states are kept.
        progress: called after every step with (tokens sampled, answers finished).

    Raises:
        StarlingError: as :func:`starling_nb.decoding.folded`.
    """
    flight = _Flight(model, eos, samples, uniforms, bool(capture))
    hooks = [_catch_inputs(model.model.layers[block], block, flight.caught) for block in capture]
    longest = max((len(item.prompt) for item in samples), default=0)
    try:
        with folded(model, longest + uniforms.shape[1] + 1):
            while flight.admit(rows):
                flight.choose(temperatures)
                if progress is not None:
                    progress(flight.sampled, flight.done)
                flight.advance()
    finally:
        for hook in hooks:
            hook.remove()
    for item, states in zip(samples, flight.states, strict=True):
        item.states = {block: torch.cat(parts) for block, parts in states.items()}


class _Flight:
    """Samples on their way: those in the batch (``live``, by index) with their cache and last ``hidden`` states.

    A row that is captured stays until its last token, and the end-of-turn token, have passed the trunk.
    """

    def __init__(self, model: Any, eos: int, samples: Sequence[Sample], uniforms: Tensor, captured: bool) -> None:
        self.model, self.eos, self.samples, self.uniforms, self.captured = model, eos, samples, uniforms, captured
        self.caught: dict[int, Tensor] = {}
        self.states: list[dict[int, list[Tensor]]] = [{} for _ in samples]
        self.live: list[int] = []
        self.begun: list[int] = []
        self.step = self.sampled = self.done = 0

    def admit(self, rows: int) -> bool:
        """Read the prompts of the next samples where a quarter of the rows is free; whether any sample is in flight."""
        new = range(len(self.begun), min(len(self.samples), len(self.begun) + rows - len(self.live)))
        if not new or len(self.live) > 0.75 * rows:
            return bool(self.live)
        prompts = list(dict.fromkeys(tuple(self.samples[i].prompt) for i in new))
        places = {prompt: place for place, prompt in enumerate(prompts)}
        owner = torch.tensor([places[tuple(self.samples[i].prompt)] for i in new], device=self.model.device)
        width, room = max(map(len, prompts)), self.uniforms.shape[1] + 1
        cache = slab_cache(self.model, len(prompts), width + room)
        self.begun += [self.step] * len(new)
        hidden = self._read(prompts, width, cache, {i: int(owner[i - new.start]) for i in new})[owner]
        for layer in cache.layers:
            layer.aim(slice(0, len(prompts)), 0)
            layer.used = width
            layer.keep(owner)
        lengths = torch.tensor([len(self.samples[i].prompt) for i in new], device=self.model.device)
        mask = (torch.arange(width, device=lengths.device) >= width - lengths[:, None]).long()
        self._join(hidden, mask, lengths[:, None] - 1, cache, room)
        self.live += new
        return True

    def _read(
        self, prompts: Sequence[tuple[int, ...]], width: int, cache: Any, owners: Mapping[int, int], size: int = 16
    ) -> Tensor:
        """Pass prompts through the model, a group at a time, padded only to the longest of the group; their last hidden
        states ``[prompts, width]``. ``owners`` says which prompt a sample has."""
        found = []
        for start in range(0, len(prompts), size):
            group = prompts[start : start + size]
            wide = max(map(len, group))
            for layer in cache.layers:
                layer.aim(slice(start, start + size), width - wide)
            ids = [[self.eos] * (wide - len(prompt)) + list(prompt) for prompt in group]
            mask = torch.tensor([[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in group])
            mask = mask.to(self.model.device)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            found.append(self._run(torch.tensor(ids, device=mask.device), mask, positions, cache))
            rows = range(start, start + len(group))
            self._keep({index: place - start for index, place in owners.items() if place in rows})
        return torch.cat(found)

    def _join(self, hidden: Tensor, mask: Tensor, positions: Tensor, cache: Any, room: int) -> None:
        """Put rows that were read below those in flight, all filled up to one edge."""
        if not self.live:
            self.hidden, self.mask, self.positions, self.cache = hidden, mask, positions, cache
            return
        first = int(self.mask.any(0).int().argmax())
        for layer, other in zip(self.cache.layers, cache.layers, strict=True):
            layer.join(other, first, room)
        parts = self.mask[:, first:], mask
        edge = max(part.shape[1] for part in parts)
        self.mask = torch.cat([F.pad(part, (edge - part.shape[1], 0)) for part in parts])
        self.hidden, self.positions = torch.cat([self.hidden, hidden]), torch.cat([self.positions, positions])

    def _run(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """One pass over new tokens ``[rows, new]``; the last one's final hidden state, ``[rows, width]``."""
        out = self.model.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    def _keep(self, rows: Mapping[int, int]) -> None:
        """Keep what entered the captured blocks, ``[rows, new tokens, hidden]``, less the padding: of each sample its
        row."""
        for block, states in self.caught.items():
            for index, row in rows.items():
                item = self.samples[index]
                if self._passed(index) <= len(item.ids) + (not item.finished):
                    self.states[index].setdefault(block, []).append(states[row][-len(item.prompt) :])
        self.caught.clear()

    def _passed(self, index: int) -> int:
        """Tokens of an answer that went through the model."""
        return self.step - self.begun[index]

    def choose(self, temperatures: Tensor) -> None:
        """Draw the next token of every unfinished answer below the cap."""
        most = self.uniforms.shape[1]
        places = [
            (row, index, self._passed(index))
            for row, index in enumerate(self.live)
            if not self.samples[index].finished and self._passed(index) < most
        ]
        if not places:
            return
        rows, indices, steps = (list(column) for column in zip(*places, strict=True))
        logits = self.model.lm_head(self.hidden[rows]).float()
        chosen, logprobs = draw(logits, self.uniforms[indices, steps], temperatures[indices].to(logits.device))
        for index, token, logprob in zip(indices, chosen.tolist(), logprobs.tolist(), strict=True):
            item = self.samples[index]
            item.ids.append(token)
            item.logprobs.append(logprob)
            item.finished = token == self.eos
            self.done += item.finished or len(item.ids) == most
        self.sampled += len(rows)

    def advance(self) -> None:
        """Pass the chosen tokens through the model; rows go when a quarter of them, or all, have nothing left to do."""
        left = [row for row, index in enumerate(self.live) if self._to_feed(index)]
        if not left:
            self.live = []
            return
        following = [self.samples[i].ids[self._passed(i) :][:1] or [self.eos] for i in self.live]
        tokens = torch.tensor(following, device=self.mask.device)
        self.positions = self.positions + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.live), 1)], dim=1)
        self.step += 1
        if len(left) <= 0.75 * len(self.live):
            rows = torch.tensor(left, device=tokens.device)
            self.live = [self.live[row] for row in left]
            tokens, self.positions, self.mask = tokens[rows], self.positions[rows], self.mask[rows]
            for layer in self.cache.layers:
                layer.keep(rows)
        self.hidden = self._run(tokens, self.mask, self.positions, self.cache)
        self._keep({index: row for row, index in enumerate(self.live)})

    def _to_feed(self, index: int) -> bool:
        """Whether a sample still has a token to pass through the model."""
        item, passed = self.samples[index], self._passed(index)
        if not self.captured:
            return not item.finished and passed + 1 < self.uniforms.shape[1]
        return passed < len(item.ids) + (not item.finished)


def _catch_inputs(block: Any, index: int, caught: dict[int, Tensor]) -> Any:
    """Put the states that enter ``block`` under its ``index`` at every forward pass; returns the hook's handle."""

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught[index] = args[0] if args else kwargs["hidden_states"]

    return block.register_forward_pre_hook(catch, with_kwargs=True)
