"""The published arrangement: the reward model on the card after those that train, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from starling_nb.errors import StarlingError

PATIENCE = 30.0
"""Seconds that a server has to end by itself."""
POLL = 0.05


class LaunchError(StarlingError):
    """A training that cannot be started, or that failed; the message says why."""


def card(processes: int) -> dict[str, str]:
    """The environment that shows a process the card after ``processes`` others, and no more; empty without a GPU.

    Raises:
        LaunchError: there are GPUs, but not one more than processes.
    """
    cards = torch.cuda.device_count()
    if not cards:
        return {}
    if cards <= processes:
        raise LaunchError(f"{processes} cards train and one serves the reward model: there are {cards}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[processes] if visible else str(processes)}


@contextmanager
def served(
    reward: str, processes: int, folder: Path, env: Mapping[str, str], log: IO[bytes], tail: Callable[[], str]
) -> Iterator[tuple[str, int]]:
    """Serve a reward model while the context lasts: its address, and a file descriptor that keeps it alive.

    The server ends when nobody holds the descriptor any more: a training that inherits it and outlives its launcher
    keeps its reward model.

    Raises:
        LaunchError: no card is left for it, or it did not start; the message ends with the ``tail`` of the log.
    """
    own, address = dict(env) | card(processes), folder / "reward.address"
    address.unlink(missing_ok=True)
    line = [sys.executable, "-m", "starling_nb", "serve-reward", reward, "--address", str(address), "--attached"]
    read, held = os.pipe()
    server = subprocess.Popen(line, env=own, stdin=read, stdout=log, stderr=subprocess.STDOUT)
    os.close(read)
    try:
        while not address.exists():
            if server.poll() is not None:
                raise LaunchError(f"the reward model {reward} could not be served:\n{tail()}")
            time.sleep(POLL)
        yield address.read_text(encoding="utf-8"), held
    finally:
        os.close(held)
        address.unlink(missing_ok=True)
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
