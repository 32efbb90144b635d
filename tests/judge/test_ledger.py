"""The ledger keeps what was paid for, through kills, torn lines and other writers."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starling_nb.errors import StarlingError
from starling_nb.judge import ledger

MESSAGES = [{"role": "user", "content": "Which is better?"}]


def test_key_depends_on_every_part_and_on_nothing_else() -> None:
    base = ledger.key("m", MESSAGES, {"temperature": 0, "seed": 1}, 0)
    assert base == ledger.key("m", [dict(MESSAGES[0])], {"seed": 1, "temperature": 0}, 0)
    others = [
        ledger.key("n", MESSAGES, {"temperature": 0, "seed": 1}, 0),
        ledger.key("m", [{"role": "user", "content": "Which is worse?"}], {"temperature": 0, "seed": 1}, 0),
        ledger.key("m", MESSAGES, {"temperature": 0, "seed": 2}, 0),
        ledger.key("m", MESSAGES, {"temperature": 0, "seed": 1}, 1),
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize("on_disk", [True, False])
def test_round_trip_and_reopening(tmp_path: Path, on_disk: bool) -> None:
    path = tmp_path / "deep" / "ledger.jsonl" if on_disk else None
    book = ledger.Ledger(path)
    texts = {"a": "plain", "b": "two\nlines, é, 🙂", "c": "half a pair \ud83d"}
    for name, text in texts.items():
        book.append(name, {"reply": text})
    assert {name: book.get(name)["reply"] for name in texts} == texts  # type: ignore[index]
    assert book.get("z") is None
    assert "z" not in book
    if path is not None:
        again = ledger.Ledger(path)
        assert len(again) == 3
        assert again.get("b")["reply"] == texts["b"]  # type: ignore[index]
        assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(replies=st.lists(st.text(max_size=12), min_size=1, max_size=5), data=st.data())
def test_a_file_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path, replies: list[str], data: st.DataObject) -> None:
    path = tmp_path / "ledger.jsonl"
    path.unlink(missing_ok=True)
    book = ledger.Ledger(path)
    for n, reply in enumerate(replies):
        book.append(str(n), {"reply": reply})
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    mended = ledger.Ledger(path)
    assert len(mended) == whole
    mended.append("new", {"reply": "after the kill"})
    final = ledger.Ledger(path)
    assert [final.get(str(n))["reply"] for n in range(whole)] == replies[:whole]  # type: ignore[index]
    assert final.get("new")["reply"] == "after the kill"  # type: ignore[index]
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [
        *map(str, range(whole)),
        "new",
    ]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"key": "a", "reply": "x"}\n{"key": "b"\n{"key": "c", "reply": "y"}\n')
    with pytest.raises(StarlingError, match="line 2"):
        ledger.Ledger(path)


def test_two_writers_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    one, two = ledger.Ledger(path), ledger.Ledger(path)
    one.append("a", {"reply": "1"})
    two.append("b", {"reply": "22"})
    one.append("c", {"reply": "333"})
    two.refresh()
    for book in (one, two):
        assert [book.get(name)["reply"] for name in "abc"] == ["1", "22", "333"]  # type: ignore[index]


def test_a_file_removed_under_way_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = ledger.Ledger(path)
    book.append("a", {"reply": "1"})
    path.unlink()
    book.refresh()
    assert len(book) == 0
    book.append("b", {"reply": "2"})
    assert len(path.read_text().splitlines()) == 1


def test_a_folder_in_the_file_s_place_is_a_clear_error(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "ledger.jsonl")
    with pytest.raises(StarlingError, match="cannot be read or written"):
        ledger.Ledger(tmp_path / "ledger.jsonl")
