"""The figures that RewardBench and RM-Bench publish: sections and wholes, as weighted means over subsets.

RewardBench (allenai/reward-bench): a section's subsets are weighted by their numbers of items, but for the code and
math subsets (:data:`WEIGHTS`); in the whole, the prior sets weigh one half and each other section one (the older row of
Starling-RM-34B, 81.5, fits equal weights instead). Unverified: the names of the prior sets, and their weights among
each other; the official leaderboard is said to weigh each prior set equally, here they count by items as any subset.

RM-Bench (THU-KEG/RM-Bench): the whole, and each of hard, normal and easy, is the mean over the domains, for which the
two halves of safety are averaged first. Unverified: recalled from its scripts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

REWARD_BENCH_SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
    "Prior Sets": ("anthropic_helpful", "anthropic_hhh", "shp", "summarize"),
}
WEIGHTS = {
    "math-prm": 984.0,
    **{f"hep-{language}": 164.0 for language in ("cpp", "go", "java", "js", "python", "rust")},
}
PRIOR = 0.5


class Aggregate(NamedTuple):
    """A published figure: its name, of which column it is the mean, and the share of each subset (sum 1)."""

    subset: str
    metric: str
    column: str
    shares: dict[str, float]


def aggregates(benchmark: str, counts: Mapping[str, int]) -> list[Aggregate]:
    """The published figures of a benchmark with these subsets (and numbers of items); none for most benchmarks."""
    if benchmark == "reward_bench":
        known = {section: [s for s in subsets if s in counts] for section, subsets in REWARD_BENCH_SECTIONS.items()}
        parts = {
            section: _normed({s: WEIGHTS.get(s, float(counts[s])) for s in subsets})
            for section, subsets in known.items()
            if subsets
        }
        weights = {section: PRIOR if section == "Prior Sets" else 1.0 for section in parts}
        return _sections(parts, weights, {"overall": "accuracy"})
    if benchmark == "rm_bench":
        domains: dict[str, dict[str, float]] = {}
        for subset in counts:
            domains.setdefault(subset.split("-")[0], {})[subset] = 1.0
        parts = {domain: _normed(subsets) for domain, subsets in domains.items()}
        wholes = {"overall": "accuracy", **{f"overall {name}": name for name in ("hard", "normal", "easy")}}
        return _sections(parts, dict.fromkeys(parts, 1.0), wholes)
    return []


def notes(benchmark: str, counts: Mapping[str, int]) -> list[tuple[str, str, int]]:
    """What the published figures leave out or lack: subset (or section), what is the matter, items."""
    if benchmark != "reward_bench":
        return []
    known = {subset for subsets in REWARD_BENCH_SECTIONS.values() for subset in subsets}
    found = [(subset, "in no section", count) for subset, count in counts.items() if subset not in known]
    for section, subsets in REWARD_BENCH_SECTIONS.items():
        lacking = [subset for subset in subsets if subset not in counts]
        names = [section] if len(lacking) == len(subsets) else lacking
        found += [(name, "missing", 0) for name in names]
    return found


def _normed(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def _sections(
    parts: Mapping[str, dict[str, float]], weights: Mapping[str, float], wholes: Mapping[str, str]
) -> list[Aggregate]:
    """One figure a section, then the wholes: metric and column."""
    own = _normed(weights) if weights else {}
    whole = {subset: share * own[section] for section, part in parts.items() for subset, share in part.items()}
    found = [Aggregate(section, "section", "accuracy", part) for section, part in parts.items()]
    return found + [Aggregate("all", metric, column, whole) for metric, column in wholes.items() if whole]
