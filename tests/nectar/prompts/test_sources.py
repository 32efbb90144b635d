"""Every published set is read in its own layout; bad rows are counted and bad files are one message."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar.prompts import FAMILIES, SOURCES, Existing, RawPrompt, Settings, Skipped, build, read
from starling_nb.nectar.prompts.settings import FilterSettings, SourceSettings
from starling_nb.nectar.prompts.shapes import SHAPES

ASKED = [{"role": "user", "content": "Why is the sky blue?"}]
MODERATION = [{"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.01}}]


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def lmsys(folder: Path) -> None:
    turns = [*ASKED, {"role": "assistant", "content": "Scattering."}]
    row = {"conversation_id": "c1", "model": "vicuna-13b", "conversation": turns, "turn": 1, "language": "English"}
    row |= {"openai_moderation": MODERATION, "redacted": False}
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), folder / "data" / "train-00000-of-00001-abc.parquet")


def sharegpt(folder: Path) -> None:
    turns = [{"from": "human", "value": ASKED[0]["content"]}, {"from": "gpt", "value": "Scattering."}]
    folder.mkdir(parents=True)
    rows = [{"id": "s_0", "conversations": turns}, {"id": "s_1", "conversations": turns[1:]}]
    (folder / "ShareGPT_V3_unfiltered_cleaned_split.json").write_text(json.dumps(rows, indent=2))
    (folder / "other.json").write_text("[]")


def hh(folder: Path) -> None:
    start = f"\n\nHuman: {ASKED[0]['content']}\n\nAssistant: "
    for part in ("harmless-base", "helpful-base"):
        lines(folder / part / "train.jsonl.gz", [{"chosen": f"{start}Light.", "rejected": f"{start}No."}])
        lines(folder / part / "test.jsonl.gz", [{"chosen": f"{start}Test.", "rejected": f"{start}Test!"}])
    lines(folder / "red-team-attempts" / "red_team_attempts.jsonl.gz", [{"transcript": start, "rating": 1.0}])


def ultrafeedback(folder: Path) -> None:
    written = [
        {"model": name, "response": f"By {name}.", "overall_score": 7.0} for name in ("gpt-4", "llama-2-7b-chat")
    ]
    row = {"source": "ultrachat", "instruction": ASKED[0]["content"], "models": ["gpt-4"], "completions": written}
    lines(folder / "ultrachat.jsonl", [row])


def evol(folder: Path) -> None:
    turns = [{"from": "human", "value": ASKED[0]["content"]}, {"from": "gpt", "value": "Scattering."}]
    folder.mkdir(parents=True)
    (folder / "WizardLM_evol_instruct_V2_143k.json").write_text(json.dumps([{"idx": "e1", "conversations": turns}]))


def evol_70k(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [{"instruction": ASKED[0]["content"], "output": "Scattering."}]
    (folder / "alpaca_evol_instruct_70k.json").write_text(json.dumps(rows))


def flan(folder: Path) -> None:
    row = {"inputs": ASKED[0]["content"], "targets": "Scattering.", "task_source": "Flan2021", "task_name": "x"}
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), folder / "data" / "train-00000-of-00001-x.parquet")


LAYOUTS: dict[str, tuple[Callable[[Path], None], list[str], list[Existing]]] = {
    "lmsys-chat-1m": (lmsys, ["lmsys-chat-1m"], [Existing("vicuna-13b", "Scattering.")]),
    "sharegpt": (sharegpt, ["sharegpt"], [Existing("chatgpt", "Scattering.")]),
    "anthropic-hh": (hh, ["anthropic-hh"], [Existing("anthropic", "Light."), Existing("anthropic", "No.")]),
    "ultrafeedback": (
        ultrafeedback,
        ["ultrachat"],
        [Existing("gpt-4", "By gpt-4."), Existing("llama-2-7b-chat", "By llama-2-7b-chat.")],
    ),
    "evol_instruct": (evol, ["evol_instruct"], [Existing("gpt-3.5-turbo", "Scattering.")]),
    "evol_instruct_70k": (evol_70k, ["evol_instruct_70k"], [Existing("gpt-3.5-turbo", "Scattering.")]),
    "flan_v2_niv2": (flan, ["flan_v2_niv2"], [Existing("reference", "Scattering.")]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_laid_out_as_on_the_hub_is_read(name: str, tmp_path: Path) -> None:
    make, origin, answers = LAYOUTS[name]
    make(tmp_path / "set")
    found = [item for item in read(name, tmp_path / "set") if isinstance(item, RawPrompt)]
    assert [item.messages for item in found] == [ASKED] * (2 if name == "anthropic-hh" else 1)
    assert found[0].source == origin
    assert found[0].answers == answers
    assert found[0].language == ("English" if name == "lmsys-chat-1m" else None)


def test_one_prompt_from_every_family_is_one_row_with_all_origins(tmp_path: Path) -> None:
    for name, (make, _, _) in LAYOUTS.items():
        make(tmp_path / name)
    listed = [SourceSettings(name, path=str(tmp_path / name)) for name in LAYOUTS]
    report = build(Settings(listed, filters=FilterSettings(shortest=0, top=20)), tmp_path / "out.jsonl")
    (row,) = files.read_jsonl(tmp_path / "out.jsonl")
    assert row["messages"] == ASKED
    assert row["source"] == [origin for _, origins, _ in LAYOUTS.values() for origin in origins]
    assert len(row["answers"]) == 8  # the two evol sets hold the same one
    assert (report.exact, report.kept) == (7, 1)
    assert report.sources["sharegpt"].dropped == {"the first turn is the assistant's": 1}


def test_the_table_covers_the_six_families() -> None:
    assert {source.family for source in SOURCES.values()} == {*FAMILIES, "own"}
    assert all(source.terms and source.shape in SHAPES for source in SOURCES.values())


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_own_prompts_are_read_from_any_kind_of_file(tmp_path: Path, ending: str) -> None:
    rows = [
        {"prompt": "one", "source": ["forum", "mail"], "id": "7", "answers": [{"model": "m", "answer": "a"}]},
        {"prompt": "two", "source": None, "id": None, "answers": None},
    ]
    path = tmp_path / f"own{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".json":
        path.write_text(json.dumps(rows))
    else:
        lines(path, rows)
    first, second = read("mine", path, like="plain")
    assert first == RawPrompt([{"role": "user", "content": "one"}], ["forum", "mail"], [Existing("m", "a")], None, "7")
    assert second == RawPrompt([{"role": "user", "content": "two"}], ["mine"], [])
    assert len(list(read("mine", path, like="plain", limit=1))) == 1


def test_a_long_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("starling_nb.nectar.prompts.sources._CHUNK", 7)
    path = tmp_path / "own.json"
    path.write_text("\n [" + ", \n".join(json.dumps({"prompt": f"say [{n}], {{é}}"}) for n in range(30)) + "]\n")
    found = [item.messages[0]["content"] for item in read("plain", path) if isinstance(item, RawPrompt)]
    assert found == [f"say [{n}], {{é}}" for n in range(30)]


def test_rows_without_a_prompt_are_skipped_with_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(
        b'{"prompt": "fine"}\n{"prompt": \n\xff\xfe\n[1]\n{"text": "x"}\n{"prompt": 3}\n\n{"prompt": "fine"}'
    )
    found = list(read("plain", path))
    assert [item.reason for item in found if isinstance(item, Skipped)] == [
        "a line that is not JSON",
        "a line that is not JSON",
        "a row that is no object",
        "no prompt or messages",
        "a int where text belongs",
    ]
    assert len(found) == 7


def test_a_whole_conversation_is_kept_where_asked(tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": str(n)} for n in range(4)]
    lines(tmp_path / "c.jsonl", [{"conversation": turns, "model": "m", "language": "English"}])
    (first,), (whole,) = (list(read("lmsys-chat-1m", tmp_path / "c.jsonl", whole=whole)) for whole in (False, True))
    assert isinstance(first, RawPrompt)
    assert isinstance(whole, RawPrompt)
    assert (len(first.messages), first.answers) == (1, [Existing("m", "1")])
    assert (len(whole.messages), whole.answers) == (3, [Existing("m", "3")])


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("nothing", "a.jsonl", "{}", "unknown data set"),
        ("plain", "", "", "need a path"),
        ("plain", "absent.jsonl", None, "no file or folder"),
        ("plain", "a.jsonl", "", "holds no rows"),
        ("plain", "a.txt", "x", "cannot be read"),
        ("plain", "a.parquet", "x", "no readable parquet file .*: fetch it again"),
        ("plain", "a.jsonl.gz", "x", "cannot be read"),
        ("plain", "a.json", '[{"prompt": "x"}, {"prom', "cannot be read"),
        ("plain", "a.json", '{"prompt": "x"}', "no JSON array"),
        ("anthropic-hh", "a.jsonl", '{"chosen": "x"}', "no column rejected .* it holds chosen"),
        ("plain", "a.jsonl", '{"text": "x"}', "no column prompt or messages"),
    ],
)
def test_what_cannot_be_read_is_one_message(
    tmp_path: Path, name: str, file: str, content: str | None, said: str
) -> None:
    path = tmp_path / file if file else None
    if path and content is not None:
        path.write_text(content)
    with pytest.raises(StarlingError, match=said):
        list(read(name, path))


@pytest.mark.parametrize("name", ["lmsys-chat-1m", "sharegpt"])
def test_a_hub_out_of_reach_is_one_message(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no way to the hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(StarlingError, match=r"no way to the hub.*log in .*local copy"):
        list(read(name))
