"""The decoding loop: a batch of answers drawn from exactly the distribution that is scored later.

Prompts are padded on the left, positions are explicit, and one uniform number decides one token, so that an answer
does not depend on its neighbours. A prompt with several answers is read once. Rows leave the batch when they have
nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from starling_nb.decoding import slab_cache

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
    capture: Collection[int] = (),
    progress: Progress | None = None,
) -> None:
    """Fill one batch of ``samples``.

    Args:
        model: a Hugging Face causal LM.
        eos: the token that ends an answer.
        samples: answers to be filled; their prompts are given.
        uniforms: ``[samples, most answer tokens]`` in [0, 1), one number a token.
        temperatures: ``[samples]``, as for :func:`draw`.
        capture: indices of the decoder blocks whose input states are kept.
        progress: called after every step with (tokens sampled, answers finished) in this batch.
    """
    flight = _Flight(samples, eos, uniforms, bool(capture), model.device)
    cache, restore = slab_cache(model, len(flight.prompts), flight.width + uniforms.shape[1] + 1)
    caught: dict[int, Tensor] = {}
    hooks = [_catch_inputs(model.model.layers[block], block, caught) for block in capture]

    def run(tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """One pass over new tokens ``[rows, new]``; the last one's final hidden state, ``[rows, width]``."""
        out = model.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    try:
        hidden = torch.cat([flight.read(part, cache, run, caught) for part in flight.parts()])[flight.owner]
        for layer in cache.layers:
            layer.aim(slice(0, len(samples)), 0)
            layer.used = flight.width
            layer.keep(flight.owner)
        while True:
            flight.choose(hidden, model.lm_head, temperatures)
            if progress is not None:
                progress(flight.sampled, flight.done)
            flight.advance(cache)
            if not flight.live:
                break
            hidden = run(flight.tokens, flight.mask, flight.positions)
            flight.keep(caught, {index: row for row, index in enumerate(flight.live)})
    finally:
        restore()
        for hook in hooks:
            hook.remove()
    for item, states in zip(samples, flight.states, strict=True):
        item.states = {block: torch.cat(parts) for block, parts in states.items()}


class _Flight:
    """Samples on their way: what the next forward pass reads, ``[rows, new tokens]``, and which samples it is for.

    A row that is captured stays until its last token, and the end-of-turn token, have passed the trunk.
    """

    def __init__(self, samples: Sequence[Sample], eos: int, uniforms: Tensor, captured: bool, device: Any) -> None:
        self.samples, self.eos, self.uniforms, self.captured = samples, eos, uniforms, captured
        self.prompts = list(dict.fromkeys(tuple(s.prompt) for s in samples))
        places = {prompt: place for place, prompt in enumerate(self.prompts)}
        self.owner = torch.tensor([places[tuple(s.prompt)] for s in samples], device=device)
        lengths = torch.tensor([len(s.prompt) for s in samples], device=device)
        self.width = int(lengths.max())
        self.mask = (torch.arange(self.width, device=device) >= self.width - lengths[:, None]).long()
        self.positions = lengths[:, None] - 1
        self.live = list(range(len(samples)))
        self.states: list[dict[int, list[Tensor]]] = [{} for _ in samples]
        self.step = 0
        self.sampled = 0

    @property
    def done(self) -> int:
        """Answers that are finished, by their end-of-turn token or by the cap."""
        return sum(sample.finished or len(sample.ids) == self.uniforms.shape[1] for sample in self.samples)

    def parts(self, size: int = 16) -> list[slice]:
        """The prompts in groups: they are read a group at a time, padded only to the longest of their group."""
        return [slice(start, start + size) for start in range(0, len(self.prompts), size)]

    def read(self, part: slice, cache: Any, run: Callable[..., Tensor], caught: dict[int, Tensor]) -> Tensor:
        """Pass some of the prompts through the model; their last hidden states ``[rows, width]``."""
        prompts = self.prompts[part]
        width = max(map(len, prompts))
        for layer in cache.layers:
            layer.aim(part, self.width - width)
        ids = [[self.eos] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        mask = mask.to(self.mask.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        hidden = run(torch.tensor(ids, device=mask.device), mask, positions)
        rows = range(len(self.prompts))[part]
        self.keep(caught, {i: place - rows[0] for i, place in enumerate(self.owner.tolist()) if place in rows})
        return hidden

    def keep(self, caught: dict[int, Tensor], rows: Mapping[int, int]) -> None:
        """Keep what entered the captured blocks, ``[rows, new tokens, hidden]``, less the padding: of each sample its
        row."""
        for block, states in caught.items():
            for index, row in rows.items():
                item = self.samples[index]
                if self.step <= len(item.ids) + (not item.finished):
                    self.states[index].setdefault(block, []).append(states[row][-len(item.prompt) :])
        caught.clear()

    def choose(self, hidden: Tensor, head: Any, temperatures: Tensor) -> None:
        """Draw the next token of every unfinished answer below the cap."""
        places = [
            (row, index)
            for row, index in enumerate(self.live)
            if not self.samples[index].finished and self.step < self.uniforms.shape[1]
        ]
        if not places:
            return
        rows, indices = (list(column) for column in zip(*places, strict=True))
        chosen, logprobs = draw(
            head(hidden[rows]).float(), self.uniforms[indices, self.step], temperatures[indices].to(hidden.device)
        )
        for index, token, logprob in zip(indices, chosen.tolist(), logprobs.tolist(), strict=True):
            item = self.samples[index]
            item.ids.append(token)
            item.logprobs.append(logprob)
            item.finished = token == self.eos
        self.sampled += len(rows)

    def advance(self, cache: Any) -> None:
        """Make the next pass's inputs; rows go when a quarter has nothing left to do, all when none has."""
        left = [row for row, index in enumerate(self.live) if self._to_feed(self.samples[index])]
        if not left:
            self.live = []
            return
        step = self.step
        following = [self.samples[i].ids[step : step + 1] or [self.eos] for i in self.live]
        self.tokens = torch.tensor(following, device=self.mask.device)
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.live), 1)], dim=1)
        self.step += 1
        if len(left) <= 0.75 * len(self.live):
            rows = torch.tensor(left, device=self.tokens.device)
            self.live = [self.live[row] for row in left]
            self.tokens, self.positions, self.mask = self.tokens[rows], self.positions[rows], self.mask[rows]
            for layer in cache.layers:
                layer.keep(rows)

    def _to_feed(self, item: Sample) -> bool:
        """Whether a sample still has a token to pass through the model after this step's."""
        if not self.captured:
            return not item.finished and self.step + 1 < self.uniforms.shape[1]
        return self.step < len(item.ids) + (not item.finished)


def _catch_inputs(block: Any, index: int, caught: dict[int, Tensor]) -> Any:
    """Put the states that enter ``block`` under its ``index`` at every forward pass; returns the hook's handle."""

    def catch(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught[index] = args[0] if args else kwargs["hidden_states"]

    return block.register_forward_pre_hook(catch, with_kwargs=True)
