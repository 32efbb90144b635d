"""Our sampler beside ``generate`` of transformers: tokens a second, and whether both draw from the same distribution.

    python -m benchmarks.rollout_speed [--rounds 3] [--prompts 96] [--tokens 192]

Same model, type, prompts (of ragged lengths, shortest first), cap and temperature 1 for every way, each in a process of
its own, in turn. Answers end where the model ends them. Only tokens of answers count, never padding.

``ours``                     32 rows in flight, trunk states and exact log-probabilities kept
``ours, 128 rows``           the same with as many rows as the package takes by itself
``generate``                 batches of 32, left-padded: the answers alone
``generate, same products``  and logits and states asked of it, from which come the products of ours

Processor time of all threads is kept beside seconds: a busy neighbour lengthens the seconds only. Every fourth answer
is read again, in one plain pass: where a token falls in its own distribution must be uniform (:func:`places`). Writes
``benchmarks/results/rollout_speed[-DEVICE].json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from benchmarks import records, turns
from starling_nb import files, models
from starling_nb.models import LM
from starling_nb.nectar import prompts as ours

BATCH = 32


@dataclass
class Answer:
    """Token ids of an answer, its end-of-turn token included; ``logprobs`` and trunk ``states`` where they are kept."""

    ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    states: Tensor | None = None


Sampler = Callable[[LM, Sequence[list[int]], int, int], list[Answer]]
"""Answers to prompts, from a cap on tokens and a seed."""


def by_us(lm: LM, prompts: Sequence[list[int]], cap: int, seed: int, batch: int = BATCH) -> list[Answer]:
    """Answers of :func:`starling_nb.models.sample`, with all that tuning needs."""
    block, names = _block(lm), [str(place) for place in range(len(prompts))]
    found = models.sample(lm, prompts, names, seed=seed, max_new_tokens=cap, batch=batch, capture={block})
    return [Answer(item.ids, item.logprobs, item.states[block]) for item in found]


def in_wide_batches(lm: LM, prompts: Sequence[list[int]], cap: int, seed: int) -> list[Answer]:
    """The same with 128 rows."""
    return by_us(lm, prompts, cap, seed, 128)


def generated(lm: LM, prompts: Sequence[list[int]], cap: int, seed: int) -> list[Answer]:
    """Answers alone."""
    torch.manual_seed(seed)
    found = []
    for part in _batches(prompts):
        out, width = _generate(lm, part, cap)
        found += [Answer(_cut(row, lm)) for row in out.sequences[:, width:].tolist()]
    return found


def with_products(lm: LM, prompts: Sequence[list[int]], cap: int, seed: int) -> list[Answer]:
    """Log-probabilities and trunk states from what ``generate`` can be asked to return."""
    torch.manual_seed(seed)
    found = []
    for part in _batches(prompts):
        out, width = _generate(lm, part, cap, output_logits=True, output_hidden_states=True)
        answers = out.sequences[:, width:]
        picked = [
            logits.float().log_softmax(-1).gather(-1, answers[:, step, None])[:, 0]
            for step, logits in enumerate(out.logits)
        ]
        logprobs = torch.stack(picked, 1).tolist()
        states = torch.cat([step[_block(lm)] for step in out.hidden_states], 1)
        for row, prompt in enumerate(part):
            ids = _cut(answers[row].tolist(), lm)
            kept = states[row, width - len(prompt) : width + len(ids) - 1].clone()
            found.append(Answer(ids, logprobs[row][: len(ids)], kept))
    return found


WAYS: dict[str, Sampler] = {
    "ours": by_us,
    "ours, 128 rows": in_wide_batches,
    "generate": generated,
    "generate, same products": with_products,
}


def _block(lm: LM) -> int:
    """The first of the last four blocks: the one whose entering states tuning keeps."""
    return int(lm.model.config.num_hidden_layers) - 4


def _batches(prompts: Sequence[list[int]]) -> list[Sequence[list[int]]]:
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]


def _mask(prompts: Sequence[list[int]], length: int, width: int) -> Tensor:
    """``[rows, length]``: 0 on the padding left of the prompts, which end at ``width``."""
    starts = torch.tensor([width - len(prompt) for prompt in prompts])
    return (torch.arange(length) >= starts[:, None]).long()


def _generate(lm: LM, prompts: Sequence[list[int]], cap: int, **more: Any) -> tuple[Any, int]:
    """What ``generate`` returns for a left-padded batch, and the width of its prompts."""
    model: Any = lm.model
    width, eos = max(map(len, prompts)), lm.chat.eos_id
    ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts], device=lm.device)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": cap}
    out = model.generate(
        ids,
        attention_mask=_mask(prompts, width, width).to(lm.device),
        eos_token_id=eos,
        pad_token_id=eos,
        return_dict_in_generate=True,
        **settings,
        **more,
    )
    return out, width


def _cut(ids: list[int], lm: LM) -> list[int]:
    """An answer up to its end-of-turn token."""
    eos = lm.chat.eos_id
    return ids[: ids.index(eos) + 1] if eos in ids else ids


@torch.inference_mode()
def places(lm: LM, prompts: Sequence[list[int]], answers: Sequence[Answer], seed: int = 0) -> np.ndarray:
    """Where each token falls in its own distribution, in [0, 1]: uniform and independent where that is the sampled one.

    The randomised probability integral transform (Brockwell 2007, doi:10.1016/j.spl.2007.02.008): probability of all
    likelier tokens, plus a uniform share of the token's own. Likelier ones come first, so that a cut tail (top-k,
    top-p) or another temperature shows at once.
    """
    draw, found = files.rng(seed, "places"), []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer.ids], device=lm.device)
        hidden = lm.model.model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        probs = lm.model.lm_head(hidden).double().softmax(-1)
        own = probs.gather(-1, ids[0, len(prompt) :, None])
        above = torch.where(probs > own, probs, 0.0).sum(-1)
        found.append((above + torch.from_numpy(draw.random(len(above))).to(own) * own[:, 0]).cpu().numpy())
    return np.concatenate(found)


def uniform(values: np.ndarray, bins: int = 20) -> float:
    """p of the chi-square test that ``values`` in [0, 1] are uniform."""
    counts, _ = np.histogram(np.clip(values, 0.0, 1.0), bins, (0.0, 1.0))
    return float(stats.chisquare(counts).pvalue)


def asked_of(lm: LM, n: int) -> list[list[int]]:
    """Token ids of ``n`` of our training prompts, shortest first."""
    every = [lm.chat.prompt_ids(prompt.messages) for prompt in ours.load(split="train")[:n]]
    return sorted(every, key=lambda ids: (len(ids), ids))


def child(way: str, asked: argparse.Namespace) -> None:
    """One way in a process of its own: tokens, seconds, lengths and uniformity, printed as JSON."""
    lm = models.load(dtype=asked.dtype, threads=asked.threads)
    prompts = asked_of(lm, asked.prompts)
    WAYS[way](lm, prompts[:8], 8, 1)  # warm
    began, busy = time.perf_counter(), time.process_time()
    answers = WAYS[way](lm, prompts, asked.tokens, asked.seed)
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    lengths = [len(answer.ids) for answer in answers]
    told = {
        "tokens_a_second": sum(lengths) / seconds,
        "seconds": seconds,
        "cpu_seconds": busy,
        "tokens": sum(lengths),
        "lengths": np.percentile(lengths, [0, 25, 50, 75, 100]).tolist(),
        "ended": statistics.mean(answer.ids[-1] == lm.chat.eos_id for answer in answers),
        "places": np.histogram(places(lm, prompts[::4], answers[::4]), 20, (0.0, 1.0))[0].tolist(),
        "device": "cpu" if lm.device.type == "cpu" else torch.cuda.get_device_name(),
        "dtype": str(lm.dtype),
    }
    print(json.dumps(told))


def main() -> None:
    """Run in turn and keep the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=192, help="of an answer, at most")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=list(WAYS))
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked)
        return
    arguments = ["--prompts", str(asked.prompts), "--tokens", str(asked.tokens), "--seed", str(asked.seed)]
    arguments += ["--dtype", asked.dtype, "--threads", str(asked.threads)]
    runs = turns.in_turn(
        "benchmarks.rollout_speed",
        list(WAYS),
        arguments,
        rounds=asked.rounds,
        say=lambda one: f"{one['tokens_a_second']:.0f} tokens/s, {one['tokens']} tokens",
    )
    speed = {way: statistics.median(one["tokens_a_second"] for one in each) for way, each in runs.items()}
    busy = {way: statistics.median(one["tokens"] / one["cpu_seconds"] for one in each) for way, each in runs.items()}
    first = runs["ours"][0]
    records.keep(
        f"rollout_speed{'' if first['device'] == 'cpu' else '-' + first['device'].replace(' ', '-')}.json",
        {
            "device": first["device"],
            "dtype": first["dtype"],
            "threads": asked.threads,
            "prompts": asked.prompts,
            "most_tokens": asked.tokens,
            "rows_in_flight": {"ours, 128 rows": 128, "all others": BATCH},
            "median_tokens_a_second": speed,
            "ours_times_faster_than": {way: speed["ours"] / value for way, value in speed.items()},
            "the_same_in_processor_time": {way: busy["ours"] / value for way, value in busy.items()},
            # Of one round: the others draw the same answers again, which would count each token several times.
            "p_of_uniform_places": {
                way: float(stats.chisquare(each[0]["places"]).pvalue) for way, each in runs.items()
            },
            "machine": "shared with other work while this ran: only ratios are to be believed",
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
