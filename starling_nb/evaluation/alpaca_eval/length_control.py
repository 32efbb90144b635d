"""The length-controlled win rate of AlpacaEval: what the win rate would be if both answers were equally long.

A logistic regression explains each preference by the difference in length, by how hard the instruction is, and by the
model; setting the first to zero gives the preference that the model's quality earns (Dubois et al. 2024,
arXiv 2404.04475; ``metrics/glm_winrate.py`` of ``tatsu-lab/alpaca_eval``, whose figures are met to 1e-6 in
``benchmarks/length_control.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special
from scipy import stats as scipy_stats

from starling_nb import files, hub
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.alpaca_eval.formats import check

Floats = NDArray[np.float64]
Model = Literal["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"]
REPOSITORY = "tatsu-lab/alpaca_eval"
GAMED, ORDER = "df_gamed.csv", "alpaca_eval_gpt4_baseline.json"
GAMED_COLUMNS = ("index", "instruction_difficulty", "std_delta_len", "preference", "not_gamed_baseline")
GAMED_WEIGHT = 0.2 / 2  # lambda of the official regulariser over two gamed baselines
FOLDS = 5


class TooFewError(EvaluationError):
    """The annotations hold too little for the regression; a plain win rate may still be told."""


@dataclass(frozen=True)
class Reference:
    """What the official regression brings along.

    Attributes:
        instructions: the official instructions in their order (805 of them).
        difficulty: of each instruction, in that order; harder instructions have one sign of the model's coefficient.
        gamed: annotations of the baseline asked to be long-winded or short, against itself; ``preference`` from 0 to 1.
    """

    instructions: tuple[str, ...]
    difficulty: Floats
    gamed: pd.DataFrame


@dataclass(frozen=True)
class LengthControlled:
    """The length-controlled win rate, per cent, with the regression behind it.

    Attributes:
        win_rate: mean predicted preference at equal length, times 100; 50 for the baseline itself.
        standard_error: the official one, which only tells how far the predictions of instructions differ.
        low, high: 95 % interval that also holds how unsure the coefficients are: instructions are what is sampled, the
            gamed rows and the chosen penalty are taken as given.
        n: instructions with a preference.
        raw: win rate without control, on the same instructions.
        coefficients: of ``length`` (tanh of baseline minus model, in standard deviations: negative where long answers
            win), ``difficulty`` and ``model``; those that the regression lacks are 0.
        penalty: the chosen C, inverse strength of the L1 penalty; NaN for the baseline itself.
        excluded: rows that did not count, by reason (:func:`~.alpaca_eval.formats.check`).
        preferences: predicted preference of every instruction at equal length, 0 to 1.
    """

    win_rate: float
    standard_error: float
    low: float
    high: float
    n: int
    raw: float
    coefficients: dict[str, float]
    penalty: float
    excluded: dict[str, int]
    preferences: Floats = field(repr=False)

    def against(self, other: LengthControlled, difficulty: Floats) -> float:
        """Predicted win rate against another model, per cent, from the coefficients of both against one baseline."""
        gap = {name: value - other.coefficients[name] for name, value in self.coefficients.items()}
        return float(100 * special.expit(gap["model"] + gap["difficulty"] * difficulty).mean())


@dataclass(frozen=True)
class _Design:
    """Rows of the regression: features ``[rows, 3]``, preference 0 to 1 (NaN: none), weight; own rows come last."""

    x: Floats
    y: Floats
    weight: Floats
    own: int
    active: list[bool]


def load_reference(folder: Path | None = None, revision: str | None = None) -> Reference:
    """Read ``df_gamed.csv`` and ``alpaca_eval_gpt4_baseline.json`` of the hub's data set, or of a folder like it.

    Raises:
        EvaluationError: a file lacks a column, or the difficulties do not stand in the order of the instructions.
        StarlingError: a file is missing, or the hub cannot be reached.
    """
    folder = folder or hub.fetch(REPOSITORY, revision, (GAMED, ORDER), kind="dataset")
    path = folder / GAMED
    try:
        gamed = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read ({error}): fetch it from the hub, {REPOSITORY}") from error
    rows = files.read_json(folder / ORDER)
    if missing := [column for column in GAMED_COLUMNS if column not in gamed]:
        raise EvaluationError(f"{path} lacks the columns {', '.join(missing)}: fetch it again from {REPOSITORY}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "instruction" in row for row in rows):
        raise EvaluationError(f"{folder / ORDER} must be a list of records with an instruction: fetch it again")
    first = gamed.drop_duplicates("index")
    if first["index"].tolist() != list(range(len(rows))) or first.index.tolist() != list(range(len(rows))):
        raise EvaluationError(f"{path} does not begin with one row for each of {len(rows)} instructions in order")
    if gamed[["instruction_difficulty", "std_delta_len"]].isna().any(axis=None):
        raise EvaluationError(f"{path} lacks some lengths or difficulties: fetch it again from {REPOSITORY}")
    difficulty = first["instruction_difficulty"].to_numpy(dtype=np.float64)
    return Reference(tuple(str(row["instruction"]) for row in rows), difficulty, gamed[list(GAMED_COLUMNS)])


def length_controlled_win_rate(
    annotations: pd.DataFrame,
    reference: Reference | None = None,
    *,
    model: Model = "length_controlled_v1",
    generator: str | None = None,
    baseline: str | None = None,
    annotator: str | None = None,
) -> LengthControlled:
    """The official length-controlled win rate of one model against one baseline.

    Args:
        annotations: needs ``instruction, output_1, output_2, preference``, one row for every official instruction in
            the official order: the difficulty of an instruction is found by its row. A row whose preference is
            missing or unusable stays in its place and is left out of the fit only.
        reference: see :func:`load_reference`, which is asked where there is none.
        model: ``length_controlled_v1`` is the leaderboard's. ``length_controlled_noreg`` goes without the gamed rows,
            ``length_controlled_minimal`` without difficulties too: it needs no reference and takes any instructions.
        generator, baseline, annotator: where the annotations hold several, see
            :func:`~.alpaca_eval.formats.check`.

    Raises:
        EvaluationError: rows are missing, too many or in another order; or an output is no text.
        TooFewError: fewer than five rows have a preference, or fewer than five are won, or lost: where one side wins
            everything, the official regression answers 50.
    """
    for column in ("instruction", "output_1", "output_2", "preference"):
        if column not in annotations:
            raise EvaluationError(f"annotations lack {column}: a length-controlled win rate needs the official columns")
    found = check(annotations, generator=generator, baseline=baseline, annotator=annotator)
    if model != "length_controlled_minimal":
        reference = reference or load_reference()
        _check_order(found.rows["instruction"].tolist(), reference.instructions)
    share = found.rows["preference"].to_numpy(dtype=np.float64) - 1
    if (n := int(np.isfinite(share).sum())) < FOLDS:
        raise TooFewError(f"{n} rows have a preference; the regression needs {FOLDS} or more in {FOLDS} folds")
    raw = float(100 * np.nanmean(share))
    if _same_generator(found.rows):
        zero = dict.fromkeys(("length", "difficulty", "model"), 0.0)
        even = np.full(len(share), 0.5)
        return LengthControlled(50.0, 0.0, 50.0, 50.0, n, raw, zero, math.nan, found.excluded, even)
    design = _design(_length_difference(found.rows), share, reference, model)
    if (fewest := min(np.nansum(design.y), np.nansum(1 - design.y))) < FOLDS:
        raise TooFewError(f"{fewest:g} wins, or losses; the regression needs {FOLDS} or more of each in {FOLDS} folds")
    beta, penalty = _fit(design)
    at_zero = design.x[-design.own :] * [0.0, 1.0, 1.0]
    predicted = special.expit(at_zero @ beta)
    rate, error = float(100 * predicted.mean()), float(100 * predicted.std(ddof=1) / math.sqrt(len(predicted)))
    low, high = _interval(design, beta, at_zero)
    names = dict(zip(("length", "difficulty", "model"), beta.tolist(), strict=True))
    return LengthControlled(rate, error, low, high, n, raw, names, penalty, found.excluded, predicted)


def _check_order(shown: Sequence[str], official: Sequence[str]) -> None:
    """Refuse rows that are not the official instructions in the official order."""
    if list(shown) == list(official):
        return
    if sorted(shown) == sorted(official):
        wrong = [row for row, (one, other) in enumerate(zip(shown, official, strict=True)) if one != other]
        raise EvaluationError(
            f"{len(wrong)} rows are not where the official order has them, the first is row {wrong[0]}: difficulties "
            "are found by row; put them in order with alpaca_files.in_order(annotations, reference.instructions)"
        )
    missing = len(set(official) - set(shown))
    raise EvaluationError(
        f"{len(shown)} rows where the official set has {len(official)}; {missing} of its instructions have none: a row "
        "without a preference stays in its place with NaN, none may be dropped, repeated or added"
    )


def _same_generator(rows: pd.DataFrame) -> bool:
    """Whether a model is compared with itself, by name."""
    return {"generator_1", "generator_2"} <= set(rows) and bool((rows["generator_1"] == rows["generator_2"]).all())


def _length_difference(rows: pd.DataFrame) -> Floats:
    """Characters of the baseline's answers minus the model's, over their standard deviation; 0 where that is 0."""
    for column in ("output_1", "output_2"):
        if wrong := sum(not isinstance(text, str) for text in rows[column]):
            raise EvaluationError(f"{wrong} rows have no text in {column}: write '' for an empty answer")
    gap = (rows["output_1"].str.len() - rows["output_2"].str.len()).to_numpy(dtype=np.float64)
    return gap / gap.std(ddof=1) if np.ptp(gap) else np.zeros_like(gap)


def _design(gap: Floats, share: Floats, reference: Reference | None, model: Model) -> _Design:
    """The gamed rows, where the regression has them, and then ours."""
    difficulty = np.zeros_like(gap)
    if reference is not None and model != "length_controlled_minimal":
        difficulty = reference.difficulty
    x = np.column_stack([np.tanh(gap), difficulty, np.ones_like(gap)])
    active = [True, model != "length_controlled_minimal", True]
    if reference is None or model != "length_controlled_v1":
        return _Design(x, share, np.ones_like(gap), len(gap), active)
    table = reference.gamed.astype(float)
    indicator = table["not_gamed_baseline"].to_numpy()
    more = np.column_stack([np.tanh(table["std_delta_len"]), table["instruction_difficulty"], indicator])
    weight = indicator + GAMED_WEIGHT * (1 - indicator)
    y = np.concatenate([table["preference"].to_numpy(), share])
    return _Design(np.vstack([more, x]), y, np.concatenate([weight, np.ones_like(gap)]), len(gap), active)


def _log_loss(label: Floats, predicted: Floats, probability: Floats, weight: Floats) -> float:
    """Weighted log loss of soft labels; the row that stands for label 0 carries the other probability."""
    y = np.where(label == 1, probability, 1 - probability)
    p = np.clip(predicted, 1e-15, 1 - 1e-15)
    return float(-np.mean(weight * (y * np.log(p) + (1 - y) * np.log(1 - p))))


def _fit(design: _Design) -> tuple[Floats, float]:
    """Coefficients ``[3]`` and the chosen C: each row twice, once as won and once as lost, weighted by preference."""
    import sklearn
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GroupKFold

    kept = np.isfinite(design.y)
    x, y, weight = design.x[kept][:, design.active], design.y[kept], design.weight[kept]
    probability, twice = np.concatenate([y, 1 - y]), np.concatenate([weight, weight])
    settings: dict[str, Any] = {"solver": "liblinear", "l1_ratios": (1.0,), "fit_intercept": False}
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(_log_loss, response_method="predict_proba", greater_is_better=False)
        scorer.set_score_request(probability=True, weight=True)
        fit = LogisticRegressionCV(
            cv=GroupKFold(n_splits=FOLDS), scoring=scorer, random_state=123, use_legacy_attributes=False, **settings
        ).fit(
            np.vstack([x, x]),
            np.repeat([1, 0], len(y)),
            sample_weight=probability * twice,
            groups=np.tile(np.arange(len(y)), 2),
            probability=probability,
            weight=twice,
        )
    beta = np.zeros(3)
    beta[design.active] = fit.coef_[0]
    return beta, float(np.ravel(fit.C_)[0])


def _interval(design: _Design, beta: Floats, at_zero: Floats) -> tuple[float, float]:
    """95 % interval of the mean prediction, per cent: delta method on the logit, variance by sandwich over our rows.

    A coefficient that the penalty set to 0 is as uncertain as any other. Lengths that are all alike have none.
    """
    kept, on = np.isfinite(design.y), np.array(design.active)
    x, p = design.x[:, on], special.expit(design.x @ beta)
    information = (x[kept] * (design.weight * p * (1 - p))[kept, None]).T @ x[kept]
    predicted = special.expit(at_zero @ beta)
    mean, n = predicted.mean(), design.own
    slope = ((predicted * (1 - predicted))[:, None] * at_zero[:, on]).mean(axis=0)
    score = x[-n:] * np.where(kept, design.y - p, 0.0)[-n:, None]
    pull = score @ (np.linalg.pinv(information, hermitian=True) @ slope)
    error = math.sqrt(n * (pull + (predicted - mean) / n).var(ddof=1))
    half = float(scipy_stats.t.ppf(0.975, n - 1)) * error / (mean * (1 - mean))
    low, high = special.expit(special.logit(mean) + np.array([-half, half]))
    return float(100 * low), float(100 * high)
