"""What is measured on held-out prompts: whole sentences, paired changes, exact divergence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toy
from starling_nb.models import Sample
from starling_nb.nectar import prompts
from starling_nb.policy import measure
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.rollouts import Rollout


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One. Two", "One."),
        ("One. Two!", "One. Two!"),
        ("Is it? Yes, and then", "Is it?"),
        ('He said "go." And then', 'He said "go."'),
        ("It costs 3.50 and is", "It costs 3.50 and is"),
        ("In 1999. Then", "In 1999."),
        ("Do this. Steps:\n1. First", "Do this."),
        ("1. First\n12. Second", "1. First\n12. Second"),
        ("no end at all", "no end at all"),
        ("Wait... what", "Wait..."),
        ("", ""),
    ],
)
def test_texts_are_cut_after_their_last_whole_sentence(text: str, cut: str) -> None:
    assert measure.to_last_sentence(text) == cut


@given(st.text(alphabet='ab1 .!?"\n)', max_size=30))
def test_a_cut_text_is_the_start_of_the_text_and_cutting_again_changes_nothing(text: str) -> None:
    cut = measure.to_last_sentence(text)
    assert text.startswith(cut)
    assert measure.to_last_sentence(cut) == cut


def test_held_out_answers_are_paired_by_name_between_models() -> None:
    asked = toy.prompts(toy.QUESTIONS[:3])
    lm = toy.lm(seed=3)
    found = measure.held_out(lm, asked, samples=2, seed=5, max_new_tokens=12)
    assert [rollout.prompt.id for rollout in found] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    alone = measure.held_out(lm, asked[1:2], samples=2, seed=5, max_new_tokens=12)
    assert [rollout.sample.ids for rollout in alone] == [rollout.sample.ids for rollout in found[2:4]]
    assert found[0].sample.ids != found[1].sample.ids


def graded(answer: str) -> list[Rollout]:
    """The same answer to a few real prompts; ``reference`` and ``flawed`` stand for the prompts' own."""
    chosen = prompts.load(split="train")[:8]
    texts = [getattr(prompt, answer, answer) for prompt in chosen]
    return [
        Rollout(p, Sample([1], [5, 2], finished=i % 2 == 0), t)
        for i, (p, t) in enumerate(zip(chosen, texts, strict=True))
    ]


def test_grades_are_the_rubrics_and_changes_are_paired() -> None:
    good, bad = measure.grade(graded("reference")), measure.grade(graded("flawed"))
    assert len(good) == 8
    assert not good.isna().any().any()
    assert good.utility.mean() > bad.utility.mean() + 2
    assert good.eos.mean() == 0.5
    table = measure.change(bad, good).set_index("part")
    assert table.loc["utility", "value"] == pytest.approx(good.utility.mean() - bad.utility.mean())
    assert table.loc["utility", "low"] > 0
    assert table.loc["eos", ["value", "low", "high"]].tolist() == [0, 0, 0]
    gap = measure.gain(bad, good, "utility")
    assert (gap.value, gap.low, gap.n) == (table.loc["utility", "value"], table.loc["utility", "low"], 8)
    cut = measure.grade(graded("reference"), lambda text: text.split()[0])
    assert (cut.words == 1).all()


def test_divergence_is_zero_at_the_start_and_summed_over_tokens() -> None:
    lm = toy.lm(seed=3)
    rollouts = measure.held_out(lm, toy.prompts(toy.QUESTIONS), samples=1, seed=0, max_new_tokens=20, capture={2})
    hydra = Hydra(lm, "last:1")
    assert measure.divergence(hydra, rollouts, torch.float32).value == 0.0
    with torch.no_grad():
        for parameter in hydra.top.parameters():
            parameter.mul_(1.2)
    found = measure.divergence(hydra, rollouts, torch.float32)
    assert found.n == len(rollouts)
    assert found.low <= found.value <= found.high
    tuned = toy.lm(seed=3)
    hydra.top.write_into(tuned.model.model)
    due = 0.0
    with torch.no_grad():
        for rollout in rollouts:
            ids = torch.tensor([rollout.sample.prompt + rollout.sample.ids])
            p, q = (torch.log_softmax(m.model(input_ids=ids).logits[0], -1) for m in (tuned, lm))
            kl = (p.exp() * (p - q)).sum(-1)
            due += float(kl[len(rollout.sample.prompt) - 1 : -1].sum())
    assert found.value == pytest.approx(due / len(rollouts), rel=1e-4)
    batched = measure.divergence(hydra, rollouts, torch.float32, batch=1)
    assert batched.value == pytest.approx(found.value, rel=1e-5)
