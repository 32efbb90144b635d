"""Two processes that share every step are one process: same losses, same weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toy
from starling_nb import files
from starling_nb.reward import scoring, training
from starling_nb.reward.training import Recipe

SCRIPT = """
import sys
import torch
import toy
from starling_nb.reward import scoring, training

lm = toy.lm()
recipe = training.Recipe(**eval_free)
ready = scoring.prepare(lm, toy.comparisons((4, 4, 3, 5, 2)), recipe.trainable)
trained, history, _ = training.train(lm, ready, recipe)
torch.save({"weights": trained.state_dict(), "loss": [r["loss"] for r in history]}, sys.argv[1] + sys.argv[2])
"""
RECIPE = {"epochs": 3, "batch": 2, "lr": 3e-3, "head_lr": 1e-2, "trainable": "last:2", "warmup": 0.0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("row_tokens", [2048, 1])
def test_two_processes_with_half_the_batch_are_one(tmp_path: Path, row_tokens: int) -> None:
    """Five comparisons in batches of two: the last step of an epoch leaves the second process without any."""
    recipe = replace(Recipe(**RECIPE), row_tokens=row_tokens)  # type: ignore[arg-type]
    lm = toy.lm()
    ready = scoring.prepare(lm, toy.comparisons((4, 4, 3, 5, 2)), recipe.trainable)
    alone, history, _ = training.train(lm, ready, recipe)
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.replace("eval_free", repr(RECIPE | {"row_tokens": row_tokens})))
    common = os.environ | {
        "PYTHONPATH": f"{files.ROOT}:{files.ROOT / 'tests'}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "rank"), str(rank)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    both = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for found in both:
        assert found["loss"] == pytest.approx([record["loss"] for record in history], abs=1e-5)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, both[1]["weights"][name]) for name, value in both[0]["weights"].items())
