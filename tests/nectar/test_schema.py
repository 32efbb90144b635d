"""The Nectar row: text and parquet come back as they went, and wrong rows are named."""

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb.errors import StarlingError
from starling_nb.nectar import schema


def row(k: int = 7) -> dict[str, Any]:
    return {
        "prompt": "\n\nHuman: Hello\n\nAssistant: Hi!\n\nHuman: What is a tide?\n\nAssistant: ",
        "answers": [{"answer": f"answer {i}", "model": f"m{i % 3}", "rank": float(i + 1)} for i in range(k)],
        "turns": 2,
        "num_responses": k,
        "source": ["ours"],
        "good_natured": True,
    }


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5).filter(lambda x: len(x) % 2 == 1))
def test_prompt_text_comes_back(contents: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    text = schema.to_prompt_text(messages)
    assert text.startswith("\n\nHuman: ")
    assert text.endswith("\n\nAssistant: ")
    assert schema.from_prompt_text(text) == messages


@given(st.lists(st.text(alphabet="\nHuman: Asit", max_size=12), min_size=1, max_size=3))
def test_text_is_exact_or_refused(contents: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    try:
        text = schema.to_prompt_text(messages)
    except StarlingError:
        return
    assert schema.from_prompt_text(text) == messages


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a\n\nHuman: b"}],
        [{"role": "user", "content": "a\n\nAssistant: b"}],
    ],
)
def test_conversations_without_a_faithful_text_are_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(StarlingError):
        schema.to_prompt_text(messages)


@pytest.mark.parametrize("prompt", ["", "Hello", "\n\nHuman: Hello", "\n\nHuman: Hello\n\nAssistant: Hi"])
def test_other_texts_are_not_prompts(prompt: str) -> None:
    with pytest.raises(StarlingError):
        schema.from_prompt_text(prompt)


def test_rows_come_back_from_parquet(tmp_path: Path) -> None:
    rows = [row(), {**row(), "source": ["a", "b"], "good_natured": False}]
    path = tmp_path / "deep" / "nectar.parquet"
    schema.write(rows, path)
    assert schema.read(path) == rows
    assert pq.read_schema(path).equals(schema.SCHEMA)
    assert [p.name for p in path.parent.iterdir()] == ["nectar.parquet"]


def test_a_published_file_loads_with_other_integer_and_text_types(tmp_path: Path) -> None:
    answer = pa.struct([("answer", pa.large_string()), ("model", pa.string()), ("rank", pa.float64())])
    types = {"prompt": pa.large_string(), "answers": pa.list_(answer), "turns": pa.int32()}
    table = pa.table(
        {name: pa.array([row()[name]], types.get(name)) for name in reversed(schema.SCHEMA.names)}
    ).append_column("further", pa.array([1]))
    pq.write_table(table, tmp_path / "x.parquet")
    assert schema.read(tmp_path / "x.parquet") == [row()]


def change(**fields: Any) -> dict[str, Any]:
    return {**row(), **fields}


def reranked(ranks: list[Any]) -> dict[str, Any]:
    changed = copy.deepcopy(row())
    for answer, rank in zip(changed["answers"], ranks, strict=True):
        answer["rank"] = rank
    return changed


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({k: v for k, v in row().items() if k != "turns"}, "fields"),
        (change(extra=1), "fields"),
        (change(turns=3), "turns"),
        (change(turns="2"), "turns"),
        (change(num_responses=6), "num_responses"),
        (change(source=[]), "source"),
        (change(source="ours"), "source"),
        (change(good_natured=1), "good_natured"),
        (change(prompt="Hello"), "prompt"),
        (row(6), "K is 7"),
        (change(answers=[*row()["answers"][:6], {"answer": "x"}]), "fields answer"),
        (change(answers=[*row()["answers"][:6], {"answer": None, "model": "m", "rank": 7.0}]), "texts"),
        (reranked([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0]), "ranks"),
        (reranked([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), "ranks"),
        (reranked([1, 2, 3, 4, 5, 6, 7]), "ranks"),
    ],
)
def test_a_wrong_row_is_named(wrong: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(schema.SchemaError, match="row 1") as caught:
        schema.validate([row(), wrong])
    assert word in str(caught.value)
    if wrong.get("num_responses") != 6 or len(wrong["answers"]) != 6:
        with pytest.raises(schema.SchemaError):
            schema.write([wrong], tmp_path / "x.parquet")
        assert not list(tmp_path.iterdir())


def test_other_numbers_of_answers_and_equal_answers() -> None:
    assert schema.validate([row(), row()]) == 2
    assert schema.validate([]) == 0
    assert schema.validate([row(3), row(9)], k=None) == 2
    twice = row()
    twice["answers"][1]["answer"] = twice["answers"][0]["answer"]
    assert schema.validate([twice]) == 1
    with pytest.raises(schema.SchemaError, match="equal"):
        schema.validate([twice], distinct=True)


def test_missing_and_damaged_files_give_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(schema.SchemaError, match="missing"):
        schema.read(tmp_path / "absent.parquet")
    path = tmp_path / "x.parquet"
    schema.write([row()] * 50, path)
    content = path.read_bytes()
    for damaged in (
        b"",
        b"not parquet",
        content[: len(content) // 2],
        content[:40] + b"\0" * 60 + content[100:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(schema.SchemaError, match="parquet"):
            schema.read(path)
    pq.write_table(pa.table({"prompt": ["x"]}), path)
    with pytest.raises(schema.SchemaError, match="no column"):
        schema.read(path)
    types = {**row(), "turns": "many"}
    pq.write_table(pa.Table.from_pylist([types]), path)
    with pytest.raises(schema.SchemaError, match="types"):
        schema.read(path)
