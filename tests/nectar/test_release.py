"""The last step: four files, or one message that says why there are no rows and where the replies are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import storm, synthetic
from starling_nb.errors import StarlingError
from starling_nb.judge import Judge
from starling_nb.judge.simulation import serve
from starling_nb.nectar.judging import write_reply
from starling_nb.nectar.labelling import Plan
from starling_nb.nectar.release import release


@pytest.fixture(scope="module")
def server() -> Iterator[storm.Thread]:
    with storm.Thread() as started:
        yield started


def test_a_few_failures_are_no_obstacle(server: storm.Thread, tmp_path: Path) -> None:
    server.faults(rates={"refusal": 0.5})
    labels = release(Judge(storm.MODEL, server.url), synthetic.Many(20), Plan(), tmp_path)
    assert 0 < labels.rows < 20
    names = {"nectar.parquet", "rankings.parquet", "preferences.parquet", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_without_one_valid_ranking_the_failures_are_counted_and_their_replies_kept(
    server: storm.Thread, tmp_path: Path
) -> None:
    server.faults(rates={"refusal": 0.7, "wrong_letter": 0.3})
    with pytest.raises(StarlingError) as caught:
        release(Judge(storm.MODEL, server.url), synthetic.Many(40), Plan(), tmp_path)
    table = pd.read_parquet(tmp_path / "rankings.parquet")
    assert table.ranking.isna().all()
    assert (table.reply.str.len() > 0).all()
    kinds = table.error.str.partition(":")[0].value_counts()
    assert list(kinds.index) == ["RefusalError", "NotAPermutationError"]
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    assert f"all 40 rankings failed ({counted})" in str(caught.value)
    assert f"The commonest error: {table.error.mode()[0][:300]} (" in str(caught.value)
    assert str(tmp_path / "rankings.parquet") in str(caught.value)
    assert "label some prompts" not in str(caught.value)
    assert not (tmp_path / "README.md").exists()


def test_no_candidates_at_all_is_another_message(server: storm.Thread, tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match="no rows, so there is nothing to describe: label some prompts first"):
        release(Judge(storm.MODEL, server.url), [], Plan(), tmp_path)


def test_where_every_list_contradicts_its_pairs_the_message_says_so(tmp_path: Path) -> None:
    class Contrary:
        """Decides every pair for the first and lists the answers the other way round."""

        def models(self) -> list[str]:
            return ["m"]

        def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
            k = storm.letters_of(body["messages"])
            pairs = [(a, b, a) for a, b in itertools.combinations(range(k), 2)]
            message = {"role": "assistant", "content": write_reply("final", range(k)[::-1], True, pairs)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}

    stop, url = serve(Contrary())
    try:
        with pytest.raises(StarlingError, match=r"each of the 3 valid rankings contradicts .* do without consistent"):
            release(Judge("m", url), synthetic.Many(3), Plan(consistent=True), tmp_path)
    finally:
        stop()
