"""AlpacaEval's official leaderboards, read where they lie, and where a model would stand on one of them.

The tables are those of the PyPI package ``alpaca-eval``: of an installed one, or of its wheel, which is downloaded by
hash and never installed (``starling-nb fetch alpaca_eval``). A figure can be placed only where it was won on the
official instructions, against the board's baseline and before its judge.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from starling_nb import fetch
from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.published import related

BOARDS = {
    "alpaca_eval_2": "data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
    "alpaca_eval_1": "data_AlpacaEval/alpaca_eval_gpt4_leaderboard.csv",
}
"""Of AlpacaEval 2: judge and baseline gpt-4-1106-preview. Of AlpacaEval 1: judge gpt-4, baseline text-davinci-003."""


@dataclass(frozen=True)
class Place:
    """Where a figure stands among the models of a board.

    Attributes:
        rank: 1 for the best; models with the same figure do not stand above.
        best, worst: ranks of the two ends of the figure's interval.
        of: models, the placed one included.
        above, below: the nearest models and their figures, best first.
    """

    rank: int
    best: int
    worst: int
    of: int
    above: pd.Series
    below: pd.Series


def load(source: Path | None = None, board: str = "alpaca_eval_2") -> pd.DataFrame:
    """A leaderboard with the models as index; columns as the official ones, among them ``win_rate``.

    Args:
        source: the wheel, or a ``.csv`` like those within. Default: the installed package, else the wheel that
            ``data/wheels.txt`` pins.
        board: a name in :data:`BOARDS`; of no effect with a ``.csv``.

    Raises:
        EvaluationError: the board is unknown, or the file is no leaderboard.
        FetchError: the wheel cannot be downloaded or read.
    """
    if board not in BOARDS:
        raise EvaluationError(f"there is no leaderboard {board!r}: choose from {', '.join(BOARDS)}")
    source = source or _installed(board) or fetch.wheel("alpaca_eval")
    try:
        if source.suffix == ".csv":
            table = pd.read_csv(source, index_col=0)
        else:
            name = fetch.member(source, f"*/{BOARDS[board]}")
            with zipfile.ZipFile(source) as archive:
                table = pd.read_csv(io.BytesIO(archive.read(name)), index_col=0)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{source} cannot be read as a leaderboard ({error}): fetch it again") from error
    if "win_rate" not in table or table.index.has_duplicates:
        raise EvaluationError(f"{source} is no leaderboard: it needs one row a model and a column win_rate")
    return table


def place(
    board: pd.DataFrame,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    by: str = "length_controlled_winrate",
    name: str = "",
    neighbours: int = 3,
) -> Place:
    """Rank of a win rate among those of a board.

    Args:
        board: from :func:`load`.
        value, low, high: the win rate and its interval, per cent; without an interval the rank has none.
        by: the column to compare with; models without a figure there are left out.
        name: the model's own row on the board, if it has one, which is then left out.
        neighbours: how many models to name above and below.

    Raises:
        EvaluationError: there is no such column, or the figures are not in order or not per cent.
    """
    if by not in board:
        raise EvaluationError(f"the leaderboard has no column {by!r}: choose from {', '.join(board.columns)}")
    low, high = value if low is None else low, value if high is None else high
    if not 0 <= low <= value <= high <= 100:
        raise EvaluationError(f"a place needs 0 <= low <= value <= high <= 100, got {low}, {value}, {high}")
    figures = board[by].drop(index=name, errors="ignore").dropna().sort_values(ascending=False, kind="stable")
    rank, best, worst = (1 + int((figures > mark).sum()) for mark in (value, high, low))
    near = figures.iloc[max(0, rank - 1 - neighbours) : rank - 1]
    return Place(rank, best, worst, len(figures) + 1, near, figures.iloc[rank - 1 : rank - 1 + neighbours])


def published_places(board: pd.DataFrame | None = None, by: str = "length_controlled_winrate") -> pd.DataFrame:
    """Where the published win rates of the models related to Starling stand: model, win_rate, rank, of, above, below.

    Only official figures are placed. A run of ours was judged by another judge on other instructions, and has no place.

    Args:
        board: from :func:`load`, with the models' own rows, which are left out one by one; default the few rows of
            ``data/published/related_results.json`` themselves.
        by: ``length_controlled_winrate`` or ``win_rate``, per cent.

    Raises:
        EvaluationError: as :func:`place`.
    """
    ours = {"length_controlled_winrate": "ae2_lc", "win_rate": "ae2_win_rate"}
    if by not in ours:
        raise EvaluationError(f"{by!r} is no published figure: choose from {', '.join(ours)}")
    known = related().set_index("model")[ours[by]].dropna()
    table = known.rename(by).to_frame() if board is None else board
    rows = []
    for model, value in known.sort_values(ascending=False).items():
        found = place(table, float(value), by=by, name=str(model), neighbours=1)
        near = [next(iter(side.index), "") for side in (found.above, found.below)]
        rows.append((model, value, found.rank, found.of, *near))
    return pd.DataFrame(rows, columns=["model", "win_rate", "rank", "of", "above", "below"])


def _installed(board: str) -> Path | None:
    """The board's file in an installed package, which is not imported."""
    found = importlib.util.find_spec("alpaca_eval")
    folders = [Path(place) for place in found.submodule_search_locations or []] if found else []
    paths = [folder / "leaderboards" / BOARDS[board] for folder in folders]
    return next((path for path in paths if path.exists()), None)
