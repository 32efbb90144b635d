"""The data set card: the README that stands beside ``nectar.parquet`` and says what is in it and who ranked it.

Both files of a run are read a few rows at a time, so that the full 183,000 rows need no more memory than a hundred.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.stats import norm

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar import tables
from starling_nb.nectar.ranking import RankingError, read_verdict
from starling_nb.nectar.schema import SCHEMA
from starling_nb.nectar.wording import VARIANTS
from starling_nb.stats import Interval, proportion_interval

REMEDY = "label some prompts first"
UNKNOWN = "**unknown**: find out before you publish these rows or train on them"
FEATURES: list[dict[str, Any]] = [
    {"name": "prompt", "dtype": "string"},
    {
        "name": "answers",
        "list": [
            {"name": "answer", "dtype": "string"},
            {"name": "model", "dtype": "string"},
            {"name": "rank", "dtype": "float64"},
        ],
    },
    {"name": "turns", "dtype": "int64"},
    {"name": "num_responses", "dtype": "int64"},
    {"name": "source", "list": "string"},
    {"name": "good_natured", "dtype": "bool"},
]
"""The columns as the hub writes them."""


@dataclass(frozen=True)
class About:
    """What the files do not say of themselves."""

    judge: str  # the model's name on its server
    variant: str = "final"  # a name in starling_nb.nectar.ranking.VARIANTS
    design: str = "random"  # a name in starling_nb.nectar.orders.DESIGNS
    passes: int = 1  # rankings of each prompt
    simulated: bool = False  # a judge whose name begins with "simulated" is one in any case
    title: str = "Ranked answers in the form of Nectar"
    licence: str = "other"  # one of the hub's licence identifiers
    terms: Mapping[str, str] = field(default_factory=dict)  # source → its licence and terms

    @property
    def by_simulation(self) -> bool:
        """Whether the rankings must be called simulated."""
        return self.simulated or self.judge.startswith("simulated")


@dataclass
class Moments:
    """Sums over prompts from which a mean with its interval follows: no value need be kept."""

    n: int = 0
    values: float = 0.0
    sizes: float = 0.0
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # values², values·sizes, sizes²

    def add(self, values: Sequence[float]) -> None:
        """Take in the values of one prompt."""
        total, size = sum(values), len(values)
        self.n, self.values, self.sizes = self.n + 1, self.values + total, self.sizes + size
        self.squares += (total * total, total * size, size * size)

    def interval(self, level: float = 0.95) -> Interval:
        """Mean of all values, with a normal interval that takes prompts as the independent units (linearised ratio)."""
        mean = self.values / self.sizes
        if self.n < 2:
            return Interval(mean, np.nan, np.nan, self.n)
        spread = max(0.0, float(self.squares @ (1, -2 * mean, mean * mean))) * self.n / (self.n - 1)
        half = float(norm.ppf((1 + level) / 2)) * spread**0.5 / self.sizes
        return Interval(mean, mean - half, mean + half, self.n)


class Composition:
    """Counts of a Nectar file."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows = self.good = 0
        self.k: Counter[int] = Counter()
        self.turns: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self.ranks: defaultdict[str, Moments] = defaultdict(Moments)
        for row in rows:
            self.rows += 1
            self.good += row["good_natured"]
            self.k[row["num_responses"]] += 1
            self.turns[row["turns"]] += 1
            self.sources.update(set(row["source"]))
            ranks: defaultdict[str, list[float]] = defaultdict(list)
            for answer in row["answers"]:
                ranks[answer["model"]].append(answer["rank"])
            for model, values in ranks.items():
                self.ranks[model].add(values)


class Verdicts:
    """Counts of a rankings file: how often each shown position got each rank, failures, and pairs against lists."""

    def __init__(self, rankings: Iterable[Mapping[str, Any]]) -> None:
        self.n = self.with_pairs = self.contradicting = self.cyclic = 0
        self.agreement = Moments()
        self.failures: Counter[str] = Counter()
        self.places: dict[int, NDArray[np.int64]] = {}  # K → position × rank
        for record in rankings:
            self.n += 1
            if record["ranking"] is None:
                self.failures[(record["error"] or "unknown").partition(":")[0]] += 1
                continue
            k = len(record["ranking"])
            table = self.places.setdefault(k, np.zeros((k, k), dtype=np.int64))
            table[record["ranking"], np.arange(k)] += 1
            self._read_pairs(record["reply"], k)

    def _read_pairs(self, reply: str | None, k: int) -> None:
        try:
            verdict = read_verdict(reply or "", k)
        except RankingError:
            return
        if verdict.pair_agreement is not None:
            self.with_pairs += 1
            self.contradicting += verdict.contradictions > 0
            self.cyclic += verdict.cyclic
            self.agreement.add([verdict.pair_agreement])


def write(folder: Path, about: About, data_files: str = "nectar.parquet") -> Path:
    """Write ``README.md`` beside ``nectar.parquet`` and ``rankings.parquet``, atomically; returns its path.

    Args:
        folder: where the two files are.
        about: judge, design, licences.
        data_files: where the hub finds the rows, relative to the card.

    Raises:
        StarlingError: a file is missing, damaged or without rows, or the variant is unknown.
    """
    if about.variant not in VARIANTS:
        raise StarlingError(f"unknown ranking variant {about.variant!r}: choose from {', '.join(VARIANTS)}")
    made = Composition(tables.read(folder / "nectar.parquet", SCHEMA.names, REMEDY))
    if not made.rows:
        raise StarlingError(f"{folder / 'nectar.parquet'} has no rows, so there is nothing to describe: {REMEDY}")
    verdicts = Verdicts(tables.read(folder / "rankings.parquet", ["ranking", "error", "reply"], REMEDY))
    sections = [*_head(made, about), *_composition(made, about), *_judging(verdicts, about), *_legal(about)]
    text = f"{front_matter(made.rows, about, data_files)}\n" + "\n\n".join(sections) + "\n"
    files.write_text(folder / "README.md", text)
    return folder / "README.md"


def front_matter(rows: int, about: About, data_files: str) -> str:
    """The YAML block by which the hub finds licence, size, files and columns."""
    ends = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    fields = {
        "pretty_name": about.title,
        "license": about.licence,
        "language": ["en"],
        "task_categories": ["text-generation", "reinforcement-learning"],
        "size_categories": [next((name for end, name in ends if rows < end), "1M<n<10M")],
        "tags": ["RLAIF", "preference", "K-wise ranking"] + ["simulated judge"] * about.by_simulation,
        "dataset_info": {"features": FEATURES},
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": data_files}]}],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def relocated(text: str, data_files: str) -> str:
    """A card whose rows are found at ``data_files``.

    Raises:
        StarlingError: the text does not begin with a front matter that names its files.
    """
    try:
        _, block, body = text.split("---\n", 2)
        fields = yaml.safe_load(block)
        fields["configs"][0]["data_files"][0]["path"] = data_files
    except (ValueError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
        raise StarlingError("README.md is no data set card: write it with starling_nb.nectar.card.write") from error
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n{body}"


def _head(made: Composition, about: About) -> list[str]:
    sizes = " or ".join(str(k) for k in sorted(made.k))
    said = f"{made.rows:,} prompts, each with {sizes} answers ranked from best (1) to worst in the columns of Nectar."
    warning = (
        "> **Simulated judge.** No person and no language model ranked these answers: a choice model did, fitted to "
        "GPT-4's published rankings. Use the rows to try out code, not to train a model that somebody relies on."
    )
    return [f"# {_plain(about.title)}", *([warning] if about.by_simulation else []), said]


def _composition(made: Composition, about: About) -> list[str]:
    sources = [
        (_plain(name), f"{n:,}", _plain(about.terms.get(name, "")) or UNKNOWN) for name, n in made.sources.most_common()
    ]
    ranked = [(name, sums, sums.interval()) for name, sums in made.ranks.items()]
    ranked.sort(key=lambda item: (item[2].value, item[0]))
    models = [(_plain(name), f"{sums.sizes:,.0f}", *_cells(found)) for name, sums, found in ranked]
    turns = [(str(count), f"{n:,}") for count, n in sorted(made.turns.items())]
    return [
        "## Composition",
        f"Good-natured by the judge's word: {made.good:,} of {made.rows:,} ({made.good / made.rows:.1%}).",
        _table(("source", "prompts", "licence and terms"), sources),
        _table(("user turns", "prompts"), turns),
        _table(("answer model", "answers", "mean rank", "95 % interval"), models),
    ]


def _judging(verdicts: Verdicts, about: About) -> list[str]:
    from starling_nb.nectar.orders import DESIGNS

    kind = "a simulated judge, " if about.by_simulation else ""
    valid = verdicts.n - verdicts.failures.total()
    share = f" ({valid / verdicts.n:.1%})" if verdicts.n else ""
    passes = "one ranking a prompt" if about.passes == 1 else f"{about.passes} rankings a prompt, merged by mean rank"
    parts = [
        "## Judging",
        f"Judge: {kind}`{about.judge}`. Prompt variant: `{about.variant}` ({VARIANTS[about.variant].help}). Order of "
        f"the answers: `{about.design}` ({DESIGNS.get(about.design, 'own design')}), {passes}.",
        f"Valid rankings: {valid:,} of {verdicts.n:,}{share}. A reply without a permutation makes no row.",
    ]
    if verdicts.failures:
        parts.append(
            _table(("failure", "replies"), [(_plain(e), f"{n:,}") for e, n in verdicts.failures.most_common()])
        )
    if n := verdicts.with_pairs:
        agreement = verdicts.agreement.interval().value
        parts.append(
            f"Pairs: {n:,} replies decide pairs before the list. On average {agreement:.1%} of a "
            f"reply's pairs agree with its list. {verdicts.contradicting / n:.1%} of the replies contradict a pair of "
            f"their own, and {verdicts.cyclic / n:.1%} hold a circle of pairs that no list can keep."
        )
    for k, counts in sorted(verdicts.places.items()):
        parts += [f"### Shown position, K = {k}", _positions(counts)]
    return parts


def _positions(counts: NDArray[np.int64]) -> str:
    """First places and mean rank by shown position; without bias 1/K and (K + 1)/2 everywhere."""
    k, n = len(counts), int(counts[0].sum())
    rows = []
    for position, row in enumerate(counts):
        first = proportion_interval(int(row[0]), n)
        mean = float(row @ np.arange(1, k + 1)) / n
        rows.append((chr(65 + position), f"{first.value:.1%}", f"{first.low:.1%} to {first.high:.1%}", f"{mean:.2f}"))
    note = f"{n:,} rankings, taken as independent; fair are {1 / k:.1%} and {(k + 1) / 2:.2f}."
    return _table(("position", "ranked first", "95 % interval", "mean rank"), rows) + f"\n\n{note}"


def _legal(about: About) -> list[str]:
    return [
        "## Licence and terms",
        f"The collection: {about.licence}. The prompts stay under their sources' terms and the answers under those of "
        "the models that wrote them; where a source's terms are marked unknown above, nobody has looked them up.",
    ]


def _cells(found: Interval) -> tuple[str, str]:
    between = f"{found.low:.2f} to {found.high:.2f}" if np.isfinite(found.low) else "–"
    return f"{found.value:.2f}", between


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text for one cell: on one line, its bars and angle brackets harmless."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
