"""What a reader meets, in a real browser: notebooks in JupyterLab, widgets that are clicked, pages that are read.

One notebook of the project and one of widgets; ``make evidence NAME=lab`` takes all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from benchmarks.browser import chromium, missing
from starling_nb import fetch, files, page, plots, report
from starling_nb.bias import share_from_counts
from starling_nb.errors import StarlingError
from starling_nb.runner import manifest
from starling_nb.stage import NOTEBOOKS

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser")

WIDGETS = [
    """
    from pathlib import Path
    from starling_nb.explore import voting_view
    from starling_nb.evaluation.arena.voting import ArenaSession
    prompts = {f"q{i}": f"What is {i} plus one?" for i in range(5)}
    answers = {name: {id: f"{name} answers {text}" for id, text in prompts.items()} for name in ("x", "y")}
    voting_view.show(ArenaSession(Path("votes.jsonl"), prompts, answers, voter="me"))
    """,
    """
    from starling_nb.explore import pages, rows
    asked = [[{"role": "user", "content": f"Question {i} <b>?"}] for i in range(4)]
    passes = [rows.Pass([1, 0], [1, 2], "B, A")]
    found = [rows.Row(f"p{i}", said, ["one", "two"], ["yes", "no"], passes) for i, said in enumerate(asked)]
    pages.browse(rows.pages(found))
    """,
    """
    from starling_nb import progress
    sum(progress.track(range(7), "counting"))
    """,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What JupyterLab shows."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def opened(browser: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Opens a notebook of ``folder`` in JupyterLab."""
    from benchmarks.browser import jupyter

    with jupyter.served(folder, tmp_path_factory.mktemp("settings"), "dark") as address:
        yield lambda name: jupyter.OpenNotebook(browser, address, name)


def dedented(source: str) -> str:
    return "\n".join(line[4:] for line in source.strip("\n").splitlines()).strip()


def test_votes_and_pages_answer_clicks_and_nothing_stays_at_its_beginning(
    browser: Any, folder: Path, opened: Callable[[str], Any]
) -> None:
    from benchmarks.browser import audit, hands

    cells = [nbformat.v4.new_markdown_cell("# Widgets"), *map(nbformat.v4.new_code_cell, map(dedented, WIDGETS))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "widgets.ipynb")
    book = opened("widgets.ipynb")
    book.run(600)
    assert book.errors() + book.blanks() == []
    assert hands.vote(book.page, book.cell("voting_view.show")) == 5
    assert hands.turn(book.cell("pages.browse"), "question 2 <b>") == 1
    book.save()
    book.close()
    assert book.faults == []
    lines = [json.loads(line) for line in (folder / "votes.jsonl").read_text().splitlines()]
    assert [line.get("choice") for line in lines] == [None, "A", "tie", "B"]
    report.as_page(folder / "widgets.ipynb")
    assert "counting: 100%" in (folder / "widgets.html").read_text()
    assert audit.read(browser, folder / "widgets.html") == []


@pytest.mark.skipif(fetch.find("model").cached() is None, reason="needs the model: starling-nb fetch model")
def test_the_first_notebook_runs_in_jupyterlab(
    folder: Path, opened: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from benchmarks.browser.jupyter import copied

    out = tmp_path_factory.mktemp("run")
    copied(NOTEBOOKS / "00_start_here.ipynb", folder, {"profile": "smoke", "out": str(out)})
    book = opened("00_start_here.ipynb")
    book.run(600)
    assert book.errors() + book.blanks() + book.faults == []
    book.close()
    assert files.read_json(out / "00_start_here" / "stage.json")["profile"] == "smoke"


def test_a_notebook_is_copied_with_other_parameters_but_no_unknown_ones(tmp_path: Path) -> None:
    from benchmarks.browser.jupyter import copied

    path = copied(NOTEBOOKS / "00_start_here.ipynb", tmp_path, {"best_of": 2, "out": "a'b"})
    cell = next(cell for cell in nbformat.read(path, 4).cells if "parameters" in cell.metadata.get("tags", ()))
    assert 'profile: str = "laptop"  # size' in cell.source
    assert "best_of: int = 2  # answers" in cell.source
    assert 'out: str = "a\'b"  # folder' in cell.source
    with pytest.raises(StarlingError, match="no parameter 'bestof'"):
        copied(NOTEBOOKS / "00_start_here.ipynb", tmp_path, {"bestof": 2})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of one notebook, with every kind of thing that a report shows."""
    claim = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 1200, "rule": "low>0.5", "text": "more than half"}
    metrics: dict[str, Any] = {
        f"claim.02.{verdict.replace(' ', '_')}_by_the_rule": {**claim, "verdict": verdict}
        for verdict in ("holds", "fails", "too small")
    }
    metrics["02.a_rather_long_name.of_a_number"] = {"value": 0.25, "low": None, "high": None, "n": None}
    files.write_json(tmp_path / "metrics.json", metrics)
    entry = {"key": "02_a-0123456789abcdef", "status": "done", "cached": False, "seconds": 61.0, "error": None}
    entry |= {"peak_rss_bytes": 2**30, "params": {f"parameter_{i}": i for i in range(30)}}
    files.write_json(tmp_path / "manifest.json", manifest.head("smoke", ["starling-nb"]) | {"stages": {"02_a": entry}})
    figure = plots.four_panels({"naive": share_from_counts([61, 60, 34, 19, 9, 6, 6])})
    figure.caption = "First places."
    plots.save(figure, tmp_path / "figures" / "02_panels.png", {})
    files.write_text(tmp_path / "figures" / "02_panels.txt", "First places.\n")
    names = [
        f"{name}{end}" for name in ("gain", "share", "at_equal_length", "matched") for end in ("", "_low", "_high")
    ]
    row = ",".join(["proxy_of_quality", *["-0.123456789"] * len(names)])
    files.write_text(tmp_path / "tables" / "02_t.csv", f"{','.join(['measure', *names])}\n{row}\n")
    data, about = figure._repr_png_()
    shown = {"image/png": data, "text/plain": "<Figure>"}
    outputs = [
        nbformat.v4.new_output("stream", text="done\n"),
        nbformat.v4.new_output("display_data", nbformat.from_dict(encoded(shown)), metadata={"image/png": about}),
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# A notebook\n\n## A part\n\nwith `code` and [a link](00_b.ipynb)"),
        nbformat.v4.new_code_cell("import os  # why\nprint('done', 1, None)", outputs=outputs, execution_count=1),
    ]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "02_a.ipynb")
    return tmp_path


def encoded(bundle: dict[str, Any]) -> dict[str, str]:
    import base64

    return {kind: base64.b64encode(one).decode() if isinstance(one, bytes) else one for kind, one in bundle.items()}


def test_the_report_and_its_notebooks_can_be_read_by_everybody(browser: Any, run: Path) -> None:
    from benchmarks.browser import audit

    for path in (report.write(run), run / "notebooks" / "02_a.html"):
        assert audit.read(browser, path) == []


FAULTY = {
    "page is too wide": '<div style="width: 2000px">wide</div>',
    "does not fit": '<div style="overflow-x: auto; width: 99px"><p style="width: 200px">wide</p></div>',
    "image without alt text": '<img src="data:image/png;base64,">',
    "image is not there": '<img alt="gone" src="data:image/png;base64,">',
    "blank widget": "<pre>VBox(children=(Button(description='A is better'),))</pre>",
    "blank output": '<div class="output_subarea"> </div>',
    "bar at 0 %": "<pre>sampling:   0%|          | 0/400 [00:00&lt;?]</pre>",
    "heading skips a level": "<h3>deep</h3>",
    "second h1": "<h1>again</h1>",
    "link to nowhere": '<a href="#nowhere">there</a>',
    "too little contrast": '<p style="color: rgb(130 130 130 / 0.9)">dim</p>',
    "asked for": '<img alt="far" src="http://127.0.0.1:9/far.png">',
}


@pytest.mark.parametrize("kind", FAULTY)
def test_every_fault_is_found(browser: Any, tmp_path: Path, kind: str) -> None:
    from benchmarks.browser import audit

    path = tmp_path / "page.html"
    path.write_text(page.page("A page", f"<p>100% of it is fine.</p>{FAULTY[kind]}"))
    found = audit.read(browser, path)
    assert any(kind in fault for fault in found)
    assert len({fault.split(", ", 1)[1].split(":")[0] for fault in found}) <= 2  # a far image is not there either
