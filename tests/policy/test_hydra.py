"""One trunk, two tops: they agree at the start, score as the whole model does, and only the policy's top learns."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from starling_nb.blocks import trunk_states
from starling_nb.errors import StarlingError
from starling_nb.models import LM
from starling_nb.policy.hydra import Batch, Hydra, TokenLogprobs, collate
from starling_nb.shared_prompt import Tree

SEQUENCES = [
    ([5, 6, 7], [8, 9, 2]),
    ([5, 2, 2, 9, 10, 11], [12]),
    ([4], [2, 2, 30, 31, 32, 2]),
    ([5, 6, 7], [41]),
    ([9, 9], [40, 41]),
    ([5, 6, 7], [8, 30]),
]


def states(lm: LM, ids: list[int], start: int) -> Tensor:
    """Trunk states of one sequence."""
    found = trunk_states(lm.model.model, torch.tensor([ids]), torch.arange(len(ids))[None], None, start)
    return found[0].clone()


def batch(lm: LM, start: int, sequences: list[tuple[list[int], list[int]]] = SEQUENCES) -> Batch:
    """Ragged sequences on their trunk states, one state more than is needed, as sampling keeps; prompts are shared."""
    kept = [states(lm, [*prompt, *answer, 2], start) for prompt, answer in sequences]
    prompts, answers = [prompt for prompt, _ in sequences], [answer for _, answer in sequences]
    return collate(kept, [len(prompt) for prompt in prompts], answers, [tuple(prompt) for prompt in prompts])


@torch.no_grad()
def plain(lm: LM, prompt: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities ``[answer, vocabulary]`` of a plain pass."""
    logits = lm.model(input_ids=torch.tensor([prompt + answer])).logits[0]
    return torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1]


def test_masks_come_from_lengths_and_hold_the_end_of_turn() -> None:
    found = batch(toy.lm(), 2)
    assert found.mask.tolist() == [[i < n for i in range(6)] for n in (3, 1, 6, 1, 2, 2)]
    assert found.unflatten(found.targets).tolist()[2] == [2, 2, 30, 31, 32, 2]
    assert found.unflatten(found.targets).tolist()[0] == [8, 9, 2, 0, 0, 0]
    assert found.layout.trees == (Tree(3, (2, 1)), Tree(6, ()), Tree(6, ()), Tree(3, ()))
    starts = [[2, 3, 4], [11], [12, 13, 14, 15, 16, 17], [2], [19, 20], [2, 5]]
    assert found.places.tolist() == [place for each in starts for place in each]
    assert found.layout.positions.tolist() == [0, 1, 2, 3, 4, 3, *range(6), *range(6), *range(3)]


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize("start", [1, 2])
def test_log_probabilities_are_those_of_the_whole_model(family: str, start: int) -> None:
    lm = toy.lm(family)
    hydra, found = Hydra(lm, f"last:{3 - start}"), batch(lm, start)
    logprobs, values = hydra(found)
    due = [plain(lm, p, a)[torch.arange(len(a)), torch.tensor(a)] for p, a in SEQUENCES]
    torch.testing.assert_close(logprobs, torch.cat(due), rtol=1e-5, atol=1e-5)
    assert values.tolist() == [0.0] * 15
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


def left_padded_states(model: Any) -> Tensor:
    """Post-norm states ``[answer tokens, width]`` that predict the answer tokens, by Hugging Face's own decoder over a
    batch padded on the left."""
    longest = max(len(p) + len(a) for p, a in SEQUENCES)
    rows = [[2] * (longest - len(p) - len(a)) + p + a for p, a in SEQUENCES]
    mask = torch.tensor([[0] * (longest - len(p) - len(a)) + [1] * (len(p) + len(a)) for p, a in SEQUENCES])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model.model(input_ids=torch.tensor(rows), attention_mask=mask, position_ids=positions).last_hidden_state
    return torch.cat([found[i, -len(a) - 1 : -1] for i, (_, a) in enumerate(SEQUENCES)])


def left_padded(lm: LM) -> Tensor:
    """Log-probabilities of all answer tokens by the plain model."""
    model: Any = lm.model
    logits = model.lm_head(left_padded_states(model)).float()
    targets = torch.tensor([token for _, answer in SEQUENCES for token in answer])
    return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]


def gradients(hydra: Hydra, model: Any) -> list[tuple[Tensor, Tensor]]:
    """Gradients of what learns in a hydra's top, each beside the plain model's of the same weight."""
    pairs = []
    for number, block in enumerate(hydra.top.layers, hydra.start):
        both = zip(block.parameters(), model.model.layers[number].parameters(), strict=True)
        pairs += [(own.grad, other.grad) for own, other in both if own.requires_grad]
    return pairs


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize("trainable", ["last:1", "last:3", "blocks:0-1", "blocks:1-1", "full"])
def test_probabilities_and_gradients_are_those_of_the_plain_model(family: str, trainable: str) -> None:
    lm = toy.lm(family, tied=family == "llama")
    whole = LM(copy.deepcopy(lm.model).requires_grad_(True), lm.chat, lm.name)
    hydra = Hydra(lm, trainable)
    due, (logprobs, _) = left_padded(whole), hydra(batch(lm, hydra.start))
    torch.testing.assert_close(logprobs, due, rtol=1e-5, atol=1e-5)
    weights = torch.randn(len(due), generator=torch.Generator().manual_seed(4))
    for each in (due, logprobs):
        (each * weights).sum().backward()
    theirs: Any = whole.model
    learned = gradients(hydra, theirs)
    for own, other in learned:
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    blocks = {"last:1": 1, "last:3": 3, "blocks:0-1": 2, "blocks:1-1": 1, "full": 3}[trainable]
    assert len(learned) == blocks * len(list(hydra.top.layers[0].parameters()))
    torch.testing.assert_close(hydra.top.norm.weight.grad, theirs.model.norm.weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", ["last:1", "blocks:0-1", "full"])
def test_bfloat16_is_no_further_from_float32_than_the_plain_models_is(trainable: str) -> None:
    """Log-probabilities and gradients; root mean square over tokens and weights."""
    lm = toy.lm(dtype=torch.bfloat16, spread=0.1)
    plain_half, exact = (LM(copy.deepcopy(lm.model).requires_grad_(True), lm.chat, lm.name) for _ in range(2))
    exact.model.float()
    hydra = Hydra(lm, trainable)
    found = batch(lm, hydra.start)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = hydra(found)[0]
    half, due = left_padded(plain_half), left_padded(exact)
    for each in (ours, half, due):
        each.sum().backward()
    assert _apart([(ours, due)]) < 1.5 * _apart([(half, due)])
    theirs = [grad for _, grad in gradients(hydra, exact.model)]
    mine, plain_grads = zip(*gradients(hydra, plain_half.model), strict=True)
    assert _apart(zip(mine, theirs, strict=True)) < 1.5 * _apart(zip(plain_grads, theirs, strict=True))


def _apart(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return sum(float((one.float() - other).detach().square().sum()) for one, other in pairs) ** 0.5


@pytest.mark.parametrize("value", ["head", "branch"])
@pytest.mark.parametrize("trainable", ["last:1", "blocks:0-1"])
def test_values_and_their_gradients_are_those_of_a_critic_that_is_a_whole_model(value: Any, trainable: str) -> None:
    """The critic of the recipe that this replaces: a model of its own from the first block on, and a value head."""
    lm = toy.lm()
    hydra = Hydra(lm, trainable, value)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (*hydra.learning()[0], *hydra.learning()[1]):
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    critic, head = copy.deepcopy(lm.model).requires_grad_(True), copy.deepcopy(hydra.value_head)
    blocks = hydra.top if hydra.value_top is None else hydra.value_top
    blocks.write_into(critic.model)
    due, values = head(left_padded_states(critic))[:, 0], hydra(batch(lm, hydra.start))[1]
    torch.testing.assert_close(values, due, rtol=1e-5, atol=1e-5)
    assert due.std() > 1e-3
    for each in (due, values):
        each.square().sum().backward()
    for own, other in zip(hydra.value_head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)
    for own, other in zip(blocks.layers[0].parameters(), critic.model.layers[hydra.start].parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainable", ["lora:2", "blocks:0-1", "full"])
def test_what_was_learned_is_the_same_written_into_the_plain_model(trainable: str) -> None:
    lm = toy.lm(tied=True)
    hydra = Hydra(lm, trainable)
    found = batch(lm, hydra.start)
    assert hydra.compare(found).kl.abs().max() == 0.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in hydra.learning()[0]:
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    assert hydra.compare(found).kl.max() > 1e-3
    logprobs, before = hydra(found)[0], left_padded(lm)
    torch.testing.assert_close(hydra.reference_logprobs(found), before, rtol=1e-5, atol=1e-5)
    hydra.top.write_into(lm.model.model)
    torch.testing.assert_close(logprobs, left_padded(lm), rtol=1e-5, atol=1e-5)


def test_a_value_branch_learns_apart_from_the_policy() -> None:
    lm = toy.lm()
    hydra, found = Hydra(lm, "last:1", "branch"), batch(lm, 2)
    with torch.no_grad():
        hydra.value_head[2].weight.fill_(1.0)
    logprobs, values = hydra(found)
    assert values.abs().max() > 0
    torch.testing.assert_close(hydra.compare(found).values, values)
    values.square().sum().backward()
    assert all(weight.grad is None for weight in hydra.learning()[0])
    assert all(weight.grad is not None for weight in hydra.learning()[1])
    hydra.zero_grad()
    logprobs.sum().backward()
    assert all(weight.grad is None for weight in hydra.learning()[1])
    with pytest.raises(StarlingError, match="another choice of trainable or value"):
        hydra.load_own_state(Hydra(lm, "last:1").own_state())


def test_a_policy_of_which_nothing_learns_is_refused() -> None:
    with pytest.raises(StarlingError, match="nothing to learn"):
        Hydra(toy.lm(), "head")
