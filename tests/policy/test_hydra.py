"""One trunk, two tops: they agree at the start, score as the whole model does, and only the policy's top learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import toy
from starling_nb.blocks import trunk_states
from starling_nb.models import LM
from starling_nb.policy.hydra import Batch, Hydra, TokenLogprobs, collate

SEQUENCES = [([5, 6, 7], [8, 9, 2]), ([5, 2, 2, 9, 10, 11], [12]), ([4], [2, 2, 30, 31, 32, 2]), ([9, 9], [40, 41])]


def states(lm: LM, ids: list[int], start: int) -> Tensor:
    """Trunk states of one sequence."""
    found = trunk_states(lm.model.model, torch.tensor([ids]), torch.arange(len(ids))[None], None, start)
    return found[0].clone()


def batch(lm: LM, start: int, sequences: list[tuple[list[int], list[int]]] = SEQUENCES) -> Batch:
    """Ragged sequences on their trunk states; one state more than is needed, as sampling keeps."""
    kept = [states(lm, [*prompt, *answer, 2], start) for prompt, answer in sequences]
    return collate(kept, [len(prompt) for prompt, _ in sequences], [answer for _, answer in sequences])


@torch.no_grad()
def plain(lm: LM, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities ``[answer, vocabulary]`` of a plain pass."""
    logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1]


def test_masks_come_from_lengths_and_hold_the_end_of_turn() -> None:
    found = batch(toy.lm(), 2)
    assert found.mask.tolist() == [[i < n for i in range(6)] for n in (3, 1, 6, 2)]
    assert found.unflatten(found.targets).tolist()[2] == [2, 2, 30, 31, 32, 2]
    assert found.unflatten(found.targets).tolist()[0] == [8, 9, 2, 0, 0, 0]
    assert found.columns.tolist() == [2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 1, 2]
    assert found.rows.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    assert found.positions.tolist() == [list(range(6))] * 4


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize("start", [1, 2])
def test_log_probabilities_are_those_of_the_whole_model(family: str, start: int) -> None:
    lm = toy.lm(family)
    hydra, found = Hydra(lm, f"last:{3 - start}"), batch(lm, start)
    logprobs, values = hydra(found)
    due = [plain(lm, p, a)[torch.arange(len(a)), torch.tensor(a)] for p, a in SEQUENCES]
    torch.testing.assert_close(logprobs, torch.cat(due), rtol=1e-5, atol=1e-5)
    assert values.tolist() == [0.0] * 12
    alone = torch.cat([hydra(batch(lm, start, [item]))[0] for item in SEQUENCES])
    torch.testing.assert_close(alone, logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_policy_and_reference_agree_before_any_step(dtype: torch.dtype) -> None:
    lm = toy.lm(dtype=dtype)
    hydra = Hydra(lm, "last:1")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = hydra.compare(batch(lm, 2))
    assert found.kl.abs().max() == 0.0
    assert torch.equal(found.logprobs, found.reference)


def test_divergence_and_entropy_are_exact_over_the_vocabulary() -> None:
    lm = toy.lm()
    hydra, found = Hydra(lm, "last:2"), batch(lm, 1)
    start = [plain(lm, *item) for item in SEQUENCES]
    with torch.no_grad():
        for parameter in hydra.top.parameters():
            parameter.mul_(1.2)
    compared = hydra.compare(found)
    torch.testing.assert_close(hydra.reference_logprobs(found), compared.reference)
    hydra.top.write_into(lm.model.model)
    moved = torch.cat([plain(lm, *item) for item in SEQUENCES])
    before = torch.cat(start)
    due = (moved.exp() * (moved - before)).sum(-1)
    assert due.min() > 1e-3
    torch.testing.assert_close(compared.kl, due, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compared.entropy, -(moved.exp() * moved).sum(-1), rtol=1e-4, atol=1e-5)
    picked = torch.tensor([token for _, answer in SEQUENCES for token in answer])[:, None]
    torch.testing.assert_close(compared.logprobs, moved.gather(1, picked)[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compared.reference, before.gather(1, picked)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 512])
def test_gradients_of_chunked_log_probabilities_are_autograds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenLogprobs, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5)
    targets, upstream = torch.randint(0, 11, (7,)), torch.randn(7)
    found = TokenLogprobs.apply(hidden, weight, targets)
    due = torch.log_softmax(hidden @ weight.T, -1)[torch.arange(7), targets]
    torch.testing.assert_close(found, due)
    ours, theirs = (torch.autograd.grad((x * upstream).sum(), hidden)[0] for x in (found, due))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_policys_top_and_the_critic_ever_train(tied: bool) -> None:
    """A head tied to the embeddings would change the trunk below, unseen."""
    lm = toy.lm(tied=tied)
    before = toy.weights(lm.model)
    hydra, found = Hydra(lm, "last:1"), batch(lm, 2)
    assert (lm.model.lm_head.weight is lm.model.model.embed_tokens.weight) == tied
    reference = toy.weights(hydra.reference)
    start = toy.weights(hydra)
    optimizer = torch.optim.AdamW([p for p in hydra.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the critic's first layer learns from the second step on: its last starts at zero
        logprobs, values = hydra(found)
        (logprobs.sum() + (values - 1).square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert toy.changed(before, lm.model) == set()
    assert toy.changed(reference, hydra.reference) == set()
    assert torch.equal(hydra.head, before["lm_head.weight"])
    changed = {name.split(".")[0] for name in toy.changed(start, hydra)}
    assert changed == {"top", "value_head"}
    assert "head" not in dict(hydra.named_parameters())
    assert not any(name.startswith("head") for name in hydra.state_dict())
    hydra.top.write_into(lm.model.model)
    assert all(name.startswith(("model.layers.2.", "model.norm.")) for name in toy.changed(before, lm.model))
