"""Pages turn, search and export; a row of rankings shows what the judge saw and said, and nothing can run in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from starling_nb import progress
from starling_nb.errors import StarlingError
from starling_nb.explore import rows
from starling_nb.explore.pages import Pages, PagesView, browse, escaped
from starling_nb.judge.connect import connect
from starling_nb.nectar import labelling, prompts, schema
from starling_nb.nectar.candidates import Candidates

NAMES = ["one", "two", "Three"]


def pages() -> Pages[str]:
    return Pages(NAMES, lambda name: f"<b>{escaped(name)}</b>", lambda name: name)


def test_pages_turn_as_far_as_there_are_some() -> None:
    found = pages()
    for step, place in ((0, 1), (1, 2), (1, 3), (1, 3), (-5, 1)):
        found.go(step)
        assert found.page() == f"<p>{place} of 3</p><b>{NAMES[place - 1]}</b>"


def test_a_search_keeps_what_holds_its_words_and_begins_at_the_first() -> None:
    found = pages()
    found.go(2)
    assert found.search("T") == 2
    assert found.page() == "<p>1 of 2</p><b>two</b>"
    assert found.to_html(1) == "<p>1 of 2</p><b>two</b>"
    assert found.search("zebra") == 0
    found.go(1)
    assert found.page() == "<p>nothing found</p>"
    assert found.search("") == 3


def test_buttons_and_field_draw_the_page_and_an_export_the_first_few() -> None:
    view = PagesView(pages())
    view.buttons[1].click()
    assert "<b>two</b>" in view.shown.value
    view.buttons[-1].click()
    assert "<b>one</b>" in view.shown.value
    view.field.value = "three"
    assert view.shown.value == "<p>1 of 1</p><b>Three</b>"
    bundle = view._repr_mimebundle_()
    assert bundle["text/html"] == "<p>1 of 1</p><b>Three</b>"
    assert bundle["text/plain"] == "1 pages"


def test_a_batch_run_gets_no_widget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert browse(pages()).data == pages().to_html()
    monkeypatch.setattr(progress, "watched", lambda: True)
    assert isinstance(browse(pages()), PagesView)


def stage(folder: Path, models: list[str], first: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Files of stage 01: one prompt, ranked twice; the second reply could not be read."""
    prompt = prompts.load(split="train", limit=1)[0]
    answers = [{"answer": f"answer <{i}>", "model": name, "rank": float(i + 1)} for i, name in enumerate(models)]
    row = {"prompt": schema.to_prompt_text(prompt.messages), "answers": answers, "turns": prompt.turns}
    row |= {"num_responses": len(answers), "source": ["ours"], "good_natured": True}
    schema.write([row], folder / "nectar.parquet")
    # Rankings name the authors as they were shown: c, a, b; then a, b, c.
    whole = {"prompt_id": prompt.id, "variant": "final", "models": [models[i] for i in (2, 0, 1)], "shown": [2, 0, 1]}
    whole |= {"ranking": [1, 2, 0], "contradictions": 0.0, "error": None, "reply": "<b>B, C, A</b>"}
    whole |= first or {}
    failed = whole | {"models": models, "shown": [0, 1, 2], "ranking": None, "error": "no list", "reply": None}
    pd.DataFrame([whole, failed | changes]).to_parquet(folder / "rankings.parquet")
    return folder


@pytest.mark.parametrize("models", [["a", "b", "c"], ["a", "a", "c"], ["a", "a", "a"]])
def test_a_row_holds_places_ranks_and_words_of_every_pass(tmp_path: Path, models: list[str]) -> None:
    (row,) = rows.read(stage(tmp_path, models))
    assert row.models == models
    assert row.answers == ["answer <0>", "answer <1>", "answer <2>"]
    # Shown as c, a, b; ranked second place (a), third (b), first (c).
    assert row.passes[0] == rows.Pass([1, 2, 0], [1, 2, 3], "<b>B, C, A</b>")
    assert row.passes[1] == rows.Pass([0, 1, 2], None, "no list")


def test_what_a_judge_ranked_is_what_is_shown(tmp_path: Path) -> None:
    """Through the stage's own files: two authors stand twice, and every pass has an order of its own."""
    asked = prompts.load(split="train", limit=4)
    models = ["a", "b", "a", "b", "c"]
    items = [
        Candidates(p, models, [p.reference, p.flawed, *(f"Answer {n}, in short." for n in range(3))]) for p in asked
    ]
    with connect("simulated") as judge:
        labelling.label(judge, items, labelling.Plan(passes=2), tmp_path)
        replies = {outcome.reply for outcome in judge.settled(labelling.requests(items, labelling.Plan(passes=2)))}
    found = rows.read(tmp_path)
    assert len(found) == 4
    for row, item in zip(found, items, strict=True):
        assert (row.models, row.answers) == (item.models, item.answers)
        for one in row.passes:
            assert one.said in replies
            assert sorted(one.places) == list(range(5))
            letters = "".join(chr(ord("A") + one.places[one.ranks.index(rank)]) for rank in range(1, 6) if one.ranks)
            assert one.said.endswith(f"[[{', '.join(letters)}]]")


def test_rows_that_two_readings_fit_are_left_out(tmp_path: Path) -> None:
    """The first ranking contradicts itself, the second turns two answers of one author: which made the row?"""
    other = {"ranking": [1, 0, 2], "contradictions": 0.0, "error": None, "reply": "B, A, C"}
    assert len(rows.read(stage(tmp_path, ["a", "a", "c"], **other))) == 1
    assert rows.read(stage(tmp_path, ["a", "a", "c"], first={"contradictions": 2.0}, **other)) == []
    assert rows.read(stage(tmp_path, ["a", "b", "c"], first={"contradictions": 2.0}, **other)) != []


def test_a_drawn_row_stands_in_shown_order_and_is_escaped(tmp_path: Path) -> None:
    (row,) = rows.read(stage(tmp_path, ["a", "b", "c"]))
    text = rows.drawn(row)
    assert text.index("answer &lt;2&gt;") < text.index("answer &lt;0&gt;") < text.index("answer &lt;1&gt;")
    assert "<td>B, A</td><td>a</td><td>answer &lt;0&gt;</td><td>1</td><td>no ranking</td>" in text
    assert "&lt;b&gt;B, C, A&lt;/b&gt;" in text
    found = rows.pages([row])
    assert (found.search("ANSWER <2>"), found.search("nothing of it")) == (1, 0)


def test_what_cannot_be_shown_is_said_or_left_out(tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match=r"no nectar\.parquet"):
        rows.read(tmp_path)
    stage(tmp_path, ["a", "b", "c"], first={"models": ["a", "c", "b"]})  # rankings of other answers than the row's
    assert rows.read(tmp_path) == []
    with pytest.raises(StarlingError, match="'naive': choose from final"):
        rows.read(tmp_path, "naive")
