"""Scores are read at the last token whatever stands beside it, and a folder is loaded whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from starling_nb.chat import ChatFormat, Encoded, Message
from starling_nb.reward import RewardError, RewardModel, reading
from starling_nb.reward.model import PUBLISHED, READOUTS

QUESTIONS = ["why?", "tell me of the sea", "who"]
ANSWERS = ["because", "no.", "it is blue, and deep, and it is salty", "e"]
CONVERSATIONS: list[list[Message]] = [
    [*toy.user(question), {"role": "assistant", "content": answer}] for question in QUESTIONS for answer in ANSWERS
]


def model(
    family: str = "llama", dtype: torch.dtype = torch.float32, readout: str = "last_token", column: int = 512
) -> RewardModel:
    """A reward model on a toy decoder with a random head."""
    lm = toy.lm(family, dtype=dtype)
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    return RewardModel(lm.model.model, lm.chat, head, readout, column).eval()


def encoded(reward: RewardModel) -> list[Encoded]:
    """The conversations as token ids."""
    return [reward.chat.encode(c[:-1], c[-1]["content"]) for c in CONVERSATIONS]


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("family", toy.FAMILIES)
@torch.no_grad()
def test_a_score_is_the_head_on_the_normed_states_it_reads(family: str, readout: str) -> None:
    reward = model(family, readout=readout)
    for item, score in zip(encoded(reward), reward.score(CONVERSATIONS), strict=True):
        states = reward.transformer(input_ids=torch.tensor([item.ids])).last_hidden_state[0]
        last, mean = states[-1], states[item.prompt_length :].mean(0)
        read = {"last_token": last, "mean": mean, "both": (last + mean) / 2}[readout]
        assert score == pytest.approx(float(read @ reward.v_head.weight[0]), abs=2e-5)


@pytest.mark.parametrize("readout", READOUTS + PUBLISHED)
@pytest.mark.parametrize("family", toy.FAMILIES)
def test_a_score_does_not_depend_on_batch_neighbours_or_padding(
    family: str, readout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = model(family, readout=readout)
    together = reward.score(CONVERSATIONS)
    assert len(set(together)) == len(together)
    assert reward.score(CONVERSATIONS, batch=1) == pytest.approx(together, abs=1e-5)
    assert reward.score(CONVERSATIONS[::-1], batch=5) == pytest.approx(together[::-1], abs=1e-5)
    assert reward.score(CONVERSATIONS[2:3]) == pytest.approx(together[2:3], abs=1e-5)
    monkeypatch.setattr(reading, "BUDGET", 90)
    assert reward.score(CONVERSATIONS) == pytest.approx(together, abs=1e-5)
    assert reward.score([]) == []


def test_batches_keep_to_rows_and_tokens_and_lose_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BUDGET", 20)
    lengths = [7, 3, 30, 3, 8, 3, 10, 3, 3]
    found = list(reading.batches(lengths, 4))
    assert found == [[1, 3, 5, 7], [8, 0], [4, 6], [2]]
    assert sorted(place for rows in found for place in rows) == list(range(9))


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize("column", [40, 64, 200])
@torch.no_grad()
def test_the_last_column_is_that_of_the_whole_padded_batch(family: str, column: int) -> None:
    """What the card computes: all texts padded to the column with id 0 and masked, the head read at index -1."""
    reward = model(family, readout="last_column", column=column)
    items = [reading.cut(item, column, 1) for item in encoded(reward)]
    lengths = [len(item.ids) for item in encoded(reward)]
    assert (max(lengths) > column) == (column == 40)
    ids = torch.tensor([item.ids + [0] * (column - len(item.ids)) for item in items])
    mask = torch.tensor([[1] * len(item.ids) + [0] * (column - len(item.ids)) for item in items])
    states = reward.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    due = (states[:, -1] @ reward.v_head.weight[0]).tolist()
    assert reward.score(CONVERSATIONS) == pytest.approx(due, abs=1e-5)
    assert reward.truncated == sum(length > column for length in lengths)
    plain = model(family)
    assert max(abs(a - b) for a, b in zip(due, plain.score(CONVERSATIONS), strict=True)) > 1e-2


def test_a_text_that_fills_the_column_is_read_at_its_own_last_token() -> None:
    item = encoded(model())[2]
    full = model(readout="last_column", column=len(item.ids))
    assert full.score_ids([item]) == pytest.approx(model().score_ids([item]), abs=1e-5)
    assert full.truncated == 0
    wide = model(readout="last_column", column=len(item.ids) + 1)
    assert abs(wide.score_ids([item])[0] - model().score_ids([item])[0]) > 1e-3


def test_both_places_of_reading_are_shown_side_by_side() -> None:
    plain, wide = model(column=64), model(readout="last_column", column=64)
    found = plain.readouts(CONVERSATIONS)
    assert list(found.columns) == ["tokens", "last_token", "mean", "last_column", "difference"]
    assert found.tokens.tolist() == [len(item.ids) for item in encoded(plain)]
    assert found.last_token.tolist() == pytest.approx(plain.score(CONVERSATIONS), abs=1e-5)
    assert found["mean"].tolist() == pytest.approx(model(readout="mean").score(CONVERSATIONS), abs=1e-5)
    assert found.last_column.tolist() == pytest.approx(wide.score(CONVERSATIONS), abs=1e-5)
    assert found.difference.tolist() == (found.last_column - found.last_token).tolist()
    assert plain.readouts([]).empty
    short = model(column=20)
    assert short.readouts(CONVERSATIONS).tokens.max() == 20
    assert short.truncated == sum(len(item.ids) > 20 for item in encoded(plain)) > 0
    with pytest.raises(RewardError, match="choose from 2 to 512"):
        model(column=2048).readouts(CONVERSATIONS)


def test_the_last_column_must_lie_within_the_window_and_beside_the_text() -> None:
    for column in (1, 513):
        with pytest.raises(RewardError, match="choose from 2 to 512"):
            model(readout="last_column", column=column)
    decoder = toy.lm("mistral").model.model
    decoder.config.sliding_window = 50
    with pytest.raises(RewardError, match="choose from 2 to 50"):
        RewardModel(decoder, toy.lm("mistral").chat, None, "last_column", 60)
    with pytest.raises(RewardError, match="beside the text"):
        model(readout="last_column").read(torch.zeros(1, 3, 32), 1, [(1, 3)])


def test_reading_at_the_last_column_still_tells_of_the_unfinished_answer() -> None:
    whole, wide = model().read_ids(encoded(model())), model(readout="last_column").read_ids(encoded(model()))
    for one, other in zip(whole, wide, strict=True):
        assert torch.allclose(one.means, other.means, atol=1e-5)


def test_a_conversation_longer_than_the_window_is_refused_or_loses_its_oldest_tokens() -> None:
    reward = model()
    long = [*toy.user("x" * 600 + "why?"), {"role": "assistant", "content": "because"}]
    with pytest.raises(RewardError, match=r"conversation 1 takes 619 tokens of 512: pass truncate=True"):
        reward.score([CONVERSATIONS[0], long])
    whole = reward.chat.encode(long[:-1], "because")
    scores = reward.score([CONVERSATIONS[0], long], truncate=True)
    assert reward.truncated == 1
    assert scores[1] == pytest.approx(reward.score_ids([Encoded(whole.ids[-512:], 512 - 8)])[0], abs=1e-5)
    assert scores[0] == pytest.approx(reward.score(CONVERSATIONS[:1])[0], abs=1e-5)
    assert reward.truncated == 0
    with pytest.raises(RewardError, match="of 15:"):
        reward.score(CONVERSATIONS[:1], limit=15)
    with pytest.raises(RewardError, match="leaves no room for its prompt within 8"):
        reward.score(CONVERSATIONS[:1], limit=8, truncate=True)
    with pytest.raises(RewardError, match="of 512:"):
        reward.score([long], limit=9999)


def test_cutting_keeps_a_leading_bos_and_the_answer() -> None:
    item = Encoded([1, 4, 5, 6, 7, 8, 2], 4)
    assert reading.cut(item, 7, 1) is item
    assert reading.cut(item, 5, 1) == Encoded([1, 6, 7, 8, 2], 2)
    assert reading.cut(item, 5, None) == Encoded([5, 6, 7, 8, 2], 2)
    assert reading.cut(item, 3, 1) == Encoded([1, 8, 2], 1)  # of the answer too, as the card does


def test_a_token_that_the_decoder_does_not_know_is_an_error() -> None:
    reward = model()
    with pytest.raises(RewardError, match=f"token {len(toy.tokenizer())} has no embedding"):
        reward.score_ids([Encoded([5, len(toy.tokenizer()), 6], 1)])


def test_padding_is_never_searched_for() -> None:
    """Sequences full of the padding id, 0, are read at their own last token."""
    reward = model()
    item = Encoded([5, 0, 0, 9, 0], 2)
    alone = reward.score_ids([item])[0]
    assert reward.score_ids([item, Encoded([7] * 12, 2)])[0] == pytest.approx(alone, abs=1e-5)
    assert abs(reward.score_ids([Encoded(item.ids[:4], 2)])[0] - alone) > 1e-3


def test_a_conversation_without_an_answer_is_refused() -> None:
    for wrong in ([], toy.user("why?")):
        with pytest.raises(RewardError, match="end with an assistant"):
            model().score([wrong])
    with pytest.raises(RewardError, match="last_token, mean"):
        model(readout="first")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", toy.FAMILIES)
def test_a_folder_gives_back_the_very_same_model(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    reward = model(family, dtype, "mean")
    reward.save_pretrained(tmp_path / "rm", {"base": "toy"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rm"]
    names = set(load_file(tmp_path / "rm" / "model.safetensors"))
    assert "v_head.weight" in names
    assert all(name.startswith("transformer.") for name in names - {"v_head.weight"})
    found = RewardModel.from_pretrained(tmp_path / "rm", dtype=dtype)
    assert toy.changed(toy.weights(reward), found) == set()
    assert found.readout == "mean"
    assert found.score_ids(encoded(reward)) == reward.score_ids(encoded(reward))
    assert not any(parameter.requires_grad for parameter in found.transformer.parameters())


def test_reading_in_bfloat16_does_not_round_the_positions(tmp_path: Path) -> None:
    reward = model()
    reward.save_pretrained(tmp_path / "rm")
    found = RewardModel.from_pretrained(tmp_path / "rm", dtype=torch.bfloat16)
    assert found.transformer.dtype == torch.bfloat16
    assert torch.equal(found.transformer.rotary_emb.inv_freq, reward.transformer.rotary_emb.inv_freq)


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    model("qwen2").save_pretrained(tmp_path / "rm")
    reward = model("llama")
    reward.save_pretrained(tmp_path / "rm")
    assert RewardModel.from_pretrained(tmp_path / "rm").score(CONVERSATIONS) == reward.score(CONVERSATIONS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved reward model."""
    model().save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Change (or with None, remove) weights of a saved model."""
    path = folder / "model.safetensors"
    weights = {**load_file(path), **change}
    save_file({name: value for name, value in weights.items() if value is not None}, path)


def test_both_spellings_of_the_released_checkpoints_are_read(folder: Path) -> None:
    before = RewardModel.from_pretrained(folder).score(CONVERSATIONS)
    path = folder / "model.safetensors"
    weights = load_file(path)
    spelled = {name.replace("transformer.", "model.model.", 1): value for name, value in weights.items()}
    extra = {"model.lm_head.weight": torch.zeros(3, 32)}
    extra |= {"model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(spelled | extra, path)
    assert RewardModel.from_pretrained(folder).score(CONVERSATIONS) == before
    copies = {name: value.clone() for name, value in weights.items()}
    save_file(spelled | copies, path)
    assert RewardModel.from_pretrained(folder).score(CONVERSATIONS) == before
    save_file(spelled | copies | {"transformer.norm.weight": torch.zeros(32)}, path)
    with pytest.raises(RewardError, match="two different weights"):
        RewardModel.from_pretrained(folder)


def test_weights_in_several_files_are_read(folder: Path) -> None:
    before = RewardModel.from_pretrained(folder).score(CONVERSATIONS)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:]), 1):
        save_file({name: weights[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    assert RewardModel.from_pretrained(folder).score(CONVERSATIONS) == before


def test_missing_surplus_and_misshapen_weights_are_errors_never_a_random_head(folder: Path) -> None:
    good = load_file(folder / "model.safetensors")
    wrongs: list[tuple[dict[str, torch.Tensor | None], str]] = [
        ({"v_head.weight": None}, "not a reward model"),
        ({"transformer.layers.1.mlp.up_proj.weight": None}, r"missing \['layers.1.mlp.up_proj.weight'\]"),
        ({"transformer.layers.7.mlp.up_proj.weight": torch.ones(2)}, "left over"),
        ({"v_head.bias": torch.ones(1)}, "left over"),
        ({"transformer.norm.weight": torch.ones(31)}, r"norm.weight has shape \[31\]"),
        ({"v_head.weight": torch.ones(2, 32)}, r"v_head.weight has shape \[2, 32\]"),
    ]
    for change, message in wrongs:
        rewrite(folder, change)
        with pytest.raises(RewardError, match=message):
            RewardModel.from_pretrained(folder)
        save_file(good, folder / "model.safetensors")
    with pytest.raises(RewardError, match="run notebook 03"):
        RewardModel.from_pretrained(folder / "nowhere")


def test_the_template_is_the_folders_or_the_callers(folder: Path) -> None:
    assert RewardModel.from_pretrained(folder).chat.template == "own"
    assert RewardModel.from_pretrained(folder, template="llama2").chat.template == "llama2"
    (folder / "starling.json").write_text(json.dumps({"template": "llama2"}))
    assert RewardModel.from_pretrained(folder).chat.template == "llama2"
    (folder / "starling.json").write_text("[]")
    with pytest.raises(RewardError, match="holds no notes"):
        RewardModel.from_pretrained(folder)
    (folder / "starling.json").unlink()
    assert isinstance(RewardModel.from_pretrained(folder).chat, ChatFormat)


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    reward = model()
    with torch.no_grad():
        reward.v_head.weight[0, 0] = float("nan")
    with pytest.raises(RewardError, match="conversation 0 is not a number"):
        reward.score(CONVERSATIONS)
