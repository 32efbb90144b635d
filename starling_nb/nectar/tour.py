"""Notebook 01, step by step: collections made messy on purpose, so that cleaning them can be checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from starling_nb import files
from starling_nb.nectar.prompts import Prompt, Report, Settings, read
from starling_nb.nectar.prompts.settings import FilterSettings, SourceSettings
from starling_nb.nectar.prompts.shapes import RawPrompt

FOREIGN = (
    "Kannst du mir bitte erklären, warum der Himmel am Abend rot und nicht blau ist?",
    "Pourquoi les feuilles des arbres changent-elles de couleur quand vient l'automne ?",
    "¿Me puedes recomendar una receta sencilla para cenar esta noche con mis amigos?",
    "Potresti spiegarmi come si coltivano i pomodori su un balcone molto piccolo?",
    "Czy możesz mi wyjaśnić, dlaczego zimą dni są krótsze niż latem w naszym kraju?",
)
SHORT = ("hi there", "thanks!", "and then?", "ok", "what?")
COPIES, LEAKS = 8, 4
CLEAN, MESSY = "collection", "forum"


def messy(prompts: Sequence[Prompt], bench: Path, folder: Path) -> tuple[Settings, dict[str, int]]:
    """Two files of prompts, one clean and one planted with every kind of waste; and how much of each was planted.

    Args:
        prompts: ours; the clean file.
        bench: an evaluation set whose prompts leak into the messy file.
        folder: where the two files go.

    Returns:
        Settings for :func:`starling_nb.nectar.prompts.build`, and planted rows by what should become of them.
    """
    long = [p.messages[0]["content"] for p in prompts if p.turns == 1 and len(p.messages[0]["content"].split()) >= 14]
    exact = [text.upper().replace(" ", "  ") for text in long[:COPIES]]
    near = [f"Hello! {text}" for text in long[COPIES : 2 * COPIES]]
    leaked = [item.messages[0]["content"] for item in read("bench", bench, like="plain") if isinstance(item, RawPrompt)]
    leaked = [text for text in leaked if len(text) > 60][:LEAKS]
    files.write_jsonl(folder / f"{CLEAN}.jsonl", [{"messages": p.messages, "source": p.family} for p in prompts])
    waste = [*exact, *near, *FOREIGN, *SHORT, *leaked]
    files.write_jsonl(folder / f"{MESSY}.jsonl", [{"prompt": text} for text in waste])
    sources = [SourceSettings(name, "plain", str(folder / f"{name}.jsonl"), whole=True) for name in (CLEAN, MESSY)]
    planted = {
        "merged with ours": len(exact) + len(near),
        "too short": len(SHORT),
        "not en": len(FOREIGN),
        "overlaps an evaluation set": len(leaked),
        "kept": 0,
    }
    return Settings(sources, filters=FilterSettings(shortest=12)), planted


def found(report: Report, planted: dict[str, int]) -> pd.DataFrame:
    """What became of the messy file's rows beside what should have: fate, planted, found."""
    messy = report.sources[MESSY]
    counts = {
        "merged with ours": messy.merged,
        "overlaps an evaluation set": messy.contaminated,
        "kept": messy.kept,
        **messy.dropped,
    }
    rows = [
        {"fate": fate, "planted": planted.get(fate, 0), "found": counts.get(fate, 0)} for fate in {**planted, **counts}
    ]
    return pd.DataFrame(rows)
