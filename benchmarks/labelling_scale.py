"""Nectar's 183,000 labels against a judge without latency: verdicts a second, memory, the ledger's size.

    python -m benchmarks.labelling_scale [--prompts 183000]

The judge (:mod:`benchmarks.storm`) runs in a process of its own, so that client and server share two cores. Candidates
come from a parquet file, as they would. Resident memory is read at 5,000 verdicts, at the last one, and at its highest
while the files are written.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import records, storm, synthetic
from starling_nb.judge import Judge
from starling_nb.nectar import candidates, labelling

EARLY = 5000
MB = 2**20


class Watch:
    """Memory and time of this process at chosen verdicts."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.peak = total, 0, 0.0
        self.began, self.asked = time.monotonic(), 0.0
        self.at: dict[int, float] = {}
        self._process = psutil.Process()

    def __call__(self, outcome: Any) -> None:
        """Count a verdict."""
        assert outcome.value is not None, outcome
        self.done += 1
        if self.done == self.total:
            self.asked = time.monotonic() - self.began
        if self.done % 1000 == 0 or self.done == self.total:
            self.at[self.done] = self._process.memory_info().rss / MB
            self.peak = max(self.peak, self.at[self.done])
            rate = self.done / (time.monotonic() - self.began)
            print(f"{self.done:,} verdicts, {rate:.0f}/s, {self.at[self.done]:.0f} MB", flush=True)


def run(n: int) -> dict[str, Any]:
    """Label ``n`` prompts once, and the same again from the ledger alone."""
    with storm.Process() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        candidates.write(synthetic.Many(n), folder / "candidates.parquet")
        items = candidates.File(folder / "candidates.parquet")
        judge = Judge(storm.MODEL, server.url, ledger=folder / "ledger.sqlite", concurrency=64)
        watch = Watch(n)
        labels = labelling.label(judge, items, labelling.Plan(), folder, watch)
        total = time.monotonic() - watch.began
        after = psutil.Process().memory_info().rss / MB
        answered = server.counts()["answered"]
        judge.close()
        assert (labels.rows, len(answered), sum(answered.values())) == (n, n, n)
        sizes = {path.name: path.stat().st_size / MB for path in sorted(folder.iterdir())}
    return {
        "prompts": n,
        "verdicts_per_second": n / watch.asked,
        "seconds_asking": watch.asked,
        "seconds_writing_files": total - watch.asked,
        "memory_mb": {"at 5,000": watch.at.get(EARLY), "at the last": watch.at[n], "after the files": after},
        "memory_growth_mb": max(watch.peak, after) - watch.at.get(EARLY, watch.at[n]),
        "file_sizes_mb": sizes,
        "ledger_bytes_per_label": sizes["ledger.sqlite"] * MB / n,
    }


def main() -> None:
    """Read the command line, run, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=183_000)
    records.keep("labelling_scale.json", run(parser.parse_args().prompts))


if __name__ == "__main__":
    main()
