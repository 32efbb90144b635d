"""Folders as the reward models were released, and what is refused of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Qwen3Config

import toy
from starling_nb import models
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.reward import RewardError, RewardModel, layout, saving

TALK: list[list[Message]] = [
    [*toy.user("why?"), {"role": "assistant", "content": text}] for text in ("because", "no. it is blue", "e")
]
Weights = dict[str, torch.Tensor]


def model(family: str = "llama", dtype: torch.dtype = torch.float32) -> RewardModel:
    """A reward model on a toy decoder with a random head."""
    lm = toy.lm(family, dtype=dtype)
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    return RewardModel(lm.model.model, lm.chat, head).eval()


def spelled(reward: RewardModel, *prefixes: str) -> Weights:
    """Weights under one spelling or several, sharing memory as modules under two names do."""
    found = {f"{p}{name}": value for p in prefixes for name, value in reward.transformer.state_dict().items()}
    return found | {"v_head.weight": reward.v_head.weight.detach()}


def bare(reward: RewardModel, folder: Path) -> Path:
    """A folder with config and tokenizer and no weights."""
    folder.mkdir()
    reward.transformer.config.save_pretrained(folder)
    reward.chat.tokenizer.save_pretrained(folder)
    return folder


def change_config(folder: Path, **fields: Any) -> None:
    """Set fields of the config, or take those away that are None."""
    path = folder / "config.json"
    found = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def in_parts(weights: Mapping[str, torch.Tensor], folder: Path, kind: str, index: bool = True) -> list[Path]:
    """Two files of weights, with their index."""
    stem, end, save = {
        "safetensors": ("model", "safetensors", save_file),
        "bin": ("pytorch_model", "bin", torch.save),
    }[kind]
    names = sorted(weights)
    places: dict[str, str] = {}
    for number, part in enumerate((names[:7], names[7:]), 1):
        file = f"{stem}-0000{number}-of-00002.{end}"
        save({name: weights[name].clone() for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    if index:
        told = {"metadata": {}, "weight_map": places}
        (folder / (f"{stem}.{end}.index.json")).write_text(json.dumps(told))
    return sorted(folder / file for file in set(places.values()))


def same(found: RewardModel, due: RewardModel) -> bool:
    """Bit for bit, positions included."""
    assert torch.equal(found.transformer.rotary_emb.inv_freq, due.transformer.rotary_emb.inv_freq)
    return toy.changed(toy.weights(due), found) == set() and found.score(TALK) == due.score(TALK)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "Starling.pt", "x-model.bin"])
@pytest.mark.parametrize("prefixes", [["transformer."], ["model.model."], ["transformer.", "model.model."]])
def test_the_7b_is_one_torch_file_of_either_spelling_or_both(name: str, prefixes: list[str], tmp_path: Path) -> None:
    reward = model()
    folder = bare(reward, tmp_path / "rm")
    torch.save(spelled(reward, *prefixes) | {"model.lm_head.weight": torch.zeros(80, 32)}, folder / name)
    torch.save({"step": 1}, folder / "optimizer.pt")
    assert same(RewardModel.from_pretrained(folder), reward)


def test_the_7b_s_config_names_a_class_that_nobody_has_and_perhaps_no_type(tmp_path: Path) -> None:
    reward = model()
    folder = bare(reward, tmp_path / "rm")
    torch.save(spelled(reward, "transformer."), folder / "pytorch_model.bin")
    change_config(folder, architectures=["LLMForSequenceRegression"], model_type=None, auto_map={"AutoModel": "x.Y"})
    found = RewardModel.from_pretrained(folder, template="own")
    assert found.transformer.config.model_type == "llama"
    assert same(found, reward)
    assert RewardModel.from_pretrained(folder).chat.template == "llama2"
    for fields, message in (
        ({"rms_norm_eps": None, "vocab_size": None}, "lacks rms_norm_eps, vocab_size"),
        ({"sliding_window": 4096}, 'add "model_type"'),
        ({"architectures": ["MistralModel"]}, "cannot be read as Llama's"),
        ({"model_type": "nosuchtype"}, "does not know"),
    ):
        kept = (folder / "config.json").read_text()
        change_config(folder, **fields)
        with pytest.raises(RewardError, match=message):
            RewardModel.from_pretrained(folder)
        (folder / "config.json").write_text(kept)
    (folder / "config.json").write_text("[]")
    with pytest.raises(RewardError, match="no configuration"):
        RewardModel.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(StarlingError, match=r"config\.json is missing"):
        RewardModel.from_pretrained(folder)


def test_what_is_no_decoder_of_these_families_is_refused(tmp_path: Path) -> None:
    folder = bare(model(), tmp_path / "rm")
    save_file(spelled(model(), "transformer."), folder / "model.safetensors")
    small = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps(small))
    with pytest.raises(RewardError, match="gpt2 cannot be read, only llama, mistral"):
        RewardModel.from_pretrained(folder)


def test_a_folder_without_tokenizer_takes_another_s(tmp_path: Path) -> None:
    reward = model()
    folder, words = bare(reward, tmp_path / "rm"), tmp_path / "words"
    save_file(spelled(reward, "transformer."), folder / "model.safetensors")
    reward.chat.tokenizer.save_pretrained(words)
    for path in folder.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    with pytest.raises(RewardError, match=r"pass tokenizer=.*Llama-2-7b-chat-hf"):
        RewardModel.from_pretrained(folder)
    assert same(RewardModel.from_pretrained(folder, tokenizer=words), reward)
    with pytest.raises(RewardError, match="gives no tokenizer"):
        RewardModel.from_pretrained(folder, tokenizer=tmp_path)


def test_the_released_model_which_has_no_tokenizer_reads_with_llama_2_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward, asked = model(), []
    folder = bare(reward, tmp_path / "rm")
    save_file(spelled(reward, "transformer."), folder / "model.safetensors")
    for path in folder.glob("*"):
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    change_config(folder, architectures=["LLMForSequenceRegression"])
    monkeypatch.setattr(models, "read_tokenizer", lambda source: asked.append(source) or reward.chat.tokenizer)
    assert RewardModel.from_pretrained(folder).chat.template == "llama2"
    assert asked == ["meta-llama/Llama-2-7b-chat-hf"]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("family", toy.FAMILIES)
def test_the_34b_lies_in_parts(family: str, kind: str, index: bool, tmp_path: Path) -> None:
    reward = model(family)
    folder = bare(reward, tmp_path / "rm")
    parts = in_parts(spelled(reward, "transformer."), folder, kind, index)
    assert same(RewardModel.from_pretrained(folder), reward)
    parts[1].unlink()
    with pytest.raises(RewardError, match="-00002-of-00002.*missing" if index else "holds 1 of the 2 parts"):
        RewardModel.from_pretrained(folder)


def test_an_index_may_name_files_of_its_own_folder_only(tmp_path: Path) -> None:
    folder = bare(model(), tmp_path / "rm")
    save_file(spelled(model(), "transformer."), tmp_path / "other.safetensors")
    for told in ({"weight_map": {"x": "../other.safetensors"}}, {"weight_map": {}}, []):
        (folder / "model.safetensors.index.json").write_text(json.dumps(told))
        with pytest.raises(RewardError, match="names no files of this folder"):
            RewardModel.from_pretrained(folder)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_torch_file_with_code_or_something_else_in_it_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    reward = model()
    folder = bare(reward, tmp_path / "rm")
    path, weights = folder / "pytorch_model.bin", spelled(reward, "transformer.")
    torch.save(weights | {"x": Bomb(tmp_path / "went off")}, path)
    with pytest.raises(RewardError, match="holds code, which is not run") as caught:
        RewardModel.from_pretrained(folder)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "went off").exists()
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    with pytest.raises(RewardError, match="of an old format"):
        RewardModel.from_pretrained(folder)
    for content in ({"state_dict": weights}, [1], weights | {"step": 3}):
        torch.save(content, path)
        with pytest.raises(RewardError, match="save the state dict alone"):
            RewardModel.from_pretrained(folder)
    path.write_bytes(b"not torch")
    with pytest.raises(RewardError, match="cannot be read as plain weights"):
        RewardModel.from_pretrained(folder)
    torch.save(weights, path)
    torch.save(weights, folder / "other.pt")
    with pytest.raises(RewardError, match=r"other.pt and pytorch_model.bin"):
        RewardModel.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"not safetensors either")
    with pytest.raises(RewardError, match="is damaged"):
        RewardModel.from_pretrained(folder)


def test_a_weight_that_cannot_be_trusted_is_named(tmp_path: Path) -> None:
    reward = model()
    folder = bare(reward, tmp_path / "rm")
    good = spelled(reward, "transformer.")
    name = "transformer.layers.1.mlp.up_proj.weight"
    nan, huge, twin = good[name].clone(), good[name].clone(), spelled(reward, "model.model.")
    nan[3, 4], huge[3, 4] = torch.nan, 1e6
    wrongs: list[tuple[Weights, str]] = [
        ({name: nan}, "layers.1.mlp.up_proj.weight in pytorch_model.bin is not a number"),
        ({"v_head.weight": torch.full((1, 32), torch.inf)}, "v_head.weight in pytorch_model.bin is not a number"),
        ({name: good[name].to(torch.int8)}, "before they were quantised"),
        ({"score.weight": torch.ones(1)}, r"left over \['score.weight'\]"),
        (
            twin | {"model.model.norm.weight": torch.zeros(32)},
            "norm.weight, transformer.norm.weight in pytorch_model.bin and model.model",
        ),
        (twin | {"model.model.norm.weight": torch.zeros(31)}, r"norm.weight has shape \[31\] in pytorch_model.bin"),
        (twin | {"model.model.norm.weight": torch.full((32,), torch.nan)}, "two different weights for norm.weight"),
    ]
    for change, message in wrongs:
        torch.save(good | change, folder / "pytorch_model.bin")
        with pytest.raises(RewardError, match=message):
            RewardModel.from_pretrained(folder)
    torch.save(good | {name: huge}, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match=r"up_proj.weight in pytorch_model.bin is too large for torch.float16"):
        RewardModel.from_pretrained(folder, dtype=torch.float16)
    assert same(RewardModel.from_pretrained(folder), RewardModel.from_pretrained(folder))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_stored_type_is_read_in_any_type(stored: torch.dtype, dtype: torch.dtype, tmp_path: Path) -> None:
    reward = model(dtype=stored)
    folder = bare(reward, tmp_path / "rm")
    torch.save(spelled(reward, "transformer."), folder / "pytorch_model.bin")
    found = RewardModel.from_pretrained(folder, dtype=dtype)
    for name, value in reward.transformer.state_dict().items():
        assert torch.equal(found.transformer.state_dict()[name], value.to(dtype)), name
    assert found.v_head.weight.dtype == torch.float32
    assert torch.equal(found.v_head.weight, reward.v_head.weight)
    assert {buffer.dtype for buffer in found.transformer.rotary_emb.buffers()} == {torch.float32}
    assert torch.equal(found.transformer.rotary_emb.inv_freq, reward.transformer.rotary_emb.inv_freq)


def test_two_spellings_may_differ_in_type_but_not_in_value(tmp_path: Path) -> None:
    reward = model(dtype=torch.bfloat16)
    folder = bare(reward, tmp_path / "rm")
    twin = {name: value.float() for name, value in spelled(reward, "model.model.").items()}
    torch.save(spelled(reward, "transformer.") | twin, folder / "pytorch_model.bin")
    assert toy.changed(toy.weights(reward), RewardModel.from_pretrained(folder, dtype=torch.bfloat16)) == set()
    twin["model.model.norm.weight"] += 1e-6  # less than bfloat16 can tell
    torch.save(spelled(reward, "transformer.") | twin, folder / "pytorch_model.bin")
    with pytest.raises(RewardError, match=r"two different weights for norm\.weight"):
        RewardModel.from_pretrained(folder, dtype=torch.bfloat16)


def test_the_newer_qwen_is_read_as_it_would_be_run_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 80, "head_dim": 8}
    config = Qwen3Config(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.15, pad_token_id=2)
    decoder = AutoModel.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    reward = RewardModel(decoder, toy.lm().chat, torch.randn(1, 32))
    reward.save_pretrained(tmp_path / "rm")
    found = RewardModel.from_pretrained(tmp_path / "rm")
    assert same(found, reward)
    for talk, score in zip(TALK, found.score(TALK), strict=True):
        ids = torch.tensor([found.chat.encode(talk[:-1], talk[-1]["content"]).ids])
        states = decoder(input_ids=ids).last_hidden_state
        assert score == pytest.approx(float(reward.v_head(states[0, -1]).detach()), abs=2e-5)


@pytest.mark.parametrize("family", toy.FAMILIES)
@pytest.mark.parametrize(
    "positions",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
        {"rope_parameters": None, "rope_theta": 5e6},  # as configs were written when the models were released
        {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
    ids=["scaled", "old", "old and scaled"],
)
def test_a_loaded_decoder_is_the_one_that_hugging_face_would_load(
    positions: dict[str, Any], family: str, tmp_path: Path
) -> None:
    """Its positions included, whose frequencies lie in no file."""
    reward = model(family)
    folder = bare(reward, tmp_path / "rm")
    change_config(folder, **positions)
    save_file(spelled(reward, "transformer."), folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "plain")
    save_file(spelled(reward, ""), tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    found = RewardModel.from_pretrained(folder)
    theirs = AutoModel.from_pretrained(tmp_path / "plain", key_mapping={"^v_head": "v_head"}).eval()
    ids = torch.tensor([[5, 9, 12, 30, 6, 2]])
    with torch.no_grad():
        states = theirs(input_ids=ids).last_hidden_state
        assert torch.equal(found.transformer(input_ids=ids).last_hidden_state, states)
        assert not torch.equal(reward.transformer(input_ids=ids).last_hidden_state, states)


def test_a_model_is_never_held_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is made without memory, and each weight is read once, after all names and shapes were checked."""
    reward = model()
    folder = bare(reward, tmp_path / "rm")
    in_parts(spelled(reward, "transformer."), folder, "safetensors")
    made: list[Any] = []
    real, read = AutoModel.from_config, layout._value
    reads: list[str] = []

    def spy(*given: Any, **named: Any) -> Any:
        made.append(real(*given, **named))
        assert all(part.is_meta for part in made[-1].parameters())
        return made[-1]

    def counted(folder: Path, name: str, *rest: Any) -> torch.Tensor:
        reads.append(name)
        return read(folder, name, *rest)

    monkeypatch.setattr(AutoModel, "from_config", spy)
    monkeypatch.setattr(layout, "_value", counted)
    found = RewardModel.from_pretrained(folder)
    assert found.transformer is made[0]
    assert sorted(reads) == sorted([*reward.transformer.state_dict(), "v_head.weight"])
    reads.clear()
    change_config(folder, intermediate_size=40)
    with pytest.raises(RewardError, match=r"has shape \[48, 32\]|has shape \[32, 48\]"):
        RewardModel.from_pretrained(folder)
    assert reads == []


def test_a_loaded_model_does_not_hang_on_its_files(tmp_path: Path) -> None:
    reward = model()
    reward.save_pretrained(tmp_path / "rm")
    found = RewardModel.from_pretrained(tmp_path / "rm")
    path = tmp_path / "rm" / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert same(found, reward)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("spelling", layout.PREFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_is_written_in_either_spelling_and_in_parts(
    dtype: torch.dtype, spelling: str, shard_bytes: int, tmp_path: Path
) -> None:
    reward = model("qwen2", dtype)
    reward.save_pretrained(tmp_path / "rm", {"base": "toy"}, layout=spelling, shard_bytes=shard_bytes)
    parts = layout.weight_files(tmp_path / "rm")
    assert (len(parts) > 1) == (shard_bytes < 10**9)
    assert all(path.suffix == ".safetensors" for path in parts)
    if len(parts) > 1:
        assert all(sum(v.nbytes for v in load_file(path).values()) <= shard_bytes for path in parts)
    names = {name for path in parts for name in load_file(path)}
    assert "v_head.weight" in names
    assert all(name.startswith(layout.PREFIXES[spelling]) for name in names - {"v_head.weight"})
    assert same(RewardModel.from_pretrained(tmp_path / "rm", dtype=dtype), reward)
    assert json.loads((tmp_path / "rm" / "starling.json").read_text())["base"] == "toy"


def test_how_a_score_is_read_is_kept_with_the_model(tmp_path: Path) -> None:
    lm = toy.lm()
    wide = RewardModel(lm.model.model, lm.chat, torch.ones(1, 32), "last_column", 300)
    wide.save_pretrained(tmp_path / "rm", {"readout": "mean", "loss": "k_wise"})
    found = RewardModel.from_pretrained(tmp_path / "rm")
    assert (found.readout, found.column) == ("last_column", 300)
    assert found.score(TALK) == wide.score(TALK)
    other = RewardModel.from_pretrained(tmp_path / "rm", readout="last_column", column=200)
    assert (other.readout, other.column) == ("last_column", 200)
    assert RewardModel.from_pretrained(tmp_path / "rm", readout="mean").readout == "mean"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = model()
    reward.save_pretrained(tmp_path / "rm")
    with pytest.raises(RewardError, match="34b, 7b-alpha"):
        model("qwen2").save_pretrained(tmp_path / "rm", layout="13b")

    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_file", full)
        with pytest.raises(RewardError, match="No space left"):
            model("qwen2").save_pretrained(tmp_path / "rm")
    rename = Path.rename

    def stubborn(self: Path, target: Path) -> Path:
        return full() if self.name.endswith(".part") else rename(self, target)  # type: ignore[return-value,func-returns-value]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stubborn)
        with pytest.raises(RewardError, match="No space left"):
            model("qwen2").save_pretrained(tmp_path / "rm")
    assert [path.name for path in tmp_path.iterdir()] == ["rm"]
    assert same(RewardModel.from_pretrained(tmp_path / "rm"), reward)


class Hub:
    """A double of ``snapshot_download``: copies the files that match from a folder."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        self.calls: list[tuple[str, str | None]] = []

    def __call__(
        self,
        repo_id: str,
        *,
        repo_type: str,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        assert repo_type == "model"
        self.calls.append((repo_id, revision))
        self.target.mkdir(exist_ok=True)
        names = [path.name for path in self.source.iterdir()]
        for name in huggingface_hub.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            shutil.copyfile(self.source / name, self.target / name)
        return str(self.target)


def test_a_model_comes_from_the_hub_where_no_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = model()
    reward.save_pretrained(tmp_path / "there")
    torch.save(spelled(reward, "transformer."), tmp_path / "there" / "pytorch_model.bin")
    (tmp_path / "there" / "evil.py").write_text("")
    (tmp_path / "there" / "optimizer.pt").write_text("")
    monkeypatch.chdir(tmp_path)
    hub = Hub(tmp_path / "there", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert same(RewardModel.from_pretrained("me/rm", revision="v1"), reward)
    assert hub.calls == [("me/rm", "v1")]
    assert not {"pytorch_model.bin", "evil.py"} & {path.name for path in (tmp_path / "cache").iterdir()}
    (tmp_path / "there" / "model.safetensors").unlink()
    hub.target = tmp_path / "cache2"
    assert same(RewardModel.from_pretrained("me/rm"), reward)
    assert hub.calls[1:] == [("me/rm", None)] * 2
    assert "optimizer.pt" not in {path.name for path in hub.target.iterdir()}
    shutil.copytree(tmp_path / "there", tmp_path / "me" / "rm")
    assert same(RewardModel.from_pretrained("me/rm"), reward)
    assert len(hub.calls) == 3


def test_what_is_neither_here_nor_on_the_hub_is_said_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any, **named: Any) -> str:
        raise OSError("401 for Bearer hf_NotATokenOfAnybody")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(StarlingError, match=r"no folder me/rm here, and the hub .*\(OSError\)") as caught:
        RewardModel.from_pretrained("me/rm")
    assert "hf_Not" not in str(caught.value)
    assert caught.value.__context__ is None
    for wrong in ("nowhere", tmp_path / "a" / "b", "a/b/c", "./rm"):
        with pytest.raises(RewardError, match="run notebook 03"):
            RewardModel.from_pretrained(wrong)
