"""`starling-nb bias`: anybody's rankings in, a report out; what cannot be measured says why and nothing breaks."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from starling_nb import cli, files
from starling_nb.bias import BiasError, report
from starling_nb.bias.report import loading
from starling_nb.bias.report.findings import evenness
from starling_nb.bias.tables import read
from starling_nb.nectar import candidates, dataset, prompts

FRONT = np.array([0.9, 0.3, -0.3, -0.9])
MODELS = np.array(list("stuvwxyz"))
SECTIONS = [
    "given",
    "places",
    "marginal",
    "first_choice",
    "adjustment",
    "conditional",
    "lengths",
    "repeats",
    "contradictions",
    "power",
    "differences",
]
EVIL = '<script>alert("x")</script>|'


def judged(n: int, effects: Any = (0, 0, 0, 0), *, passes: int = 1, seed: int = 0, prompts: str = "p") -> pd.DataFrame:
    """Plackett-Luce verdicts with known position effects on answers of unequal quality, shuffled for each pass."""
    generator, effects = files.rng(seed, "report"), np.asarray(effects, dtype=float)
    rows, k = [], len(effects)
    for prompt in range(n):
        who = generator.choice(len(MODELS), k, replace=False)
        quality = 0.2 * who + generator.normal(size=k)
        for _ in range(passes):
            shown = generator.permutation(k)
            heard = quality[shown] + effects + generator.gumbel(size=k)
            row = {"prompt_id": f"{prompts}{prompt}", "models": MODELS[who[shown]].tolist(), "shown": shown.tolist()}
            rows.append(row | {"ranking": np.argsort(-heard).tolist(), "quality": quality[shown].tolist()})
    return pd.DataFrame(rows)


def save(table: pd.DataFrame, path: Path) -> Path:
    """Write rankings as their suffix says."""
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".csv":
        lists = [name for name in table if any(isinstance(value, list) for value in table[name])]
        text = {name: [None if value is None else json.dumps(value) for value in table[name]] for name in lists}
        table.assign(**text).to_csv(path, index=False)
    else:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        lines = [json.dumps(row) for row in rows]
        path.write_text(f"[{','.join(lines)}]" if path.suffix == ".json" else "\n".join(lines))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *words: object, command: str = "bias") -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", list(filter(None, ["starling-nb", command, *map(str, words)])))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def numbers(value: Any) -> list[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        return [number for inner in (value.values() if isinstance(value, dict) else value) for number in numbers(inner)]
    return [value] if isinstance(value, int | float) else []


# --- what the report finds -----------------------------------------------------------


def test_a_planted_bias_is_found_by_every_section_that_looks_for_one() -> None:
    found = report.measure(judged(400, FRONT), quality="quality")
    assert [section.key for section in found.sections] == SECTIONS
    places = found["places"].tables
    assert places["order test"][["p (mean rank)", "p (first place)"]].max(axis=None) < 0.001
    assert places["first places"].eval("share.iloc[0] > fair.iloc[0] + 0.1") == np.True_
    assert places["mean rank"]["mean_rank"].is_monotonic_increasing
    assert places["mean rank"]["fair"].tolist() == [1.5] * 4
    for key in ("marginal", "first_choice"):
        assert found[key].tables["tests"]["p"].iloc[0] < 0.001
        assert found[key].tables["effects"]["effect"].is_monotonic_decreasing
    conditional = found["conditional"].tables["conditional"]
    assert ((conditional["low"] < FRONT) & (conditional["high"] > FRONT)).sum() >= 3
    assert np.ptp(conditional["effect"]) > np.ptp(found["marginal"].tables["effects"]["effect"])
    assert found["power"].tables["labels"]["detectable"].iloc[0] < np.ptp(FRONT)
    assert "Ranks depend on the shown position (p < 0.001)" in found.summary


def test_a_fair_judge_is_seldom_accused_and_the_summary_says_what_could_have_been_missed() -> None:
    accused = 0
    for seed in range(20):
        summary = report.measure(judged(40, seed=seed)).summary
        accused += "Ranks depend" in summary
        assert "Ranks depend" in summary or re.search(r"under 0\.\d\d logits would often be missed", summary)
    assert accused <= 4


def test_judge_prompts_are_told_apart_and_compared_on_the_same_prompts() -> None:
    table = pd.concat([judged(200, FRONT).assign(variant="steep"), judged(200).assign(variant="level")])
    found = report.measure(table)
    assert found.groups == ["steep", "level"]
    assert "under steep (p < 0.001)" in found.summary
    assert "under level" in found.summary
    tests = found["differences"].tables["tests"].set_index("measure")
    assert tests.loc["effects: Wald", "p"] < 0.001
    assert tests.loc["first places: further from fair by", "low"] > 0
    assert set(tests["pair"]) == {"steep − level"}
    assert report.measure(table.assign(judge="one"), by="judge").groups == ["one"]
    silent = pd.concat([table, judged(5).assign(variant="silent", ranking=None)])
    assert report.measure(silent).groups == ["steep", "level"]
    assert report.measure(silent)["given"].missing == ["silent: none of its 5 rows has a ranking"]
    assert "5 more rows have no ranking" in report.measure(silent).summary


def test_repeated_rankings_give_agreement_and_effects_free_of_quality() -> None:
    found = report.measure(judged(150, FRONT, passes=3))
    repeated = found["conditional"].tables["repeated"]
    assert ((repeated["low"] < FRONT) & (repeated["high"] > FRONT)).sum() >= 3
    agreement = found["repeats"].tables["agreement"]
    assert set(agreement["shown in"]) >= {"other order"}
    assert agreement.query("`shown in` == 'other order' and measure == 'tau'")["value"].iloc[0] > 0.1
    assert found["repeats"].missing == []


def test_lengths_are_compared_where_they_differ_and_what_is_fair_follows_the_length() -> None:
    long = judged(150, np.linspace(0.8, -0.8, 6), prompts="q")
    table = pd.concat([judged(150, FRONT), long], ignore_index=True)
    found = report.measure(table)
    assert found["lengths"].tables["trends"]["k"].tolist() == [4, 6]
    assert (found["lengths"].tables["trends"]["high"] < 0).all()
    first = found["places"].tables["first places"]
    assert first["fair"].tolist() == pytest.approx([(1 / 4 + 1 / 6) / 2] * 4 + [1 / 6] * 2)
    assert first["n"].tolist() == [300] * 4 + [150] * 2
    cells = found["places"].tables["placements"].groupby("position")
    np.testing.assert_allclose(cells["share"].sum(), 1)
    np.testing.assert_allclose(cells["fair"].sum(), 1)


def test_failures_and_contradictions_are_counted() -> None:
    table = judged(40).assign(error=None, pair_agreement=1.0, contradictions=0, cyclic=False)
    table.loc[:3, "error"] = "TruncatedError: cut off"
    table["ranking"] = [None if row < 4 else ranking for row, ranking in enumerate(table["ranking"])]
    table.loc[30:, ["pair_agreement", "contradictions", "cyclic"]] = [0.5, 3, True]
    found = report.measure(table)
    given = found["given"].tables
    assert given["rows"][["rows", "ranked", "prompts", "invalid"]].iloc[0].tolist() == [40, 36, 36, 0.1]
    assert given["failures by kind"]["error"].tolist() == ["TruncatedError"]
    own = found["contradictions"].tables["agreement"].set_index("measure")["share"]
    assert own["verdicts with a contradiction"] == pytest.approx(10 / 36)
    assert own["pairs that the list follows"] == pytest.approx(1 - 5 / 36)
    assert own["verdicts whose pairs run in a circle"] == pytest.approx(10 / 36)
    assert "4 more rows have no ranking" in found.summary


def test_shown_orders_that_were_not_shuffled_are_noticed_and_shuffled_ones_are_not() -> None:
    dealt = judged(60)
    assert sum(evenness(read(judged(60, seed=s), "prompt_id", "models"))[0] < 0.05 for s in range(60)) <= 9
    p, settled = evenness(read(dealt.assign(models=[["A", *row[1:]] for row in dealt.models]), "prompt_id", "models"))
    assert p < 1e-6
    assert settled == ["A"]
    found = report.measure(dealt.assign(models=[list("abcd")] * 60))
    assert "always at one position: a, b, c, d" in " ".join(found["given"].found)
    assert "the answers do not look shuffled" in found.summary
    assert "depend" not in found.summary


# --- the command ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_every_format_gives_the_same_report(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = judged(50, FRONT).assign(error=None, contradictions=1, pair_agreement=0.9, cyclic=False, run="b")
    table.loc[0, "error"] = "RefusalError: no"
    table["ranking"] = [None, *table["ranking"][1:]]
    path = save(table, tmp_path / f"mine{suffix}")
    words = (path, "--out", tmp_path / "out", "--quality", "quality", "--by", "run", "--seed", 3)
    assert call(monkeypatch, *words) == 0
    said = capsys.readouterr().out
    due = report.measure(table, 3, "run", "quality")
    assert said == f"{due.summary}\n{tmp_path / 'out' / 'bias.html'}\n"
    written = files.read_json(tmp_path / "out" / "bias.json")
    assert written["provenance"]["rankings"] == path.name
    assert written["sections"] == json.loads(json.dumps(due.as_dict()["sections"]))
    figures = {item.name for item in (tmp_path / "out" / "figures").iterdir()}
    assert figures == {"first_places.png", "mean_rank.png", "placements.png", "effects.png"}
    text = (tmp_path / "out" / "bias.md").read_text()
    assert [title in text for title in (section.title for section in due.sections)] == [True] * len(SECTIONS)
    assert text.index("by the design alone") < text.index("(marginal)")


def test_equal_rankings_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        report.write(judged(30, FRONT), tmp_path / folder, "Simulated", {"source": "planted"})
    names = ["bias.md", "bias.html", "bias.json", "figures/effects.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert all((tmp_path / "a" / "figures" / name).exists() for name in ("first_places.png", "effects.png"))
    report.write(judged(1), tmp_path / "a", "Simulated", {})
    assert not (tmp_path / "a" / "figures" / "effects.png").exists()  # no effects of one prompt, and no old picture


class Tags(HTMLParser):
    """Collects tags and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, next((value or "" for name, value in attrs if name in ("src", "href")), "")))


def test_names_written_by_others_can_do_nothing_in_a_page(tmp_path: Path) -> None:
    table = judged(40, FRONT).assign(variant=EVIL, error=None)
    table.loc[0, "error"] = f"{EVIL} : {EVIL}"
    table["ranking"] = [None, *table["ranking"][1:]]
    more = judged(40).assign(variant="b", error=None)
    report.write(pd.concat([table, more], ignore_index=True), tmp_path, EVIL, {"source": EVIL})
    page, text = ((tmp_path / f"bias.{kind}").read_text() for kind in ("html", "md"))
    tags = Tags()
    tags.feed(page)
    assert "script" not in {tag for tag, _ in tags.seen}
    pictures = [address for tag, address in tags.seen if tag == "img"]
    assert len(pictures) == 4
    assert all(address.startswith("data:image/png;base64,") for address in pictures)
    assert "default-src 'none'" in page
    assert "<script" not in text
    assert len({line.count(" | ") for line in text.splitlines() if line.startswith("| ") and "rank 0" in line}) == 1
    assert not re.search(r"https?://", page + text)


def test_a_labelling_run_ends_with_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = dataset.candidates_of(dataset.load(files.DATA / "nectar_mini.parquet")[:12], prompts.load())
    candidates.write(items, tmp_path / "c.parquet")
    words = ("judge", tmp_path / "c.parquet", "--judge", "simulated", "--variant", "naive", "--out", tmp_path / "out")
    assert call(monkeypatch, *words, "--design", "cyclic", "--passes", "2", command="") == 0
    said = capsys.readouterr().out.splitlines()
    folder = tmp_path / "out" / "bias"
    written = files.read_json(folder / "bias.json")
    assert said[-2:] == [written["summary"], str(folder / "bias.html")]
    assert said[-2].startswith("24 rankings of 12 prompts.")
    assert written["title"].endswith("(simulated)")
    assert written["provenance"]["variant"] == "naive"
    agreement = next(section for section in written["sections"] if section["key"] == "repeats")["tables"]["agreement"]
    assert {row["pairs"] for row in agreement} == {12}


CASES: dict[str, tuple[Callable[[], pd.DataFrame], str]] = {
    "ragged": (lambda: pd.concat([judged(40), judged(40, [0] * 6, prompts="q")]), ""),
    "one prompt": (lambda: judged(1), "position effects need rankings of at least two prompts"),
    "one prompt ranked often": (lambda: judged(1, passes=6), "position effects need rankings of at least two prompts"),
    "two rankings": (lambda: judged(2), "only 2 prompts"),
    "two answers": (lambda: judged(40, [0, 0]), ""),
    "26 answers": (
        lambda: pd.DataFrame(
            {
                "prompt_id": range(40),
                "models": [files.rng(i).permutation(list("abcdefghijklmnopqrstuvwxyz")).tolist() for i in range(40)],
                "ranking": [files.rng(i, "r").permutation(26).tolist() for i in range(40)],
            }
        ),
        "",
    ),
    "an order and its mirror, no bias": (
        lambda: pd.DataFrame(
            {
                "prompt_id": [i // 2 for i in range(60)],
                "models": [["x", "y"], ["y", "x"]] * 30,
                "ranking": [[0, 1], [1, 0]] * 30,
            }
        ),
        "",
    ),
    "no models": (lambda: judged(40)[["prompt_id", "ranking"]], "there is no column models"),
    "a model that never moves": (
        lambda: judged(40).assign(models=lambda t: [["A", *row[1:]] for row in t.models]),
        "positions and models cannot be told apart",
    ),
    "a model that always wins": (
        lambda: judged(60).assign(
            ranking=lambda t: [
                sorted(row, key=lambda place, who=who: (who[place] != "s", row.index(place)))
                for row, who in zip(t.ranking, t.models, strict=True)
            ]
        ),
        "Beware",
    ),
    "a place that always wins": (
        lambda: judged(60).assign(ranking=lambda t: [[0, *(i for i in row if i)] for row in t.ranking]),
        "Beware: separation",
    ),
    "only places": (lambda: judged(60).assign(ranking=[[0, 1, 2, 3]] * 60), "Beware: separation"),
    "one model's answers": (
        lambda: judged(40, passes=2).assign(models=[["m"] * 4] * 80).drop(columns="shown"),
        "cannot be told apart: add a column",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_rankings_give_a_finite_report_that_says_what_is_wrong(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = CASES[case]
    path = save(make(), tmp_path / "odd.jsonl")
    assert call(monkeypatch, path, "--out", tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(out.splitlines()) == 2
    assert said in (tmp_path / "bias.md").read_text()
    written = files.read_json(tmp_path / "bias.json")
    assert [section["key"] for section in written["sections"]] == SECTIONS
    assert all(section["tables"] or section["missing"] for section in written["sections"])
    assert all(math.isfinite(number) and abs(number) < 1e6 for number in numbers(written["sections"]))


GOOD = judged(6)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p / "none.csv", "none.csv is missing"),
    "a folder": (
        lambda p: save(GOOD, p / "rankings.parquet").parent,
        "is a folder: give a file, rankings.parquet, in it",
    ),
    "suffix": (lambda p: (p / "r.txt").write_text("a") and p / "r.txt", "not from '.txt'"),
    "empty": (lambda p: (p / "r.csv").write_text("") or p / "r.csv", "is empty"),
    "no rows": (lambda p: (p / "r.csv").write_text("prompt_id,ranking\n") and p / "r.csv", "has no rows"),
    "columns": (
        lambda p: (p / "r.csv").write_text("id,rank\n1,2\n") and p / "r.csv",
        "lacks prompt_id, ranking: .* it has id, rank",
    ),
    "a data set": (
        lambda p: save(pd.DataFrame({"prompt": ["x"], "answers": ["y"]}), p / "nectar.jsonl"),
        "rankings.parquet stands beside it",
    ),
    "no JSON": (lambda p: (p / "r.jsonl").write_text('{"a": 1}\n{oops') and p / "r.jsonl", "line 2, is not JSON"),
    "no text": (lambda p: (p / "r.jsonl").write_bytes(b"\xff\xfe\x00") and p / "r.jsonl", "is not JSON"),
    "no objects": (lambda p: (p / "r.json").write_text("[1, 2]") and p / "r.json", "does not hold objects"),
    "no parquet": (lambda p: (p / "r.parquet").write_text("PAR1 PAR1") and p / "r.parquet", "no readable parquet file"),
    "a torn CSV": (
        lambda p: (p / "r.csv").write_text('prompt_id,ranking\np,"[0, 1]\n') and p / "r.csv",
        "no readable CSV",
    ),
    "python lists": (
        lambda p: GOOD.to_csv(p / "r.csv") or p / "r.csv",
        r'row 0: models is no list in JSON: \[.*\. Write \["gpt-4", "llama"\]',
    ),
    "no list": (lambda p: save(GOOD.assign(ranking=3), p / "r.jsonl"), "row 0: ranking is 3, not a list"),
    "repeated positions": (
        lambda p: save(GOOD.assign(ranking=[None, [0, 0, 1, 2], *GOOD.ranking[2:]]), p / "r.jsonl"),
        r"row 1: \[0, 0, 1, 2\] is not a ranking",
    ),
    "NaN": (
        lambda p: save(GOOD.assign(ranking=[[0, math.nan, 1, 2]] * 6), p / "r.parquet"),
        "row 0: .* is not a ranking",
    ),
    "letters": (
        lambda p: save(GOOD.assign(ranking=[list("BACD")] * 6), p / "r.jsonl"),
        "is not a ranking of the positions",
    ),
    "from one": (lambda p: save(GOOD.assign(ranking=[[2, 1, 4, 3]] * 6), p / "r.jsonl"), "positions 0 to K - 1"),
    "unknown model": (
        lambda p: save(GOOD.assign(models=[["a", None, "b", "c"]] * 6), p / "r.jsonl"),
        "6 answers have no model: give each one a name, 'unknown' if need be",
    ),
    "too few models": (
        lambda p: save(GOOD.assign(models=[["a"]] * 6), p / "r.jsonl"),
        "row 0 ranks 4 answers but names 1",
    ),
    "no prompt": (lambda p: save(GOOD.assign(prompt_id=["", *"bcdef"]), p / "r.jsonl"), "no prompt_id"),
    "no ranking": (lambda p: save(GOOD.assign(ranking=None), p / "r.jsonl"), "none of the 6 rows has a ranking"),
    "many groups": (lambda p: save(judged(20).assign(variant=range(20)), p / "r.jsonl"), "variant has 20 values"),
    "odd number": (
        lambda p: save(GOOD.assign(cyclic="perhaps"), p / "r.csv"),
        "cyclic holds something that is no number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_says_what_to_do_and_exits_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = BAD[case]
    path = make(tmp_path)
    assert call(monkeypatch, path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("starling-nb: ")
    assert error.count("\n") == 1
    assert re.search(said, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (("--quality", "grade"), {}, "lacks grade: .* it has prompt_id, models, shown, ranking, quality"),
        (("--by", "judge"), {}, "lacks judge"),
        (("--quality", "quality"), {"quality": [None] * 6}, "row 0: quality should hold 4 numbers"),
        (("--quality", "quality"), {"quality": [[1.0, 2.0]] * 6}, "row 0: quality should hold 4 numbers"),
        (("--quality", "quality"), {"quality": [["a", "b", "c", "d"]] * 6}, "row 0: quality should hold 4 numbers"),
        (
            ("--quality", "quality"),
            {"quality": [[1.0, math.nan, 2.0, 3.0]] * 6},
            "row 0: quality should hold 4 numbers",
        ),
    ],
)
def test_columns_that_are_asked_for_have_to_be_there(
    words: tuple[str, ...],
    change: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(GOOD.assign(**change), tmp_path / "r.jsonl")
    assert call(monkeypatch, path, "--out", tmp_path / "out", *words) == 2
    assert re.search(said, capsys.readouterr().err)


def test_only_what_the_report_reads_is_kept(tmp_path: Path) -> None:
    table = GOOD.assign(reply="long text", request="{}", judge="j", order=0, prompt_id=range(6))
    found = loading.load(save(table, tmp_path / "r.parquet"), "judge")
    assert set(found.columns) == {"prompt_id", "ranking", "models", "shown", "judge", "order"}
    assert found["prompt_id"].tolist() == list("012345")
    with pytest.raises(BiasError, match="lack judge"):
        report.measure(GOOD, by="judge")


def test_a_quality_that_is_none_leaves_one_line_in_the_report_of_a_table_in_memory() -> None:
    for bad, said in (
        (None, "one number an answer"),
        ([1.0, 2.0], "one number an answer"),
        ([math.nan] * 4, "not finite"),
    ):
        found = report.measure(judged(6).assign(quality=[bad] * 6), quality="quality")
        assert said in found["conditional"].missing[0]
        assert "conditional" not in found["conditional"].tables
