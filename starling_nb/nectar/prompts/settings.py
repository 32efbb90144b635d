"""What a prompt set is made of and how strictly: frozen dataclasses, read from one TOML file.

    seed = 0
    rows = 183000

    [[sources]]
    name = "lmsys-chat-1m"
    weight = 2.0

    [[sources]]
    name = "our_forum"
    like = "plain"
    path = "forum.jsonl"
    count = 500

    [[evaluations]]
    name = "mt_bench"
    path = "question.jsonl"

Tables ``[filters]``, ``[duplicates]`` and ``[decontamination]`` change their defaults. Paths are relative to the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.profiles.values import read_toml, typed


def _at_least(low: float, where: str, **values: float) -> None:
    for name, value in values.items():
        if value < low:
            raise StarlingError(f"{where}: {name} = {value} has to be at least {low:g}")


@dataclass(frozen=True)
class SourceSettings:
    """One data set of the mixture; with neither weight nor count, all its rows are taken."""

    name: str
    """Name of the data set in starling_nb.nectar.prompts.SOURCES, or a name of your own."""
    like: str = ""
    """For a name of your own: the entry of SOURCES whose columns it has, such as plain."""
    path: str = ""
    """Local folder or file; empty means the hub."""
    weight: float = 0.0
    """Its share relative to the other weighted sources."""
    count: int = 0
    """Rows wanted from it, exactly."""
    limit: int = 0
    """Read no more rows than this; 0 means all."""
    whole: bool = False
    """Keep conversations up to their last user turn; by default the first turn, as published."""

    def __post_init__(self) -> None:
        _at_least(0, self.name or "a source", weight=self.weight, count=self.count, limit=self.limit)
        if self.weight and self.count:
            raise StarlingError(f"source {self.name}: give a weight or a count, not both")


@dataclass(frozen=True)
class FilterSettings:
    """Which prompts are dropped before anything else."""

    shortest: int = 40
    """A prompt has to be longer than this, characters over all turns (published: 40)."""
    longest: int = 7500
    """Longest prompt, tokens counted as characters / 4 (published: the judge skips longer ones)."""
    language: str = "en"
    """Language kept, ISO 639-1; empty keeps every language."""
    top: int = 3
    """It has to be among so many likeliest languages (published: 3)."""

    def __post_init__(self) -> None:
        _at_least(1, "filters", longest=self.longest, top=self.top)
        _at_least(0, "filters", shortest=self.shortest)


@dataclass(frozen=True)
class DuplicateSettings:
    """When two prompts are one."""

    near: bool = True
    """Merge near duplicates too; exact ones always are."""
    threshold: float = 0.8
    """Jaccard similarity from which prompts are near duplicates (0.8: Lee et al., arXiv 2107.06499)."""
    words: int = 3
    """Words in a shingle; few, because prompts are short."""
    bands: int = 20
    """Bands of the MinHash index; more find more and take more memory (90 bytes a band and row)."""
    band_rows: int = 6
    """Hashes in a band; 20 bands of 6 find 99.8 % of pairs at similarity 0.8, 27 % at 0.5."""

    near_answers: bool = False
    """Whether a row takes over the answers of its near duplicates too, as it does those of exact ones; in task
    collections these often ask another question about the same long passage."""

    def __post_init__(self) -> None:
        _at_least(1, "duplicates", words=self.words, bands=self.bands, band_rows=self.band_rows)
        if not 0 < self.threshold <= 1:
            raise StarlingError(f"duplicates: threshold = {self.threshold} has to lie in (0, 1]")


@dataclass(frozen=True)
class DecontaminationSettings:
    """When a prompt overlaps an evaluation item."""

    words: int = 8
    """Length of the word n-grams compared (8: Tulu 3, arXiv 2411.15124; 13: GPT-3, arXiv 2005.14165)."""
    share: float = 0.5
    """Least share of the item's words inside shared n-grams (0.5: Tulu 3; 0 removes at a single one, as GPT-3 did)."""

    def __post_init__(self) -> None:
        _at_least(2, "decontamination", words=self.words)
        if not 0 <= self.share <= 1:
            raise StarlingError(f"decontamination: share = {self.share} has to lie between 0 and 1")


@dataclass(frozen=True)
class EvaluationSettings:
    """One evaluation set, a .jsonl or .parquet file (see starling_nb.nectar.prompts.decontamination)."""

    name: str
    """Its name in the report."""
    path: str
    """The file."""
    columns: list[str] = field(default_factory=list)
    """Columns that hold texts or lists of texts; found by their usual names when empty."""


def own_benches() -> list[EvaluationSettings]:
    """The bench sets of this project."""
    return [EvaluationSettings(path.stem, str(path)) for path in sorted(files.DATA.glob("bench_*.jsonl"))]


@dataclass(frozen=True)
class Settings:
    """A whole prompt set."""

    sources: list[SourceSettings]
    """Data sets in order of precedence: a duplicate goes to the source that comes first."""
    rows: int = 0
    """Rows wanted in all; 0 means as many as the weights allow."""
    seed: int = 0
    """Seed of the draw."""
    filters: FilterSettings = field(default_factory=FilterSettings)
    """What is dropped for its length or language."""
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    """What is merged."""
    decontamination: DecontaminationSettings = field(default_factory=DecontaminationSettings)
    """What is removed for its overlap with evaluation sets."""
    evaluations: list[EvaluationSettings] = field(default_factory=list)
    """Evaluation sets beside those of this project."""
    own_evaluations: bool = True
    """Whether this project's bench sets are kept out too."""

    def __post_init__(self) -> None:
        _at_least(0, "settings", rows=self.rows)
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise StarlingError(f"sources have to be one or more of different names; got {names}")
        if self.rows and not all(source.weight or source.count for source in self.sources):
            raise StarlingError(f"rows = {self.rows} are to be shared out: give every source a weight or a count")
        if 0 < self.rows < sum(source.count for source in self.sources):
            raise StarlingError(f"rows = {self.rows} is less than the counts of the sources together: raise it")

    @classmethod
    def from_toml(cls, path: Path) -> Settings:
        """Read settings; relative paths inside start at the file's folder.

        Raises:
            StarlingError: the file is missing or is not TOML, or holds an unknown name or a value of a wrong type.
        """
        found: Settings = typed(cls, read_toml(path), str(path))
        return replace(
            found,
            sources=[replace(item, path=_beside(path, item.path)) for item in found.sources],
            evaluations=[replace(item, path=_beside(path, item.path)) for item in found.evaluations],
        )

    @classmethod
    def own(cls, path: Path) -> Settings:
        """What ``data/recipes/own_prompts.toml`` says, for one file of one's own prompts."""
        recipe = cls.from_toml(files.DATA / "recipes" / "own_prompts.toml")
        return replace(recipe, sources=[replace(recipe.sources[0], path=str(path))])


def _beside(path: Path, name: str) -> str:
    return str(path.parent / name) if name else ""
