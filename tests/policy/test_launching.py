"""A training as a child process: what it is told, what it leaves, how it ends and how it is taken up again."""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import toy
from starling_nb import cli_models, files
from starling_nb.cli import app
from starling_nb.policy import launching, running
from starling_nb.policy.launching import CONFIGS, FOLDER, Launch, LaunchError, serving
from starling_nb.policy.recipe import Recipe, made, named, written
from starling_nb.reward import RewardError, RewardModel
from starling_nb.reward.serving import Served

QUICK = Recipe(rollouts=16, minibatch=8, steps=3, max_new_tokens=10, trainable="last:2", lr=3e-3, kl=0.0)


@pytest.fixture
def start(tmp_path: Path) -> Launch:
    """A launch from a toy model, a toy reward model and toy prompts."""
    lm = toy.lm()
    lm.model.save_pretrained(tmp_path / "base")
    lm.chat.tokenizer.save_pretrained(tmp_path / "base")
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    RewardModel(copy.deepcopy(lm.model.model), lm.chat, head).save_pretrained(tmp_path / "reward", {"base": "toy"})
    rows = [
        {"id": f"p{i}", "messages": toy.user(f"question {i}?"), "source": ["toy"], "answers": []} for i in range(40)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Launch(
        tmp_path / "prompts.jsonl", tmp_path / "reward", tmp_path / "out", str(tmp_path / "base"), QUICK, held_out=4
    )


KINDS = {
    "single": (DistributedType.NO, 1),
    "ddp": (DistributedType.MULTI_GPU, 7),
    "fsdp2": (DistributedType.FSDP, 7),
    "zero2": (DistributedType.FSDP, 7),
}


def test_there_is_a_configuration_for_every_way_to_spread_the_work() -> None:
    assert set(CONFIGS) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_the_configurations_as_they_are_meant(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.distributed_type, config.num_processes) == KINDS[name]
    launch = Launch("prompts.parquet", "reward", Path("out"), config=name, processes=1 if name == "single" else 3)
    parser = accelerate_launch.launch_command_parser()
    told, _, _ = accelerate_launch._validate_launch_command(parser.parse_args(launch.command()[3:]))
    assert (told.use_fsdp, told.multi_gpu) == tuple(
        KINDS[name][0] == kind for kind in (DistributedType.FSDP, DistributedType.MULTI_GPU)
    )
    assert (told.module, told.training_script, told.num_processes) == (True, "starling_nb", launch.processes)
    assert told.training_script_args == launch.words()
    if told.use_fsdp:
        assert (str(told.fsdp_version), told.fsdp_reshard_after_forward) == ("2", name == "fsdp2")


GLOO = """
import sys
import torch
from accelerate import PartialState
state = PartialState(cpu=not torch.cuda.is_available())
ranks = torch.tensor([state.process_index + 1.0], device=state.device)
torch.distributed.all_reduce(ranks)
# In one piece: the other process writes into the same pipe.
sys.stdout.write(f"{state.num_processes} {state.backend} {ranks.item()}\\n")
sys.stdout.flush()
state.destroy_process_group()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="gloo is for a machine without a GPU")
def test_two_processes_meet_over_gloo_where_there_is_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "meet.py").write_text(GLOO)
    options = Launch("prompts", "reward", tmp_path, config="ddp", processes=2).options()
    line = [sys.executable, "-m", "accelerate.commands.launch", *options, str(tmp_path / "meet.py")]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["2 gloo 3.0"] * 2


def told_by(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> running.Plan:
    """What the command line makes of a launch's words."""
    seen: list[running.Plan] = []
    table = pd.DataFrame({"metric": ["reward"]})
    monkeypatch.setattr(running, "run", lambda plan: seen.append(plan) or running.Done(Path("policy"), table, []))
    done = CliRunner().invoke(app, launch.words())
    assert done.exit_code == 0, done.output
    return seen[0]


def test_the_entry_point_reads_what_the_launch_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = Recipe.published(objective="ppo", steps=7, value_clip=None, kl_target=4.0, hide_eos=False)
    launch = Launch(
        "p.parquet", "hub/reward", tmp_path, "hub/base", recipe, "published", 9, template="openchat", prompt_tokens=77
    )
    assert cli_models.tune
    plan = told_by(launch, monkeypatch)
    assert (plan.recipe, str(plan.data), plan.reward) == (recipe, "p.parquet", "hub/reward")
    told = (plan.out, plan.base, plan.template, plan.held_out, plan.prompt_tokens)
    assert told == (tmp_path, "hub/base", "openchat", 9, 77)


@given(
    st.sampled_from(["corrected", "published"]),
    st.floats(1e-9, 1, allow_nan=False),
    st.none() | st.floats(0.1, 9),
    st.booleans(),
    st.sampled_from(["initial", "rollout"]),
    st.integers(1, 9),
)
def test_a_recipe_written_as_switches_reads_back(
    name: str, lr: float, clip: float | None, hide: bool, anchor: Any, steps: int
) -> None:
    recipe = replace(named(name, {}), lr=lr, value_clip=clip, hide_eos=hide, anchor=anchor, steps=steps)
    assert made(name, recipe.objective, written(recipe, name)) == recipe
    assert written(named(name, {}), name) == []


def test_the_shown_command_is_the_one_that_runs_without_a_path_of_this_machine(tmp_path: Path) -> None:
    launch = Launch("prompts.parquet", "reward", Path("policy"), config="zero2", processes=7)
    shown = launch.shown()
    assert str(files.ROOT) not in shown
    due = [word.replace(f"{files.ROOT}/", "") for word in launch.command()[3:]]
    assert shown.replace("\\\n", " ").split() == ["accelerate", "launch", *due]


def test_the_shown_command_serves_the_reward_model_from_the_card_after_those_that_train() -> None:
    launch = Launch("prompts.parquet", "reward", Path("policy"), config="zero2", processes=7, reward_cards=1)
    server, _, training = launch.shown().partition("\n")
    assert server == f"CUDA_VISIBLE_DEVICES=7 starling-nb serve-reward reward --port {launching.PORT} &"
    own = replace(launch, reward=f"http://127.0.0.1:{launching.PORT}", reward_cards=0)
    assert training == own.shown()
    with pytest.raises(LaunchError, match="one card serves the reward model"):
        replace(launch, reward_cards=2)


def test_a_served_reward_model_lives_as_long_as_its_training(start: Launch) -> None:
    done = launching.run(replace(start, reward_cards=1), lambda line: None)
    assert len(done.curve) == QUICK.steps
    assert done.curve.reward.std() > 0
    assert not (start.out / "reward.address").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(start.reward) in (p.info["cmdline"] or [])]


ORPHAN = """
import os, signal, subprocess, sys
from pathlib import Path
from starling_nb.policy.launching.serving import served

reward, folder = sys.argv[1:]
with open(os.devnull, "wb") as log, served(reward, 1, Path(folder), os.environ, log, str) as (address, held):
    training = subprocess.Popen(["sleep", "300"], pass_fds=[held], stdout=log, stderr=log)
    print(training.pid, address, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_training_that_outlives_its_launcher_keeps_its_reward_model(start: Launch, tmp_path: Path) -> None:
    line = [sys.executable, "-c", ORPHAN, str(start.reward), str(tmp_path)]
    done = subprocess.run(line, cwd=files.ROOT, capture_output=True, text=True, check=False, timeout=300)
    training, address = done.stdout.split()
    try:
        assert Served(address).name == str(start.reward)
    finally:
        os.kill(int(training), signal.SIGKILL)

    def ask(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            Served(address)
            time.sleep(0.1)

    with pytest.raises(RewardError, match="no reward model answers"):
        ask(60)


def test_a_reward_model_that_cannot_be_served_is_told_by_the_end_of_its_log(start: Launch) -> None:
    with pytest.raises(LaunchError, match=r"nowhere could not be served:(.|\n)*nowhere"):
        launching.run(replace(start, reward="nowhere", reward_cards=1), lambda line: None)


@pytest.mark.parametrize(
    ("cards", "visible", "found"),
    [(0, None, {}), (8, None, {"CUDA_VISIBLE_DEVICES": "7"}), (8, "0,1,2,3,4,5,6,9", {"CUDA_VISIBLE_DEVICES": "9"})],
)
def test_the_next_card_is_the_reward_model_s_own(
    monkeypatch: pytest.MonkeyPatch, cards: int, visible: str | None, found: dict[str, str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert serving.card(7) == found
    if cards:
        with pytest.raises(LaunchError, match="8 cards train and one serves the reward model: there are 8"):
            serving.card(8)


@pytest.mark.parametrize(
    ("config", "processes", "told"),
    [("zero9", 2, "choose ddp, fsdp2, single, zero2"), ("single", 2, "others for several"), ("ddp", 1, "for several")],
)
def test_what_does_not_go_together_is_refused(config: str, processes: int, told: str) -> None:
    with pytest.raises(LaunchError, match=told):
        Launch("p", "r", Path("o"), config=config, processes=processes)


def test_a_training_that_fails_shows_the_end_of_its_log(start: Launch) -> None:
    said: list[str] = []
    with pytest.raises(LaunchError, match=r"ended with code 1\. Put right(.|\n)*--held-out") as caught:
        launching.run(replace(start, held_out=0), said.append)
    assert said[-1] in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_only_one_training_is_at_work_in_a_folder(start: Launch) -> None:
    start.out.mkdir()
    with (start.out / launching.LOCK).open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match=r"a training is at work in .*: wait for it or end it"):
            launching.run(start)


def interrupting(step: int, said: list[str]) -> Callable[[str], None]:
    """Keeps what is said, and interrupts at the first line of a step that is not before ``step``."""

    def say(line: str) -> None:
        said.append(line)
        if (found := re.match(r"APA step (\d+)/", line)) and int(found[1]) >= step:
            raise KeyboardInterrupt

    return say


def test_an_interrupt_ends_the_child_and_the_next_start_goes_on_to_the_same_end(start: Launch) -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        launching.run(replace(start, recipe=replace(QUICK, steps=1000)), interrupting(3, said))
    assert said[-1].startswith("stopped; started again, the training")
    assert [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE] == []
    kept = len(torch.load(start.out / "tuning.pt", weights_only=True)["loop"]["history"])
    assert kept >= 2
    again = replace(start, recipe=replace(QUICK, steps=kept + 1))
    said.clear()
    done = launching.run(again, said.append)
    assert [line.split(":")[0] for line in said if line.startswith("APA step")] == [f"APA step {kept + 1}/{kept + 1}"]
    assert done.policy.is_dir()
    whole = start.out.with_name("whole")
    running.run(running.Plan(start.data, start.reward, whole, start.base, held_out=4, recipe=again.recipe))
    pd.testing.assert_frame_equal(done.curve, pd.read_csv(whole / "curve.csv"), check_exact=True)
    pd.testing.assert_frame_equal(done.evaluation, pd.read_csv(whole / "evaluation.csv"), check_exact=True)
