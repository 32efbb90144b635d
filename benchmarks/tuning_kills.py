"""Tuning killed at random moments: policy, critic, optimiser and record must be those of an undisturbed run.

    python -m benchmarks.tuning_kills [--kills 10] [--steps 6]

Runs ``starling-nb tune`` with the embedded model and a reward model with a drawn head, once undisturbed and then under
SIGKILLs at drawn moments until it gets to its end, again and again. Every file that a run leaves is compared byte by
byte; checkpoints are compared tensor by tensor. Writes ``benchmarks/results/tuning_kills.json``; exit code 1 where
something differs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import records, turns
from starling_nb import files, models
from starling_nb.nectar import prompts
from starling_nb.reward import RewardModel

FILES = ("policy.safetensors", "policy/model.safetensors", "curve.csv", "evaluation.csv")
QUICK = ("rollouts=8", "minibatch=4", "max_new_tokens=12", "trainable=last:2", "lr=1e-4", "scale=running")


def prepare(folder: Path, n: int = 60) -> None:
    """A reward model and prompts."""
    lm = models.shallow(models.load(dtype="float32"), 4)
    decoder: Any = lm.model.model
    head = torch.randn(1, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0)) / 24
    RewardModel(decoder, lm.chat, head, "mean").save_pretrained(folder / "reward", {"base": lm.name})
    rows = [{"id": p.id, "messages": p.messages, "source": list(p.source), "answers": []} for p in prompts.load()[:n]]
    files.write_jsonl(folder / "prompts.jsonl", rows)


def command(folder: Path, out: Path, steps: int) -> list[str]:
    """The command line of a run."""
    line = [sys.executable, "-m", "starling_nb", "tune", str(folder / "prompts.jsonl"), "--held-out", "4"]
    line += ["--reward", str(folder / "reward"), "--out", str(out)]
    return [*line, *(word for switch in (*QUICK, f"steps={steps}") for word in ("--set", switch))]


def survives(line: Sequence[str], seconds: float) -> bool:
    """Whether a run ends by itself within ``seconds``; it is killed if not."""
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return turns.survives(child, seconds)


def differing(one: Path, other: Path) -> list[str]:
    """Names of the files, and of the parts of the checkpoint, that are not the same in two runs."""
    found = [name for name in FILES if (one / name).read_bytes() != (other / name).read_bytes()]
    states = [torch.load(folder / "tuning.pt", weights_only=True) for folder in (one, other)]
    return found + [f"tuning.pt: {name}" for name in states[0] if not _same(states[0][name], states[1][name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def main() -> None:
    """Run, kill, compare, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6)
    asked = parser.parse_args()
    draw = files.rng(0, "tuning kills")
    struck, ends, wrong = 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        began = time.monotonic()
        subprocess.run(command(folder, folder / "calm", asked.steps), check=True, stdout=subprocess.DEVNULL)
        longest = time.monotonic() - began
        while struck < asked.kills:
            line = command(folder, folder / "out", asked.steps)
            while struck < asked.kills and not survives(line, float(draw.uniform(0.3, 1.0)) * longest):
                struck += 1
                print(f"kill {struck}", flush=True)
            survives(line, 100 * longest)
            wrong |= set(differing(folder / "calm", folder / "out"))
            ends += 1
            shutil.rmtree(folder / "out")
    records.keep(
        "tuning_kills.json",
        {"kills": struck, "runs_to_the_end": ends, "steps": asked.steps, "differing": sorted(wrong)},
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
