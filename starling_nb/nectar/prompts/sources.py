"""Where prompts come from: one table of the published data sets, and how they are streamed.

A set is read from the hub, from a local folder laid out as on the hub, or from one file (.jsonl, .jsonl.gz, .json,
.parquet). A row without a usable prompt becomes a :class:`~starling_nb.nectar.prompts.shapes.Skipped` with its reason.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from starling_nb.errors import StarlingError
from starling_nb.nectar import tables
from starling_nb.nectar.prompts.shapes import SHAPES, MalformedRowError, RawPrompt, Skipped, text


@dataclass(frozen=True)
class Source:
    """One data set: where it lies, on which terms, and which of its columns say what."""

    family: str  # one of starling_nb.nectar.prompts.FAMILIES, or "own"
    hub_id: str
    terms: str  # licence and terms as its card states them; read the card before use
    shape: str  # a name from starling_nb.nectar.prompts.shapes.SHAPES
    columns: Mapping[str, str]  # what the shape asks for → the set's column
    extra: Mapping[str, str] = field(default_factory=dict)  # the same, for columns that may be absent
    config: str | None = None
    split: str = "train"
    file: str = ""  # the one file of the set that is meant, where it holds several
    model: str = ""  # who wrote its answers, where no column says so


_EVOL_TERMS = "MIT on the card; answers by an OpenAI model: not for models that compete with theirs"
_FLAN_TERMS = "Flan code Apache-2.0; each task set keeps its own licence"
_FLAN = (_FLAN_TERMS, "instruction", {"instruction": "inputs", "output": "targets"})
_OWN = ("prompt", "messages", "answers", "source", "id", "language", "model")

# fmt: off
SOURCES: dict[str, Source] = {
    "lmsys-chat-1m": Source(
        "real_user_chat", "lmsys/lmsys-chat-1m", "LMSYS-Chat-1M licence: gated, no passing on", "chat",
        {"turns": "conversation", "model": "model"}, {"language": "language", "id": "conversation_id"}),
    "sharegpt": Source(
        "shared_conversations", "anon8231489123/ShareGPT_Vicuna_unfiltered",
        "Apache-2.0 on the card; texts are users' and OpenAI's", "chat", {"turns": "conversations"}, {"id": "id"},
        file="ShareGPT_V3_unfiltered_cleaned_split.json", model="chatgpt"),
    "anthropic-hh": Source(
        "helpful_harmless", "Anthropic/hh-rlhf", "MIT; not meant for supervised training of dialogue agents",
        "dialogues", {"chosen": "chosen", "rejected": "rejected"}, model="anthropic"),
    "ultrafeedback": Source(
        "instruction_mixture", "openbmb/UltraFeedback", "MIT; some answers by OpenAI models", "completions",
        {"instruction": "instruction", "completions": "completions"}, {"source": "source"}),
    "evol_instruct": Source(
        "evolved_instructions", "WizardLMTeam/WizardLM_evol_instruct_V2_196k", _EVOL_TERMS, "chat",
        {"turns": "conversations"}, {"id": "idx"}, model="gpt-3.5-turbo"),
    "evol_instruct_70k": Source(
        "evolved_instructions", "WizardLMTeam/WizardLM_evol_instruct_70k", _EVOL_TERMS, "instruction",
        {"instruction": "instruction", "output": "output"}, model="gpt-3.5-turbo"),
    "flan_v2_flan2021": Source("task_collections", "conceptofmind/flan2021_submix_original", *_FLAN, model="reference"),
    "flan_v2_niv2": Source("task_collections", "conceptofmind/niv2_submix_original", *_FLAN, model="reference"),
    "flan_v2_cot": Source("task_collections", "conceptofmind/cot_submix_original", *_FLAN, model="reference"),
    "flan_v2_p3": Source("task_collections", "conceptofmind/t0_submix_original", *_FLAN, model="reference"),
    "plain": Source("own", "", "yours", "plain", {}, {name: name for name in _OWN}),
}
# fmt: on
"""Name, as in Nectar's ``source`` column → data set. ``plain`` is the format for own prompts."""

HEAD = 100
"""Rows in which every column of a set must have been met at least once."""

_CHUNK = 2**22
_REMEDY = "fetch it again, or give the one file that you mean"
_BETWEEN = re.compile(r"[\s,]*")


def read(
    name: str, path: Path | None = None, *, like: str = "", whole: bool = False, limit: int | None = None
) -> Iterator[RawPrompt | Skipped]:
    """Stream the prompts of one data set in its own order.

    Args:
        name: a name from :data:`SOURCES`, or a name of your own with ``like``; it stands in each prompt's ``source``
            unless the set has a column that says better.
        path: a local folder or file; the hub by default.
        like: the entry of :data:`SOURCES` whose columns the data has; ``name`` by default.
        whole: keep conversations up to their last user turn; by default the first turn, as published.
        limit: stop after so many rows.

    Raises:
        StarlingError: an unknown name, a file or hub id that cannot be read, no rows, or a missing column.
    """
    if (like or name) not in SOURCES:
        raise StarlingError(f"unknown data set {like or name!r}: choose one of {', '.join(SOURCES)}")
    source = SOURCES[like or name]
    where = str(path) if path else source.hub_id
    if not where:
        raise StarlingError(f"{name}: prompts of your own need a path to a file or folder")
    if path and not path.exists():
        raise StarlingError(f"{name}: there is no file or folder {path}: mend the path, or leave it out for the hub")
    return _prompts(name, source, itertools.islice(_rows(source, path, where), limit), where, whole)


def _prompts(name: str, source: Source, rows: Iterator[Any], where: str, whole: bool) -> Iterator[RawPrompt | Skipped]:
    head = list(itertools.islice(rows, HEAD))
    if not head:
        raise StarlingError(f"{where} holds no rows: check the path, or fetch it again")
    objects = [row for row in head if isinstance(row, Mapping)]
    if objects and all(_absent(source, row) for row in objects):
        absent, held = ", ".join(_absent(source, objects[0])), ", ".join(map(str, objects[0]))
        raise StarlingError(
            f"{where} has no column {absent} as this data set has it; it holds {held}: choose another entry "
            f"of starling_nb.nectar.prompts.SOURCES (like = …), or rename the columns"
        )
    for row in itertools.chain(head, rows):
        yield _prompt(name, source, row, whole)


def _absent(source: Source, row: Mapping[str, Any]) -> list[str]:
    if source.shape == "plain":
        return [] if "prompt" in row or "messages" in row else ["prompt or messages"]
    return [column for column in source.columns.values() if column not in row]


def _prompt(name: str, source: Source, row: Any, whole: bool) -> RawPrompt | Skipped:
    if isinstance(row, Skipped):
        return row
    if not isinstance(row, Mapping):
        return Skipped("a row that is no object")
    if absent := _absent(source, row):
        return Skipped(f"no {', '.join(absent)}")
    fields = {role: row.get(column) for role, column in {**source.columns, **source.extra}.items()}
    fields["model"] = fields.get("model") or source.model
    origin, language = fields.get("source") or name, fields.get("language")
    try:
        messages, answers = SHAPES[source.shape](fields, whole)
        origins = [text(item) for item in (origin if isinstance(origin, list) else [origin])]
        said = text(language) if language else None
    except MalformedRowError as error:
        return Skipped(str(error))
    given = fields.get("id")
    return RawPrompt(messages, origins, answers, said, "" if given is None else str(given))


def _rows(source: Source, path: Path | None, where: str) -> Iterator[Any]:
    """The rows as they are, :class:`Skipped` for a line that is not JSON; one error for whatever goes wrong."""
    from datasets.exceptions import DatasetsError

    try:
        yield from _from_file(path) if path and path.is_file() else _from_datasets(source, path)
    except (OSError, EOFError, ValueError, DatasetsError) as error:  # pyarrow's errors are ValueErrors
        advice = "check the network, accept the set's terms and log in (hf auth login), or set path to a local copy"
        told = f"{where} cannot be read ({str(error).splitlines()[0][:200]})"
        raise StarlingError(f"{told}: {_REMEDY if path else advice}") from error


def _from_datasets(source: Source, path: Path | None) -> Iterator[Any]:
    if source.file and (path is None or (path / source.file).is_file()):
        if path is None:
            from huggingface_hub import hf_hub_download

            yield from _from_file(Path(hf_hub_download(source.hub_id, source.file, repo_type="dataset")))
        else:
            yield from _from_file(path / source.file)
        return
    from datasets import load_dataset

    yield from load_dataset(str(path or source.hub_id), source.config, split=source.split, streaming=True)


def _from_file(path: Path) -> Iterator[Any]:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            yield from _from_lines(lines)
    elif path.suffix == ".json":
        with path.open(encoding="utf-8") as stream:
            yield from _from_array(stream)
    elif path.suffix == ".parquet":
        yield from tables.read(path, None, _REMEDY)
    else:
        raise ValueError("not a .jsonl, .jsonl.gz, .json or .parquet file")


def _from_lines(lines: Iterable[bytes]) -> Iterator[Any]:
    for line in lines:
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                yield Skipped("a line that is not JSON")


def _from_array(stream: IO[str]) -> Iterator[Any]:
    """Items of a JSON array, a piece of the file at a time."""
    decoder, held, at = json.JSONDecoder(), stream.read(_CHUNK).lstrip("\ufeff \t\r\n"), 1
    if not held.startswith("["):
        raise ValueError("no JSON array; one object a line is .jsonl")
    while True:
        at = _BETWEEN.match(held, at).end()  # type: ignore[union-attr]  # it matches the empty text too
        if held.startswith("]", at):
            return
        try:
            item, at = decoder.raw_decode(held, at)
        except ValueError:
            more = stream.read(_CHUNK)
            if not more:
                raise
            held, at = held[at:] + more, 0
        else:
            yield item
