"""Build ``data/nectar_mini.parquet``: sample every answer anew, then let the simulated judge rank them.

    python -m benchmarks.build_nectar_mini [--rank-only] [--passes 3] [--seed 0]

The answers are those of the embedded model under every way of asking and of the writers (about eight minutes on
two cores). ``--rank-only`` keeps the committed answers and ranks them again, for a newly calibrated judge.
Notebook 01 does the same on a sample of the prompts and compares it with what this script left.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from starling_nb import files, models
from starling_nb.judge.connect import SIMULATED, connect
from starling_nb.nectar import dataset, labelling, prompts, responses, schema

MINI = files.DATA / "nectar_mini.parquet"


def main() -> None:
    """Read the command line, make the rows, write them over the committed ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank-only", action="store_true")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    every = prompts.load()
    if asked.rank_only:
        candidates = dataset.candidates_of(dataset.load(MINI), every)
    else:
        pool = responses.embedded.pool(models.load(), every)
        candidates = list(
            responses.fill(
                every,
                pool,
                seed=asked.seed,
                order=responses.embedded.order,
                progress=lambda n, name: print(n, name, flush=True),
            )
        )
        assert len(candidates) == len(every)
    with tempfile.TemporaryDirectory() as folder:
        with connect(SIMULATED, Path(folder) / "ledger.sqlite", asked.seed) as judge:
            labelling.label(judge, candidates, labelling.Plan(passes=asked.passes, seed=asked.seed), Path(folder))
        rows = dataset.load(Path(folder) / "nectar.parquet")
    schema.validate(rows)
    schema.write(rows, MINI)
    print({name: round(value, 3) for name, value in dataset.statistics(rows).items()})


if __name__ == "__main__":
    main()
