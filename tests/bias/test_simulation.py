"""Simulated judges: what was planted comes back, a fair one is fair, and equal seeds give equal rankings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starling_nb import files
from starling_nb.bias import BiasError, position_effects
from starling_nb.bias.simulation import JUDGES, Asking, asking, rankings, shown_orders, tau, world
from starling_nb.errors import StarlingError
from starling_nb.nectar import orders
from starling_nb.nectar.ranking import VARIANTS, standing_order

N = 4000
ROWS = np.arange(N)[:, None]


def shown(*names: str) -> np.ndarray:
    return files.rng(0, "shown", *names).random((N, 7)).argsort(1)


def mean_ranks(order: np.ndarray) -> np.ndarray:
    """By place, less what is fair."""
    found: np.ndarray = order.argsort(1).mean(0) - 3
    return found


@pytest.mark.parametrize("variant", ["naive", "final"])
def test_planted_effects_come_back_where_answers_are_equally_good(variant: str) -> None:
    asked, places = asking(variant), shown(variant)
    order = JUDGES["plackett_luce"](np.zeros((N, 7)), asked, files.rng(0, variant))
    found = position_effects(rankings(order, places), models=False).effects
    assert np.abs((found["effect"] - asked.position) / found["se"]).max() < 4
    assert found["se"].max() < 0.04


def test_planted_effects_come_back_at_given_quality_and_are_shrunk_without_it() -> None:
    asked, places, about = asking("naive"), shown("conditional"), world(N, files.rng(0, "conditional"))
    quality = about.quality[ROWS, places]
    table = rankings(JUDGES["plackett_luce"](quality, asked, files.rng(1, "judge")), places, about.model)
    given = position_effects(table, quality=quality)
    assert np.abs((given.effects["effect"] - asked.position) / given.effects["se"]).max() < 4
    assert given.slope is not None
    assert given.slope[0] == pytest.approx(1, abs=4 * given.slope[1])
    marginal = position_effects(table).effects["effect"]
    assert np.corrcoef(marginal, asked.position)[0, 1] > 0.99
    assert marginal.abs().max() < 0.5 * np.abs(asked.position).max()


@pytest.mark.parametrize("judge", sorted(set(JUDGES) - {"fair"}))
def test_every_judge_looks_at_places_and_freed_of_that_does_not(judge: str) -> None:
    """The fair mean of N ranks of seven has a standard error of 2 / sqrt(N)."""
    about, places, asked = world(N, files.rng(0, "every")), shown("every"), asking("naive")
    quality = about.quality[ROWS, places]
    biased = mean_ranks(JUDGES[judge](quality, asked, files.rng(0, judge)))
    fair = mean_ranks(JUDGES[judge](quality, asked.fair, files.rng(0, judge)))
    assert np.corrcoef(biased, asked.position)[0, 1] < -0.95
    assert np.abs(biased).max() > 0.3
    assert np.abs(fair).max() < 4 * 2 / np.sqrt(N)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_fair_judge_is_fair_however_it_is_asked(variant: str) -> None:
    about, places = world(N, files.rng(0, "fair")), shown(variant)
    order = JUDGES["fair"](about.quality[ROWS, places], asking(variant), files.rng(0, variant))
    assert np.abs(mean_ranks(order)).max() < 4 * 2 / np.sqrt(N)


def test_ties_settled_at_random_bias_less_than_ties_settled_by_one_order() -> None:
    quality = world(N, files.rng(0, "ties"), spread=1).quality[ROWS, shown("ties")]
    without_bonus = asking("naive").fair
    found = {
        ties: mean_ranks(JUDGES["pairwise_ties"](quality, replace(without_bonus, ties=ties), files.rng(0, "ties")))
        for ties in ("standing", "shown", "", "random", "drawn")
    }
    size = {ties: float(np.sqrt((ranks**2).mean())) for ties, ranks in found.items()}
    assert size["drawn"] < 0.1 < size["random"] < size[""] < size["shown"]
    assert size["standing"] > 0.3
    assert np.argsort(found["standing"]).tolist()[0] == standing_order(7)[0]
    assert np.corrcoef(found["shown"], np.arange(7))[0, 1] > 0.99


@pytest.mark.parametrize("judge", JUDGES)
def test_equal_seeds_give_equal_rankings_and_asking_changes_no_draw(judge: str) -> None:
    quality = world(200, files.rng(0, "seeds")).quality
    ends, found = [], []
    for asked, seed in ((asking("naive"), 0), (asking("naive"), 0), (asking("naive").fair, 0), (asking("naive"), 1)):
        generator = files.rng(seed, "judge")
        found.append(JUDGES[judge](quality, asked, generator))
        ends.append(generator.random())
    assert (found[0] == found[1]).all()
    assert (found[0] != found[3]).any()
    assert (np.sort(found[0], axis=1) == np.arange(7)).all()
    assert ends[0] == ends[1] == ends[2] != ends[3]


def test_without_bias_the_judges_are_about_equally_right() -> None:
    about = world(N, files.rng(0, "right"))
    found = [
        tau(-judge(about.quality, asking("naive").fair, files.rng(0, name)).argsort(1), about.quality)
        for name, judge in JUDGES.items()
    ]
    assert max(found) - min(found) < 0.03
    assert min(found) > 0.7


def test_interaction_decides_more_where_contrast_is_large() -> None:
    """With no effect of the place but contrast, the first answer is more often first and more often last."""
    asked = Asking(np.zeros(7), np.array([2.0, *[1.0] * 6]), "drawn")
    ranks = JUDGES["interaction"](np.zeros((N, 7)), asked, files.rng(0, "contrast")).argsort(1)
    ends = np.isin(ranks, (0, 6)).mean(0)
    assert ends[0] > 0.4
    assert ends[1:].max() < 2 / 7
    assert abs(ranks[:, 0].mean() - 3) < 0.35


def test_a_world_is_as_it_was_asked_for() -> None:
    about = world(N, files.rng(0, "world"), spread=2, unseen=0.4, front=1.5)
    flat, quality = about.features.reshape(-1, 12), about.quality.ravel()
    rest = quality - flat @ about.weights
    assert rest.var() == pytest.approx(4 * 0.4, rel=0.05)
    assert about.weights @ about.weights == pytest.approx(4 * 0.6)
    assert flat.var(0) == pytest.approx(np.ones(12), rel=0.15)
    assert (np.diff(np.sort(about.model, axis=1), axis=1) > 0).all()
    first, last = about.quality[:, 0].mean(), about.quality[:, -1].mean()
    assert first > last + 0.5
    other = world(N, files.rng(0, "world"), spread=2, unseen=0.4, front=0)
    assert abs(other.quality[:, 0].mean() - other.quality[:, -1].mean()) < 4 * 2 * np.sqrt(2 / N)


@pytest.mark.parametrize(("design", "passes"), [("two_pass", 2), ("cyclic", 2), ("cyclic", 5), ("cyclic", 7)])
def test_orders_are_those_of_the_designs(design: str, passes: int) -> None:
    models = [str(i) for i in range(7)]
    ours = np.array(list(orders.orders(design, [(str(i), models) for i in range(20)], 3, passes)))
    first = ours[:, 0]
    assert (shown_orders(design, passes, first, np.tile(np.arange(7), (20, 1)), 3) == ours.transpose(1, 0, 2)).all()


def test_balanced_orders_balance_the_models() -> None:
    about = world(300, files.rng(0, "balanced"))
    places = shown_orders("balanced", 1, about.model * 0, about.model, 0)[0]
    stood = np.zeros((10, 7))
    np.add.at(stood, (about.model[np.arange(300)[:, None], places], np.arange(7)), 1)
    assert np.ptp(stood, axis=1).max() <= 4
    drawn = np.zeros((10, 7))
    np.add.at(drawn, (about.model[np.arange(300)[:, None], shown("balanced")[:300]], np.arange(7)), 1)
    assert np.ptp(drawn, axis=1).max() > 8


def test_tables_name_the_model_that_stood_there() -> None:
    about = world(5, files.rng(0, "table"))
    places = shown_orders("two_pass", 2, shown("table")[:5], about.model, 0)
    table = rankings(places * 0 + np.arange(7), places, about.model)
    assert len(table) == 10
    assert table.prompt.tolist() == [*range(5), *range(5)]
    assert table.model is not None
    assert (table.model[0] == about.model[0, places[0, 0]]).all()
    assert (table.model[5] == table.model[0][::-1]).all()


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(BiasError, match="choose one of naive"):
        asking("nave")
    with pytest.raises(BiasError, match="as many models"):
        world(5, files.rng(0), models=5)
    with pytest.raises(BiasError, match="unknown tie rule"):
        JUDGES["pairwise_ties"](np.zeros((2, 3)), Asking(np.zeros(3), np.ones(3), "coin"), files.rng(0))
    with pytest.raises(StarlingError, match="2 to K"):
        shown_orders("cyclic", 9, np.zeros((2, 7), dtype=int), np.zeros((2, 7), dtype=int), 0)
