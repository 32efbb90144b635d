"""Packed answers score what they would score alone."""

from __future__ import annotations

import pytest
import torch

import toy
from starling_nb.blocks import trunk_states
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.reward import tour
from starling_nb.reward.model import READOUTS
from starling_nb.reward.packing import Packed, pack, rows, together

ANSWERS = ["no.", "because it is so, and was so", "a", "who knows? not I.\nnobody"]


@torch.no_grad()
def states(lm: LM, packed: Packed) -> torch.Tensor:
    """Final hidden states of a packed sequence, through every block."""
    return trunk_states(lm.model.model, packed.ids[None], packed.positions[None], packed.layout, 3)[0]


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_packed_states_are_those_of_separate_sequences(family: str) -> None:
    lm = toy.lm(family)
    messages = toy.user("why is the sea blue?")
    packed = pack(lm.chat, messages, ANSWERS)
    found = states(lm, packed)
    for number, answer in enumerate(ANSWERS, 1):
        ids = lm.chat.encode(messages, answer).ids
        with torch.no_grad():
            alone = trunk_states(lm.model.model, torch.tensor([ids]), torch.arange(len(ids))[None], None, 3)[0]
        mine = (packed.segments == 0) | (packed.segments == number)
        assert packed.ids[mine].tolist() == ids
        torch.testing.assert_close(found[mine], alone, rtol=1e-5, atol=1e-5)
        assert packed.segments[packed.layout.ends[number - 1]] == number
        assert packed.ids[packed.layout.ends[number - 1]] == lm.chat.eos_id


def test_an_answer_sees_neither_its_neighbours_nor_their_order() -> None:
    lm = toy.lm()
    messages = toy.user("why?")
    one = states(lm, packed := pack(lm.chat, messages, ANSWERS))[packed.layout.ends]
    other = states(lm, again := pack(lm.chat, messages, [ANSWERS[3], "something else", ANSWERS[0]]))[again.layout.ends]
    torch.testing.assert_close(other[0], one[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other[2], one[0], rtol=1e-5, atol=1e-5)
    mask = packed.layout.mask()[0, 0]
    assert mask.dtype == torch.bool
    assert bool(mask.diagonal().all())
    assert not mask.triu(1).any()
    first = packed.segments == 1
    assert not mask[packed.segments == 2][:, first].any()


def test_each_answer_is_read_in_its_own_tokens() -> None:
    packed = pack(toy.lm().chat, toy.user("why?"), ANSWERS)
    for kind in READOUTS:
        read = packed.readout(kind)
        assert read.shape == (len(ANSWERS), len(packed.ids))
        torch.testing.assert_close(read.sum(1), torch.ones(len(ANSWERS)))
        for number, row in enumerate(read, 1):
            assert row[packed.segments != number].count_nonzero() == 0
    mean, last = packed.readout("mean"), packed.readout("last_token")
    assert (mean > 0).sum(1).tolist() == [len(answer) + 1 for answer in ANSWERS]
    assert last.argmax(1).tolist() == packed.layout.ends.tolist()
    with pytest.raises(StarlingError, match="choose"):
        packed.readout("first")


def test_packing_saves_the_prompt() -> None:
    lm = toy.lm()
    every = toy.comparisons((4, 3))
    packed = separate = 0
    for item in every:
        packed += len(pack(lm.chat, item.messages, item.answers).ids)
        separate += sum(len(lm.chat.encode(item.messages, answer).ids) for answer in item.answers)
    assert tour.packing_saves(lm.chat, every) == pytest.approx(separate / packed)
    assert separate > packed


def test_the_check_of_notebook_03_compares_the_two_ways() -> None:
    packed, separate = tour.packing_check(toy.lm("qwen2"), toy.comparisons((4,))[0])
    assert packed == pytest.approx(separate, abs=1e-5)
    assert len(set(packed)) == 4


def test_several_comparisons_in_a_row_do_not_see_one_another() -> None:
    lm = toy.lm("mistral")
    every = [pack(lm.chat, one.messages, one.answers) for one in toy.comparisons((4, 2, 3))]
    row = together(every)
    found = states(lm, row).split([len(one.ids) for one in every])
    for one, mine in zip(every, found, strict=True):
        torch.testing.assert_close(mine, states(lm, one), rtol=1e-5, atol=1e-5)
    assert row.layout.counts == [4, 2, 3]
    mask = row.layout.mask()[0, 0]
    own = torch.block_diag(*[one.layout.mask()[0, 0].float() for one in every]).bool()
    assert torch.equal(mask, own)
    read = row.readout("mean")
    assert torch.equal(read[4:6, len(every[0].ids) :][:, : len(every[1].ids)], every[1].readout("mean"))


def test_rows_keep_the_budget_and_every_comparison() -> None:
    sizes = [5, 9, 2, 30, 7, 7, 1]
    found = rows(sizes, 16)
    assert sorted(place for row in found for place in row) == list(range(len(sizes)))
    assert [sum(sizes[i] for i in row) for row in found] == [15, 16, 30]
    assert rows([], 16) == []


def test_a_long_prompt_loses_its_oldest_tokens_and_the_count_is_told() -> None:
    form = toy.lm().chat
    messages = toy.user("why is the sea blue?")
    whole = form.prompt_ids(messages)
    length = len(form.encode(messages, "because").ids)
    assert pack(form, messages, ["because", "so"], limit=length).cut == 0
    short = pack(form, messages, ["because", "so"], limit=length - 4)
    assert short.cut == 4
    assert short.ids[: short.layout.trees[0].prompt].tolist() == whole[4:]
    assert short.ids[short.segments == 1].tolist() == form.encode(messages, "because").ids[len(whole) :]
    assert together([short, short]).cut == 8


def test_what_cannot_be_packed_is_refused() -> None:
    form = toy.lm().chat
    with pytest.raises(StarlingError, match="at least one answer"):
        pack(form, toy.user("why?"), [])
    with pytest.raises(StarlingError, match="takes 8 tokens and leaves no room for its prompt within 8"):
        pack(form, toy.user("why?"), ["because", "so"], limit=8)
