"""The update phase of tuning on a trunk computed once, beside what it replaces: time and memory.

    python -m benchmarks.update_speed [--rounds 3] [--epochs 2] [--shape proportioned|embedded|7b]
        [--answers 4]

The update phase is everything but sampling and scoring: probabilities of the policy that sampled and of the reference,
values, then ``epochs`` passes of APA with a critic over all minibatches. Same model, answers (``--answers`` to each
prompt), type and optimiser for every way, each in a process of its own, in turn:

``captured``     trunk states were kept while sampling, and answers to a prompt share it, as this package does it
``one pass``     trunk states are computed once, for answers sampled elsewhere
``recomputed``   policy, reference and value share the trunk but run it every time, answer by answer (a plain hydra)
``four models``  policy, reference and critic are whole models of which the last 4 blocks learn (the fourth, the reward
                 model, has no part in this phase)
``whole``        the same with every weight learning

``proportioned`` has 32 blocks like a 7B model and is narrow; ``7b`` is a GPU's work. Writes
``benchmarks/results/update_speed-SHAPE-EPOCHS-ANSWERS[-DEVICE].json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import records, turns
from starling_nb import losses, models
from starling_nb.blocks import trunk_states
from starling_nb.chat import ChatFormat
from starling_nb.models import LM
from starling_nb.policy.hydra import Batch, Hydra, collate

WAYS = ("captured", "one pass", "recomputed", "four models", "whole")
SHAPES: dict[str, dict[str, int]] = {
    "proportioned": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_hidden_layers": 32,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "7b": {"vocab_size": 32_002, "intermediate_size": 14_336, "num_key_value_heads": 8},
}
Step = Callable[[int, bool], tuple[Tensor, Tensor]]
"""Log-probabilities and values of a minibatch, by its number and whether the reference is asked."""


@dataclass(frozen=True)
class Task:
    """Answers to be learned from: token ids ``[rows, prompt + answer]`` in minibatches, and what they earned."""

    ids: list[Tensor]
    prompt: int
    advantages: list[Tensor]

    @property
    def answer(self) -> int:
        """Tokens of an answer."""
        return self.ids[0].shape[1] - self.prompt


def task(vocabulary: int, answers: int, rows: int = 16, prompt: int = 64, answer: int = 64, minibatch: int = 8) -> Task:
    """Drawn tokens and advantages; ``answers`` rows in turn have one prompt."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (rows, prompt + answer), generator=draw)
    ids[:, :prompt] = ids[::answers, :prompt].repeat_interleave(answers, 0)
    gains = torch.randn(rows, answer, generator=draw)
    return Task(list(ids.split(minibatch)), prompt, list(gains.split(minibatch)))


def language_model(shape: str) -> LM:
    """The start model: float32 on a CPU that lacks bfloat16 products, else bfloat16."""
    if shape == "embedded":
        return models.load()
    dtype, device = models.native_dtype(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPES[shape])).to(dtype)  # type: ignore[arg-type]
    return LM(model.eval().requires_grad_(False), ChatFormat.__new__(ChatFormat), shape)


def on_trunk(lm: LM, work: Task, way: str) -> tuple[Step, list[nn.Parameter]]:
    """The ways that share a trunk."""
    decoder: Any = lm.model.model
    hydra = Hydra(lm, "last:4")
    kept: dict[int, Batch] = {}

    def batch(place: int) -> Batch:
        if way != "recomputed" and place in kept:
            return kept[place]
        ids = work.ids[place].to(lm.device)
        positions = torch.arange(ids.shape[1], device=lm.device).expand_as(ids)
        states = trunk_states(decoder, ids, positions, None, hydra.start)
        prompts, answers = ([row.tolist() for row in part] for part in ids.tensor_split([work.prompt], 1))
        same = None if way == "recomputed" else [tuple(prompt) for prompt in prompts]
        kept[place] = collate(list(states.clone()), [work.prompt] * len(ids), answers, same)
        return kept[place]

    def step(place: int, reference: bool) -> tuple[Tensor, Tensor]:
        part = batch(place)
        if reference:
            found = hydra.compare(part)
            return found.reference, found.values
        return hydra(part)

    if way == "captured":
        for place in range(len(work.ids)):
            batch(place)
    policy, critic = hydra.learning()
    return step, [*policy, *critic]


def apart(lm: LM, work: Task, way: str) -> tuple[Step, list[nn.Parameter]]:
    """Policy, reference and critic as whole models, every pass from the first block on."""
    policy, critic = (copy.deepcopy(lm.model) for _ in range(2))
    learned: list[nn.Parameter] = []
    for model in (policy, critic):
        decoder: Any = model.model
        parts = [decoder] if way == "whole" else [*decoder.layers[-4:], decoder.norm]
        for part in parts:
            learned += list(part.float().requires_grad_(True).parameters())
    head = Hydra(lm, "last:1").value_head

    def step(place: int, reference: bool) -> tuple[Tensor, Tensor]:
        ids = work.ids[place].to(lm.device)
        with torch.set_grad_enabled(not reference):
            logits = (lm.model if reference else policy)(input_ids=ids).logits[:, work.prompt - 1 : -1]
            states = critic.model(input_ids=ids).last_hidden_state[:, work.prompt - 1 : -1]
            picked = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, work.prompt :, None])
            return picked[..., 0].flatten(), head(states.float())[..., 0].flatten()

    return step, [*learned, *head.parameters()]


def phase(step: Step, learned: list[nn.Parameter], work: Task, epochs: int) -> list[float]:
    """One update phase; the loss of every minibatch."""
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    dtype = torch.bfloat16 if models.native_dtype() == torch.bfloat16 else None
    device = learned[0].device.type
    found = []
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        before = [step(place, True) for place in range(len(work.ids))]
    for _ in range(epochs):
        for place, (reference, values) in enumerate(before):
            gains = work.advantages[place].to(device)
            mask = torch.ones_like(gains)
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                logprobs, now = (x.view_as(gains) for x in step(place, False))
            loss = losses.apa(logprobs, reference.view_as(gains), gains, mask, lam=1.0)
            loss = loss + losses.value(now, values.view_as(gains), gains, mask, clip=None)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
    return found


def child(way: str, asked: argparse.Namespace) -> None:
    """One way in a process of its own: seconds, memory and the losses, printed as JSON."""
    lm = language_model(asked.shape)
    work = task(lm.model.config.vocab_size, asked.answers)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step, learned = (apart if way in ("four models", "whole") else on_trunk)(lm, work, way)
    phase(step, learned, work, 1)  # warm
    if way == "one pass":
        step, learned = on_trunk(lm, work, way)
    start = time.perf_counter()
    found = phase(step, learned, work, asked.epochs)
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    device = "cpu"
    if lm.device.type == "cuda":
        peak, device = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    told = {"seconds": seconds, "peak_bytes": peak, "device": device, "dtype": str(lm.dtype), "last_loss": found[-1]}
    print(json.dumps(told))


def main() -> None:
    """Run in turn and keep the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--shape", default="proportioned", choices=["embedded", *SHAPES])
    parser.add_argument("--answers", type=int, default=4, choices=[1, 2, 4, 8], help="to each prompt")
    parser.add_argument("--child", choices=list(WAYS))
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked)
        return
    runs = turns.in_turn(
        "benchmarks.update_speed",
        WAYS,
        ["--epochs", str(asked.epochs), "--shape", asked.shape, "--answers", str(asked.answers)],
        rounds=asked.rounds,
        say=lambda one: f"{one['seconds']:.2f} s, {one['peak_bytes'] / 1e9:.2f} GB",
    )
    best = {way: min(one["seconds"] for one in each) for way, each in runs.items()}
    first = runs["captured"][0]
    device = "" if first["device"] == "cpu" else "-" + first["device"].replace(" ", "-")
    records.keep(
        f"update_speed-{asked.shape}-{asked.epochs}-{asked.answers}{device}.json",
        {
            "shape": asked.shape,
            "epochs": asked.epochs,
            "answers": asked.answers,
            "device": first["device"],
            "dtype": first["dtype"],
            "times_slower_than_captured": {way: seconds / best["captured"] for way, seconds in best.items()},
            "share_of_four_models_memory": first["peak_bytes"] / runs["four models"][0]["peak_bytes"],
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
