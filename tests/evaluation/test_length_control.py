from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
from scipy import special

from benchmarks.length_control import JUDGES, bundle, judged
from starling_nb.evaluation import EvaluationError, alpaca_eval
from starling_nb.evaluation.alpaca_eval import formats as alpaca_files
from starling_nb.evaluation.alpaca_eval import length_control
from starling_nb.evaluation.alpaca_eval.length_control import Reference, length_controlled_win_rate

ROWS = 120
V1, NOREG, MINIMAL = "length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"

# Computed by get_length_controlled_winrate of alpaca-eval 0.6.6 (scikit-learn 1.9.1) on the very tables of `case`:
# length-controlled win rate, its standard error, and the coefficients of length, difficulty and model.
OFFICIAL = [
    ("likes long answers", 7, V1, 32.42818969510915, 0.455450757775834, -0.980641332, 0.215548340, -0.766452867),
    ("likes long answers", 7, NOREG, 32.24358885384146, 0.5836669829157535, -1.017581655, 0.278819742, -0.787870824),
    ("likes long answers", 7, MINIMAL, 32.02268596018082, 0.0, -1.015368071, 0.0, -0.752729445),
    ("likes short answers", 8, V1, 57.80678331736851, 0.42126982587873235, 0.300591424, -0.208709767, 0.330962811),
    ("likes short answers", 8, NOREG, 60.93956470015953, 0.436270099854357, 0.738495591, -0.221661076, 0.463336793),
    ("likes short answers", 8, MINIMAL, 61.00246983142632, 0.0, 0.767520948, 0.0, 0.447416037),
]


def case(folder: Path, judge: str, seed: int) -> tuple[Reference, pd.DataFrame]:
    """A simulated reference and annotations of it, every tenth without a preference."""
    reference = bundle(folder, seed, ROWS)
    table = judged(reference, JUDGES[judge], seed)
    table.loc[table.index[::10], "preference"] = math.nan
    return reference, table


@pytest.mark.parametrize(("judge", "seed", "model", "rate", "error", "length", "difficulty", "quality"), OFFICIAL)
def test_figures_are_those_of_the_official_code(
    tmp_path: Path,
    judge: str,
    seed: int,
    model: Any,
    rate: float,
    error: float,
    length: float,
    difficulty: float,
    quality: float,
) -> None:
    reference, table = case(tmp_path, judge, seed)
    found = length_controlled_win_rate(table, reference, model=model)
    assert found.win_rate == pytest.approx(rate, abs=1e-6)
    assert found.standard_error == pytest.approx(error, abs=1e-6)
    assert list(found.coefficients.values()) == pytest.approx([length, difficulty, quality], abs=1e-6)
    assert found.raw == pytest.approx(alpaca_eval.win_rate(table).win_rate)
    assert (found.n, found.excluded) == (108, {"no preference": 12})
    assert len(found.preferences) == ROWS  # a row without a preference is predicted all the same
    assert found.low < found.win_rate < found.high


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return bundle(tmp_path_factory.mktemp("hub"), 1)


def test_a_planted_taste_for_length_is_found_and_taken_out(reference: Reference) -> None:
    """At equal length this judge thinks nothing of the model; it wins by being long."""
    long = judged(reference, (-2.0, 0.0, 0.0), 3, noise=0.3)
    found = length_controlled_win_rate(long, reference, model="length_controlled_noreg")
    assert found.raw > 57
    assert found.win_rate == pytest.approx(50, abs=1)
    assert found.coefficients["length"] == pytest.approx(-2, abs=0.2)
    assert length_controlled_win_rate(long, reference).win_rate == pytest.approx(50, abs=2)  # drawn to the gamed rows
    strong = judged(reference, (-1.5, 0.5, -1.0), 4, noise=0.3)
    found = length_controlled_win_rate(strong, reference, model="length_controlled_noreg")
    assert list(found.coefficients.values()) == pytest.approx([-1.5, 0.5, -1.0], abs=0.2)
    truth = 100 * special.expit(0.5 * reference.difficulty - 1.0).mean()
    assert found.win_rate == pytest.approx(truth, abs=2)


@pytest.mark.parametrize("rate", [0.5, 0.56])
def test_the_interval_near_even_holds_the_truth(rate: float) -> None:
    """Lengths that say nothing: the penalty sets coefficients to 0, which are no less uncertain for that."""
    random, held, widths = np.random.default_rng(0), [], []
    for _ in range(40):
        lengths = random.integers(100, 900, (88, 2))
        table = pd.DataFrame(
            {
                "instruction": [f"Do number {row}." for row in range(88)],
                "output_1": ["x" * int(n) for n in lengths[:, 0]],
                "output_2": ["x" * int(n) for n in lengths[:, 1]],
                "preference": 1.0 + (random.random(88) < rate),
            }
        )
        found = length_controlled_win_rate(table, model="length_controlled_minimal")
        held.append(found.low <= 100 * rate <= found.high)
        widths.append(found.high - found.low)
    assert np.mean(held) >= 0.9
    assert min(widths) > 15


@pytest.mark.parametrize("preference", [[1.0] * 88, [2.0] * 88, [1.5] + [1.0] * 87, [math.nan] * 84 + [2.0] * 4])
def test_a_side_that_wins_nearly_all_has_no_rate_at_equal_length(preference: list[float]) -> None:
    table = pd.DataFrame({"instruction": range(88), "output_1": "a", "output_2": "bb", "preference": preference})
    with pytest.raises(length_control.TooFewError, match="the regression needs 5 or more"):
        length_controlled_win_rate(table.astype({"instruction": str}), model="length_controlled_minimal")


def test_answers_of_one_length_are_compared_as_they_are() -> None:
    table = pd.DataFrame({"instruction": [str(n) for n in range(80)], "output_1": "a", "output_2": "b"})
    found = length_controlled_win_rate(
        table.assign(preference=[1.0, 2.0, 2.0, 2.0] * 20), model="length_controlled_minimal"
    )
    assert found.low < 75 < found.high


def test_a_copy_of_the_baseline_is_even_under_either_name(reference: Reference) -> None:
    table = judged(reference, (-1.0, 0.0, 0.0), 5).assign(preference=1.5)
    table["output_2"] = table["output_1"]
    copied = length_controlled_win_rate(table, reference)  # the official code has no answer here: no length differs
    assert copied.win_rate == pytest.approx(50, abs=1)
    itself = length_controlled_win_rate(table.assign(generator_2=table["generator_1"], preference=1.9), reference)
    assert (itself.win_rate, itself.standard_error, itself.low, itself.high) == (50.0, 0.0, 50.0, 50.0)
    assert set(itself.coefficients.values()) == {0.0}
    noisy = judged(reference, (0.0, 0.0, 0.0), 6)
    noisy["output_2"] = [
        text[: len(text) - row % 4] + "y" * (row // 4 % 4) for row, text in enumerate(noisy["output_1"])
    ]
    assert length_controlled_win_rate(noisy, reference).win_rate == pytest.approx(50, abs=4)


def test_two_models_are_compared_through_their_coefficients(reference: Reference) -> None:
    one = length_controlled_win_rate(judged(reference, (-1.0, 0.4, 0.5), 7), reference)
    other = length_controlled_win_rate(judged(reference, (-1.0, 0.4, -0.5), 8), reference)
    gap = {name: one.coefficients[name] - other.coefficients[name] for name in ("difficulty", "model")}
    expected = 100 / (1 + np.exp(-(gap["model"] + gap["difficulty"] * reference.difficulty)))
    assert one.against(other, reference.difficulty) == pytest.approx(expected.mean())
    assert one.against(other, reference.difficulty) + other.against(one, reference.difficulty) == pytest.approx(100)
    assert one.against(one, reference.difficulty) == 50


def test_rows_must_stand_in_the_official_order(tmp_path: Path) -> None:
    reference, table = case(tmp_path, "likes long answers", 7)
    shuffled = table.sample(frac=1.0, random_state=0)
    with pytest.raises(EvaluationError, match=r"rows are not where the official order .* alpaca_files.in_order"):
        length_controlled_win_rate(shuffled, reference)
    ordered = alpaca_files.in_order(shuffled, reference.instructions)
    again, first = (length_controlled_win_rate(one, reference) for one in (ordered, table))
    assert again.win_rate == first.win_rate
    with pytest.raises(EvaluationError, match="119 rows where the official set has 120; 1 of its instructions"):
        length_controlled_win_rate(table.drop(index=5), reference)
    with pytest.raises(EvaluationError, match="120; 1 of its"):
        length_controlled_win_rate(table.replace({"instruction": {"Do number 3.": "Do something else."}}), reference)
    repeated = pd.concat([table, table.iloc[:4]])
    found = length_controlled_win_rate(repeated, reference)
    assert (found.win_rate, found.excluded["copy of a row"]) == (first.win_rate, 4)
    contradicted = pd.concat([table, table.iloc[1:2].assign(preference=1.123)])
    with pytest.raises(EvaluationError, match="119 rows"):
        length_controlled_win_rate(contradicted, reference)


def test_what_cannot_be_used_leaves_the_fit_only(tmp_path: Path) -> None:
    reference, table = case(tmp_path, "likes long answers", 7)
    clean = length_controlled_win_rate(table, reference)
    spoiled = table.astype({"preference": object})
    spoiled.loc[0, "preference"], spoiled.loc[10, "preference"] = 7.0, "better"
    found = length_controlled_win_rate(spoiled, reference)
    assert found.win_rate == clean.win_rate
    assert found.excluded == {"no preference": 10, "preference is no number": 1, "preference outside 1 to 2": 1}
    with pytest.raises(EvaluationError, match="4 rows have a preference"):
        length_controlled_win_rate(
            table.assign(preference=table["preference"].where(table.index.isin([1, 2, 3, 4]))), reference
        )
    with pytest.raises(EvaluationError, match="1 rows have no text in output_2"):
        length_controlled_win_rate(table.assign(output_2=[None, *table["output_2"][1:]]), reference)
    with pytest.raises(EvaluationError, match="lack output_1"):
        length_controlled_win_rate(table.drop(columns="output_1"), reference)


def test_the_reference_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["repo_type"], options["revision"], options["allow_patterns"]))
        return str(tmp_path)

    expected, table = case(tmp_path, "likes long answers", 7)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = length_controlled_win_rate(table)
    assert found.win_rate == length_controlled_win_rate(table, expected).win_rate
    names = ["df_gamed.csv", "alpaca_eval_gpt4_baseline.json"]
    assert asked == [("tatsu-lab/alpaca_eval", "dataset", None, names)]


def test_a_damaged_reference_is_refused(tmp_path: Path) -> None:
    bundle(tmp_path, 1, 20)
    gamed = pd.read_csv(tmp_path / length_control.GAMED)

    def write(table: pd.DataFrame) -> Path:
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        shutil.copy(tmp_path / length_control.ORDER, folder)
        table.to_csv(folder / length_control.GAMED, index=False)
        return folder

    with pytest.raises(EvaluationError, match="lacks the columns preference"):
        length_control.load_reference(write(gamed.drop(columns="preference")))
    with pytest.raises(EvaluationError, match="one row for each of 20 instructions in order"):
        length_control.load_reference(write(gamed.iloc[::-1]))
    with pytest.raises(EvaluationError, match="lacks some lengths"):
        length_control.load_reference(write(gamed.assign(std_delta_len=math.nan)))
    folder = write(gamed)
    (folder / length_control.ORDER).write_text(json.dumps({"a": 1}))
    with pytest.raises(EvaluationError, match="list of records"):
        length_control.load_reference(folder)
    (folder / length_control.GAMED).unlink()
    with pytest.raises(EvaluationError, match="cannot be read"):
        length_control.load_reference(folder)
