"""What a reward model's card says, and what goes to a hub that is a double."""

from __future__ import annotations

import dataclasses
import json
import re
import traceback
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub_double import TOKEN, Hub, pushing

import toy
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.reward import RewardError, RewardModel, card
from starling_nb.reward.card import About
from starling_nb.reward.training import Recipe

TALK: list[list[Message]] = [[*toy.user("why?"), {"role": "assistant", "content": "because"}]]
ABOUT = About(
    base="owner/small-lm",
    loss="k_wise",
    judge="some-judge-1",
    datasets=("owner/nectar", "my own rows"),
    comparisons=1234,
    recipe=dataclasses.asdict(Recipe()),
    licence="apache-2.0",
)
RESULTS: list[dict[str, Any]] = [
    {"method": "k_wise", "metric": "accuracy", "value": 0.71234, "low": 0.7, "high": 0.72, "n": 4321},
    {"method": "longest | answer", "metric": "accuracy", "value": 0.6, "low": float("nan"), "high": float("nan")},
]


def saved(folder: Path, **options: Any) -> Path:
    """A reward model's folder."""
    lm = toy.lm()
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    RewardModel(lm.model.model, lm.chat, head, options.pop("readout", "mean")).save_pretrained(folder, **options)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reward model's folder without a card."""
    return saved(tmp_path / "rm")


def test_the_hub_reads_licence_base_model_and_data_from_the_card(folder: Path) -> None:
    made = huggingface_hub.ModelCard.load(card.write(folder, ABOUT, RESULTS))
    assert made.data.license == "apache-2.0"
    assert made.data.base_model == "owner/small-lm"
    assert made.data.datasets == ["owner/nectar"]
    assert "reward-model" in made.data.tags
    assert "simulated judge" not in made.data.tags
    made.data.to_yaml()


def test_the_card_says_how_the_model_came_about_and_what_it_is_worth(folder: Path) -> None:
    text = card.write(folder, ABOUT, RESULTS).read_text(encoding="utf-8")
    for said in (
        "A llama decoder (3 blocks, 32 wide)",
        "as the mean over the tokens of the answer",
        "the form `own`",
        "Base model: `owner/small-lm`. 1,234 rankings from `owner/nectar`, `my own rows`, ranked by `some-judge-1`.",
        "Plackett-Luce",
        "| head_lr | 0.001 |",
        "| k_wise | accuracy | 0.712 | 0.700 to 0.720 | 4,321 |",
        "| longest \\| answer | accuracy | 0.600 | – | – |",
        "Only the difference between two scores of one prompt",
        "Length may be rewarded",
        "apache-2.0; the base model",
    ):
        assert said in text, said
    assert "imulated" not in text
    assert "None was made" in card.write(folder, ABOUT).read_text(encoding="utf-8")


def test_the_code_on_the_card_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = card.write(folder, ABOUT).read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    exec(found[1].replace('"owner/name"', repr(str(folder))), {})
    scores = json.loads(capsys.readouterr().out)
    assert len(scores) == 2
    assert scores[0] != scores[1]


def test_what_the_folder_s_notes_say_need_not_be_said_again(tmp_path: Path) -> None:
    recipe = dataclasses.asdict(Recipe(loss="pairwise"))
    told = {"base": "smollm2-135m, first 16 blocks", "data": "nectar.parquet", "recipe": recipe}
    folder = saved(tmp_path / "rm", notes=told)
    about = About.of(folder, "some-judge-1", licence="mit")
    assert about == About(
        base=told["base"],
        loss="pairwise",
        judge="some-judge-1",
        datasets=["nectar.parquet"],
        recipe=recipe,
        licence="mit",
    )
    path = card.write(folder, about)
    assert huggingface_hub.ModelCard.load(path).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "Base model: `smollm2-135m, first 16 blocks`" in path.read_text(encoding="utf-8")
    assert About.of(folder, "j", loss="k_wise", base="o/n, first 2 blocks").base_id == "o/n"
    with pytest.raises(RewardError, match="does not name the base and the loss"):
        About.of(saved(tmp_path / "bare"), "j")


def test_a_model_saved_again_tells_nothing_of_where_it_lay(folder: Path, tmp_path: Path) -> None:
    RewardModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("about", [{"judge": "simulated-judge@0"}, {"simulated": True}])
def test_simulated_labels_are_called_so(folder: Path, about: dict[str, Any]) -> None:
    path = card.write(folder, dataclasses.replace(ABOUT, **about))
    text = path.read_text(encoding="utf-8")
    assert "**Simulated labels.**" in text
    assert "ranked by a simulated judge, `" in text
    assert "how well it learned the simulation" in text
    assert "simulated judge" in huggingface_hub.ModelCard.load(path).data.tags


def test_paths_of_this_machine_stay_here(folder: Path) -> None:
    about = dataclasses.replace(
        ABOUT, base="/home/somebody/models/small", datasets=["/home/somebody/rows.parquet", "./somebody/x"]
    )
    path = card.write(folder, about)
    text = path.read_text(encoding="utf-8")
    assert "somebody" not in text
    assert "Base model: `small`" in text
    assert huggingface_hub.ModelCard.load(path).data.base_model is None


def test_the_readout_of_the_published_card_is_named_with_its_column(tmp_path: Path) -> None:
    folder = saved(tmp_path / "rm")
    notes = json.loads((folder / "starling.json").read_text())
    (folder / "starling.json").write_text(json.dumps({**notes, "readout": "last_column", "column": 300}))
    text = card.write(folder, ABOUT).read_text(encoding="utf-8")
    assert "at the last column of a text padded to 300 tokens" in text
    assert "a score depends on the column" in text


def test_what_is_no_reward_model_or_no_result_has_no_card(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StarlingError, match=r"starling\.json is missing"):
        card.write(tmp_path / "nowhere", ABOUT)
    with pytest.raises(RewardError, match="result 1 has no metric and no value"):
        card.write(folder, ABOUT, [RESULTS[0], {"method": "k_wise"}])
    assert not (folder / "README.md").exists()
    (folder / "model.safetensors").unlink()
    with pytest.raises(RewardError, match="run notebook 03"):
        card.write(folder, ABOUT)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_pushed_model_is_whole_private_and_nothing_else(
    shard_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "rm", shard_bytes=shard_bytes)
    card.write(folder, ABOUT)
    due = {path.name for path in folder.iterdir()}
    (folder / "deep").mkdir()
    for other in ("notes.txt", "optimizer.pt", "x-model.bin", ".env", "deep/config.json", "other.safetensors"):
        (folder / other).write_text("mine")
    hub = Hub()
    pushing(monkeypatch, hub)
    assert card.push_to_hub(folder, "me/rm") == "https://huggingface.co/me/rm"
    assert hub.calls[0] == ("me/rm", {"repo_type": "model", "private": True, "exist_ok": True})
    assert set(hub.files) == due
    assert (sum(name.endswith(".safetensors") for name in due) > 1) == (shard_bytes < 10**9)
    assert TOKEN not in str(hub.calls)
    (tmp_path / "got").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "got" / name).write_bytes(content)
    found = RewardModel.from_pretrained(tmp_path / "got")
    assert found.score(TALK) == RewardModel.from_pretrained(folder).score(TALK)


def test_what_is_not_whole_or_could_carry_code_is_not_pushed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    pushing(monkeypatch, hub)
    with pytest.raises(RewardError, match="write the card first"):
        card.push_to_hub(folder, "me/rm")
    card.write(folder, ABOUT)
    (folder / "starling.json").rename(folder / "kept.json")
    with pytest.raises(RewardError, match=r"starling.json is missing: save the model"):
        card.push_to_hub(folder, "me/rm")
    (folder / "kept.json").rename(folder / "starling.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match="can carry code"):
        card.push_to_hub(folder, "me/rm")
    assert hub.calls == []


def test_a_public_repository_is_filled_only_by_somebody_who_asked_for_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.write(folder, ABOUT)
    hub = Hub(public=True)
    pushing(monkeypatch, hub)
    with pytest.raises(StarlingError, match="public already"):
        card.push_to_hub(folder, "me/rm")
    assert not hub.files
    card.push_to_hub(folder, "me/rm", private=False)
    assert hub.files


def test_a_token_is_needed_and_never_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.write(folder, ABOUT)
    pushing(monkeypatch, Hub(), token=None)
    with pytest.raises(StarlingError, match="hf auth login"):
        card.push_to_hub(folder, "me/rm")
    for error in (ConnectionError(f"no route, {TOKEN}"), ValueError(TOKEN)):
        pushing(monkeypatch, Hub(error=error))
        with pytest.raises(StarlingError, match=r"did not take me/rm \(\w+Error\)") as caught:
            card.push_to_hub(folder, "me/rm")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None
