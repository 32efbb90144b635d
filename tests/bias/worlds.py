"""Verdicts of simulated judges with known position effects, and the authors' real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from starling_nb.bias.panels import read_logs

MODELS = np.array(list("abcdefghij"))
QUALITY = np.linspace(1.2, -1.2, 10)
PLANTED = np.array([0.6, 0.5, 0.1, 0.0, -0.2, -0.4, -0.6])
CENTRED = PLANTED - PLANTED.mean()


def simulate(
    n: int,
    effects: np.ndarray,
    *,
    seed: int = 0,
    repeats: int = 1,
    spread: float = 0.5,
    reorder: bool = False,
    front: float = 0.0,
) -> pd.DataFrame:
    """Plackett-Luce verdicts with known position effects; answers vary in quality by ``spread``.

    ``repeats`` verdicts a prompt, each in an order of its own with ``reorder``; ``front`` puts strong models in front.
    """
    generator, k, rows = np.random.default_rng(seed), len(effects), []
    for prompt in range(n):
        drawn = generator.choice(10, k, replace=False)
        drawn = drawn[np.argsort(-front * QUALITY[drawn] - generator.gumbel(size=k))]
        quality, shown = QUALITY[drawn] + spread * generator.normal(size=k), np.arange(k)
        for _ in range(repeats):
            shown = generator.permutation(k) if reorder else shown
            order = np.argsort(-(quality[shown] + effects + generator.gumbel(size=k)))
            row = (f"p{prompt}", MODELS[drawn[shown]].tolist(), order.tolist(), quality[shown].tolist())
            rows.append(row)
    return pd.DataFrame(rows, columns=["prompt_id", "models", "ranking", "quality"])


def real_logs() -> dict[str, pd.DataFrame]:
    """The authors' raw rankings by prompt variant; the test is skipped where they are not."""
    root = os.environ.get("STARLING_NB_REAL_DATA")
    if not root:
        pytest.skip("STARLING_NB_REAL_DATA is not set: it names a folder with nectar_experiments/*.parquet")
    return read_logs(Path(root) / "nectar_experiments")
