from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.runner import lock
from starling_nb.runner.lock import KERNEL, LOCK, LockedError, end_orphan, held, identity


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a kernel."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "ipykernel_launcher"])
    yield process
    process.kill()
    process.wait()


def test_the_lock_is_held_and_given_back(tmp_path: Path) -> None:
    with held(tmp_path / "new"):
        assert json.loads((tmp_path / "new" / LOCK).read_text())["pid"] == os.getpid()
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), held(tmp_path / "new"):
            pass
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"pid": 1, "started": 12.5}', '{"pid": 4194304000, "started": 1}']
)
def test_a_stale_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_number_given_to_another_process_is_no_living_run(tmp_path: Path) -> None:
    known = identity(os.getpid())
    (tmp_path / LOCK).write_text(json.dumps(known | {"started": known["started"] - 3600}))
    with held(tmp_path):
        pass


def test_a_run_on_another_machine_is_not_judged_from_here(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps(identity(os.getpid()) | {"host": "elsewhere"}))
    with pytest.raises(LockedError, match="elsewhere"), held(tmp_path):
        pass


def test_a_fresh_lock_moved_by_mistake_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run takes the stale lock over between our look and our move."""
    path = tmp_path / LOCK
    path.write_text("{}")
    rename = os.rename

    def late(source: Path, target: Path) -> None:
        if source == path:
            path.write_text(json.dumps(identity(os.getpid())))
        rename(source, target)

    monkeypatch.setattr(lock.os, "rename", late)
    with pytest.raises(LockedError), held(tmp_path):
        pass
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StarlingError, match="choose another folder"), held(tmp_path / "file" / "out"):
        pass


def test_an_orphan_kernel_is_ended(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    lock.note_kernel(tmp_path, sleeper.pid, "03_reward_training")
    assert end_orphan(tmp_path) == sleeper.pid
    assert not psutil.pid_exists(sleeper.pid)
    assert not (tmp_path / KERNEL).exists()
    assert end_orphan(tmp_path) is None


@pytest.mark.parametrize("change", [{"started": 1.0}, {"command": ["other"]}, {"host": "elsewhere"}, {"pid": None}])
def test_a_process_that_is_not_that_kernel_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    files.write_json(tmp_path / KERNEL, identity(sleeper.pid) | change)
    assert end_orphan(tmp_path) is None
    assert sleeper.poll() is None
