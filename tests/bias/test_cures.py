"""Cures at equal tokens: what they cost is counted, what they cure is cured, and a fair judge needs none."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from starling_nb import files
from starling_nb.bias import BiasError
from starling_nb.bias.cures import CURES, FAIR, RANDOM, Cure, compare, give_labels, measured, measures, tokens
from starling_nb.bias.simulation import JUDGES, asking, shown_orders, world
from starling_nb.nectar import dataset
from starling_nb.nectar.candidates import Candidates, Conversation
from starling_nb.nectar.ranking import build

COLUMNS = ["judge", "cure", "metric", "value", "low", "high", "prompts", "labels", "tokens"]
COSTS = {"naive": 800.0, "final": 1000.0, "random_tie_break": 1000.0}
SOME = ["fixed order", "position term", "two passes", "cyclic 7", "corrected rankings"]


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return compare(300 * 800, ["plackett_luce", "fair"], SOME, 16, held_out=300, costs=COSTS)


def cell(found: pd.DataFrame, judge: str, cure: str, metric: str) -> pd.Series:
    rows = found[(found.judge == judge) & (found.cure == cure) & (found.metric == metric)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_table_is_tidy_and_no_cure_spends_more_than_it_has(found: pd.DataFrame) -> None:
    assert found.columns.tolist() == COLUMNS
    ones = np.ones((1, 9))
    assert len(found) == 2 * (len(SOME) + 2) * len(measures(ones, ones, ones))
    assert found[["value", "low", "high"]].notna().all().all()
    assert (found.low <= found.high).all()
    assert found.tokens.between(300 * 800 - 7 * 1000, 300 * 800).all()
    passes = found.cure.map({name: cure.passes for name, cure in CURES.items()}).fillna(1)
    assert (found.labels == found.prompts * passes).all()
    assert cell(found, "fair", "cyclic 7", "accuracy").prompts == 300 // 7


def test_equal_seeds_give_equal_tables() -> None:
    one, same, other = (compare(40 * 800, ["thurstone"], [], 3, seed, held_out=50, costs=COSTS) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert not one["value"].equals(other["value"])


def test_a_fair_judge_needs_no_cure(found: pd.DataFrame) -> None:
    fair = found[found.judge == "fair"].set_index(["cure", "metric"])
    assert fair.loc[("position term", "share_of_random"), "value"] == pytest.approx(1, abs=0.05)
    assert fair.loc[("fixed order", "position_effect"), "value"] == 0
    assert fair.loc[(RANDOM, "equivalent_share"), "value"] == 1
    assert fair.loc[("two passes", "share_of_random"), "high"] < 0.9
    assert fair.loc[("fixed order", "tilt"), "low"] < 0.01


def test_what_is_cured_is_cured(found: pd.DataFrame) -> None:
    residual = {name: cell(found, "plackett_luce", name, "position_effect") for name in [*SOME, RANDOM, FAIR]}
    assert residual[FAIR].value == 0
    assert residual[RANDOM].low > 0.5
    assert residual["two passes"].high < 0.5 * residual[RANDOM].low
    assert residual["corrected rankings"].high < 0.5 * residual[RANDOM].low
    assert residual["cyclic 7"].high < 0.15
    assert residual["position term"].value == residual[RANDOM].value


def test_the_position_term_gives_back_scale_and_labels(found: pd.DataFrame) -> None:
    random, freed = (cell(found, "plackett_luce", name, "scale") for name in (RANDOM, "position term"))
    assert random.high < 0.95
    assert freed.low > 0.97
    assert cell(found, "plackett_luce", "position term", "share_of_random").low > 1


def test_only_a_fixed_order_turns_the_reward_model_aside(found: pd.DataFrame) -> None:
    fixed, random = (cell(found, "plackett_luce", name, "tilt") for name in ("fixed order", RANDOM))
    assert fixed.low > 0.05
    assert abs(random.value) < 0.25 * fixed.value


def test_better_models_at_the_back_turn_it_as_far() -> None:
    """The traits that gain are now those of the poorer models, and the true scale suffers."""
    about = {"cures": ["fixed order"], "replicates": 8, "held_out": 200, "costs": COSTS}
    back = compare(200 * 800, ["plackett_luce"], front=-1.0, **about)
    assert cell(back, "plackett_luce", "fixed order", "tilt").low > 0.05
    assert cell(back, "plackett_luce", "fixed order", "scale").high < 0.85


def test_more_passes_make_better_labels_but_fewer(found: pd.DataFrame) -> None:
    truth = {name: cell(found, "plackett_luce", name, "truth_tau").value for name in (RANDOM, "two passes", "cyclic 7")}
    assert truth[RANDOM] < truth["two passes"] < truth["cyclic 7"]
    assert cell(found, "plackett_luce", "cyclic 7", "equivalent_share").high < 0.5


def test_measures_compare_means() -> None:
    own, random, fair = (
        np.array([[-0.1, 2, 3, 4, 0.7, 0.02, 0.5, 0.1, 0.3]]),
        np.full((1, 9), 0.6),
        np.full((1, 9), 0.01),
    )
    table = measures(own, random, fair)
    assert table["position_effect"] == 0
    assert table["accuracy_gain"] == pytest.approx(0.1)
    assert table["equivalent_share"] == pytest.approx(0.5)
    assert table["share_of_random"] == pytest.approx(30)
    assert table["scale"] == pytest.approx(50)
    assert table["variance"] == pytest.approx(30)


def test_merged_labels_are_those_of_the_data_set() -> None:
    about, cure = world(50, files.rng(0, "merged")), CURES["cyclic 3"]
    first = files.rng(0, "first").random((50, 7)).argsort(1)
    shown = shown_orders(cure.design, cure.passes, first, about.model, 0)
    label = give_labels(cure, JUDGES["plackett_luce"], asking("naive"), about.quality, shown, files.rng(0, "judge"))
    for prompt in range(50):
        ranks = []
        for number in range(3):
            order = [shown[number, prompt, place] for place in label.order[number, prompt]]
            ranks.append([order.index(answer) for answer in range(7)])
        assert np.argsort(label.ranks[prompt]).tolist() == dataset.merged_order(ranks)


def test_tokens_are_those_of_request_and_reply() -> None:
    prompt = Conversation("p", [{"role": "user", "content": "Which is the highest mountain?"}], ["made up"])
    item = Candidates(prompt, ["a", "b", "c"], ["Everest.", "I do not know.", "K2, surely."])
    asked = sum(len(message["content"]) for message in build(prompt.messages, item.answers, "naive", 0, "p").messages)
    reply = len("Conversation: good-natured\n\nFinal ranking: [[A, B, C]]")
    assert tokens([item], "naive") == -(-asked // 4) + -(-reply // 4)
    pairs = "\n".join(f"({a}, {b}): {a}" for a, b in itertools.combinations("ABC", 2))
    longer = sum(len(message["content"]) for message in build(prompt.messages, item.answers, "final", 0, "p").messages)
    assert tokens([item], "final") == -(-longer // 4) + -(-(reply + len(pairs) + 2) // 4)
    with pytest.raises(BiasError, match="at least one"):
        tokens([], "naive")


def test_real_prompts_cost_more_where_the_judge_is_told_more() -> None:
    costs = measured()
    assert costs["naive"] < costs["individual_scores"] < costs["pairwise"] < costs["final"] < costs["random_tie_break"]
    assert measured(4)["naive"] < costs["naive"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(BiasError, match="unknown: hope"):
        compare(1e5, cures=["hope"], costs=COSTS)
    with pytest.raises(BiasError, match="take at least 2"):
        compare(1e6, ["fair"], [], 1, costs=COSTS)
    with pytest.raises(BiasError, match="20 prompts"):
        compare(1e4, ["fair"], [], costs=COSTS)
    cure = Cure(label="wish")
    with pytest.raises(BiasError, match="unknown kind of label"):
        give_labels(cure, JUDGES["fair"], asking("naive"), np.zeros((1, 7)), np.zeros((1, 1, 7), int), files.rng(0))
