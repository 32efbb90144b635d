"""The steps of notebook 06 on toys: divergence, policies past the tuned one, what every measure sees, the figure."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from starling_nb import plots
from starling_nb.evaluation import mt_bench
from starling_nb.evaluation.overoptimization import goodhart
from starling_nb.judge import fences
from starling_nb.models import LM
from starling_nb.nectar import prompts
from starling_nb.plots import PlotError
from starling_nb.policy import measure
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.rollouts import shared_blocks


def moved(lm: LM) -> LM:
    """The same model with its last block moved."""
    other = LM(copy.deepcopy(lm.model), lm.chat, lm.name)
    with torch.no_grad():
        for weight in other.model.model.layers[-1].parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return other


def test_a_few_unreadable_grades_cost_few_prompts() -> None:
    random = np.random.default_rng(0)
    rows = [{"prompt_id": f"p{p}", "sample": s, "kl": 0.0} for p in range(40) for s in range(16)]
    start = pd.DataFrame(rows).assign(**{name: random.normal(size=640) for name in goodhart.MEASURES})
    start.loc[random.random(640) < 0.03, "judge"] = np.nan
    after = {name: start.assign(kl=kl, proxy=start.proxy + kl) for name, kl in (("a", 1.0), ("b", 2.0))}
    found = goodhart.watch(start, after, "run")
    best = found.points[found.points.way == "best of n"]
    assert best.n.min() >= 36
    assert "n = 8" in set(best.point)


def test_divergence_is_that_of_two_whole_models() -> None:
    lm = toy.lm()
    tuned = moved(lm)
    shared = shared_blocks(tuned.model.model, lm.model.model, 2)
    assert shared == len(lm.model.model.layers) - 1
    rollouts = measure.held_out(
        tuned, toy.prompts(["why?", "who is it", "what"]), samples=2, seed=0, max_new_tokens=6, capture={shared}
    )
    found = measure.sequence_kl(Hydra.between(tuned, lm, shared), rollouts, lm.dtype)
    for value, rollout in zip(found, rollouts, strict=True):
        tokens = torch.tensor([[*rollout.sample.prompt, *rollout.sample.ids]])
        begin = len(rollout.sample.prompt) - 1
        with torch.no_grad():
            p, q = (one.model(tokens).logits[0, begin:-1].float().log_softmax(-1) for one in (tuned, lm))
        assert value == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-4)
    assert min(found) > 0
    assert measure.sequence_kl(Hydra.between(lm, lm, shared), rollouts, lm.dtype) == pytest.approx([0.0] * 6)


def test_policies_past_the_tuned_one_go_further() -> None:
    lm = toy.lm()
    tuned = moved(lm)
    found = goodhart.beyond(lm, tuned, [0.0, 1.0])
    assert list(found) == ["APA × 1", "APA × 2"]
    assert found["APA × 1"] is tuned
    names = dict(lm.model.named_parameters())
    for name, weight in found["APA × 2"].model.named_parameters():
        assert torch.allclose(
            weight - names[name], 2 * (dict(tuned.model.named_parameters())[name] - names[name]), atol=1e-5
        )


@pytest.mark.parametrize(("samples", "due"), [(2, [2]), (16, [2, 4, 8, 16]), (6, [2, 4, 6])])
def test_numbers_of_answers(samples: int, due: list[int]) -> None:
    assert goodhart.numbers(samples) == due


def test_judges_see_the_whole_conversation_in_fences() -> None:
    messages = [*toy.user("one"), {"role": "assistant", "content": "two"}, *toy.user("three")]
    system, user = goodhart.grading(messages, "four")
    code = fences.find_code(system["content"], mt_bench.SYSTEM)
    assert code
    blocks = fences.read(user["content"], code)
    assert blocks == [("user", "one"), ("assistant", "two"), ("user", "three"), ("answer", "four")]


def answers() -> pd.DataFrame:
    rows = [
        ("a", 1.0, 5.0, 0.0),
        ("a", 2.0, 1.0, 1.0),
        ("a", 3.0, 3.0, 2.0),
        ("b", 1.0, 1.0, 0.0),
        ("b", 9.0, 7.0, 5.0),
    ]
    table = pd.DataFrame(rows, columns=["prompt_id", "proxy", "rubric", "judge"])
    return table.assign(text=[f"text {i}" for i in range(5)], other=1.0)


def test_agreement_with_the_rubric_counts_pairs_of_one_prompt() -> None:
    found = goodhart.agreement(answers()).set_index("measure")
    assert found.loc["proxy", "value"] == pytest.approx(2 / 4)
    assert found.loc["other", "value"] == 0.5
    assert found.loc["proxy", "n"] == 2


def test_favourites_that_gold_thinks_least_of_come_first() -> None:
    asked = [replace(p, id=id) for p, id in zip(toy.prompts(["q a", "q b"]), "ab", strict=True)]
    found = goodhart.deceived(answers().assign(rubric=[5.0, 4.0, 1.0, 1.0, 7.0]), asked)
    assert found.prompt.to_list() == ["q a", "q b"]
    assert found.favourite.to_list() == ["text 2", "text 4"]
    assert (found.rubric[0], found.rubric_mean[0]) == (1.0, 3.3)


def test_the_figure_draws_every_way_and_refuses_what_it_cannot() -> None:
    base = {"point": "n = 2", "low": 0.1, "high": 0.3, "fitted": 0.2, "gain": 0.2}
    rows = pd.DataFrame(
        [base | {"way": w, "measure": m, "d": d} for w in "xy" for m in ("proxy", "rubric") for d in (1.0, 2.0)]
    )
    figure = plots.goodhart(rows, {("x", "rubric"): "none up to √KL = 2.00"})
    axes = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in axes] == ["x\nrubric: none up to √KL = 2.00", "y"]
    assert list(axes[0].lines[0].get_xdata()) == [0.0, 1.0, 2.0]
    with pytest.raises(PlotError, match="leave the start out"):
        plots.goodhart(rows.assign(d=0.0))


def test_committed_prompts_can_be_graded_by_the_simulated_judge() -> None:
    """Grades follow quality: a reference is graded above a flawed answer."""
    from starling_nb.judge.connect import connect

    asked = prompts.load(limit=12)
    texts = [text for prompt in asked for text in (prompt.reference, prompt.flawed)]
    from starling_nb.models import Sample
    from starling_nb.policy.rollouts import Rollout

    rollouts = [Rollout(asked[i // 2], Sample([1], [2]), text) for i, text in enumerate(texts)]
    with connect("simulated") as judge:
        grades = np.array(goodhart.graded(rollouts, judge)).reshape(-1, 2)
    assert np.isfinite(grades).all()
    assert grades[:, 0].mean() > grades[:, 1].mean()
