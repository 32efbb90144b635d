"""Position effects: planted ones come back, fair judges pass, GPT-4's logs show what their first places hide."""

from __future__ import annotations

import choix
import numpy as np
import pandas as pd
import pytest
from bias.worlds import CENTRED, MODELS, PLANTED, real_logs, simulate

from starling_nb import bias
from starling_nb.bias import BiasError


def test_planted_effects_are_recovered_within_their_intervals() -> None:
    covered = []
    for seed in range(25):
        result = bias.position_effects(simulate(150, PLANTED, seed=seed, spread=0.0))
        inside = (result.effects["low"] <= CENTRED) & (result.effects["high"] >= CENTRED)
        covered.append(inside.mean())
        assert result.p < 1e-6
        assert result.effects["effect"].sum() == pytest.approx(0, abs=1e-9)
    assert np.mean(covered) > 0.88


def test_a_fair_judge_is_called_fair_about_as_often_as_promised() -> None:
    p = [bias.position_effects(simulate(100, np.zeros(7), seed=s, repeats=2)).p for s in range(80)]
    assert np.mean(np.array(p) < 0.05) <= 0.15
    assert np.mean(p) == pytest.approx(0.5, abs=0.15)


def test_repeated_verdicts_do_not_pass_for_new_evidence() -> None:
    once = simulate(60, PLANTED)
    thrice = pd.concat([once] * 3, ignore_index=True)
    a, b = bias.position_effects(once), bias.position_effects(thrice)
    np.testing.assert_allclose(a.effects["effect"], b.effects["effect"], atol=1e-3)
    np.testing.assert_allclose(a.effects["se"], b.effects["se"], rtol=0.02)


def test_without_models_the_fit_is_plain_plackett_luce() -> None:
    table = simulate(120, PLANTED)
    table["models"] = [["one"] * 7] * len(table)
    ours = bias.position_effects(table).effects["effect"]
    theirs = choix.ilsr_rankings(7, table["ranking"].tolist())
    np.testing.assert_allclose(ours, theirs - theirs.mean(), atol=1e-4)


def test_rare_models_share_an_effect_and_ragged_rows_fit() -> None:
    table = pd.concat([simulate(60, PLANTED), simulate(60, PLANTED[:3], seed=5)], ignore_index=True)
    table["models"] = [
        [f"rare-{i}" if place == i % 3 else name for place, name in enumerate(row)]
        for i, row in enumerate(table["models"])
    ]
    result = bias.position_effects(table)
    assert result.n == 120
    assert result.df == 6
    assert np.isfinite(result.effects.to_numpy()).all()


def test_a_judge_that_only_sees_places_gives_finite_numbers() -> None:
    table = simulate(40, PLANTED)
    table["ranking"] = [list(range(7))] * len(table)
    result = bias.position_effects(table)
    assert np.isfinite(result.effects.to_numpy()).all()
    assert result.p < 1e-12
    assert result.effects["effect"].is_monotonic_decreasing


def test_bad_tables_are_refused_with_a_reason() -> None:
    good = simulate(20, PLANTED)
    fixed = good.assign(models=[MODELS[:7].tolist()] * len(good))
    for call, match in [
        (lambda: bias.first_place_share(pd.DataFrame({"ranking": []})), "no rankings"),
        (lambda: bias.first_place_share(pd.DataFrame({"order": [[0, 1]]})), "lack ranking"),
        (lambda: bias.first_place_share(pd.DataFrame({"ranking": [[0, 1], [1, 2]]})), "row 1"),
        (lambda: bias.mean_rank(good.drop(columns="prompt_id")), "lack prompt_id"),
        (lambda: bias.position_effects(good.assign(models=[["a"]] * len(good))), "names 1 models"),
        (lambda: bias.position_effects(fixed), "Shuffle the answers"),
        (lambda: bias.position_effects(good.assign(prompt_id="same")), "two prompts"),
        (lambda: bias.share_from_counts([0, 0]), "never shown"),
    ]:
        with pytest.raises(BiasError, match=match):
            call()


def test_where_strong_models_stand_in_front_only_the_adjusted_estimate_is_right() -> None:
    table = simulate(400, PLANTED, spread=0.0, front=1.0)
    fair = simulate(400, 0 * PLANTED, spread=0.0, front=1.0)
    adjusted, naive = (bias.position_effects(table, models=models).effects for models in (True, False))
    assert ((adjusted["low"] <= CENTRED) & (adjusted["high"] >= CENTRED)).mean() >= 6 / 7
    assert np.abs(naive["effect"] - CENTRED).max() > 4 * naive["se"].max()
    assert bias.position_effects(fair, models=False).p < 1e-6 < 0.01 < bias.position_effects(fair).p


def test_what_is_left_out_shrinks_the_effect_and_a_term_for_it_brings_it_back() -> None:
    """Plackett-Luce is not collapsible: with answers of sd 1 the marginal effect is about .7 of the conditional one."""
    table = simulate(900, PLANTED, spread=1.0)
    marginal, conditional = bias.position_effects(table), bias.position_effects(table, quality="quality")
    shrunk = float(marginal.effects["effect"] @ CENTRED / (CENTRED @ CENTRED))
    assert 0.6 < shrunk < 0.82
    assert marginal.estimand == "marginal"
    assert conditional.estimand == "conditional"
    assert float(conditional.effects["effect"] @ CENTRED / (CENTRED @ CENTRED)) == pytest.approx(1, abs=0.08)
    assert conditional.slope is not None
    assert conditional.slope[0] == pytest.approx(1, abs=4 * conditional.slope[1])
    array = np.array(table["quality"].tolist())
    by_array = bias.position_effects(table, quality=array + np.arange(900)[:, None])
    np.testing.assert_allclose(by_array.effects, conditional.effects, atol=1e-8)


def test_the_first_choice_alone_knows_less() -> None:
    table = simulate(300, PLANTED, spread=0.0)
    whole, first = bias.position_effects(table), bias.position_effects(table, top=1)
    assert ((first.effects["low"] <= CENTRED) & (first.effects["high"] >= CENTRED)).mean() >= 5 / 7
    assert first.effects["se"].mean() > 1.3 * whole.effects["se"].mean()
    pd.testing.assert_frame_equal(bias.position_effects(table, top=7).effects, whole.effects)
    with pytest.raises(BiasError, match="top = 0"):
        bias.position_effects(table, top=0)


def test_two_prompts_are_compared_on_the_prompts_they_share() -> None:
    """Both judge the same answers in the same orders: what is common to both cancels in the paired error."""
    generator, rows = np.random.default_rng(3), []
    for prompt in range(300):
        quality, noise = 1.5 * generator.normal(size=7), generator.gumbel(size=7)
        for judge, effects in (("one", PLANTED), ("other", 0.2 * PLANTED)):
            order = np.argsort(-(quality + effects + noise + 0.2 * generator.normal(size=7)))
            rows.append((judge, prompt, MODELS[:7][generator.permutation(7)].tolist(), order.tolist()))
    table = pd.DataFrame(rows, columns=["judge", "prompt_id", "models", "ranking"])
    one, other = (bias.position_effects(table[table.judge == name]) for name in ("one", "other"))
    gap = bias.difference(one, other)
    alone = np.sqrt(one.effects["se"] ** 2 + other.effects["se"] ** 2)
    assert (gap.effects["se"] < 0.75 * alone).all()
    assert gap.p < 1e-6
    assert bias.difference(one, one).p == pytest.approx(1.0)
    with pytest.raises(BiasError, match="no prompt in common"):
        bias.difference(one, bias.position_effects(simulate(50, PLANTED)))
    with pytest.raises(BiasError, match="positions cannot be compared"):
        bias.difference(one, bias.position_effects(simulate(50, PLANTED[:4])))


def test_a_fit_that_begins_on_a_sample_ends_at_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    table = simulate(400, PLANTED)
    whole = bias.position_effects(table)
    monkeypatch.setattr("starling_nb.bias.plackett_luce.SAMPLE", 50)
    monkeypatch.setattr("starling_nb.bias.plackett_luce.BLOCK", 1000)
    begun = bias.position_effects(table)
    np.testing.assert_allclose(begun.effects, whole.effects, atol=1e-6)
    assert begun.wald == pytest.approx(whole.wald)


def test_what_to_know_before_the_numbers_are_believed_is_flagged() -> None:
    good = simulate(80, PLANTED)
    assert bias.position_effects(good).flags == ()
    assert "only 12 prompts" in bias.position_effects(good[:12]).flags[0]
    assert "15 parameters for 40 rankings" in bias.position_effects(good[:40]).flags[0]
    always = good.assign(ranking=[[0, *np.random.default_rng(i).permutation(range(1, 7))] for i in range(80)])
    assert any("position always wins" in flag for flag in bias.position_effects(always).flags)
    led = [
        sorted(order, key=lambda i, row=row: row[i] != "a")
        for row, order in zip(good.models, good.ranking, strict=True)
    ]
    found = bias.position_effects(good.assign(ranking=led))
    assert any("model always wins" in flag for flag in found.flags)
    assert np.isfinite(found.effects.to_numpy()).all()


def test_a_model_that_never_moves_is_refused_where_it_hides_a_position() -> None:
    table = simulate(80, PLANTED)
    stuck = table.assign(models=[["a", *("b" if name == "a" else name for name in row[1:])] for row in table.models])
    with pytest.raises(BiasError, match="cannot be told apart"):
        bias.position_effects(stuck)
    assert np.isfinite(bias.position_effects(stuck, models=False).effects.to_numpy()).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"ranking": [[0, 1, 1, 3, 4, 5, 6]]}, "row 0"),
        ({"ranking": [[0, 1, float("nan"), 3, 4, 5, 6]]}, "row 0"),
        ({"ranking": [None]}, r"1 of 20 rows \(the first is row 0\) have no ranking"),
        ({"ranking": ["3142560"]}, "row 0"),
        ({"models": [["a", "b", None, "d", "e", "f", "g"]]}, "have no model"),
        ({"models": ["abcdefg"]}, "names 0 models"),
        ({"prompt_id": [None]}, "no prompt_id"),
        ({"quality": [[1.0, 2.0]]}, "has 2 numbers in quality"),
        ({"quality": [[float("nan")] * 7]}, "not finite"),
    ],
)
def test_one_bad_cell_is_named(change: dict[str, list[object]], match: str) -> None:
    table = simulate(20, PLANTED)
    for column, (value,) in change.items():
        table[column] = [value, *table[column][1:]]
    with pytest.raises(BiasError, match=match):
        bias.position_effects(table, quality="quality")


def test_failed_rankings_are_left_out_by_name() -> None:
    table = simulate(20, PLANTED)
    table["ranking"] = [None, [], float("nan"), *table["ranking"][3:]]
    assert len(bias.valid(table)) == 17
    assert np.isfinite(bias.position_effects(bias.valid(table)).wald)
    with pytest.raises(BiasError, match="lack ranking"):
        bias.valid(table.drop(columns="ranking"))


# --- the authors' GPT-4 rankings --------------------------------------------------------


def test_the_real_logs_show_what_the_first_place_hides() -> None:
    arms = real_logs()
    naive, published = bias.position_effects(arms["naive"]), bias.position_effects(arms["random_tie_break"])
    assert bias.first_place_test(arms["naive"])[1] < 1e-10
    assert naive.spread == pytest.approx(1.24, abs=0.2)
    assert naive.p < 1e-8
    # The published arm's first places pass for fair; its whole rankings do not.
    assert bias.first_place_test(arms["random_tie_break"])[1] > 0.05
    assert published.spread == pytest.approx(0.76, abs=0.1)
    assert published.p < 1e-4
    assert bias.order_test(arms["random_tie_break"], draws=999).mean_rank[1] < 0.01
    last = published.effects.iloc[6]
    assert last["effect"] == pytest.approx(-0.54, abs=0.1)
    assert last["high"] < -0.2
    assert bias.mean_rank(arms["random_tie_break"])["mean_rank"][6] == pytest.approx(3.74, abs=0.15)


def test_ranks_made_from_another_order_show_no_effect() -> None:
    table = real_logs()["naive"]
    placebo = bias.position_effects(table.assign(ranking=[np.argsort(row) for row in table["nectar_ranks"]]))
    assert placebo.p > 0.05
    assert placebo.spread < 0.4
