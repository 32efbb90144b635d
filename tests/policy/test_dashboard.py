"""The dashboard: one figure and one answer that change where somebody watches, and lines alone in a batch run."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import toy
from starling_nb import files, progress
from starling_nb.policy import dashboard
from starling_nb.policy.dashboard import Dashboard

RECORD = {"reward": 0.5, "kl": 0.1, "length": 9.0, "eos_rate": 1.0, "entropy": 2.0, "policy_loss": 3.0}
CELLS = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import toy
from starling_nb.policy import dashboard
lm = toy.lm()
shown = dashboard.Dashboard("APA", lm, toy.Likes(lm), toy.prompts(toy.QUESTIONS), 6)
for step in range(1, 5):
    shown(step, 4, {record!r})
"""


def test_a_batch_run_answers_nothing_and_writes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toy.lm()
    monkeypatch.setenv(progress.HEADLESS, "1")
    monkeypatch.setattr(dashboard.measure, "held_out", None)
    shown = Dashboard("APA", lm, toy.Likes(lm), toy.prompts(toy.QUESTIONS), 6)
    shown(1, 1, dict(RECORD))
    assert (shown.history, shown.text) == ([], "")


def test_a_notebook_shows_one_figure_and_the_latest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.HEADLESS, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    root = str(files.ROOT)
    source = CELLS.format(root=root, tests=f"{root}/tests", record=RECORD)
    looks = [nbformat.v4.new_code_cell(text) for text in (source, "shown.history[-1], shown.text, shown.name")]
    book = NotebookClient(nbformat.v4.new_notebook(cells=looks), timeout=120).execute()
    kinds: list[Any] = [output.data for output in book.cells[0].outputs if output.output_type == "display_data"]
    assert sum("image/png" in data for data in kinds) == 1
    told = [data["text/html"] for data in kinds if "text/html" in data]
    assert len(told) == 1
    assert told[0].startswith("<p><b>")
    assert "'held_out_reward': " in book.cells[1].outputs[0].data["text/plain"]
