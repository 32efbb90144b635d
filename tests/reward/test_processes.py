"""Two processes that share every step are one process: same losses, same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import processes
import toy
from starling_nb.reward import scoring, training
from starling_nb.reward.training import Recipe

ROW_TOKENS = (2048, 1)


def trained(row_tokens: int) -> dict[str, Any]:
    """Five comparisons in batches of two: the last step of an epoch leaves the second process without any."""
    lm = toy.lm()
    recipe = Recipe(epochs=3, batch=2, lr=3e-3, head_lr=1e-2, trainable="last:2", warmup=0.0, row_tokens=row_tokens)
    ready = scoring.prepare(lm, toy.comparisons((4, 4, 3, 5, 2)), recipe.trainable)
    scorer, history, _ = training.train(lm, ready, recipe)
    return {"weights": toy.weights(scorer), "loss": [record["loss"] for record in history]}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of two processes has found, by ``ROW_TOKENS``."""
    folder = tmp_path_factory.mktemp("processes")
    processes.run(Path(__file__), folder)
    return processes.kept(folder)


@pytest.mark.parametrize("row_tokens", ROW_TOKENS)
def test_two_processes_with_half_the_batch_are_one(both: list[list[dict[str, Any]]], row_tokens: int) -> None:
    alone = trained(row_tokens)
    first, second = (found[ROW_TOKENS.index(row_tokens)] for found in both)
    for found in (first, second):
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        for name, value in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


if __name__ == "__main__":
    processes.keep([trained(row_tokens) for row_tokens in ROW_TOKENS])
