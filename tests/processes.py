"""Several processes that share one run, as ``accelerate launch`` starts them: on the CPU, joined by gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from starling_nb import files, progress


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """That of a process that finds this tree and its tests, and computes on one thread."""
    paths = os.pathsep.join([str(files.ROOT), str(files.ROOT / "tests")])
    return os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        progress.HEADLESS: "1",
    }


def run(script: Path, folder: Path, *words: str, n: int = 2) -> None:
    """Run ``n`` processes of a script whose arguments are folder and words; each leaves what it :func:`keeps <keep>`.

    A process that fails, or is not done within ten minutes, ends all of them and the test.
    """
    common = environment() | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(n)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), *words],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(n)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        told = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * n, "\n".join(told)


def launch(*words: str, n: int = 2) -> str:
    """What ``n`` processes of a ``starling-nb`` command print, as torchrun starts them."""
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(n),
        "--master_port",
        str(free_port()),
    ]
    line += ["-m", "starling_nb", *words]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def keep(found: Any) -> None:
    """Leave what this process has found, tensors and plain values, for :func:`kept`."""
    torch.save(found, Path(sys.argv[1]) / f"found.{os.environ['RANK']}")


def kept(folder: Path, n: int = 2) -> list[Any]:
    """What each process has found, in their order."""
    return [torch.load(folder / f"found.{rank}", weights_only=True) for rank in range(n)]
