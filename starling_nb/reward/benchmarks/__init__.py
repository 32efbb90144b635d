"""Benchmarks for reward models: items, readers of public and local files, scores, and result tables."""

from starling_nb.reward.benchmarks.items import Benchmark, BenchmarkError, Item
from starling_nb.reward.benchmarks.official import REWARD_BENCH_SECTIONS
from starling_nb.reward.benchmarks.readers import READERS, read, read_pair_scores
from starling_nb.reward.benchmarks.results import evaluate, table
from starling_nb.reward.benchmarks.scoring import load_scores, longest, outcomes, save_scores, score, stored
from starling_nb.reward.benchmarks.sources import from_hub

__all__ = [
    "READERS",
    "REWARD_BENCH_SECTIONS",
    "Benchmark",
    "BenchmarkError",
    "Item",
    "evaluate",
    "from_hub",
    "load_scores",
    "longest",
    "outcomes",
    "read",
    "read_pair_scores",
    "save_scores",
    "score",
    "stored",
    "table",
]
