"""Two processes that share every step are one: same answers, same records, same weights. None is left waiting."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType

import processes
import toy
from starling_nb import losses
from starling_nb.models import LM
from starling_nb.policy import experience, offline, tuning
from starling_nb.policy.hydra import Hydra, collate
from starling_nb.policy.offline import c_rlft
from starling_nb.policy.parallel import sharded, sharing
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.tuning import tune
from starling_nb.reward.model import Reading
from starling_nb.reward.scoring import prepare

PROMPTS = toy.prompts(toy.QUESTIONS)
# Five prompts a step: one process has three of them, and a minibatch of one or two may have none of the other's.
PLAIN = Recipe(
    steps=3,
    rollouts=20,
    epochs=2,
    minibatch=8,
    lr=1e-3,
    value_lr=3e-3,
    lam=0.1,
    max_new_tokens=10,
    trainable="last:2",
    critic_warmup=1,
)
RECIPES = {
    "apa": replace(PLAIN, scale="running"),
    "ppo": replace(PLAIN, objective="ppo", value="branch", hide_eos=True),
    "p3o": replace(PLAIN, objective="p3o", kl=0.1, kl_target=1.0, kl_horizon=40),
    "rloo": replace(PLAIN, objective="rloo", trainable="lora:2"),
}
PAIRS = offline.Recipe(batch=3, lr=1e-3, trainable="last:2")
ONE = replace(PLAIN, steps=1, rollouts=8, epochs=1, critic_warmup=0)


class Stop(Exception):  # noqa: N818
    """The plug is pulled."""


class Broken(toy.Likes):
    """Gives a score that is not a number where it is told to."""

    def read_ids(self, encoded: Sequence[Any], batch: int = 32) -> list[Reading]:
        found = super().read_ids(encoded)
        return [found[0]._replace(score=float("nan")), *found[1:]]


class Full(toy.Likes):
    """Has no room left."""

    def read_ids(self, encoded: Sequence[Any], batch: int = 32) -> list[Reading]:
        return list(full())


class Drifting(Hydra):
    """Does not find the probabilities that it sampled with."""

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs, values = super().forward(batch)
        return logprobs + 0.06, values


def tuned(recipe: Recipe, reward: Any = toy.Likes, **more: Any) -> dict[str, Any]:
    """What a run of the toy model leaves."""
    lm = toy.lm()
    done = tune(lm, reward(lm, "aeiou"), PROMPTS, recipe, **more)
    return {"history": done.history, "hydra": toy.weights(done.hydra), "model": toy.weights(lm.model)}


def paired(**more: Any) -> dict[str, Any]:
    """What DPO on ten pairs leaves: the last step has one pair alone."""
    lm = toy.lm()
    ready = prepare(lm, offline.pairs(toy.comparisons(), 10, seed=0), "last:2")
    hydra, history = offline.tune(lm, ready, PAIRS, **more)
    return {"history": history, "hydra": toy.weights(hydra), "model": toy.weights(lm.model)}


def imitated() -> dict[str, Any]:
    """What C-RLFT leaves: steps of three answers of either class, so that a process may have none of one."""
    lm = toy.lm()
    recipe = c_rlft.Recipe(batch=3, epochs=1, lr=1e-3, trainable="last:2")
    done = c_rlft.tune(lm, c_rlft.demonstrations(lm, toy.comparisons(), recipe), recipe)
    return {"history": done.history, "hydra": toy.weights(done.hydra), "model": toy.weights(lm.model)}


def stop(step: int, *_: Any) -> None:
    """Leave a checkpoint of two steps."""
    if step == 3:
        raise Stop("pulled")


def reason(run: Callable[[], Any]) -> str:
    """What stops a run."""
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def begun_twice(*arguments: Any, **settings: Any) -> Any:
    """Rollouts after two tokens that begin a text."""
    found = collect(*arguments, **settings)
    found[0].sample.prompt[:0] = [1, 1]
    return found


collect = tuning.collect


def other_tokens(states: Any, prompts: Any, answers: Any, same: Any) -> Any:
    """A batch whose targets are not the tokens that were sampled."""
    return collate(states, prompts, [[*answer[:-1], 5] for answer in answers], same)


def full(*_: Any, **__: Any) -> Any:
    """A pass for which there is no room."""
    raise RuntimeError("the card is full")


def faults(folder: Path, rank: int) -> dict[str, str]:
    """What stops this process when something is wrong in the second one, or in the first."""
    at_fault, plain = rank == 1, partial(tuned, ONE)
    planted: dict[str, tuple[Any, str, Any]] = {
        "prompt": (tuning, "collect", begun_twice),
        "mask": (experience, "collate", other_tokens),
        "passes": (experience, "collate", full),
        "ratio": (tuning, "Hydra", Drifting),
        "loss": (losses, "apa", lambda logprobs, *_, **__: logprobs.sum() * torch.nan),
    }
    found = {}
    for name, (place, attribute, wrong) in planted.items():
        with patch.object(place, attribute, wrong if at_fault else getattr(place, attribute)):
            found[name] = reason(plain)
    found["score"] = reason(partial(plain, Broken if at_fault else toy.Likes))
    found["memory"] = reason(partial(plain, Full if at_fault else toy.Likes))
    found["report"] = reason(partial(tuned, PLAIN, report=stop))
    path = folder / ("none.pt" if at_fault else "one.pt")
    found["another"] = reason(partial(plain, checkpoint=path))
    found["missing"] = reason(partial(tuned, RECIPES["p3o"], checkpoint=path))
    found["prompts"] = reason(partial(tuned, replace(ONE, rollouts=4)))
    found["pairs"] = reason(partial(paired, report=stop))
    return found


accelerator = LM.accelerator


def sharding(lm: LM, reshard: bool = True) -> Any:
    """As ``accelerate launch --use_fsdp --fsdp_version 2`` makes it on GPUs; on the CPU it is told afterwards."""
    found = accelerator(lm)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        reshard_after_forward=reshard,
    )
    found.state._shared_state |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
    return found


def shared(folder: Path) -> dict[str, Any]:
    """All that two processes do, one after the other."""
    rank = int(os.environ["RANK"])
    found: dict[str, Any] = {"faults": faults(folder, rank)}
    found |= {name: tuned(recipe) for name, recipe in RECIPES.items()}
    found |= {"dpo": paired(), "c_rlft": imitated()}
    found["from one"] = tuned(RECIPES["p3o"], checkpoint=folder / "one.pt")
    path = folder / "two.pt"
    found["stopped"] = reason(partial(tuned, RECIPES["apa"], checkpoint=path, report=stop))
    if rank == 0:
        for name in ("half.pt", "sharded.pt"):
            shutil.copy(path, folder / name)
    found["again"] = tuned(RECIPES["apa"], checkpoint=path)
    found["shards"] = []

    def watched(*given: Any) -> Any:
        hydra, optimizer = prepared(*given)
        weights = list(hydra.parameters())
        found["shards"].append([sum(w.to_local().numel() for w in weights), sum(w.numel() for w in weights)])
        return hydra, optimizer

    prepared = sharded.prepared
    with patch.object(LM, "accelerator", sharding), patch.object(sharded, "prepared", watched):
        found |= {f"sharded {name}": tuned(RECIPES[name]) for name in ("ppo", "p3o")}
        found["sharded again"] = tuned(RECIPES["apa"], checkpoint=folder / "sharded.pt")
        found["sharded dpo"] = paired()
        found["faults"]["adapters"] = reason(partial(tuned, RECIPES["rloo"]))
    with patch.object(LM, "accelerator", partialmethod(sharding, reshard=False)):
        found["zero2 ppo"] = tuned(RECIPES["ppo"], checkpoint=folder / "zero2.pt")
        found["zero2 dpo"] = paired()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have been, beside the checkpoint of one that they went on from."""
    found = tmp_path_factory.mktemp("processes")
    with pytest.raises(Stop):
        tuned(RECIPES["p3o"], checkpoint=found / "one.pt", report=stop)
    processes.run(Path(__file__), found)
    return found


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of them has found."""
    return processes.kept(folder)


def same(found: dict[str, Any], due: dict[str, Any]) -> None:
    """Records and weights agree to the rounding of sums taken in another order."""
    assert len(found["history"]) == len(due["history"])
    for one, other in zip(found["history"], due["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for part in ("hydra", "model"):
        assert found[part].keys() == due[part].keys()
        for name, value in due[part].items():
            torch.testing.assert_close(found[part][name], value, rtol=1e-4, atol=2e-5)


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize("objective", RECIPES)
def test_two_processes_are_one(both: list[dict[str, Any]], objective: str) -> None:
    alone = tuned(RECIPES[objective])
    assert alone["history"][-1]["kl"] > 1e-3
    for found in both:
        same(found[objective], alone)
    assert equal(both[0][objective], both[1][objective])


@pytest.mark.parametrize(("name", "run", "steps"), [("dpo", paired, 4), ("c_rlft", imitated, 6)])
def test_two_processes_share_what_is_learned_without_sampling(
    both: list[dict[str, Any]], name: str, run: Callable[[], dict[str, Any]], steps: int
) -> None:
    alone = run()
    assert len(alone["history"]) == steps
    assert alone["history"][-1]["loss"] < alone["history"][0]["loss"]
    for found in both:
        same(found[name], alone)
    assert equal(both[0][name], both[1][name])


def test_a_run_goes_on_with_more_or_fewer_processes(both: list[dict[str, Any]], folder: Path) -> None:
    for found in both:
        assert equal(found["again"], found["apa"])  # two that were stopped are two that were not
        same(found["from one"], tuned(RECIPES["p3o"]))
    steps: list[int] = []
    alone = tuned(RECIPES["apa"], checkpoint=folder / "half.pt", report=lambda step, *_: steps.append(step))
    assert steps == [3]
    same(alone, both[0]["apa"])
    assert equal(tuned(RECIPES["apa"], checkpoint=folder / "two.pt"), both[0]["apa"])


def test_a_fault_in_one_process_stops_both_with_its_reason(both: list[dict[str, Any]]) -> None:
    first, second = (found["faults"] for found in both)
    told = {
        "prompt": "begins with two BOS tokens",
        "mask": "make masks from lengths",
        "ratio": "TuningError: fresh rollouts have a log-ratio of 0.060",
        "memory": "RuntimeError: the card is full",
        "passes": "RuntimeError: the card is full",
    }
    for name, text in told.items():
        assert text in second[name]
        assert first[name] == f"TuningError: process 1 has stopped: {second[name].removeprefix('TuningError: ')}"
    for name in ("loss", "score", "prompts"):
        assert first[name] == second[name]
    assert "the loss is not a number at step 0" in first["loss"]
    assert "score that is not a number" in first["score"]
    assert "2 processes cannot share 1 prompts a step" in first["prompts"]
    for name in ("report", "pairs"):
        assert first[name] == "Stop: pulled"
        assert second[name] == "TuningError: process 0 has stopped: Stop: pulled"
    assert [found["stopped"] for found in both] == [first["report"], second["report"]]
    assert "belongs to another run" in first["another"]
    assert second["another"].startswith("TuningError: process 0 has stopped: ")
    assert all("processes find different checkpoints" in found["missing"] for found in (first, second))


def test_a_sharded_hydra_is_a_whole_one(both: list[dict[str, Any]], folder: Path) -> None:
    """FSDP2: gradients, moments and weights in shards, each policy block a unit; checkpoints stay whole.

    Under ``zero2`` the weights stay together from the forward pass to the backward pass.
    """
    for (first, whole), (second, _) in zip(*(found["shards"] for found in both), strict=True):
        assert first + second == whole
        assert first == pytest.approx(second, rel=0.1)
    for name in ("sharded ppo", "sharded p3o", "sharded dpo", "zero2 ppo", "zero2 dpo"):
        for found in both:
            same(found[name], both[0][name.split()[1]])
        assert equal(both[0][name], both[1][name])
    assert equal(tuned(RECIPES["ppo"], checkpoint=folder / "zero2.pt"), both[0]["zero2 ppo"])
    same(both[0]["sharded again"], both[0]["apa"])
    assert equal(tuned(RECIPES["apa"], checkpoint=folder / "sharded.pt"), both[0]["sharded again"])
    assert all("adapters are small" in found["faults"]["adapters"] for found in both)


def test_prompts_are_shared_whole() -> None:
    team = sharing.Team()
    assert team.own(7) == list(range(7))
    team.size = 3
    shares = []
    for team.rank in range(3):
        shares.append(team.own(16, unit=4))
    assert shares == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7], [8, 9, 10, 11]]


if __name__ == "__main__":
    processes.keep(shared(Path(sys.argv[1])))
