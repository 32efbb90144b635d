"""How fast answers are sampled, by how long idle threads spin: measured in turn, quiet and beside a busy neighbour.

    python -m benchmarks.sampling_speed [--rounds 3]

Each round samples 96 answers of at most 64 tokens (trunk states kept, as in tuning) in a fresh process a setting.
Writes ``benchmarks/results/sampling_speed.json``: tokens a second, every round, and each setting's median as a ratio to
no spinning at all. Other machines differ: only the ratios within one run are to be believed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import records, turns

SETTINGS = {
    "no spinning": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "2,000 turns (ours)": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"},
    "spinning": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "INFINITE"},
}
BUSY = [sys.executable, "-c", "import time\nend = time.time() + 600\nwhile time.time() < end: pass"]


def measure() -> float:
    """Tokens a second of this process."""
    from starling_nb import models
    from starling_nb.nectar import prompts

    lm = models.load()
    chosen = prompts.load(split="train")[:96]
    asked, names = [lm.chat.prompt_ids(prompt.messages) for prompt in chosen], [prompt.id for prompt in chosen]
    models.sample(lm, asked[:8], names[:8], max_new_tokens=8, capture={26})
    began = time.perf_counter()
    found = models.sample(lm, asked, names, max_new_tokens=64, capture={26})
    return sum(len(item.ids) for item in found) / (time.perf_counter() - began)


def beside(neighbours: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second by setting, one value a round, beside some busy processes."""
    busy = [subprocess.Popen(BUSY) for _ in range(neighbours)]
    try:
        return turns.in_turn(
            "benchmarks.sampling_speed",
            list(SETTINGS),
            rounds=rounds,
            say=lambda speed: f"{speed:.0f} tokens/s beside {neighbours} busy neighbours",
            environments=SETTINGS,
        )
    finally:
        for process in busy:
            process.kill()


def main() -> None:
    """Measure here, or all settings in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=list(SETTINGS), help="measure this process and print one number")
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(measure()))
        return
    found: dict[str, Any] = {}
    for neighbours in (0, 1):
        speeds = beside(neighbours, asked.rounds)
        base = statistics.median(speeds["no spinning"])
        ratios = {name: round(statistics.median(values) / base, 2) for name, values in speeds.items()}
        found[f"{neighbours} busy neighbours"] = {"tokens_per_second": speeds, "ratio": ratios}
    records.keep("sampling_speed.json", found)


if __name__ == "__main__":
    main()
