"""Preference pairs as TRL reads them, the hub's layout as ``datasets`` loads it, and pushing it to a hub that is a
double."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_double import TOKEN, Hub, pushing

from starling_nb.chat import from_nectar_text
from starling_nb.errors import StarlingError
from starling_nb.nectar import card, dataset, export, schema, tables
from starling_nb.nectar.card import About

RANKINGS = pa.schema([("ranking", pa.list_(pa.int64())), ("error", pa.string()), ("reply", pa.string())])


def row(number: int, k: int = 4) -> dict[str, Any]:
    """A row whose answers are listed out of order."""
    ranks = [(place * 3 + number) % k + 1.0 for place in range(k)] if k % 3 else [place + 1.0 for place in range(k)]
    answers = [{"answer": f"no. {rank:g} of {number}", "model": f"m{rank:g}", "rank": rank} for rank in ranks]
    return {
        "prompt": f"\n\nHuman: hello\n\nAssistant: hi\n\nHuman: question {number}\n\nAssistant: ",
        "answers": answers,
        "turns": 2,
        "num_responses": k,
        "source": ["a", "b"],
        "good_natured": number % 2 == 0,
    }


ROWS = [row(number) for number in range(5)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with both files and the card."""
    folder = tmp_path / "run"
    schema.write(ROWS, folder / "nectar.parquet")
    tables.write([], folder / "rankings.parquet", RANKINGS)
    card.write(folder, About("simulated-judge@0"))
    return folder


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("all", [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]),
        ("best_worst", [(1, 4)]),
        ("adjacent", [(1, 2), (2, 3), (3, 4)]),
    ],
)
def test_pairs_of_each_row(pairs: str, expected: list[tuple[int, int]], run: Path, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "pairs.parquet"
    found = export.preferences(run / "nectar.parquet", target, pairs)
    assert found == export.Exported(len(ROWS), len(ROWS) * len(expected), 0)
    made = pq.read_table(target).to_pylist()
    assert pq.read_schema(target).equals(export.PREFERENCES)
    for number, one in enumerate(ROWS):
        part = made[number * len(expected) : (number + 1) * len(expected)]
        assert [(pair["rank_chosen"], pair["rank_rejected"]) for pair in part] == expected
        for pair in part:
            assert pair["prompt"] == from_nectar_text(one["prompt"])
            assert pair["prompt"][-1]["role"] == "user"
            better, worse = pair["rank_chosen"], pair["rank_rejected"]
            assert pair["chosen"] == [{"role": "assistant", "content": f"no. {better:g} of {number}"}]
            assert pair["rejected"] == [{"role": "assistant", "content": f"no. {worse:g} of {number}"}]
            assert (pair["model_chosen"], pair["model_rejected"]) == (f"m{better:g}", f"m{worse:g}")
            assert pair["score_chosen"] == (4 - better) / 3 > pair["score_rejected"] == (4 - worse) / 3
            assert pair["prompt_id"] == dataset.key(from_nectar_text(one["prompt"]))
            assert (pair["source"], pair["good_natured"]) == (one["source"], one["good_natured"])


def test_pairs_of_equal_texts_are_counted_and_left_out(tmp_path: Path) -> None:
    twin = row(0)
    twin["answers"] = [
        answer | {"answer": "same" if answer["rank"] < 3 else answer["answer"]} for answer in twin["answers"]
    ]
    schema.write([twin, row(1)], tmp_path / "nectar.parquet")
    found = export.preferences(tmp_path / "nectar.parquet", tmp_path / "pairs.parquet")
    assert found == export.Exported(rows=2, pairs=11, equal=1)


def test_ties_are_no_preferences(tmp_path: Path) -> None:
    tied = row(0)
    tied["answers"] = [
        answer | {"rank": rank} for answer, rank in zip(tied["answers"], (1.0, 2.0, 2.0, 9.0), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist([tied], schema=schema.SCHEMA), tmp_path / "nectar.parquet")
    found = export.preferences(tmp_path / "nectar.parquet", tmp_path / "pairs.parquet")
    assert found == export.Exported(rows=1, pairs=5, equal=0, tied=1)
    made = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    assert {(one["rank_chosen"], one["score_chosen"]) for one in made} == {(1.0, 1.0), (2.0, 1 / 3)}
    assert {one["score_rejected"] for one in made} == {1 / 3, 0.0}


def test_trl_s_loader_sees_the_conversational_format(run: Path, tmp_path: Path) -> None:
    import datasets

    export.preferences(run / "nectar.parquet", tmp_path / "pairs.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "pairs.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    for name in ("prompt", "chosen", "rejected"):
        assert loaded.features[name] == datasets.List(
            {"role": datasets.Value("string"), "content": datasets.Value("string")}
        )
    assert loaded[0]["chosen"][0]["role"] == "assistant"


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match="all, best_worst, adjacent"):
        export.preferences(run / "nectar.parquet", tmp_path / "x.parquet", "some")
    with pytest.raises(StarlingError, match="missing"):
        export.preferences(tmp_path / "absent.parquet", tmp_path / "x.parquet")
    broken = [{**row(0), "prompt": "no prompt"}]
    pq.write_table(pa.Table.from_pylist(broken, schema=schema.SCHEMA), tmp_path / "broken.parquet")
    with pytest.raises(StarlingError, match="not a Nectar prompt"):
        export.preferences(tmp_path / "broken.parquet", tmp_path / "x.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.parquet", "run"]


def test_the_hub_layout_loads_with_exactly_nectar_s_features(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = export.hub_layout(run, tmp_path / "hub")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["README.md", export.HUB_FILE]
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    text, answer = datasets.Value("string"), {"answer": "string", "model": "string", "rank": "float64"}
    assert loaded["train"].features == {
        "prompt": text,
        "answers": datasets.List({name: datasets.Value(kind) for name, kind in answer.items()}),
        "turns": datasets.Value("int64"),
        "num_responses": datasets.Value("int64"),
        "source": datasets.List(text),
        "good_natured": datasets.Value("bool"),
    }
    assert list(loaded["train"]) == ROWS
    assert dataset.load(folder) == ROWS
    # The run's own folder loads too, although the rankings lie beside the rows.
    assert list(datasets.load_dataset(str(run), split="train", cache_dir=str(tmp_path / "cache"))) == ROWS
    assert export.hub_layout(run, folder) == folder  # again


def test_what_is_no_data_set_is_not_laid_out(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "hub"
    (target / "data").mkdir(parents=True)
    (target / "data" / "other.parquet").touch()
    with pytest.raises(StarlingError, match=r"already holds other\.parquet"):
        export.hub_layout(run, target)
    (run / "README.md").unlink()
    with pytest.raises(StarlingError, match="write the card first"):
        export.hub_layout(run, tmp_path / "new")
    pq.write_table(pa.table({"prompt": ["x"]}), run / "nectar.parquet")
    with pytest.raises(StarlingError, match="exactly Nectar's columns"):
        export.hub_layout(run, tmp_path / "new")
    (run / "nectar.parquet").unlink()
    with pytest.raises(StarlingError, match="missing"):
        export.hub_layout(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_what_is_pushed_is_the_layout_and_private(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    pushing(monkeypatch, hub)
    assert export.push_to_hub(run, "me/nectar") == "https://huggingface.co/datasets/me/nectar"
    assert hub.calls[0] == ("me/nectar", {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert (hub.calls[1][1]["repo_id"], hub.calls[1][1]["repo_type"]) == ("me/nectar", "dataset")
    assert set(hub.files) == {"README.md", export.HUB_FILE}
    assert hub.files[export.HUB_FILE] == (run / "nectar.parquet").read_bytes()
    assert b"path: data/*.parquet" in hub.files["README.md"]
    assert TOKEN not in str(hub.calls)


def test_a_public_repository_is_not_filled_by_somebody_who_asked_for_a_private_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(public=True)
    pushing(monkeypatch, hub)
    with pytest.raises(StarlingError, match="public already"):
        export.push_to_hub(run, "me/nectar")
    assert not hub.files
    export.push_to_hub(run, "me/nectar", private=False)
    assert hub.files


def test_without_token_or_hub_there_is_one_clear_error_and_no_secret_in_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import traceback

    pushing(monkeypatch, Hub(), token=None)
    with pytest.raises(StarlingError, match="hf auth login"):
        export.push_to_hub(run, "me/nectar")
    refused = OSError(f"401 for url with Authorization: Bearer {TOKEN}")
    refused.response = type("Response", (), {"status_code": 401})()  # type: ignore[attr-defined]
    for error in (ConnectionError(f"no route, {TOKEN}"), refused, ValueError(TOKEN)):
        pushing(monkeypatch, Hub(error=error))
        with pytest.raises(StarlingError, match=r"did not take me/nectar \(\w+Error") as caught:
            export.push_to_hub(run, "me/nectar")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None
        assert ("status 401" in str(caught.value)) is (error is refused)


def test_published_rows_come_back_as_they_were(real_data: Path, tmp_path: Path) -> None:
    import datasets

    path = real_data / "kwise_nectar_schema" / "nectar_published_7wise.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        raw = [json.loads(line) for line in stream]
    rows = [
        {name: one[name] for name in schema.SCHEMA.names}
        | {"answers": [{name: answer[name] for name in ("answer", "model", "rank")} for answer in one["answers"]]}
        for one in raw
    ]
    assert len(rows) == 228
    published = tmp_path / "hub" / "data" / "rlaif.parquet"  # the layout and name of the published file
    published.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(published)
    assert schema.read(published) == rows
    assert dataset.load(published) == rows
    assert schema.validate(rows) == 228
    schema.write(rows, tmp_path / "nectar.parquet")
    assert schema.read(tmp_path / "nectar.parquet") == rows
    theirs, ours = pq.read_schema(published), pq.read_schema(tmp_path / "nectar.parquet")
    assert ours.equals(schema.SCHEMA)
    assert datasets.Features.from_arrow_schema(ours) == datasets.Features.from_arrow_schema(theirs)
    found = export.preferences(published, tmp_path / "pairs.parquet")
    assert (found.rows, found.pairs + found.equal) == (228, 228 * 21)
