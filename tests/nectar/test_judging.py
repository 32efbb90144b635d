"""What the simulated judge writes: pair winners that go with the list as often as GPT-4's, and lenient scores."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import judge_logs
from starling_nb import files
from starling_nb.judge import Calibration, Opinion
from starling_nb.nectar import judging
from starling_nb.nectar.ranking import ShownRequest, Verdict, read_verdict
from starling_nb.stats import proportion_interval

REPLIES = 4000
CONTRADICTING = {  # experiment → seven-wise replies that decide pairs, those that contradict one, those with a circle
    "baseline_no_tiebreak": (141, 19, 9),
    "pairwise_no_given_order": (126, 17, 2),
    "pairwise_not_random": (148, 20, 1),
    "pointwise_pairwise_baseline": (69, 10, 5),
    "tiebreak_order_given": (140, 20, 7),
    "tiebreak_order_given_static": (135, 21, 5),
    "tiebreak_order_given_static_2": (136, 28, 13),
    "pairwise_agreement_explain": (71, 12, 3),
    "pairwise_agreement_explain_shuffle": (69, 7, 2),
    "pairwise_agreement_no_explain": (80, 10, 0),
    "pairwise_agreement_no_explain_shuffle": (75, 9, 0),
    "pairwise_explain_agreement_explain": (70, 6, 3),
    "pairwise_explain_agreement_explain_shuffle": (72, 11, 1),
}


def said(slip: float, k: int = 7, replies: int = REPLIES) -> Iterator[tuple[Opinion, Verdict]]:
    """Opinions drawn at random, and the simulated judge's replies to them, read back."""
    draw = files.rng(0, "opinions", k)
    shown = ShownRequest("final", [], ["x"] * k, list(itertools.combinations(range(k), 2)), None)
    for _ in range(replies):
        opinion = Opinion(draw.normal(size=k).tolist(), [5.0] * k, True, slip, draw)
        yield opinion, read_verdict(judging.answer(shown, opinion), k)


def facts(verdicts: list[Verdict]) -> dict[str, float]:
    """Shares: replies that contradict themselves, replies with a circle, pairs that go with their list."""
    return {
        "contradicting": float(np.mean([verdict.contradictions > 0 for verdict in verdicts])),
        "cyclic": float(np.mean([verdict.cyclic for verdict in verdicts])),
        "agreement": float(np.mean([verdict.pair_agreement for verdict in verdicts])),
    }


@pytest.fixture(scope="module")
def simulated() -> dict[str, float]:
    """What the committed calibration does."""
    return facts([verdict for _, verdict in said(Calibration.load().slip)])


def test_the_simulated_judge_contradicts_itself_as_often_as_gpt4(simulated: dict[str, float]) -> None:
    assert 0.11 < simulated["contradicting"] < 0.17
    assert 0.01 < simulated["cyclic"] < 0.08
    assert 0.982 < simulated["agreement"] < 0.990


@pytest.mark.parametrize("k", [2, 3, 7, 12])
@pytest.mark.parametrize("slip", [0.0, 0.013, 0.1, 1.0])
def test_the_slip_is_the_mean_share_of_contradicting_pairs_and_touches_no_ranking(slip: float, k: int) -> None:
    found = list(said(slip, k, 1000))
    assert all(verdict.ranking == opinion.ranking for opinion, verdict in found)
    shares = [1 - (verdict.pair_agreement or 0.0) for _, verdict in found]
    assert np.mean(shares) == pytest.approx(slip, abs=5 * np.std(shares) / 1000**0.5 + 1e-9)


def test_a_change_of_mind_moves_one_answer_and_closes_no_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "STRAY", 0.0)
    distances: Counter[int] = Counter()
    for _, verdict in said(0.05, replies=1500):
        wins = Counter(winner for _, _, winner in verdict.pairs or [])
        before = sorted(range(7), key=lambda position: -wins[position])
        assert sorted(wins[position] for position in range(7)) == list(range(7))  # an order, not a circle
        moved = [list(verdict.ranking) for _ in range(7)]
        for position, order in enumerate(moved):
            order.remove(position)
        assert any([p for p in before if p != position] == order for position, order in enumerate(moved))
        distances[verdict.contradictions] += 1
    assert set(distances) == set(range(7))
    assert distances[1] > distances[2] > distances[3] > distances[4]


def test_lenient_scores_crowd_at_ten_and_keep_the_order() -> None:
    scores = [judging.saturated(grade) for grade in np.linspace(1, 10, 50)]
    assert scores == sorted(scores)
    assert scores[-1] == 10
    assert scores[0] <= 4
    assert Counter(scores)[10] > 15


def test_gpt4_s_own_contradictions_stand_beside_the_simulated_ones(
    real_data: Path, simulated: dict[str, float]
) -> None:
    verdicts: dict[str, list[Verdict]] = {}
    rankings, _ = judge_logs.read(real_data)
    for experiment, reply in zip(rankings.experiment, rankings.rating_text, strict=True):
        if (verdict := read_verdict(reply, 7)).pair_agreement is not None:
            verdicts.setdefault(experiment, []).append(verdict)
    counted = {
        name: (len(found), sum(v.contradictions > 0 for v in found), sum(v.cyclic for v in found))
        for name, found in verdicts.items()
    }
    assert counted == CONTRADICTING
    real = {name: facts(found) for name, found in verdicts.items()}
    for fact in ("contradicting", "cyclic"):
        shares = [found[fact] for found in real.values()]
        assert min(shares) <= simulated[fact] <= max(shares), fact
    n, contradicting, cyclic = (sum(column) for column in zip(*CONTRADICTING.values(), strict=True))
    for fact, count in (("contradicting", contradicting), ("cyclic", cyclic)):
        pooled = proportion_interval(count, n)
        assert pooled.low < simulated[fact] < pooled.high, fact
    # The calibration's slip lies at the upper end of what the experiments show: fewer pairs of GPT-4's stand out.
    assert min(found["agreement"] for found in real.values()) == pytest.approx(0.987, abs=0.0005)
    assert max(found["agreement"] for found in real.values()) == pytest.approx(0.994, abs=0.0005)
    assert simulated["agreement"] == pytest.approx(0.987, abs=0.003)
