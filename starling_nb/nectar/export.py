"""Handing the data set on: preference pairs as TRL reads them, and the hub's layout.

Everything is read and written a few rows at a time, and a file takes its place only when it is whole.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from starling_nb import files, hub
from starling_nb.chat import from_nectar_text
from starling_nb.errors import StarlingError
from starling_nb.nectar import card, tables
from starling_nb.nectar.prompts import key
from starling_nb.nectar.schema import SCHEMA

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PREFERENCES = pa.schema(
    [
        *((name, MESSAGES) for name in ("prompt", "chosen", "rejected")),
        *((name, pa.float64()) for name in ("score_chosen", "score_rejected", "rank_chosen", "rank_rejected")),
        *((name, pa.string()) for name in ("model_chosen", "model_rejected", "prompt_id")),
        ("source", pa.list_(pa.string())),
        ("good_natured", pa.bool_()),
    ]
)
"""TRL's conversational preference format (its documentation, "Dataset formats"), and what else a row knows."""
PAIRS = ("all", "best_worst", "adjacent")
HUB_FILE = "data/train-00000-of-00001.parquet"
REMEDY = "make the data set first (notebook 01), or mend the path"


@dataclass(frozen=True)
class Exported:
    """What was written: rows read, pairs written; and pairs left out whose answers are the same text, or tie."""

    rows: int
    pairs: int
    equal: int
    tied: int = 0


def preferences(source: Path, target: Path, pairs: str = "all") -> Exported:
    """Write the preference pairs of a Nectar file to another parquet file, atomically.

    ``prompt`` holds the conversation up to the user's last turn, ``chosen`` and ``rejected`` one assistant message
    each. A score is the share of the row's other answers that an answer beats, from 0 to 1; without ties
    ``(K - rank) / (K - 1)``.

    Args:
        source: a parquet file of Nectar rows.
        target: the file to write.
        pairs: ``all`` (K (K - 1) / 2 a row), ``best_worst`` (one) or ``adjacent`` (K - 1).

    Raises:
        StarlingError: an unknown choice of pairs, or a file that cannot be read or written.
    """
    if pairs not in PAIRS:
        raise StarlingError(f"unknown choice of pairs {pairs!r}: choose from {', '.join(PAIRS)}")
    seen: Counter[str] = Counter()
    rows = tables.read(source, SCHEMA.names, REMEDY)
    written = tables.write(_preferences(rows, pairs, seen), target, PREFERENCES)
    return Exported(seen["rows"], written, seen["equal"], seen["tied"])


def _preferences(rows: Iterator[dict[str, Any]], pairs: str, seen: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        seen["rows"] += 1
        messages = from_nectar_text(row["prompt"])
        shared = {"prompt": messages, "prompt_id": key(messages)}
        shared |= {"source": row["source"], "good_natured": row["good_natured"]}
        for better, worse in _chosen_pairs(sorted(row["answers"], key=lambda answer: answer["rank"]), pairs):
            if better["answer"] == worse["answer"] or better["rank"] == worse["rank"]:
                seen["equal" if better["answer"] == worse["answer"] else "tied"] += 1
                continue
            ranks = [answer["rank"] for answer in row["answers"]]
            yield shared | _side("chosen", better, ranks) | _side("rejected", worse, ranks)


def _chosen_pairs(answers: list[dict[str, Any]], pairs: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The better and the worse answer of each pair; answers from best to worst."""
    if pairs == "best_worst":
        return iter([(answers[0], answers[-1])])
    return itertools.pairwise(answers) if pairs == "adjacent" else itertools.combinations(answers, 2)


def _side(name: str, answer: Mapping[str, Any], ranks: Sequence[float]) -> dict[str, Any]:
    return {
        name: [{"role": "assistant", "content": answer["answer"]}],
        f"score_{name}": sum(rank > answer["rank"] for rank in ranks) / (len(ranks) - 1),
        f"rank_{name}": answer["rank"],
        f"model_{name}": answer["model"],
    }


def hub_layout(folder: Path, target: Path) -> Path:
    """Lay out a run's data set as the hub keeps one: ``data/*.parquet`` and ``README.md``; returns ``target``.

    Args:
        folder: holds ``nectar.parquet`` and its card (:func:`starling_nb.nectar.card.write`).
        target: the folder to write, which ``datasets.load_dataset`` then loads.

    Raises:
        StarlingError: a file is missing, the rows do not have exactly Nectar's columns, or something else lies in the
            target's ``data``.
    """
    source, readme = folder / "nectar.parquet", folder / "README.md"
    tables.count(source, REMEDY)
    if not pq.read_schema(source).equals(SCHEMA):
        raise StarlingError(f"{source} does not have exactly Nectar's columns: read it and write it with nectar.schema")
    if not readme.is_file():
        raise StarlingError(f"{readme} is missing: write the card first (starling_nb.nectar.card.write)")
    text = card.relocated(readme.read_text(encoding="utf-8"), "data/*.parquet")
    if other := [path.name for path in (target / "data").glob("*") if path != target / HUB_FILE]:
        raise StarlingError(f"{target / 'data'} already holds {', '.join(sorted(other))}: choose an empty folder")
    with files.replacing(target / HUB_FILE) as part:
        shutil.copyfile(source, part)
    files.write_text(target / "README.md", text)
    return target


def push_to_hub(folder: Path, repo_id: str, private: bool = True) -> str:
    """Put a run's data set on the Hugging Face hub in the hub's layout; returns its address.

    The token is the one of ``hf auth login`` or ``HF_TOKEN``. The judge's raw replies (``rankings.parquet``) stay here.

    Args:
        folder: holds ``nectar.parquet`` and its card.
        repo_id: ``owner/name``; made where it does not exist.
        private: whether only its owner may see it. A repository that is already public is then refused.

    Raises:
        StarlingError: no token, the hub cannot be reached or refuses, or as :func:`hub_layout`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        layout = hub_layout(folder, Path(temporary))
        message = f"Data set with its card, parquet {files.hash_file(layout / HUB_FILE)[:12]}"
        names = ["README.md", "data/*.parquet"]
        return hub.push(layout, repo_id, kind="dataset", private=private, files=names, message=message)
