"""Figures show the numbers that they are given, save to the same bytes, and leave no global state behind."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image

from starling_nb import bias, files, plots
from starling_nb.plots import PlotError, style

SHARES = {
    "naive": bias.share_from_counts([61, 60, 34, 19, 9, 6, 6]),
    "fair": bias.share_from_counts([20] * 7),
}
STEPS = np.arange(12)
TOLD = (0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1)
"""Shares of first places by shown place."""


def training() -> pd.DataFrame:
    parts = [
        pd.DataFrame({"step": STEPS, "method": method, "seed": seed, "reward": STEPS + seed, "kl": STEPS / 10})
        for method in ("APA", "PPO")
        for seed in (0, 2)
    ]
    table = pd.concat(parts, ignore_index=True)
    table.loc[table["method"] == "PPO", "kl"] = np.nan
    return table


def table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def ours() -> pd.DataFrame:
    row = {"model": "APA", "mt_bench": 2.6, "mt_bench_low": 2.3, "mt_bench_high": 2.9, "alpaca_eval": 61.0}
    return pd.DataFrame([row])


def published() -> pd.DataFrame:
    return pd.DataFrame(files.read_json(files.DATA / "published" / "results_table.json"))


def cells(k: int) -> pd.DataFrame:
    """Placements of a judge that never moves the first shown answer and shuffles the rest."""
    generator = np.random.default_rng(0)
    rows = [[0, *(1 + generator.permutation(k - 1)).tolist()] for _ in range(200)]
    return bias.placements(pd.DataFrame({"prompt_id": range(200), "ranking": rows}))


def follow_ups(name: str) -> pd.DataFrame:
    part = table(distance=[1, 2, 3], share=[0.6, 0.7, 0.9], low=[0.5, 0.6, 0.7], high=[0.7, 0.8, 1.0])
    return pd.concat([part.assign(by=by) for by in ("rank", "shown")], ignore_index=True).assign(name=name)


def cured(*judges: str) -> pd.DataFrame:
    """Four cures of which the first is no bias at all and the second no cure."""
    part = table(cure=["fair judge", "random order", "two passes", "correction"], value=[1.0, 0.6, 0.7, 0.9])
    part = part.assign(metric="share", low=part["value"] - 0.1, high=part["value"] + 0.1)
    return pd.concat([part.assign(judge=judge) for judge in judges], ignore_index=True)


HELD = {"small": 1.0, "large": 5.0}
PHASES = ["sampling", "update"]


def timed() -> pd.DataFrame:
    return table(profile=["small", "large"], sampling=[3.0, 0.1], update=[1.0, 9.9], hours=[0.5, 2.0], dollars=[0, 40])


def told() -> dict[str, dict[str, float]]:
    """The numbers of a run that its picture shows."""
    values = {f"02.first_place.{name}.{i}": share for name in ("naive", "final") for i, share in enumerate(TOLD, 1)}
    values |= {f"03.{name}.pairwise_accuracy": 0.7 for name in ("k_wise", "longest", "ceiling")}
    values |= {"04.apa.rubric": 0.3, "04.dpo.rubric": -0.1}
    return {id: {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 100} for id, value in values.items()}


def figures() -> dict[str, Figure]:
    effects = table(position=[0, 1], effect=[0.3, -0.3], low=[0.1, -0.5], high=[0.5, -0.1])
    ranks = effects.rename(columns={"effect": "mean_rank"}) + 1
    grid = table(method=["K", "pairs"] * 2, metric=["acc"] * 2 + ["tau"] * 2, value=[0.7, 0.6, 0.4, 0.3])
    held = table(
        component=["policy", "reward", "cache", "gradients"], when=["always", "always", "sampling", "learning"]
    )
    held = pd.concat([held.assign(profile=name, gigabytes=[4.0, 3.0, 2.0, size]) for name, size in HELD.items()])
    parts = table(part=["facts", "form"] * 2, when=["before"] * 2 + ["after"] * 2, value=[4.0, 5.0, 6.0, 5.5])
    return {
        "held": plots.memory_plan(held, {"small": 80.0, "large": 14.0}),
        "timed": plots.phase_plan(timed(), PHASES),
        "four": plots.four_panels(SHARES, "real logs"),
        "effects": plots.position_effects({"naive": effects}),
        "placements": plots.placements({"a": cells(7), "b": cells(7)}, "simulated"),
        "wide": plots.placements({"a": cells(12)}),
        "forest": plots.effects_forest({f"estimate {i}": effects for i in range(5)}, "real"),
        "panelled": plots.effects_forest({"one": pd.concat([effects.assign(panel=name) for name in "ab"])}),
        "distance": plots.agreement_by_distance({name: follow_ups(name) for name in ("K = 3", "K = 7")}, "real"),
        "cures": plots.cures(cured("a", "b", "c", "d"), "share", "simulated judges"),
        "cure": plots.cures(cured("a"), "share", references=("random order",)),
        "ranks": plots.mean_rank_by_position({"a": ranks, "b": ranks, "c": ranks}),
        "loss": plots.loss_curves(training().rename(columns={"reward": "loss"}), {"guessing": 1.42}),
        "curves": plots.training_curves(training()),
        "lines": plots.lines(effects, x="position", y="effect", xlabel="√KL"),
        "accuracy": plots.accuracy_table(grid.assign(low=grid["value"] - 0.1, high=grid["value"] + 0.1)),
        "parts": plots.before_after(parts.assign(low=parts["value"] - 1, high=parts["value"] + 1)),
        "radar": plots.radar({m: {"math": 3, "stem": i, "roleplay": 7} for i, m in enumerate("ab", 2)}),
        "results": plots.results_table(published(), ours()),
        "made_of": plots.composition(table(kind=["source"] * 2, name=["hh", "sharegpt"], count=[7400, 2500])),
        "story": plots.story(told(), "simulated"),
        "models": plots.mean_rank_by_model(table(model=["b", "a"], mean_rank=[4, 2.8], low=[3, 2], high=[5, 3])),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    return figures()


def test_a_notebook_shows_what_a_cell_returns(drawn: dict[str, Figure]) -> None:
    data, about = DisplayFormatter().format(drawn["models"])
    assert data["image/png"].startswith(b"\x89PNG")
    assert about["image/png"]["width"] == round(96 * drawn["models"].get_figwidth())


def test_who_cannot_see_a_figure_is_told_its_caption_or_its_titles(drawn: dict[str, Figure]) -> None:
    told = {name: DisplayFormatter().format(figure)[1]["image/png"]["alt"] for name, figure in drawn.items()}
    assert all(told.values())
    figure = plots.four_panels(SHARES)
    said = DisplayFormatter().format(figure)[1]["image/png"]["alt"]
    assert said == "naive, n = 195, χ² = 128, p < 0.001; fair, n = 140, χ² = 0, p = 1"
    figure.caption = "First places."
    assert DisplayFormatter().format(figure)[1]["image/png"]["alt"] == "First places."


@pytest.mark.parametrize(
    ("ground", "letters"),
    [("#0173b2", style.CARD), ("#de8f05", "black"), ("#029e73", "black"), ("#22262b", style.CARD)],
)
def test_letters_stand_out_from_the_bar_that_they_are_written_on(ground: str, letters: str) -> None:
    assert style.letters_on(ground) == letters


def test_every_figure_renders_with_nothing_clipped_at_the_edges(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        box, frame = figure.get_tightbbox(), figure.bbox_inches
        assert box.x0 > -0.02, name
        assert box.y0 > -0.02, name
        assert box.x1 < frame.x1 + 0.02, name
        assert box.y1 < frame.y1 + 0.02, name


def test_saved_bytes_are_stable_and_carry_their_provenance(tmp_path: Path) -> None:
    note = {"stage": "02", "key": "ä<b>", "seed": 3}
    plots.save(plots.four_panels(SHARES), tmp_path / "a.png", note)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        plots.save(plots.four_panels(SHARES), tmp_path / "b.png", dict(reversed(note.items())))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.info["Description"]) == note
        assert "Software" not in image.info
        assert image.convert("RGB").getpixel((0, 0)) == (251, 250, 247)


def test_callers_settings_and_global_figures_are_left_alone() -> None:
    before = dict(mpl.rcParams)
    figures()
    assert dict(mpl.rcParams) == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_four_panels_show_shares_their_test_and_the_fair_line(drawn: dict[str, Figure]) -> None:
    naive, fair = drawn["four"].axes
    heights = [bar.get_height() for bar in naive.patches]
    assert heights == pytest.approx([x / 195 for x in (61, 60, 34, 19, 9, 6, 6)])
    assert "χ² = 128, p < 0.001" in naive.get_title(loc="left")
    assert "p = 1" in fair.get_title(loc="left")
    assert naive.lines[-1].get_ydata()[0] == pytest.approx(1 / 7)
    assert naive.get_ylim() == fair.get_ylim()


def test_the_heat_map_shows_how_far_each_cell_is_from_fair_and_how_surely(drawn: dict[str, Figure]) -> None:
    ax = drawn["placements"].axes[0]
    texts = {(round(text.get_position()[1]), round(text.get_position()[0])): [] for text in ax.texts}
    for text in ax.texts:
        texts[round(text.get_position()[1]), round(text.get_position()[0])].append(text)
    assert len(texts) == 49
    first, interval = texts[0, 0]
    assert first.get_text() == "+86"  # always first: 100 % less 1/7
    assert interval.get_text() == "+84 to +86"
    assert {text.get_fontweight() for text in texts[0, 0][:1] + texts[0, 3][:1]} == {"bold"}
    assert texts[3, 0][0].get_text() == "−14"
    image = ax.images[0]
    assert image.norm(0.0) == pytest.approx(0.5)
    assert image.norm.vmax == -image.norm.vmin == pytest.approx(100 * 6 / 7)
    assert len(drawn["wide"].axes[0].texts) == 144  # no room for intervals
    even = plots.placements({"a": cells(7).assign(fair=lambda t: t["share"])})
    assert {text.get_text() for text in even.axes[0].texts[::2]} == {"0"}


def test_estimates_stand_side_by_side_and_one_panel_a_group(drawn: dict[str, Figure]) -> None:
    (ax,) = drawn["forest"].axes
    marks = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    assert len(marks) == 5
    assert len({float(x[0]) for x in marks}) == 5
    assert all(abs(x - place) < 0.5 for xs in marks for x, place in zip(xs, (1, 2), strict=True))
    assert drawn["forest"].legends[0].get_texts()[0].get_text() == "estimate 0"
    assert [panel.get_title(loc="left") for panel in drawn["panelled"].axes] == ["a", "b"]


def test_agreement_is_drawn_by_both_distances_against_chance(drawn: dict[str, Figure]) -> None:
    for ax, label in zip(drawn["distance"].axes, ("ranking", "shown list"), strict=True):
        assert ax.get_xlabel() == f"distance in the {label}"
        assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [0.5]
        assert sum(line.get_marker() == "o" for line in ax.lines) == 2


def test_cures_are_rows_and_what_they_are_measured_by_are_lines(drawn: dict[str, Figure]) -> None:
    panels = drawn["cures"].axes
    assert [ax.get_title(loc="left") for ax in panels if ax.get_visible()] == ["a", "b", "c", "d"]
    for ax in panels[:4]:
        assert ax.collections[-1].get_offsets()[:, 0].tolist() == [0.7, 0.9]
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [1.0, 0.6]
        assert ax.get_xlim() == panels[0].get_xlim()
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["two passes", "correction"]
    assert {text.get_text() for text in panels[1].get_yticklabels()} == {""}
    rows = [text.get_text() for text in drawn["cure"].axes[0].get_yticklabels()]
    assert rows == ["fair judge", "two passes", "correction"]


def test_what_is_fair_may_differ_by_position_and_the_p_value_may_be_given() -> None:
    ragged = SHARES["naive"].assign(fair=[0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05], p=0.25)
    (ax,) = plots.four_panels({"a": ragged}).axes
    fair = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert fair == [0.2, 0.2, 0.2, 0.2, 0.1, 0.05, 0.05]
    assert ax.get_title(loc="left") == "a\nn = 195, p = 0.25"


def test_training_curves_average_seeds_and_leave_out_what_is_missing(drawn: dict[str, Figure]) -> None:
    reward, kl = drawn["curves"].axes
    np.testing.assert_allclose(reward.lines[0].get_ydata(), STEPS + 1)
    assert [len(line.get_xdata()) for line in kl.lines if len(line.get_xdata())] == [12]
    assert [text.get_text() for text in drawn["curves"].legends[0].get_texts()] == ["APA", "PPO"]


def test_our_rows_are_set_apart_from_published_ones(drawn: dict[str, Figure]) -> None:
    ax = drawn["results"].axes[0]
    bars = [bar for bar in ax.patches if bar.get_hatch()]
    assert [bar.get_width() for bar in bars] == [2.6]
    gap = bars[0].get_y() - max(bar.get_y() for bar in ax.patches if not bar.get_hatch())
    assert gap > 1.5
    labels = [text.get_text() for text in drawn["results"].legends[0].get_texts()]
    assert labels == ["published", "ours: other judge, other scale"]
    mmlu = [text.get_text() for text in drawn["results"].axes[2].texts]
    assert mmlu[0] == "–"
    assert mmlu[-1] == "–"
    assert mmlu[2] == "63.9"


def test_a_plan_of_memory_adds_up_each_phase_and_marks_the_card(drawn: dict[str, Figure]) -> None:
    small, large = drawn["held"].axes
    assert [text.get_text() for text in small.texts] == ["9 GB", "8 GB"]
    assert [text.get_text() for text in large.texts] == ["9 GB", "12 GB"]
    assert ([len(ax.lines) for ax in (small, large)], large.lines[0].get_xdata()[0]) == ([0, 1], 14.0)
    assert 9 < small.get_xlim()[1] < 20
    reward = [bar for bar in large.patches if bar.get_width() == 3]
    assert [bar.get_x() for bar in reward] == [4, 4]


def test_a_plan_of_time_is_shares_with_the_whole_beside_them(drawn: dict[str, Figure]) -> None:
    (ax,) = drawn["timed"].axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([75, 1, 25, 99])
    told = [text.get_text() for text in ax.texts]
    assert told == ["75 %", "25 %", "99 %", "4 s a set, 0.5 h in all", "10 s a set, 2.0 h in all, $40"]


def test_a_run_is_told_by_its_judge_its_reward_model_and_its_policies(drawn: dict[str, Figure]) -> None:
    places, accuracy, quality = drawn["story"].axes
    assert "simulated" in places.get_title(loc="left")
    assert [bar.get_height() for bar in places.patches] == [*TOLD, *TOLD]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["K-wise", "longest answer"]
    assert quality.collections[-1].get_offsets().tolist() == [[0.3, 0], [-0.1, 1]]


def test_models_are_sorted_best_first(drawn: dict[str, Figure]) -> None:
    assert [text.get_text() for text in drawn["models"].axes[0].get_yticklabels()] == ["a", "b"]


def test_more_methods_than_colours_and_unknown_intervals_can_be_drawn() -> None:
    many = table(method=[f"m{i}" for i in range(13)], metric=["acc"] * 13, value=list(range(13)))
    figure = plots.accuracy_table(many.assign(low=np.nan, high=np.nan))
    assert len(figure.axes[0].get_yticklabels()) == 13
    steps = pd.concat([table(step=[0, 1], method=[f"m{i}"] * 2, reward=[0.0, i]) for i in range(13)])
    assert len(plots.training_curves(steps.reset_index(drop=True)).legends[0].get_texts()) == 13


def test_tables_that_cannot_be_drawn_are_refused() -> None:
    for call, match in [
        (lambda: plots.four_panels({}), "nothing to draw"),
        (lambda: plots.four_panels({"a": table(position=[0])}), "lacks share, low, high, n"),
        (lambda: plots.loss_curves(table(step=[], loss=[])), "is empty"),
        (lambda: plots.placements({"a": SHARES["fair"]}), "lacks rank"),
        (lambda: plots.placements({}), "nothing to draw"),
        (lambda: plots.cures(cured("a"), "tau"), "no metric 'tau' in the table: choose from share"),
        (lambda: plots.cures(SHARES["fair"], "share"), "lacks judge, cure"),
        (lambda: plots.effects_forest({}), "nothing to draw"),
        (lambda: plots.agreement_by_distance({}), "nothing to draw"),
        (lambda: plots.agreement_by_distance({"a": SHARES["fair"]}), "lacks by, distance"),
        (lambda: plots.story({}, "simulated"), "no number 02.first_place.naive.1: run its notebook"),
        (lambda: plots.radar({"a": {"x": 1}, "b": {"y": 1}}), "same categories"),
        (
            lambda: plots.before_after(table(part="aa", when="bb", value=[1, 2], low=[0, 0], high=[2, 2])),
            "two rows",
        ),
        (lambda: plots.training_curves(table(step=[1], method=["a"])), "nothing to draw"),
    ]:
        with pytest.raises(PlotError, match=match):
            call()
