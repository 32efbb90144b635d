"""First places, mean ranks, placements, and the test that needs no model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from bias.worlds import MODELS, PLANTED, real_logs, simulate
from scipy import stats as scipy_stats

from starling_nb import bias, files
from starling_nb.bias import BiasError
from starling_nb.bias.panels import EXPERIMENTS
from starling_nb.stats import chi_square_uniform


def test_first_place_share_counts_first_places() -> None:
    table = pd.DataFrame({"ranking": [[1, 0, 2], [1, 2, 0], np.array([0, 1, 2]), [1, 0]]})
    share = bias.first_place_share(table)
    assert share["share"].tolist() == [0.25, 0.75, 0.0]
    assert share["n"].tolist() == [4, 4, 3]
    assert ((share["low"] <= share["share"]) & (share["share"] <= share["high"])).all()


def test_first_place_test_is_pearson_and_allows_ragged_rows() -> None:
    table = simulate(150, PLANTED)
    counts = np.bincount([row[0] for row in table["ranking"]], minlength=7)
    assert bias.first_place_test(table) == pytest.approx(chi_square_uniform(counts))
    assert bias.first_place_test(table)[1] < 1e-3
    p = []
    for seed in range(200):
        both = pd.concat([simulate(20, np.zeros(5), seed=seed), simulate(30, np.zeros(3), seed=seed + 999)])
        p.append(bias.first_place_test(both)[1])
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3


def test_mean_rank_and_counts_agree() -> None:
    table = simulate(80, PLANTED)
    counts = bias.position_by_rank(table)
    ranks = bias.mean_rank(table)
    assert counts.to_numpy().sum(0).tolist() == counts.to_numpy().sum(1).tolist() == [80] * 7
    np.testing.assert_allclose(ranks["mean_rank"], counts.to_numpy() @ np.arange(7) / 80)
    assert ((ranks["low"] < ranks["mean_rank"]) & (ranks["mean_rank"] < ranks["high"])).all()
    pd.testing.assert_frame_equal(bias.share_from_counts(counts), bias.first_place_share(table))
    pd.testing.assert_frame_equal(bias.share_from_counts(counts[0]), bias.first_place_share(table))


def test_counts_alone_give_mean_ranks_and_friedmans_test() -> None:
    table = simulate(90, PLANTED)
    found, chi2, p = bias.mean_rank_from_counts(bias.position_by_rank(table))
    assert (chi2, p) == pytest.approx(
        scipy_stats.friedmanchisquare(*np.array([np.argsort(r) for r in table.ranking]).T)
    )
    ours = bias.mean_rank(table)
    np.testing.assert_allclose(found["mean_rank"], ours["mean_rank"])
    np.testing.assert_allclose(found[["low", "high"]], ours[["low", "high"]], atol=0.05)
    for wrong in ([[1, 2], [3, 4]], [1, 2, 3], [[0, 0], [0, 0]], [[1, 1, 1]]):
        with pytest.raises(BiasError, match="square table"):
            bias.mean_rank_from_counts(wrong)


def test_placements_are_the_counts_as_shares_with_intervals() -> None:
    table = simulate(90, PLANTED)
    found, counts = bias.placements(table), bias.position_by_rank(table).to_numpy()
    np.testing.assert_allclose(found["share"], counts.ravel() / 90)
    assert ((found["low"] <= found["share"]) & (found["share"] <= found["high"])).all()
    again = bias.placements(pd.concat([table] * 3))
    np.testing.assert_allclose(again[["low", "high"]], found[["low", "high"]], atol=0.02)


def test_placements_where_rows_of_a_prompt_cancel() -> None:
    """Every prompt once in each order: nothing varies between prompts, and the intervals stay finite."""
    table = pd.DataFrame({"prompt_id": list("aabb"), "ranking": [[0, 1], [1, 0]] * 2})
    found = bias.placements(table)
    assert (found["share"] == 0.5).all()
    assert ((found["low"] > 0) & (found["high"] < 1)).all()


def test_order_test_is_friedman_and_pearson_and_says_no_for_a_fair_judge() -> None:
    table = simulate(120, 0.4 * PLANTED)
    ranks = np.array([np.argsort(row) for row in table["ranking"]])
    found = bias.order_test(table)
    friedman = scipy_stats.friedmanchisquare(*ranks.T)
    assert found.mean_rank[0] == pytest.approx(friedman.statistic)
    assert found.mean_rank[1] == pytest.approx(friedman.pvalue, abs=0.02)
    assert found.first_place[0] == pytest.approx(bias.first_place_test(table)[0])
    assert found.first_place[1] == pytest.approx(bias.first_place_test(table)[1], abs=0.02)
    assert bias.order_test(table, seed=1, draws=99) == bias.order_test(table, seed=1, draws=99)


@pytest.mark.parametrize("how", ["once", "repeated", "new orders", "rotations", "ragged"])
def test_a_fair_judge_passes_the_order_test_as_often_as_promised(how: str) -> None:
    """Repeats of a prompt resemble each other; counted as independent they would look biased far too often."""
    p = []
    for seed in range(150):
        if how == "ragged":
            parts = [simulate(25, np.zeros(7), seed=seed), simulate(25, np.zeros(3), seed=seed + 999)]
            table = pd.concat(parts, ignore_index=True)
        else:
            repeats = 1 if how == "once" else 3
            table = simulate(25, np.zeros(7), seed=seed, repeats=repeats, spread=2.0, reorder=how == "new orders")
        if how == "rotations":
            table = rotated(seed)
        p.append(bias.order_test(table, seed=seed, draws=99).mean_rank[1])
    assert np.mean(np.array(p) <= 0.05) <= 0.12
    assert np.mean(p) == pytest.approx(0.5, abs=0.09)


def rotated(seed: int) -> pd.DataFrame:
    """A fair judge that sees each prompt in three rotations of one order."""
    generator, rows = np.random.default_rng(seed), []
    for prompt in range(25):
        quality, base = 2 * generator.normal(size=7), generator.permutation(7)
        for start in (0, 2, 4):
            shown = np.roll(base, -start)
            order = np.argsort(-(quality[shown] + generator.gumbel(size=7)))
            rows.append((prompt, MODELS[shown].tolist(), order.tolist()))
    return pd.DataFrame(rows, columns=["prompt_id", "models", "ranking"])


def test_a_large_table_is_tested_by_its_large_sample_distribution() -> None:
    generator = np.random.default_rng(0)
    n = 6000
    fair = bias.Rankings(np.argsort(generator.random((n, 7)), axis=1), np.full(n, 7), np.arange(n))
    found = bias.order_test(fair)
    assert found.method == "large sample"
    assert found.mean_rank[1] > 1e-3
    lean = np.argsort(generator.random((n, 7)) + 0.02 * np.arange(7), axis=1)
    assert bias.order_test(bias.Rankings(lean, fair.length, fair.prompt)).mean_rank[1] < 1e-6


# --- the authors' GPT-4 rankings, and what is committed of them ---------------------------


def test_first_places_of_the_real_logs_are_those_of_an_independent_count() -> None:
    """Counted here with nothing but a loop, against the figures on this part of the logs."""
    known = {"naive": 84.0, "pairwise": 27.7, "pairwise_fixed_order": 26.1, "random_pair_order": 18.8}
    known |= {"static_tie_break": 12.1, "static_tie_break_again": 14.0, "random_tie_break": 6.5}
    for name, table in real_logs().items():
        counts = [0] * 7
        for ranking in table["ranking"]:
            counts[int(ranking[0])] += 1
        expected = len(table) / 7
        chi2 = sum((count - expected) ** 2 / expected for count in counts)
        assert bias.first_place_test(table)[0] == pytest.approx(chi2, rel=1e-12)
        np.testing.assert_array_equal(bias.first_place_share(table)["share"], np.array(counts) / len(table))
        if name in known:
            assert chi2 == pytest.approx(known.pop(name), abs=0.05)
    assert not known


def test_the_committed_counts_are_those_of_the_real_logs() -> None:
    logs = real_logs()
    published = files.read_json(files.DATA / "published" / "position_by_rank.json")
    by_experiment = {EXPERIMENTS[name]: table for name, table in logs.items()}
    for arm in published["arms"]:
        counts = bias.position_by_rank(by_experiment[arm["experiment"]]).to_numpy().tolist()
        assert counts == arm["counts"], arm["variant"]


def test_published_first_places_add_up_to_the_known_chi_squares() -> None:
    published = files.read_json(files.DATA / "published" / "position_first_place.json")
    known = {
        "naive": 128,
        "pairwise": 49,
        "pairwise_fixed_order": 32,
        "random_pair_order": 37,
        "static_tie_break": 23,
    }
    known |= {"random_tie_break": 11, "final": 6.3}
    for arm in published["arms"]:
        assert sum(arm["counts"]) == arm["n"]
        if arm["variant"] in known:
            assert chi_square_uniform(arm["counts"])[0] == pytest.approx(known.pop(arm["variant"]), abs=0.6)
    assert not known


def test_published_counts_are_complete_tables() -> None:
    published = files.read_json(files.DATA / "published" / "position_by_rank.json")
    assert {arm["experiment"] for arm in published["arms"]} == set(EXPERIMENTS.values())
    for arm in published["arms"]:
        counts = np.array(arm["counts"])
        assert counts.shape == (7, 7)
        assert (counts.sum(0) == arm["n"]).all()
        assert (counts.sum(1) == arm["n"]).all()
        for name in ("retest_tau", "other_order_tau", "longer_wins"):
            figure = arm[name]
            assert figure is None or figure["low"] < figure["value"] < figure["high"]
