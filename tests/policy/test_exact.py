"""Each objective comes to rest where theory says, within one per cent, on a problem that can be summed out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from starling_nb.policy import exact
from starling_nb.policy.exact import Problem

PROBLEM = exact.EXAMPLE
BETA = 0.5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def agree(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=1e-5)


@pytest.mark.parametrize("lam", [0.4, 1.0, 3.0])
def test_apa_on_its_own_answers_reaches_the_tilted_start_whatever_the_normaliser(lam: float) -> None:
    agree(exact.settle(exact.apa(PROBLEM, lam=lam), PROBLEM.start), PROBLEM.tilted(1 / lam))


@pytest.mark.parametrize("lam", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("sampled", [PROBLEM.start, torch.full((6,), 1 / 6, dtype=torch.float64)])
def test_apa_on_others_answers_ends_at_the_constrained_optimum(lam: float, sampled: Tensor) -> None:
    wanted = PROBLEM.constrained(lam, sampled)
    assert float(wanted.sum()) == pytest.approx(1, abs=1e-9)
    gap = wanted.log() - PROBLEM.start.log() - PROBLEM.advantages / lam
    multiplier = -2 * sampled * gap / wanted
    torch.testing.assert_close(multiplier, multiplier[:1].expand(6), rtol=1e-6, atol=1e-9)
    found = exact.settle(exact.apa(PROBLEM, lam=lam, sampled=sampled), PROBLEM.start)
    agree(found, wanted)
    if lam == 0.4:  # far from λ → ∞, where the normaliser is one, the two ends differ
        assert (found - PROBLEM.tilted(1 / lam)).abs().max() > 0.02


def test_apa_anchored_on_the_rollouts_turns_greedy_unless_the_reward_pays_for_divergence() -> None:
    greedy = exact.settle(exact.apa(PROBLEM, lam=1.0, anchor="rollout"), PROBLEM.start)
    assert greedy.argmax() == PROBLEM.rewards.argmax()
    assert greedy.max() > 0.95 > PROBLEM.tilted(1.0).max()
    for lam in (1.0, 3.0):
        agree(
            exact.settle(exact.apa(PROBLEM, lam=lam, anchor="rollout", kl=BETA), PROBLEM.start),
            PROBLEM.tilted(1 / BETA),
        )


@pytest.mark.parametrize(
    "objective",
    [
        exact.ppo(PROBLEM, kl=BETA),
        exact.rloo(PROBLEM, kl=BETA),
        exact.p3o(PROBLEM, kl=BETA),
        exact.p3o(PROBLEM, kl=BETA, clipping="separate"),
        exact.dpo(PROBLEM, beta=BETA),
    ],
    ids=["ppo", "rloo", "p3o joint", "p3o separate", "dpo"],
)
def test_the_others_reach_the_optimum_of_the_regularised_reward(objective: exact.Objective) -> None:
    agree(exact.settle(objective, PROBLEM.start), PROBLEM.tilted(1 / BETA))


def test_whitening_divides_lambda_and_scaling_divides_beta_by_a_spread() -> None:
    found = exact.settle(exact.apa(PROBLEM, lam=1.0, whiten=True), PROBLEM.start)
    spread = float((found @ PROBLEM.rewards.square() - (found @ PROBLEM.rewards).square()).sqrt())
    agree(found, PROBLEM.tilted(1 / spread))
    scaled = Problem(PROBLEM.start, PROBLEM.rewards / 0.7)
    agree(exact.settle(exact.ppo(scaled, kl=BETA), PROBLEM.start), PROBLEM.tilted(1 / (BETA * 0.7)))


def test_tables_for_the_notebook_hold_what_theory_says() -> None:
    table, ways = exact.ends()
    assert set(table.groupby("objective").size()) == {6}
    assert (table.found / table.derived - 1).abs().max() < 0.01
    last = ways[ways.step == ways.step.max()].set_index("objective").probability
    assert last["derived, β"] == pytest.approx(float(PROBLEM.tilted(2.0)[2]))
    assert last["derived, λ"] == pytest.approx(float(PROBLEM.tilted(1.0)[2]))
    away = exact.from_elsewhere().set_index("lambda").groupby("drawn from").distance
    for _, distances in away:
        assert distances.is_monotonic_decreasing
        assert distances.iloc[0] > 0.05 > 0.005 > distances.iloc[-1]
