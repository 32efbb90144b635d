"""The slab cache and the folded attention change speed, not numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import MistralConfig

import toy
from starling_nb.decoding import SlabLayer, folded, grouped_attention, slab_cache
from starling_nb.errors import StarlingError


def test_a_slab_grows_from_the_left_and_drops_rows() -> None:
    layer = SlabLayer(3, 6)
    parts = [torch.randn(3, 2, n, 4) for n in (3, 1, 1)]
    for part in parts:
        keys, values = layer.update(part, 2 * part)
    whole = torch.cat(parts, dim=2)
    assert torch.equal(keys, whole)
    assert torch.equal(values, 2 * whole)
    assert layer.get_seq_length() == 5
    rows = torch.tensor([2, 0])
    layer.keep(rows)
    last = torch.randn(2, 2, 1, 4)
    keys, values = layer.update(last, last)
    assert torch.equal(keys, torch.cat([whole[rows], last], dim=2))
    assert torch.equal(values, torch.cat([2 * whole[rows], last], dim=2))


def test_rows_of_a_slab_are_filled_part_by_part_up_to_one_edge() -> None:
    layer = SlabLayer(3, 6)
    long, short, last = torch.randn(2, 2, 4, 4), torch.randn(1, 2, 3, 4), torch.randn(3, 2, 1, 4)
    for part, states in ((slice(0, 2), long), (slice(2, 3), short)):
        layer.aim(part, 4 - states.shape[2])
        keys, values = layer.update(states, -states)
        assert layer.get_seq_length() == states.shape[2]
        assert torch.equal(keys, states)
        assert torch.equal(values, -states)
    layer.aim(slice(0, 3), 0)
    layer.used = 4
    keys, _ = layer.update(last, last)
    padded = torch.cat([long, F.pad(short, (0, 0, 1, 0))])
    assert torch.equal(keys, torch.cat([padded, last], dim=2))


@pytest.mark.parametrize(("here", "there"), [(5, 3), (3, 5)])
def test_rows_of_two_slabs_are_joined_at_one_edge(here: int, there: int) -> None:
    first, room = 1, 2
    layers = []
    for rows, length in ((2, here), (1, there)):
        layer = SlabLayer(rows, length + 1)
        layer.update(torch.randn(rows, 2, length, 4), torch.randn(rows, 2, length, 4))
        layers.append(layer)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in layers]
    layers[0].join(layers[1], first, room)
    last = torch.randn(3, 2, room, 4)
    found = layers[0].update(last, last)
    for kind, (mine, other) in enumerate(zip(*before, strict=True)):
        mine = mine[:, :, first:]
        edge = max(mine.shape[2], other.shape[2])
        parts = [F.pad(part, (0, 0, edge - part.shape[2], 0)) for part in (mine, other)]
        assert torch.equal(found[kind], torch.cat([torch.cat(parts), last], dim=2))


@pytest.mark.parametrize(("new", "masked"), [(1, True), (1, False), (5, True), (5, False)])
def test_folded_attention_is_plain_attention(new: int, masked: bool) -> None:
    torch.manual_seed(0)
    past = 5
    query, key, value = torch.randn(3, 8, new, 4), torch.randn(3, 2, past, 4), torch.randn(3, 2, past, 4)
    mask = torch.rand(3, 1, new, past) < 0.7 if masked else None
    if mask is not None:
        mask[..., 0] = True
    found, _ = grouped_attention(None, query, key, value, mask, scaling=0.3)
    repeated = [x.repeat_interleave(4, dim=1) for x in (key, value)]
    plain = F.scaled_dot_product_attention(
        query, *repeated, attn_mask=mask, is_causal=mask is None and new > 1, scale=0.3
    )
    assert torch.allclose(found, plain.transpose(1, 2), atol=1e-6)


def test_a_cache_of_slabs_gives_the_logits_of_the_libraries_own_and_attention_is_put_back() -> None:
    model = toy.lm().model
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = slab_cache(model, 2, 9)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with folded(model, 9):
            parts = [model(input_ids=ids[:, s], past_key_values=cache).logits for s in (slice(0, 6), [6], [7], [8])]
    assert torch.allclose(torch.cat(parts, dim=1), plain, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_sliding_window_that_would_be_left_is_refused() -> None:
    model = toy.lm("mistral").model
    assert isinstance(model.config, MistralConfig)
    model.config.sliding_window = 16
    with folded(model, 16):
        assert model.config._attn_implementation == "grouped"
    with pytest.raises(StarlingError, match="sliding window of 16"), folded(model, 17):
        pass
    assert model.config._attn_implementation == "sdpa"
