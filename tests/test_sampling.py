"""Answers come from exactly the distribution that is scored later, whoever their neighbours are."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

import toy
from starling_nb import models
from starling_nb.blocks import trunk_states
from starling_nb.models import LM, ModelError, Sample
from starling_nb.sampling import decode, draw

TEXTS = [*toy.QUESTIONS, "a", "please, say more of this matter"]


def prompts(lm: LM) -> list[list[int]]:
    return [lm.chat.prompt_ids(toy.user(text)) for text in TEXTS]


def draw_all(lm: LM, which: list[int] | None = None, **settings: object) -> dict[str, Sample]:
    """Samples by id, of some prompts in some order."""
    chosen = list(range(len(TEXTS))) if which is None else which
    ids = [f"item {i}" for i in chosen]
    every = prompts(lm)
    found = models.sample(lm, [every[i] for i in chosen], ids, **({"max_new_tokens": 24} | settings))  # type: ignore[arg-type]
    return dict(zip(ids, found, strict=True))


@torch.no_grad()
def scored(lm: LM, item: Sample, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of an answer's tokens by one plain pass over the whole sequence."""
    ids = torch.tensor([item.prompt + item.ids])
    logits = lm.model(input_ids=ids).logits[0, len(item.prompt) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(item.ids)), torch.tensor(item.ids)]


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_a_plain_pass(family: str, temperature: float) -> None:
    lm = toy.lm(family)
    for item in draw_all(lm, temperature=temperature).values():
        assert torch.allclose(torch.tensor(item.logprobs), scored(lm, item, temperature), atol=1e-5)


def test_an_answer_depends_on_its_name_and_seed_only() -> None:
    lm = toy.lm()
    together = draw_all(lm)
    others = [
        draw_all(lm, batch=1),
        draw_all(lm, batch=3),
        draw_all(lm, [5, 0, 7, 3, 1, 6, 2, 4], batch=5),
        draw_all(lm, [2, 6]),
        draw_all(lm, capture={1}),
    ]
    for found in others:
        for name, item in found.items():
            assert item.ids == together[name].ids
            assert item.logprobs == pytest.approx(together[name].logprobs, abs=1e-5)
    again = draw_all(lm, seed=1)
    assert [item.ids for item in again.values()] != [item.ids for item in together.values()]
    assert len({tuple(item.ids) for item in together.values()}) == len(TEXTS)


@pytest.mark.parametrize("capture", [(), {1}])
def test_a_prompt_with_several_answers_is_read_once(capture: set[int]) -> None:
    lm = toy.lm()
    read: list[int] = []
    handle = lm.model.model.embed_tokens.register_forward_hook(lambda _, given, __: read.append(given[0].numel()))
    every = [prompt for prompt in prompts(lm) for _ in range(3)]
    ids = [f"{i}" for i in range(len(every))]
    together = models.sample(lm, every, ids, max_new_tokens=12, capture=capture)
    handle.remove()
    longest = max(len(prompt) for prompt in every)
    assert read[0] <= longest * len(TEXTS)
    assert max(read[1:]) <= len(every)
    for place in (0, 4, len(every) - 1):
        alone = models.sample(lm, [every[place]], [ids[place]], max_new_tokens=12, capture=capture)[0]
        assert together[place].ids == alone.ids
        for block in capture:
            assert torch.allclose(together[place].states[block], alone.states[block], atol=1e-5)


def test_rows_that_come_free_are_filled_from_the_queue() -> None:
    lm = toy.lm(seed=3)
    passes: list[tuple[int, int]] = []
    handle = lm.model.model.embed_tokens.register_forward_hook(lambda _, given, __: passes.append(given[0].shape))
    found = draw_all(lm, max_new_tokens=60, batch=4, capture={1})
    handle.remove()
    last_read = max(place for place, (_, new) in enumerate(passes) if new > 1)
    before = [rows for rows, new in passes[:last_read] if new == 1]
    assert len(before) > 20
    assert all(4 in pair for pair in itertools.pairwise(before))
    assert sum(rows for rows, new in passes if new > 1) == len(TEXTS)
    assert max(rows for rows, _ in passes[last_read:]) <= 4
    for name, item in draw_all(lm, max_new_tokens=60, capture={1}).items():
        assert item.ids == found[name].ids
        assert torch.allclose(item.states[1], found[name].states[1], atol=1e-5)


def test_answers_end_with_the_end_of_turn_or_at_the_cap() -> None:
    lm = toy.lm(seed=3)
    found = list(draw_all(lm, max_new_tokens=60).values())
    assert {item.finished for item in found} == {True, False}
    for item in found:
        assert item.finished == (item.ids[-1] == lm.chat.eos_id)
        assert lm.chat.eos_id not in item.ids[:-1]
        assert item.finished or len(item.ids) == 60
        assert len(item.logprobs) == len(item.ids)


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_greedy_answers_are_those_of_transformers_generate(family: str) -> None:
    lm = toy.lm(family, spread=0.25)
    model: object = lm.model
    for item in draw_all(lm, temperature=0.0, batch=4).values():
        ids = torch.tensor([item.prompt])
        plain = model.generate(  # type: ignore[attr-defined]
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, eos_token_id=lm.chat.eos_id
        )
        assert plain[0, len(item.prompt) :].tolist() == item.ids
        assert torch.allclose(torch.tensor(item.logprobs), scored(lm, item), atol=1e-5)
    assert draw_all(lm, temperature=0.0, seed=9)["item 0"].ids == draw_all(lm, temperature=0.0)["item 0"].ids


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_captured_states_are_those_of_a_plain_pass_with_the_end_of_turn(family: str) -> None:
    lm = toy.lm(family, seed=3)
    found = draw_all(lm, max_new_tokens=60, capture={2, 0}, batch=5).values()
    assert {item.finished for item in found} == {True, False}
    decoder = lm.model.model
    for item in found:
        ids = item.prompt + item.ids + ([] if item.finished else [lm.chat.eos_id])
        assert set(item.states) == {0, 2}
        for block, states in item.states.items():
            plain = trunk_states(decoder, torch.tensor([ids]), torch.arange(len(ids))[None], None, block)[0]
            assert states.shape == (len(ids), 32)
            assert torch.allclose(states, plain, atol=1e-5)


def test_positions_are_explicit_and_start_at_nought_whatever_the_padding() -> None:
    lm = toy.lm(seed=3)
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: object, __: object, given: dict[str, Tensor]) -> None:
        seen.append((given["position_ids"], given["attention_mask"]))

    handle = lm.model.model.register_forward_pre_hook(look, with_kwargs=True)
    draw_all(lm, max_new_tokens=6)
    handle.remove()
    lengths = sorted(len(prompt) for prompt in prompts(lm))
    assert len(set(lengths)) > 3
    first, mask = seen[0]
    assert mask.sum(1).tolist() == lengths
    for row, length in enumerate(lengths):
        assert first[row, -length:].tolist() == list(range(length))
    for positions, mask in seen[1:]:
        assert (positions[:, 0] == mask.sum(1) - 1).all()


def test_answers_of_one_batch_keep_their_own_temperatures() -> None:
    lm = toy.lm()
    heats = [0.0, 0.6, 1.0, 0.0, 1.7, 1.0, 0.6, 0.0]
    for place, (name, item) in enumerate(draw_all(lm, temperature=heats).items()):
        alone = draw_all(lm, [place], temperature=heats[place])[name]
        assert item.ids == alone.ids
        assert item.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    with pytest.raises(ModelError, match="2 temperatures for 8 prompts"):
        draw_all(lm, temperature=[0.0, 1.0])


def test_draws_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, generator=generator) * 2
    logits[7] = -torch.inf
    n = 20_000
    for temperature in (1.0, 0.5):
        uniforms = torch.rand(n, generator=generator, dtype=torch.float64)
        chosen, logprobs = draw(logits.expand(n, -1), uniforms, torch.full((n,), temperature))
        expected = torch.softmax(logits / temperature, -1)
        counts = torch.bincount(chosen, minlength=40).double()
        likely = expected * n > 5
        rest = [float(counts[~likely].sum()), float(expected[~likely].sum() * n)]
        seen = [*counts[likely].tolist(), rest[0]]
        due = [*(expected[likely] * n).tolist(), rest[1]]
        scale = sum(seen) / sum(due)
        assert stats.chisquare(seen, [x * scale for x in due]).pvalue > 1e-3
        assert counts[7] == 0
        assert torch.allclose(logprobs.exp(), expected[chosen], atol=1e-6)


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]] * 3)
    ends = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, ends, torch.ones(3))[0].tolist() == [1, 3, 3]
    assert draw(logits, ends, torch.zeros(3))[0].tolist() == [3, 3, 3]
    assert draw(logits, ends, torch.tensor([0.0, 0.7, 1.0]))[0].tolist() == [3, 3, 3]


def test_progress_counts_over_all_batches() -> None:
    lm = toy.lm(seed=3)
    calls: list[tuple[int, int]] = []
    found = draw_all(lm, batch=3, progress=lambda tokens, items: calls.append((tokens, items)))
    tokens = [count for count, _ in calls]
    assert tokens == sorted(tokens)
    assert tokens[-1] == sum(len(item.ids) for item in found.values())
    assert calls[-1][1] == len(found)


def test_settings_that_make_no_sense_are_refused() -> None:
    lm = toy.lm()
    one = prompts(lm)[0]
    with pytest.raises(ModelError, match="distinct id"):
        models.sample(lm, [one, one], ["a", "a"])
    with pytest.raises(ModelError, match="distinct id"):
        models.sample(lm, [one], ["a", "b"])
    for wrong in ({"max_new_tokens": 0}, {"batch": 0}, {"temperature": -1.0}, {"temperature": float("nan")}):
        with pytest.raises(ModelError, match="at least"):
            models.sample(lm, [one], ["a"], **wrong)  # type: ignore[arg-type]
    assert models.sample(lm, [], []) == []


def test_a_broken_off_run_leaves_the_model_as_it_was() -> None:
    lm = toy.lm()

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    item = Sample(prompts(lm)[0])
    with pytest.raises(KeyboardInterrupt):
        decode(lm.model, lm.chat.eos_id, [item], torch.rand(1, 5), torch.ones(1), capture={1}, progress=stop)
    assert lm.model.config._attn_implementation == "sdpa"
    assert not lm.model.model.layers[1]._forward_pre_hooks
