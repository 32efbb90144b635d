from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image

from starling_nb import files, report
from starling_nb.runner import manifest

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
EVIL = '<script>alert("x")</script>'


class Reader(HTMLParser):
    """Collects tags and every address that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture
def out(tmp_path: Path) -> Path:
    claim = {
        "value": 0.7,
        "low": 0.6,
        "high": 0.8,
        "n": 1200,
        "verdict": "holds",
        "rule": "low>0.5",
        "text": EVIL,
    }
    metrics: dict[str, Any] = {
        "00.x": {"value": 0.25, "low": None, "high": None, "n": None},
        "claim.00.y": claim,
    }
    files.write_json(tmp_path / "metrics.json", metrics)
    entry = {
        "key": "00_a-0123",
        "status": "failed",
        "cached": False,
        "seconds": 61.0,
        "peak_rss_bytes": 2**30,
    }
    entry |= {"params": {"seed": 3, "note": EVIL}, "error": f"ValueError: {EVIL}"}
    head = manifest.head("smoke", ["starling-nb", "reproduce"])
    files.write_json(tmp_path / "manifest.json", head | {"stages": {"00_a": entry}})
    files.write_bytes(tmp_path / "figures" / "00_panels.png", PIXEL)
    files.write_text(tmp_path / "figures" / "00_panels.txt", f"Four panels {EVIL}\n")
    files.write_text(tmp_path / "tables" / "00_t.csv", "a,b\n" + f'1,"{EVIL.replace(chr(34), chr(39))}"\n' * 50)
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("print(1)")]
    cells[1]["outputs"] = [nbformat.v4.new_output("display_data", {"text/html": EVIL, "text/plain": "plain"})]
    book = nbformat.v4.new_notebook(cells=cells)
    (tmp_path / "notebooks").mkdir()
    nbformat.write(book, tmp_path / "notebooks" / "00_a.ipynb")
    return tmp_path


def test_the_page_holds_everything_in_itself(out: Path) -> None:
    path = report.write(out)
    page = read(path)
    assert "script" not in page.tags
    inside = [address for address in page.addresses if address.startswith("#")]
    assert len(inside) == 4
    assert [address for address in page.addresses if address not in inside] == [
        "notebooks/00_a.html",
        f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}",
        "notebooks/00_a.html",
        "manifest.json",
        "metrics.json",
    ]
    assert re.search(r"https?://", path.read_text(encoding="utf-8")) is None


def test_the_page_says_claims_numbers_captions_and_errors(out: Path) -> None:
    text = report.write(out).read_text(encoding="utf-8")
    for wanted in (
        "1 holds, 0 fails, 0 too small",
        "0.6 … 0.8",
        "1,200",
        "low&gt;0.5",
        "00.x",
        "Four panels",
    ):
        assert wanted in text
    for wanted in (
        "ValueError: &lt;script&gt;",
        "1:01",
        "1.00 GiB",
        "First 40 of 50 rows",
        "seed=3",
        "torch",
    ):
        assert wanted in text
    assert "prefers-color-scheme" in text or "color-scheme: light dark" in text


def test_notebooks_become_pages_that_forbid_scripts(out: Path) -> None:
    report.write(out)
    page = (out / "notebooks" / "00_a.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page
    assert "Title" in page
    assert re.search(r"src=.https?://", page) is None


def test_an_interval_stands_behind_its_value_and_numbers_are_rounded(out: Path) -> None:
    head = "who,value,low,high,share,share_low,share_high,n"
    rows = ["a_b,0.123456,-1.0,2.5e-07,0.5,,,1200", "b,,,,0.25,0.1,0.4,3"]
    files.write_text(out / "tables" / "00_t.csv", "\n".join([head, *rows]) + "\n")
    text = report.write(out).read_text(encoding="utf-8")
    text = text.replace("\u00a0", " ")
    for wanted in ("0.1235 (-1 … 2.5e-07)</td>", ">0.5</td>", ">0.25 (0.1 … 0.4)</td>", ">1200</td>", "a_<wbr>b"):
        assert wanted in text
    assert "share low" not in text
    assert "share_<wbr>low" not in text


def test_a_run_that_came_to_its_policies_is_told_in_one_picture(out: Path) -> None:
    assert "in one picture" not in report.write(out).read_text(encoding="utf-8")
    row = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 100}
    places = [f"02.first_place.{name}.{i}" for name in ("naive", "final") for i in range(1, 8)]
    numbers = dict.fromkeys([*places, "03.k_wise.pairwise_accuracy", "04.apa.rubric"], row)
    files.write_json(out / "metrics.json", files.read_json(out / "metrics.json") | numbers)
    text = report.write(out).read_text(encoding="utf-8")
    assert text.index("in one picture") < text.index("<nav>")
    with Image.open(out / "story.png") as image:
        assert image.width > 2 * image.height


def test_a_figure_is_as_large_as_its_resolution_says(out: Path) -> None:
    Image.new("RGB", (300, 150)).save(out / "figures" / "00_panels.png", dpi=(150, 150))
    assert 'width="192" height="96"' in report.write(out).read_text(encoding="utf-8")


def test_notebooks_pages_have_one_title_their_own(out: Path) -> None:
    report.write(out)
    text = (out / "notebooks" / "00_a.html").read_text(encoding="utf-8")
    assert "<title>Title</title>" in text
    assert text.count("<h1") == 1


def test_an_empty_run_still_has_a_page(tmp_path: Path) -> None:
    assert "none" in report.write(tmp_path).read_text(encoding="utf-8")
