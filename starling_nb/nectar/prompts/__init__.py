"""The prompts of Nectar: the embedded ones, and how the prompt side of a larger set is built.

:func:`load` reads the prompts of this project. :func:`build` makes a new prompt set from published data sets and own
files: sources → filters → duplicates → decontamination → mixture.
"""

from __future__ import annotations

from starling_nb.nectar.prompts.building import Report, build
from starling_nb.nectar.prompts.embedded import FAMILIES, Prompt, composition, key, load, split_of
from starling_nb.nectar.prompts.settings import Settings
from starling_nb.nectar.prompts.shapes import Existing, RawPrompt, Skipped
from starling_nb.nectar.prompts.sources import SOURCES, Source, read

__all__ = [
    "FAMILIES",
    "SOURCES",
    "Existing",
    "Prompt",
    "RawPrompt",
    "Report",
    "Settings",
    "Skipped",
    "Source",
    "build",
    "composition",
    "key",
    "load",
    "read",
    "split_of",
]
