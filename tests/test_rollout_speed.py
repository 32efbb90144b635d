"""The sampler that is timed and the one it is timed against draw from the same distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import toy
from benchmarks import rollout_speed
from benchmarks.rollout_speed import WAYS, places, uniform
from starling_nb.models import LM

WORDS = 12
"""Tokens that the model can say, its end of turn among them."""


def model(certain: float = 0.6) -> LM:
    """A toy that says few different tokens, so that all answers of three of them can be counted."""
    lm = toy.lm(spread=certain)
    lm.model.lm_head.register_forward_hook(
        lambda _, __, out: out.index_fill(-1, torch.arange(WORDS, out.shape[-1]), -99)
    )
    return lm


@torch.no_grad()
def exact(lm: LM, prompt: list[int], cap: int) -> dict[tuple[int, ...], float]:
    """Probability of every answer of at most ``cap`` tokens, one plain pass a beginning."""
    chances: dict[tuple[int, ...], float] = {}
    open_ends: dict[tuple[int, ...], float] = {(): 1.0}
    for length in range(1, cap + 1):
        ids = torch.tensor([prompt + list(begin) for begin in open_ends])
        probs = lm.model(input_ids=ids).logits[:, -1].double().softmax(-1)
        longer = {}
        for (begin, chance), row in zip(open_ends.items(), probs.tolist(), strict=True):
            for token in range(WORDS):
                whole = (*begin, token)
                (chances if token == lm.chat.eos_id or length == cap else longer)[whole] = chance * row[token]
        open_ends = longer
    return chances


@pytest.mark.parametrize("way", ["ours", "generate"])
def test_whole_answers_come_as_often_as_their_probabilities_say(way: str) -> None:
    lm, n, cap = model(), 3000, 2
    prompts = [lm.chat.prompt_ids(toy.user(text)) for text in ("who", "what is it")]
    asked = [prompts[i % 2] for i in range(n)]
    answers = WAYS[way](lm, asked, cap, 5)
    for prompt in prompts:
        chances = exact(lm, prompt, cap)
        assert sum(chances.values()) == pytest.approx(1, abs=1e-6)
        drawn = [tuple(answer.ids) for answer, given in zip(answers, asked, strict=True) if given == prompt]
        due = np.array(list(chances.values())) * len(drawn)
        seen = np.array([drawn.count(whole) for whole in chances])
        assert seen.sum() == len(drawn)
        rare = due < 5
        table = [[*part[~rare], part[rare].sum()] for part in (seen, due)]
        assert stats.chisquare(table[0], np.array(table[1]) * sum(table[0]) / sum(table[1])).pvalue > 1e-3


@pytest.mark.parametrize("way", [way for way in WAYS if way != "generate"])
def test_every_way_keeps_the_same_products(way: str) -> None:
    lm = toy.lm(seed=3, num_hidden_layers=6)
    prompts = [lm.chat.prompt_ids(toy.user(text)) for text in toy.QUESTIONS]
    for prompt, answer in zip(prompts, WAYS[way](lm, prompts, 20, 0), strict=True):
        ids = torch.tensor([prompt + answer.ids])
        with torch.no_grad():
            out = lm.model(input_ids=ids, output_hidden_states=True)
        logprobs = out.logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert answer.logprobs == pytest.approx(
            logprobs[torch.arange(len(answer.ids)), torch.tensor(answer.ids)].tolist(), abs=1e-4
        )
        assert answer.states is not None
        kept = answer.states[: ids.shape[1] - 1]
        assert torch.allclose(kept, out.hidden_states[2][0, : len(kept)], atol=1e-4)
        assert len(kept) == ids.shape[1] - 1


def test_places_are_uniform_for_the_sampled_distribution_only() -> None:
    lm = toy.lm(spread=0.3)
    prompts = [lm.chat.prompt_ids(toy.user(text)) for text in toy.QUESTIONS] * 20
    answers = rollout_speed.by_us(lm, prompts, 12, 0)
    assert uniform(places(lm, prompts, answers)) > 1e-3
    cool = lm.model.lm_head.register_forward_hook(lambda _, __, out: out / 0.8)
    other = rollout_speed.by_us(lm, prompts, 12, 0)
    cool.remove()
    assert uniform(places(lm, prompts, other)) < 1e-6
