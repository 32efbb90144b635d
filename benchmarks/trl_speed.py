"""A whole step of tuning, sampling included, beside TRL's RLOO trainer: tokens a second and counted operations.

    PYTHONPATH=DIR_WITH_TRL:. python -m benchmarks.trl_speed [--rounds 2] [--steps 2] [--answers 32] [--tokens 64]

Embedded model in the type that suits the machine, last four blocks learning, the same 8 prompts in every step with as
many answers each, two passes over them, minibatches of 8, the log-ratio in the reward, and for reward a rule that costs
nothing. Every way in a process of its own, in turn; its first step is not counted. Processor time of all threads is
kept beside seconds: a busy neighbour lengthens the seconds only.

``rloo``, ``apa``   this package (:func:`starling_nb.policy.tuning.tune`); a critic learns beside the policy
``trl rloo``        TRL with the lower blocks and the tied head frozen, no state computed twice
``trl as it comes`` the same with TRL's default of computing states again in the backward pass

TRL is no part of this project: ``pip install --no-deps --target DIR trl==1.16.0`` puts it beside. Writes
``benchmarks/results/trl_speed[-DEVICE].json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import records, turns
from starling_nb import files, models
from starling_nb.models import LM
from starling_nb.nectar import prompts as ours
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.scaling import plan
from starling_nb.policy.tuning import tune

WAYS = ("rloo", "apa", "trl rloo", "trl as it comes")
PROMPTS, MINIBATCH, EPOCHS, KL, LR = 8, 8, 2, 0.02, 1e-5


def liked(text: str) -> float:
    """The rule: share of the letter e."""
    return text.count("e") / max(1, len(text))


@dataclass
class Steps:
    """When each step ended, by the clock and in processor time, and the tokens of its answers."""

    ends: list[tuple[float, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def end(self) -> None:
        """Note the end of a step."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def counted(self) -> dict[str, Any]:
        """Seconds and tokens of every step but the first."""
        pairs = list(itertools.pairwise(self.ends))
        seconds, busy = ([after[i] - before[i] for before, after in pairs] for i in (0, 1))
        told = {"seconds": seconds, "cpu_seconds": busy, "tokens": self.tokens[1:]}
        return {**told, "tokens_a_second": sum(self.tokens[1:]) / sum(seconds)}


def asked_of() -> list[Any]:
    """The prompts of every step: training prompts of ragged lengths."""
    every = ours.load(split="train")
    return [every[place] for place in files.rng(0, "trl speed").permutation(len(every))[:PROMPTS]]


def by_us(lm: LM, objective: Any, asked: argparse.Namespace) -> Steps:
    """Steps of this package's loop."""
    steps = Steps()

    class Rule:
        """Stands in the reward model's place; reads texts, as it has no template in common with the policy."""

        chat = SimpleNamespace(writes_like=lambda other: False)

        def score(self, conversations: Sequence[Any], batch: int) -> list[float]:
            return [liked(one[-1]["content"]) for one in conversations]

    def note(step: int, of: int, record: dict[str, float]) -> None:
        steps.end()
        steps.tokens.append(round(record["length"] * asked.answers))

    recipe = Recipe(
        objective=objective,
        steps=asked.steps + 1,
        rollouts=asked.answers,
        answers=asked.answers // PROMPTS,
        epochs=EPOCHS,
        minibatch=MINIBATCH,
        lr=LR,
        kl=KL,
        critic_warmup=0,
        max_new_tokens=asked.tokens,
    )
    reward: Any = Rule()
    tune(lm, reward, asked_of(), recipe, report=note)
    return steps


def by_trl(lm: LM, way: str, asked: argparse.Namespace) -> Steps:
    """Steps of TRL's trainer; one of ours is all optimiser steps between two calls of its sampler."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    steps, parts = Steps(), asked.answers // MINIBATCH
    model: Any = lm.model
    for part in (*model.model.layers[-4:], model.model.norm):
        part.float().requires_grad_(True)

    def reward(completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        steps.tokens.append(sum(map(len, completion_ids)))
        return [liked(one[0]["content"]) for one in completions]

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % (parts * EPOCHS) == 0:
                steps.end()

    arguments = RLOOConfig(
        output_dir=str(files.ROOT / "outputs" / "trl_speed"),
        per_device_train_batch_size=MINIBATCH,
        gradient_accumulation_steps=1,
        steps_per_generation=parts,
        num_iterations=EPOCHS,
        num_generations=asked.answers // PROMPTS,
        max_completion_length=asked.tokens,
        max_steps=(asked.steps + 1) * parts * EPOCHS,
        learning_rate=LR,
        lr_scheduler_type="constant",
        beta=KL,
        bf16=lm.dtype == torch.bfloat16,
        use_cpu=lm.device.type == "cpu",
        gradient_checkpointing=way == "trl as it comes",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    RLOOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": one.messages} for one in asked_of()]),
        processing_class=lm.chat.tokenizer,
        callbacks=[Clock()],
    ).train()
    return steps


def operations(lm: LM, prompt: float, answer: float, answers: int) -> dict[str, dict[str, float]]:
    """Floating point operations of a step by phase, from formulas: a kept trunk, and whole passes as TRL makes them.

    TRL reads a prompt once an answer, and runs the whole model for the policy that sampled, for the reference and in
    every pass, with a gradient from the head down through the last four blocks; padding is not counted for either.
    """
    shape = plan.Shape.of(lm.model.config)
    mean: Any = (prompt, answer)
    apart = plan.Run(shape, shape, "last:4", rows=answers, flight=answers, epochs=EPOCHS, mean=mean)
    kept = plan.operations(replace(apart, answers=answers // PROMPTS, together=MINIBATCH))
    tokens, top = answers * (prompt + answer), 4 * shape.block
    head = 2.0 * shape.table * answers * answer
    whole = 2.0 * shape.blocks * shape.block * tokens + head
    return {
        "ours": {
            "sampling": kept["sampling"] + head,
            "old and reference": kept["old and reference"],
            "update": kept["update"],
        },
        "trl": {
            "sampling": plan.operations(apart)["sampling"] + head,
            "old and reference": 2 * whole,
            "update": EPOCHS * (whole + 4.0 * top * tokens + head),
        },
    }


def child(way: str, asked: argparse.Namespace) -> None:
    """One way in a process of its own; printed as JSON."""
    lm = models.load(threads=asked.threads)
    prompt = statistics.mean(len(lm.chat.prompt_ids(one.messages)) for one in asked_of())
    steps = by_trl(lm, way, asked) if way.startswith("trl") else by_us(lm, way, asked)
    told = steps.counted()
    device = "cpu" if lm.device.type == "cpu" else torch.cuda.get_device_name()
    answer = statistics.mean(told["tokens"]) / asked.answers
    told |= {"operations": operations(lm, prompt, answer, asked.answers)["trl" if way.startswith("trl") else "ours"]}
    print(json.dumps(told | {"answer_tokens": answer, "device": device, "dtype": str(lm.dtype)}))


def beyond(speed: dict[str, float]) -> dict[str, dict[str, float]]:
    """How many times the tokens a second of each of TRL's ways each of ours makes."""
    theirs = {way: value for way, value in speed.items() if way.startswith("trl")}
    return {mine: {way: speed[mine] / value for way, value in theirs.items()} for mine in ("rloo", "apa")}


def main() -> None:
    """Run in turn and keep the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="counted, after a warm one")
    parser.add_argument("--answers", type=int, default=32, help="of a step, for 8 prompts")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=list(WAYS))
    asked = parser.parse_args()
    if find_spec("trl") is None:
        sys.exit("TRL is missing: pip install --no-deps --target DIR trl==1.16.0, then PYTHONPATH=DIR:.")
    if asked.child:
        child(asked.child, asked)
        return
    runs = turns.in_turn(
        "benchmarks.trl_speed",
        WAYS,
        [word for name in ("steps", "answers", "tokens", "threads") for word in (f"--{name}", str(vars(asked)[name]))],
        rounds=asked.rounds,
        say=lambda one: f"{one['tokens_a_second']:.0f} tokens/s, {statistics.mean(one['seconds']):.1f} s a step",
        once=["trl as it comes"],
        environments={way: {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} for way in WAYS},
    )
    speed = {way: statistics.median(one["tokens_a_second"] for one in each) for way, each in runs.items()}
    busy = {
        way: statistics.median(sum(one["tokens"]) / sum(one["cpu_seconds"]) for one in each)
        for way, each in runs.items()
    }
    first = runs["rloo"][0]
    records.keep(
        f"trl_speed{'' if first['device'] == 'cpu' else '-' + first['device'].replace(' ', '-')}.json",
        {
            "device": first["device"],
            "dtype": first["dtype"],
            "trl": version("trl"),
            "threads": asked.threads,
            "answers": asked.answers,
            "most_tokens": asked.tokens,
            "epochs": EPOCHS,
            "minibatch": MINIBATCH,
            "median_tokens_a_second": speed,
            "times_faster_than": beyond(speed),
            "the_same_in_processor_time": beyond(busy),
            "machine": "shared with other work while this ran: only ratios are to be believed",
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
