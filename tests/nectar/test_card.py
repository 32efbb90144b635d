"""The data set card: its numbers are those of the files, a simulated judge is called one, and memory stays small."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from starling_nb.errors import StarlingError
from starling_nb.files import rng
from starling_nb.nectar import card, schema, summary, tables
from starling_nb.nectar.card import About
from starling_nb.nectar.judging import write_reply

MODELS = ["gpt-x", "tiny|7b", "<b>bold</b>", "claude-y", "llama"]
REAL = About("gpt-4-0613", terms={"ours": "Apache-2.0, written\nfor this project"})
RANKINGS = pa.schema(
    [("ranking", pa.list_(pa.int64())), ("error", pa.string()), ("reply", pa.string()), ("further", pa.string())]
)


def rows(n: int, text: str = "") -> list[dict[str, Any]]:
    """Nectar rows of four answers; ``gpt-x`` is in every row, and in every seventh row twice."""
    made = []
    for i in range(n):
        draw = rng(0, "card", i)
        models = ["gpt-x", "gpt-x" if i % 7 == 0 else "tiny|7b", *draw.permutation(MODELS[2:])[:2].tolist()]
        answers = [
            {"answer": f"answer {rank} {text}", "model": models[place], "rank": rank + 1.0}
            for rank, place in enumerate(draw.permutation(4))
        ]
        turns = 1 + i % 2
        prompt = "\n\nHuman: hi\n\nAssistant: ho" * (turns - 1) + f"\n\nHuman: question {i}\n\nAssistant: "
        made.append(
            {
                "prompt": prompt,
                "answers": answers,
                "turns": turns,
                "num_responses": 4,
                "source": ["ours"] if i % 3 else ["ours", "theirs"],
                "good_natured": i % 4 != 0,
            }
        )
    return made


def rankings(n: int) -> list[dict[str, Any]]:
    """Replies, every tenth of them without a ranking; every fifth of the rest contradicts a pair of its own."""
    made: list[dict[str, Any]] = []
    for i in range(n):
        order = rng(0, "order", i).permutation(4).tolist()
        if i % 10 == 9:
            kind = "RefusalError" if i % 20 == 9 else "NotAPermutationError"
            made.append({"ranking": None, "error": f"{kind}: {i}", "reply": "no", "further": ""})
            continue
        better, worse = order[0], order[-1]
        winner = worse if i % 5 == 0 else better
        reply = write_reply("final", order, True, [(min(better, worse), max(better, worse), winner)])
        made.append({"ranking": order, "error": None, "reply": reply, "further": ""})
    return made


def fill(folder: Path, n: int = 60, text: str = "") -> list[dict[str, Any]]:
    """A run's two files."""
    made = rows(n, text)
    schema.write(made, folder / "nectar.parquet")
    tables.write(rankings(n), folder / "rankings.parquet", RANKINGS)
    return made


def front(text: str) -> dict[str, Any]:
    """A card's front matter."""
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    import datasets

    fill(tmp_path)
    path = card.write(tmp_path, REAL)
    assert path == tmp_path / "README.md"
    fields = front(path.read_text())
    assert fields["license"] == "other"
    assert fields["size_categories"] == ["n<1K"]
    assert fields["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "nectar.parquet"}]}
    ]
    assert fields["dataset_info"]["features"] == datasets.Features.from_arrow_schema(schema.SCHEMA)._to_yaml_list()
    assert "text-generation" in fields["task_categories"]
    assert "simulated judge" not in fields["tags"]


@pytest.mark.parametrize(
    ("n", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (182_954, "100K<n<1M"), (2_000_000, "1M<n<10M")]
)
def test_size_categories(n: int, size: str) -> None:
    assert front(card.front_matter(n, REAL, "x"))["size_categories"] == [size]


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    made = fill(tmp_path)
    text = card.write(tmp_path, REAL).read_text()
    assert "60 prompts, each with 4 answers" in text
    assert "45 of 60 (75.0%)" in text
    assert "| ours | 60 | Apache-2.0, written for this project |" in text
    assert f"| theirs | 20 | {card.UNKNOWN} |" in text
    assert "| 1 | 30 |\n| 2 | 30 |" in text
    ranks = [a["rank"] for row in made for a in row["answers"] if a["model"] == "gpt-x"]
    assert f"| gpt-x | {len(ranks)} | {np.mean(ranks):.2f} |" in text
    assert "Valid rankings: 54 of 60 (90.0%)" in text
    assert "| NotAPermutationError | 3 |" in text
    assert "| RefusalError | 3 |" in text
    assert "54 replies decide pairs" in text
    assert "22.2% of the replies contradict a pair of their own, and 0.0% hold a circle" in text
    assert "Judge: `gpt-4-0613`. Prompt variant: `final`" in text
    orders = [record["ranking"] for record in rankings(60) if record["ranking"]]
    firsts = sum(order[0] == 0 for order in orders)
    mean = np.mean([order.index(0) + 1 for order in orders])
    line = next(line for line in text.splitlines() if line.startswith("| A |"))
    assert line.startswith(f"| A | {firsts / 54:.1%} |")
    assert line.endswith(f"| {mean:.2f} |")


def test_names_cannot_break_the_tables(tmp_path: Path) -> None:
    fill(tmp_path)
    text = card.write(tmp_path, REAL).read_text()
    assert "tiny\\|7b" in text
    assert "<b>" not in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_intervals_agree_with_the_bootstrap_of_the_summary(tmp_path: Path) -> None:
    made = rows(400)
    slow = summary.mean_ranks(made).set_index("model")
    for model, sums in card.Composition(made).ranks.items():
        fast, row = sums.interval(), slow.loc[model]
        assert fast.value == pytest.approx(row.mean_rank)
        assert (fast.low, fast.high) == pytest.approx((row.low, row.high), abs=0.02)
    one = card.Composition(made[:1]).ranks["gpt-x"].interval()
    assert np.isnan(one.low)


@pytest.mark.parametrize(
    "about",
    [
        About("simulated-judge@0a1b2c3d"),
        About("simulated"),
        About("some-name", simulated=True),
    ],
)
def test_a_simulated_judge_is_called_simulated(about: About, tmp_path: Path) -> None:
    fill(tmp_path)
    text = card.write(tmp_path, about).read_text()
    assert "**Simulated judge.**" in text
    assert f"Judge: a simulated judge, `{about.judge}`" in text
    assert "simulated judge" in front(text)["tags"]


def test_passes_and_designs_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    text = card.write(tmp_path, About("gpt-4", "naive", "cyclic", 4)).read_text()
    assert "`naive` (the list at once)" in text
    assert "`cyclic` (rotations of one random order" in text
    assert "4 rankings a prompt, merged by mean rank" in text


def test_missing_and_empty_files_give_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match=r"nectar\.parquet is missing"):
        card.write(tmp_path, REAL)
    schema.write([], tmp_path / "nectar.parquet")
    with pytest.raises(StarlingError, match="no rows"):
        card.write(tmp_path, REAL)
    schema.write(rows(3), tmp_path / "nectar.parquet")
    with pytest.raises(StarlingError, match=r"rankings\.parquet is missing"):
        card.write(tmp_path, REAL)
    tables.write([], tmp_path / "rankings.parquet", RANKINGS)
    assert "Valid rankings: 0 of 0." in card.write(tmp_path, REAL).read_text()
    with pytest.raises(StarlingError, match="unknown ranking variant"):
        card.write(tmp_path, About("gpt-4", "finale"))
    with pytest.raises(StarlingError, match="no data set card"):
        card.relocated("# A readme", "data/*.parquet")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        folder = tmp_path / str(n)
        fill(folder, n, "word " * 100)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        card.write(folder, REAL)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert pa.total_allocated_bytes() <= before + 1_000_000
        return used

    small, large = peak(2_000), peak(8_000)
    assert large < 1.3 * small
    assert pq.read_metadata(tmp_path / "8000" / "nectar.parquet").num_rows == 8_000
