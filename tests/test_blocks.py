"""A decoder cut at a block is the whole decoder, and only its top learns."""

from __future__ import annotations

import pytest
import torch

import toy
from starling_nb.blocks import Top, first_trainable, trunk_states
from starling_nb.errors import StarlingError


def test_the_lowest_trainable_block() -> None:
    assert [first_trainable(f"last:{k}", 30) for k in (1, 4, 30)] == [29, 26, 0]
    for wrong in ("last:0", "last:31", "last:-1", "4", "first:4", "last:4 "):
        with pytest.raises(StarlingError, match="last:4"):
            first_trainable(wrong, 30)


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize("start", [0, 1, 3])
def test_trunk_and_top_are_the_whole_model(family: str, start: int) -> None:
    decoder = toy.lm(family).model.model
    ids = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(11).expand(2, -1)
    with torch.no_grad():
        states = trunk_states(decoder, ids, positions, None, start)
        assert torch.allclose(
            Top(decoder, start)(states, positions), decoder(input_ids=ids).last_hidden_state, atol=1e-5
        )


def test_positions_are_those_given_not_those_counted() -> None:
    decoder = toy.lm().model.model
    ids = torch.randint(3, 60, (1, 6), generator=torch.Generator().manual_seed(2))
    uneven = torch.tensor([[0, 1, 2, 9, 10, 11]])
    with torch.no_grad():
        found = trunk_states(decoder, ids, uneven, None, 2)
        even = trunk_states(decoder, ids, torch.arange(6)[None], None, 2)
    assert torch.equal(found[:, :3], even[:, :3])
    assert not torch.allclose(found[:, 3:], even[:, 3:], atol=1e-3)


def test_training_a_top_leaves_the_decoder_alone_until_it_is_written_back() -> None:
    decoder = toy.lm().model.model
    before = toy.weights(decoder)
    top = Top(decoder, 2)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in top.parameters())
    states, positions = torch.randn(1, 4, 32), torch.arange(4)[None]
    top(states, positions).square().sum().backward()
    with torch.no_grad():
        for parameter in top.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
            parameter -= 0.1 * parameter.grad
    assert toy.changed(before, decoder) == set()
    top.write_into(decoder)
    changed = toy.changed(before, decoder)
    assert changed == {name for name in before if name.startswith(("layers.2.", "norm."))}
    with torch.no_grad():
        hidden = decoder.layers[2](
            states, position_ids=positions, position_embeddings=decoder.rotary_emb(states, positions)
        )
        assert torch.allclose(decoder.norm(hidden), top(states, positions), atol=1e-5)
