"""One step of tuning at true 7B shape on one card: tokens a second by phase, and the share of what the card can do.

    python -m benchmarks.gpu_step [--shape 7b|tiny] [--answers 64] [--prompt 200] [--answer 256] [--epochs 2]

Random weights in the shapes of OpenChat-3.5 (policy, with its reference and a critic that has blocks of its own) and of
Starling-RM-7B-alpha (reward model), all of them on the card at once: sample, score, take old and reference
probabilities, update. The second step is timed. The limits are measured on the same card: a large matrix product, and
a large copy. Random weights hardly ever end a turn: all answers have the full length. Writes
``benchmarks/results/gpu_step-SHAPE[-DEVICE].json``. ``tiny`` runs anywhere in a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import packing_speed, records
from starling_nb import models
from starling_nb.chat import Encoded
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy import tuning
from starling_nb.policy.experience import minibatches, scale_of
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.rollouts import Rollout
from starling_nb.policy.scaling import plan
from starling_nb.policy.scaling.plan import Shape
from starling_nb.reward import RewardModel

TINY = Shape(128, 32, 64, 6, 4, 2)
SHAPES = {"7b": (plan.OPENCHAT, plan.LLAMA), "tiny": (TINY, TINY)}
"""Policy and reward model."""
EOS = 2
Found = TypeVar("Found")


def device() -> torch.device:
    """The card, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def language_model(shape: Shape) -> LM:
    """A causal model with random weights, in the type that the device multiplies fastest."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(models.native_dtype())
    try:
        with device():
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    chat: Any = SimpleNamespace(eos_id=EOS)
    return LM(model.eval().requires_grad_(False), chat, "random weights")


def reward_model(shape: Shape) -> RewardModel:
    """A reward model with random weights; the language model's head is not kept."""
    lm = language_model(shape)
    decoder: Any = lm.model.model
    head = torch.randn(1, shape.width, generator=torch.Generator().manual_seed(0)) / shape.width**0.5
    return RewardModel(decoder, lm.chat, head)


def prompts(n: int, length: int, answers: int, vocabulary: int) -> list[tuple[Prompt, list[int]]]:
    """Drawn prompts of half the length to one and a half of it, each ``answers`` times in a row."""
    draw = torch.Generator().manual_seed(0)
    found: list[tuple[Prompt, list[int]]] = []
    for place in range(n // answers):
        size = int(torch.randint(length // 2, length + length // 2 + 1, (1,), generator=draw))
        ids = torch.randint(3, vocabulary, (size,), generator=draw).tolist()
        found += [(Prompt(f"p{place}", "drawn", [], True, False, {}, "", ""), ids)] * answers
    return found


class Clock:
    """Seconds of each phase, by name; the card has finished when a phase ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Found]) -> Found:
        began = time.perf_counter()
        found = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - began
        return found


def step(lm: LM, reward: RewardModel, loop: Any, recipe: Recipe, asked: argparse.Namespace, number: int) -> Clock:
    """Sample, score, look back, update: the loop's own parts, each timed."""
    clock, hydra = Clock(), loop.plain
    chosen = prompts(recipe.rollouts, asked.prompt, recipe.answers, lm.model.config.vocab_size)
    names = [f"{number}/{place}" for place in range(len(chosen))]
    samples = clock(
        "sampling",
        lambda: models.sample(
            lm,
            [ids for _, ids in chosen],
            names,
            max_new_tokens=recipe.max_new_tokens,
            batch=asked.flight,
            capture={hydra.start},
        ),
    )
    rollouts = [Rollout(prompt, sample, "") for (prompt, _), sample in zip(chosen, samples, strict=True)]
    closed = [Encoded([*one.prompt, *one.ids], len(one.prompt)) for one in samples]
    for rollout, reading in zip(rollouts, clock("reward", lambda: reward.read_ids(closed)), strict=True):
        rollout.score, rollout.means = reading.score, reading.means

    def look_back() -> Any:
        with loop.accelerator.autocast():
            return minibatches(hydra, rollouts, recipe, scale_of(rollouts))

    parts = clock("old and reference", look_back)
    clock("update", lambda: tuning._learn(loop, parts, recipe, number, EOS))
    hydra.top.write_into(lm.model.model)
    return clock


def limits(side: int | None = None, numbers: int = 2**30) -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second of a large copy (read and written)."""
    rate = packing_speed.limit(device(), models.native_dtype(), side)
    source = torch.zeros(numbers, dtype=torch.bfloat16, device=device())
    target, clock = torch.empty_like(source), Clock()
    best = float("inf")
    for _ in range(5):
        clock("copy", lambda: target.copy_(source))
        best = min(best, clock.seconds["copy"])
    return rate, 2 * source.nbytes / best


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a run: by phase seconds, tokens of answers a second, and shares of the limits."""
    rate, bandwidth = limits(256, 2**16) if asked.shape == "tiny" else limits()
    policy, judge = SHAPES[asked.shape]
    lm, reward = language_model(policy), reward_model(judge)
    recipe = Recipe(
        rollouts=asked.answers,
        answers=4,
        epochs=asked.epochs,
        minibatch=asked.minibatch,
        value="branch",
        critic_warmup=0,
        max_new_tokens=asked.answer,
    )
    loop = tuning._start(lm, recipe)
    step(lm, reward, loop, recipe, asked, 0)  # warm
    seconds = step(lm, reward, loop, recipe, asked, 1).seconds
    run = plan.Run(
        policy,
        judge,
        recipe.trainable,
        ranks=1,
        reward_cards=0,
        rows=asked.answers,
        together=asked.minibatch,
        flight=asked.flight,
        epochs=asked.epochs,
        longest=(asked.prompt + asked.prompt // 2, asked.answer),
        mean=(asked.prompt, asked.answer),
        branch=True,
    )
    counts, tokens = plan.operations(run), asked.answers * asked.answer
    found = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "dtype": str(lm.dtype),
        "seconds": seconds,
        "tokens_a_second": {name: tokens / one for name, one in seconds.items()},
        "operations": counts,
        "share_of_matmul_limit": {name: counts[name] / one / rate for name, one in seconds.items()},
        "share_of_bandwidth_limit": {"sampling": plan.reads(run) / seconds["sampling"] / bandwidth},
        "limits": {"operations_a_second": rate, "bytes_a_second": bandwidth},
        "planned_bytes": plan.memory(run),
    }
    if torch.cuda.is_available():
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def parsed(line: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="7b", choices=list(SHAPES))
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--flight", type=int, default=64, help="answers sampled at a time")
    parser.add_argument("--minibatch", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=200, help="tokens, on average")
    parser.add_argument("--answer", type=int, default=256, help="tokens")
    parser.add_argument("--epochs", type=int, default=2)
    return parser.parse_args(line)


def main() -> None:
    """Measure and keep."""
    asked = parsed()
    found = measure(asked)
    name = "" if found["device"] == "cpu" else "-" + found["device"].replace(" ", "-")
    records.keep(f"gpu_step-{asked.shape}{name}.json", vars(asked) | found)


if __name__ == "__main__":
    main()
