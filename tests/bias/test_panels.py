"""The published panels, and how much fairer one prompt is than another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from starling_nb import bias, files
from starling_nb.bias import BiasError
from starling_nb.bias.panels import read_logs


def rankings(shares: list[float], n: int = 210, first: int = 0) -> pd.DataFrame:
    """Rankings of seven whose first places fall on the positions in these shares, the rest by chance."""
    winners = np.repeat(np.arange(7), np.round(np.array(shares) * n).astype(int))
    assert len(winners) == n
    generator = files.rng(0, "panels", n, *(f"{share:.3f}" for share in shares))
    rows = []
    for winner in generator.permutation(winners):
        rest = [i for i in range(7) if i != winner]
        rows.append([int(winner), *generator.permutation(rest).tolist()])
    return pd.DataFrame({"prompt_id": [f"p{first + i}" for i in range(n)], "ranking": rows})


FAIR = [1 / 7] * 7
BIASED = [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]


def test_the_biased_prompt_strays_further_and_the_interval_says_so() -> None:
    found = bias.bias_difference(rankings(BIASED), rankings(FAIR))
    due = 7 * ((0.4 - 1 / 7) ** 2 + 6 * (0.1 - 1 / 7) ** 2)
    assert found.value == pytest.approx(due)
    assert 0 < found.low < found.value < found.high
    assert found.n == 210
    other = bias.bias_difference(rankings(FAIR), rankings(BIASED))
    assert other.value == pytest.approx(-found.value)
    assert other.high < 0


def test_two_fair_prompts_do_not_differ() -> None:
    found = bias.bias_difference(rankings(FAIR), rankings(FAIR[::-1], 210))
    assert found.low <= 0 <= found.high
    assert found.value == pytest.approx(0.0)


def test_only_prompts_that_both_ranked_count_whatever_their_order() -> None:
    one, other = rankings(BIASED), rankings(FAIR)
    more = pd.concat([one, rankings(BIASED, 70, first=5000)], ignore_index=True)
    shuffled = other.sample(frac=1, random_state=0)
    assert bias.bias_difference(more, shuffled) == bias.bias_difference(one, other)
    with pytest.raises(BiasError, match="no prompt in common"):
        bias.bias_difference(one, rankings(FAIR, first=5000))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Twenty-four pairs of samples from known shares; a 95 % interval misses rarely."""
    generator = files.rng(1, "coverage")
    due = 7 * ((0.25 - 1 / 7) ** 2 + 6 * (0.125 - 1 / 7) ** 2)
    missed = 0
    for _ in range(24):
        tables = []
        for shares in ([0.25] + [0.125] * 6, FAIR):
            winners = generator.choice(7, size=300, p=shares)
            orders = [[int(w), *(i for i in range(7) if i != w)] for w in winners]
            tables.append(pd.DataFrame({"prompt_id": range(300), "ranking": orders}))
        found = bias.bias_difference(*tables)
        missed += not found.low <= due <= found.high
    assert missed <= 4


def test_published_shares_are_shares() -> None:
    found = bias.published_first_place()
    assert {"naive", "final"} <= set(found)
    for table in found.values():
        assert table.position.tolist() == list(range(7))
        assert table.share.sum() == pytest.approx(1.0)
        assert ((table.low <= table.share) & (table.share <= table.high)).all()
    stray = {name: float(((table.share - 1 / 7) ** 2).sum()) for name, table in found.items()}
    assert stray["naive"] > stray["final"]


def test_raw_logs_are_read_by_variant(tmp_path: Path) -> None:
    with pytest.raises(BiasError, match="ranking logs"):
        read_logs(tmp_path)
    ids = list("abcdefg")
    pd.DataFrame({"response_id": ids, "model": [f"m-{i}" for i in ids]}).to_parquet(tmp_path / "responses.parquet")
    row = {
        "experiment": "no_pairwise",
        "prompt_id": "p",
        "k": 7,
        "response_ids": ids[::-1],
        "ranking_order": [3, 1, 0, 2, 6, 5, 4],
        "valid_permutation": True,
    }
    rows = [
        row,
        row | {"valid_permutation": False},
        row | {"k": 6},
        row | {"experiment": "pointwise_pairwise_baseline"},
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "rankings.parquet")
    found = read_logs(tmp_path)
    assert {name: len(table) for name, table in found.items() if len(table)} == {"naive": 1, "final": 1}
    assert found["naive"].models.iloc[0] == [f"m-{i}" for i in ids[::-1]]
    assert list(found["naive"].ranking.iloc[0]) == [3, 1, 0, 2, 6, 5, 4]
