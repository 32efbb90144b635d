"""A decoder cut at a block is the whole decoder, and only its top learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import toy
from starling_nb.blocks import Top, Trainable, first_trainable, trunk_states
from starling_nb.errors import StarlingError
from starling_nb.shared_prompt import Layout, Tree


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


def test_what_learns_is_read_from_one_word() -> None:
    assert Trainable.parse("last:4", 30) == Trainable(26, 30)
    assert Trainable.parse("blocks:8-11", 30) == Trainable(8, 12)
    assert Trainable.parse("blocks:0-0", 1) == Trainable(0, 1)
    assert Trainable.parse("lora:16", 30) == Trainable(0, 30, rank=16)
    assert Trainable.parse("head", 30) == Trainable(30, 30)
    assert Trainable.parse("full", 30) == Trainable(0, 30, embeddings=True)
    for wrong in ("blocks:4-3", "blocks:0-30", "blocks:3", "lora:0", "lora", "Full", "heads", ""):
        with pytest.raises(StarlingError, match="write last:k"):
            Trainable.parse(wrong, 30)


def learn(top: Top, hidden: torch.Tensor) -> torch.Tensor:
    """One plain gradient step on what learns; the states after it."""
    positions = torch.arange(hidden.shape[1])[None]
    top.zero_grad()
    (top(hidden, positions) * torch.linspace(-1, 1, 32)).sum().backward()
    with torch.no_grad():
        for parameter in top.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.grad
        return top(hidden, positions)


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize(
    ("trainable", "changes"),
    [("blocks:1-1", ("layers.1.", "norm.")), ("full", ("layers.", "norm.", "embed_tokens.")), ("lora:2", ("layers.",))],
)
def test_what_learns_is_what_changes_and_it_can_be_written_back(
    family: str, trainable: str, changes: tuple[str, ...]
) -> None:
    decoder = toy.lm(family).model.model
    before = toy.weights(decoder)
    part = Trainable.parse(trainable, 3)
    top = Top(decoder, part)
    ids = torch.randint(3, 60, (1, 7), generator=torch.Generator().manual_seed(4))
    hidden = ids if part.embeddings else trunk_states(decoder, ids, torch.arange(7)[None], None, part.start).clone()
    with torch.no_grad():
        start = decoder(input_ids=ids).last_hidden_state
        torch.testing.assert_close(top(hidden, torch.arange(7)[None]), start, rtol=1e-5, atol=1e-5)
    learn(top, hidden)
    after = learn(top, hidden)
    assert not torch.allclose(after, start, atol=1e-3)
    assert toy.changed(before, decoder) == set()
    top.write_into(decoder)
    moved = toy.changed(before, decoder)
    assert moved
    assert all(name.startswith(changes) for name in moved)
    assert {prefix for prefix in changes if any(name.startswith(prefix) for name in moved)} == set(changes)
    with torch.no_grad():
        torch.testing.assert_close(decoder(input_ids=ids).last_hidden_state, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [*toy.FAMILIES, "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_top_read_at_some_places_is_the_top_there_gradients_included(family: str, checkpointing: bool) -> None:
    decoder: Any = toy.lm(family).model.model
    top = Top(decoder, 1, checkpointing)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 27, 32, generator=generator)
    layout = Layout((Tree(9, ()), Tree(4, (2, 3)), Tree(5, (4,))))
    positions, places = layout.positions[None], torch.tensor([3, 12, 8, 0, 12, 17, 26])
    weights = torch.randn(7, 32, generator=generator)
    found = []
    for read in (lambda: top.at(states, layout, places), lambda: top(states, positions, layout)[0, places]):
        top.zero_grad()
        out = read()
        (out * weights).sum().backward()
        found.append((out.detach(), {name: part.grad.clone() for name, part in top.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    fed: list[int] = []
    top.layers[-1].mlp.register_forward_hook(lambda _, given, __: fed.append(given[0].shape[:-1].numel()))
    top.at(states, layout, places)
    assert fed == [27 if checkpointing else 6]
    top(states, positions, layout)
    assert fed[-1] == 27
