from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from starling_nb import doctor, fetch, files
from starling_nb.runner import keys, notebook


@pytest.fixture
def recorded(tmp_path: Path) -> dict[str, Any]:
    """A manifest of two stages that were run with the present code."""
    tiny.write(tmp_path, "00_a", "pass")
    tiny.write(tmp_path, "01_b", "pass", needs=["00_a"])
    stages = {}
    for book in notebook.find(tmp_path):
        values = {name: one.default for name, one in book.parameters.items()}
        inputs = dict.fromkeys(book.needs, "hash")
        stages[book.name] = {"components": keys.components(book, values, inputs, keys.data_hash())}
    return {"profile": "laptop", "stages": stages}


def test_a_fresh_run_is_not_stale(recorded: dict[str, Any], tmp_path: Path) -> None:
    recorded["stages"]["00_a"]["components"]["versions"] = {"torch": "another machine's"}
    assert doctor.stale_stages(recorded, tmp_path) == {}


def test_a_changed_notebook_makes_later_stages_stale_too(recorded: dict[str, Any], tmp_path: Path) -> None:
    tiny.write(tmp_path, "00_a", "x = 1")
    tiny.write(tmp_path, "02_c", "pass")
    assert doctor.stale_stages(recorded, tmp_path) == {
        "00_a": ["the notebook's code changed"],
        "01_b": ["00_a is stale"],
        "02_c": ["not in the run"],
    }


def test_checks_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STARLING_NB_CACHE", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@host/v1?key=secret")
    monkeypatch.setattr(files, "DATA", tmp_path / "empty")
    monkeypatch.setattr(fetch, "find", lambda name: fetch.Wheel("w", "1", "0" * 64, "model", ""))
    found = {check.name: check for check in doctor.checks()}
    assert not found["model"].fine
    assert "starling-nb fetch model" in found["model"].detail
    assert not found["data"].fine
    assert "http://host/v1, a key is set" in found["judge"].detail
    assert "secret" not in str(found)
