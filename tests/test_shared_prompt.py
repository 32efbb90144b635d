"""Answers that share a prompt: the attention is the masked one, in values and gradients, and sees nothing more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import toy
from starling_nb.blocks import run_blocks
from starling_nb.errors import StarlingError
from starling_nb.shared_prompt import Layout, Tree, attend, attend_in_blocks, attending, join

TREES = st.lists(
    st.builds(Tree, st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)),
    min_size=1,
    max_size=3,
).map(lambda trees: Layout(tuple(trees)))
UNEVEN = Layout((Tree(40, (3, 17, 1, 60)), Tree(2, (5,)), Tree(9, (30, 30))))


def heads(layout: Layout, seed: int = 0) -> list[torch.Tensor]:
    """Queries, keys and values of a row: 1, 2 heads, T, 8."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, layout.size, 8, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(3)]


def by_hand(layout: Layout) -> tuple[list[int], list[int], list[list[bool]]]:
    """Positions, ends and mask, counted token by token."""
    tokens: list[tuple[int, int, int]] = []
    ends = []
    answers = 0
    for number, tree in enumerate(layout.trees):
        tokens += [(number, 0, place) for place in range(tree.prompt)]
        for length in tree.answers:
            answers += 1
            tokens += [(number, answers, tree.prompt + place) for place in range(length)]
            ends.append(len(tokens) - 1)
    sees = [
        [t == other_t and o in (0, s) and j <= i for j, (other_t, o, _) in enumerate(tokens)]
        for i, (t, s, _) in enumerate(tokens)
    ]
    return [place for _, _, place in tokens], ends, sees


@given(TREES)
@settings(max_examples=40, deadline=None)
def test_a_layout_is_what_one_would_count(layout: Layout) -> None:
    positions, ends, sees = by_hand(layout)
    assert layout.positions.tolist() == positions
    assert layout.ends.tolist() == ends
    assert layout.mask()[0, 0].tolist() == sees
    assert layout.size == len(positions)
    assert layout.counts == [len(tree.answers) for tree in layout.trees]


@given(TREES)
@settings(max_examples=25, deadline=None)
def test_attention_and_its_gradient_are_those_of_the_dense_mask(layout: Layout) -> None:
    ours, dense = heads(layout), heads(layout)
    found = attend(*ours, layout)
    wanted = F.scaled_dot_product_attention(*dense, attn_mask=layout.mask())
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for mine, theirs in zip(ours, dense, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_block_attention_is_the_same_attention() -> None:
    queries = [part.detach().float() for part in heads(UNEVEN)]
    torch.testing.assert_close(attend_in_blocks(*queries, UNEVEN), attend(*queries, UNEVEN), rtol=1e-5, atol=1e-5)


def test_joined_rows_keep_their_trees() -> None:
    first, second = Layout((Tree(3, (2, 2)),)), Layout((Tree(1, (4,)), Tree(2, (1,))))
    assert join([first, second]) == Layout((*first.trees, *second.trees))


@pytest.mark.parametrize("family", [*toy.FAMILIES, "qwen3"])
def test_blocks_take_a_layout_for_their_mask(family: str) -> None:
    decoder = toy.lm(family).model.model
    hidden = torch.randn(1, UNEVEN.size, 32, generator=torch.Generator().manual_seed(2))
    positions = UNEVEN.positions[None]
    with torch.no_grad():
        found = run_blocks(decoder, hidden, positions, UNEVEN, 0, 2)
        wanted = run_blocks(decoder, hidden, positions, UNEVEN.mask(), 0, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert decoder.layers[0].self_attn.config._attn_implementation == "sdpa"


def test_a_block_is_itself_again_afterwards_even_after_an_error() -> None:
    block = toy.lm().model.model.layers[0]
    with pytest.raises(ZeroDivisionError), attending(block):
        1 / 0  # noqa: B018
    assert block.self_attn.config._attn_implementation == "sdpa"


def test_checkpointing_changes_no_gradient() -> None:
    decoder = toy.lm().model.model.requires_grad_(True)
    found = []
    for checkpointing in (False, True):
        hidden = torch.randn(1, UNEVEN.size, 32, generator=torch.Generator().manual_seed(3)).requires_grad_()
        run_blocks(decoder, hidden, UNEVEN.positions[None], UNEVEN, 0, 3, checkpointing).square().sum().backward()
        found.append([hidden.grad, decoder.layers[0].mlp.up_proj.weight.grad.clone()])
        decoder.zero_grad()
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


def test_masks_made_without_gradients_serve_a_backward_pass() -> None:
    layout, queries = Layout((Tree(4, (3, 2)),)), heads(Layout((Tree(4, (3, 2)),)))
    with torch.inference_mode():
        attend(*[part.detach() for part in queries], layout)
    attend(*queries, layout).sum().backward()
    assert queries[0].grad is not None


def test_a_row_beyond_the_sliding_window_is_refused() -> None:
    decoder = toy.lm("mistral", sliding_window=8).model.model
    hidden = torch.randn(1, 9, 32)
    with torch.no_grad():
        run_blocks(decoder, hidden, Layout((Tree(4, (2, 3)),)).positions[None], Layout((Tree(4, (2, 3)),)), 0, 2)
        long = Layout((Tree(4, (5,)),))
        with pytest.raises(StarlingError, match="sliding window of 8"):
            run_blocks(decoder, hidden, long.positions[None], long, 0, 2)
