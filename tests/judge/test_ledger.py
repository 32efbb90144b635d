"""The ledger keeps what was paid for, through kills, full disks and other writers, and serves no failure."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starling_nb.errors import StarlingError
from starling_nb.judge import ledger
from starling_nb.judge.ledger import Attempt, Clerk, Ledger

MESSAGES = [{"role": "user", "content": "Which is better?"}]


def name(n: int) -> str:
    return f"{n:064x}"


def attempt(n: int, reply: str | None = "yes", outcome: str = "reply", **found: object) -> Attempt:
    return Attempt(name(n), f"r{n}", "m", 0, {"seed": n}, outcome, reply, **found)  # type: ignore[arg-type]


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
    path = tmp_path / "deep" / "ledger.sqlite" if on_disk else None
    book = Ledger(path)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    entered = [attempt(n, text, usage=usage) for n, text in enumerate(["plain", "two\nlines, é, 🙂", "", "\x00 nul"])]
    book.append(entered)
    assert [book.get(name(n)) for n in range(4)] == entered
    assert book.get(name(9)) is None
    assert name(9) not in book
    assert len(book) == 4
    assert book.mean_tokens("m") == (7.0, 2.0)
    assert book.mean_tokens("n") is None
    if path is not None:
        book.close()
        assert [entry.name for entry in path.parent.iterdir()] == ["ledger.sqlite"]
        assert [Ledger(path).get(name(n)) for n in range(4)] == entered


def test_half_a_character_is_kept_as_a_question_mark() -> None:
    book = Ledger()
    book.append([attempt(1, "half \ud83d")])
    assert book.get(name(1)).reply == "half ?"  # type: ignore[union-attr]


def test_failures_are_evidence_and_never_answers() -> None:
    book = Ledger()
    book.append([attempt(1, None, "http_429", error="slow down"), attempt(1, None, "timeout", error="too late")])
    assert book.get(name(1)) is None
    assert [(f.outcome, f.error) for f in book.failures(name(1))] == [
        ("http_429", "slow down"),
        ("timeout", "too late"),
    ]
    book.append([attempt(1, "at last"), attempt(1, "and again")])
    assert book.get(name(1)).reply == "at last"  # type: ignore[union-attr]
    assert book.counts() == {"http_429": 1, "reply": 2, "timeout": 1}
    assert len(book) == 1


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
def test_a_log_cut_at_any_byte_keeps_whole_commits(tmp_path: Path, sizes: list[int], data: st.DataObject) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    path, wal = tmp_path / "ledger.sqlite", tmp_path / "ledger.sqlite-wal"
    book = Ledger(path)
    ends, n = [0], 0
    for size in sizes:
        book.append([attempt(n + i, "x" * 3000) for i in range(size)])
        n += size
        ends.append(n)
    saved, log = path.read_bytes(), wal.read_bytes()
    book.close()
    path.write_bytes(saved)
    wal.write_bytes(log[: data.draw(st.integers(0, len(log)))])
    mended = Ledger(path)
    assert len(mended) in ends
    mended.append([attempt(99, "after the kill")])
    assert name(99) in Ledger(path)


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "l.sqlite")
    with pytest.raises(RuntimeError), book.transaction() as connection:  # noqa: PT012
        ledger.insert(connection, [attempt(1)])
        raise RuntimeError
    assert len(book) == 0
    book.append([attempt(2)])
    assert len(book) == 1


def test_two_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    program = (
        "import sys; from pathlib import Path; from starling_nb.judge.ledger import Attempt, Ledger\n"
        "book = Ledger(Path(sys.argv[1]))\n"
        "for n in range(int(sys.argv[2]), int(sys.argv[2]) + 60):\n"
        "    book.append([Attempt(f'{n:064x}', 'r', 'm', 0, {}, reply=str(n))])"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), str(start)]) for start in (0, 100)]
    assert [child.wait() for child in children] == [0, 0]
    book = Ledger(path)
    assert len(book) == 120
    assert book.get(name(107)).reply == "107"  # type: ignore[union-attr]


def test_many_notes_make_few_commits_and_all_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, commits = Ledger(tmp_path / "l.sqlite"), []
    entering = book.append
    monkeypatch.setattr(book, "append", lambda attempts: (commits.append(len(attempts)), entering(attempts)))

    async def main() -> None:
        clerk = Clerk(book)
        await asyncio.gather(*(clerk.note(attempt(n)) for n in range(500)))
        await clerk.close()

    asyncio.run(main())
    assert sum(commits) == 500
    assert len(commits) < 20
    assert len(Ledger(tmp_path / "l.sqlite")) == 500


def test_a_full_disk_is_told_to_everyone_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    book = Ledger()

    def full(attempts: object) -> None:
        raise StarlingError("disk full")

    monkeypatch.setattr(book, "append", full)

    async def main() -> list[object]:
        clerk = Clerk(book)
        return await asyncio.gather(*(clerk.note(attempt(n)) for n in range(3)), return_exceptions=True)

    assert [str(error) for error in asyncio.run(main())] == ["disk full"] * 3


def test_what_is_no_ledger_is_a_clear_error(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "folder")
    with pytest.raises(StarlingError, match="cannot be read or written"):
        Ledger(tmp_path / "folder")
    (tmp_path / "old.jsonl").write_text('{"key": "a"}\n' * 200)
    with pytest.raises(StarlingError, match="is not a judge's ledger: move it away"):
        Ledger(tmp_path / "old.jsonl")


def test_a_locked_ledger_is_waited_for_and_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WAIT", 0.05)
    book = Ledger(tmp_path / "l.sqlite")
    other = sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StarlingError, match="close what holds it"):
        book.append([attempt(1)])
    other.close()
    book.append([attempt(1)])
    assert len(book) == 1
