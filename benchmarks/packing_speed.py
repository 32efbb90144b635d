"""Packed K-wise training beside padded K-wise and beside all pairs through TRL: time, memory, share of the limit.

    STARLING_NB_REAL_DATA=DIR python -m benchmarks.packing_speed [--rounds 3] [--comparisons 4] [--shape 7b]

Forward and backward of the same model on the same comparisons, every method in a process of its own, in turn. With real
data the comparisons are the Nectar rows there; without, texts of drawn tokens with lengths like theirs. ``--shape 7b``
takes random weights of Llama-2-7B's shape (a GPU's work). TRL is no part of this project: where the package ``trl`` is
missing its row is left out, and the result says so. Writes ``benchmarks/results/packing_speed[-DEVICE].json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import records, turns
from starling_nb import files, losses, models
from starling_nb.blocks import run_blocks
from starling_nb.reward import comparisons as ranked
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.packing import Packed, pack

PROMPT, ANSWER = (133, 1.0), (178, 0.8)
"""Mean tokens in real Nectar rows, and the spread of their logarithm."""
Step = Callable[[Any], None]


def comparisons(n: int, lm: models.LM, seed: int = 0) -> list[Comparison]:
    """Real Nectar rows, or texts with lengths like theirs."""
    draw = files.rng(seed, "packing speed")
    if folder := os.environ.get("STARLING_NB_REAL_DATA"):
        every = ranked.load(Path(folder) / "kwise_nectar_schema" / "nectar_published_7wise.jsonl.gz")
        found, _ = ranked.usable(every, lm.chat)
        whole = [one for one in found if len(one.answers) == 7]
        return [whole[i] for i in draw.permutation(len(whole))[:n]]

    def text(mean: float, spread: float) -> str:
        words = max(2, int(draw.lognormal(np.log(mean) - spread**2 / 2, spread)))
        return " ".join(f"word{draw.integers(1000)}" for _ in range(words // 2))

    return [
        Comparison(
            f"p{i}",
            [{"role": "user", "content": text(*PROMPT)}],
            [text(*ANSWER) for _ in range(7)],
            [f"m{k}" for k in range(7)],
            [float(k + 1) for k in range(7)],
        )
        for i in range(n)
    ]


def load(name: str, shape: str) -> models.LM:
    """The model whose training is timed, in float32 on a CPU and bfloat16 on a GPU."""
    device = torch.cuda.is_available()
    lm = models.load(name, dtype="bfloat16" if device else "float32")
    if shape == "7b":
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.device("cuda" if device else "cpu"):
            torch.set_default_dtype(torch.bfloat16)
            model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=lm.model.config.vocab_size))
            torch.set_default_dtype(torch.float32)
        lm = models.LM(model, lm.chat, "random weights, 7B shape")
    return lm


def packed(lm: models.LM, items: Sequence[Comparison], head: Tensor | None = None) -> tuple[Step, list[Any], list[int]]:
    """Prompt once, then the answers: one row a comparison."""
    decoder, head = _trained(lm, head)

    def step(one: tuple[Packed, Tensor]) -> None:
        row, ranks = one
        ids, positions = row.ids[None].to(head.device), row.positions[None].to(head.device)
        states = run_blocks(decoder, decoder.embed_tokens(ids), positions, row.layout, 0, len(decoder.layers))
        scores = decoder.norm(states)[0, row.layout.ends.to(head.device)].float() @ head
        losses.k_wise(scores[None], ranks=ranks[None].to(head.device)).backward()

    rows = [pack(lm.chat, one.messages, one.answers) for one in items]
    work = [(row, torch.tensor(one.ranks)) for row, one in zip(rows, items, strict=True)]
    return step, work, [len(row.ids) for row in rows]


def padded(lm: models.LM, items: Sequence[Comparison], head: Tensor | None = None) -> tuple[Step, list[Any], list[int]]:
    """Seven sequences padded to the longest: one batch a comparison."""
    decoder, head = _trained(lm, head)

    def step(one: tuple[Tensor, Tensor, Tensor]) -> None:
        ids, ends, ranks = (part.to(head.device) for part in one)
        positions = torch.arange(ids.shape[1], device=head.device).expand(ids.shape)
        states = run_blocks(decoder, decoder.embed_tokens(ids), positions, None, 0, len(decoder.layers))
        scores = decoder.norm(states)[torch.arange(len(ids)), ends].float() @ head
        losses.k_wise(scores[None], ranks=ranks[None]).backward()

    work, sizes = [], []
    for one in items:
        rows = [torch.tensor(lm.chat.encode(one.messages, answer).ids) for answer in one.answers]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        work.append((ids, torch.tensor([len(row) - 1 for row in rows]), torch.tensor(one.ranks)))
        sizes.append(ids.numel())
    return step, work, sizes


def trl_pairs(lm: models.LM, items: Sequence[Comparison]) -> tuple[Step, list[Any], list[int]]:
    """TRL's RewardTrainer on all 21 pairs of a comparison, three at a time, no state computed twice."""
    return _trl(lm, items, per_device_train_batch_size=3, gradient_checkpointing=False)


def trl_as_it_comes(lm: models.LM, items: Sequence[Comparison]) -> tuple[Step, list[Any], list[int]]:
    """The same with TRL's own defaults: eight pairs at a time, states computed again in the backward pass."""
    return _trl(lm, items)


def _trl(lm: models.LM, items: Sequence[Comparison], **changes: Any) -> tuple[Step, list[Any], list[int]]:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    rows = []
    for one in items:
        for i, j in combinations(sorted(range(len(one.ranks)), key=lambda i: one.ranks[i]), 2):
            better, worse = ([{"role": "assistant", "content": one.answers[k]}] for k in (i, j))
            rows.append({"prompt": one.messages, "chosen": better, "rejected": worse})
    tokenizer = lm.chat.tokenizer
    config = lm.model.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id or tokenizer.eos_token_id
    model: Any = AutoModelForSequenceClassification.from_config(config, dtype=lm.dtype, attn_implementation="sdpa")
    model.model.load_state_dict(lm.model.model.state_dict())
    arguments = RewardConfig(
        output_dir=str(files.ROOT / "outputs" / "packing_speed"),
        max_length=2048,
        bf16=False,
        use_cpu=lm.device.type == "cpu",
        report_to="none",
        dataloader_drop_last=False,
        disable_tqdm=True,
        **changes,
    )
    trainer = RewardTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.current_gradient_accumulation_steps = 1  # what its own loop would set
    batches = list(trainer.get_train_dataloader())
    model.train()
    return lambda batch: trainer.training_step(model, batch), batches, [b["input_ids"].numel() for b in batches]


METHODS = {"packed": packed, "padded": padded, "trl_pairs": trl_pairs, "trl_as_it_comes": trl_as_it_comes}


def _trained(lm: models.LM, head: Tensor | None) -> tuple[Any, Tensor]:
    """The decoder, all of it learning, and a head: the given one, or a drawn one."""
    decoder: Any = lm.model.model.requires_grad_(True)
    width = decoder.config.hidden_size
    head = torch.randn(width, generator=torch.Generator().manual_seed(0)) / width if head is None else head
    return decoder, head.to(lm.device).requires_grad_(True)


def limit(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Floating point operations a second of one large matrix product, best of several."""
    side = side or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        best = min(best, _timed(lambda: a @ b, device))
    return 2.0 * side**3 / best


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def child(method: str, asked: argparse.Namespace) -> None:
    """One method in a process of its own: seconds, tokens and memory, printed as JSON."""
    lm = load(asked.model, asked.shape)
    items = comparisons(asked.comparisons, lm)
    step, work, sizes = METHODS[method](lm, items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step(work[0])  # warm
    seconds = sum(_timed(lambda one=one: step(one), lm.device) for one in work)
    matrices = sum(p.numel() for n, p in lm.model.model.named_parameters() if p.dim() == 2 and "embed" not in n)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    if lm.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    name = torch.cuda.get_device_name() if lm.device.type == "cuda" else "cpu"
    rate = 6.0 * matrices * sum(sizes) / seconds
    share = rate / limit(lm.device, lm.dtype)
    print(
        json.dumps(
            {
                "seconds": seconds / len(items),
                "tokens": sum(sizes) / len(items),
                "tokens_a_second": sum(sizes) / seconds,
                "share_of_matmul_limit": share,
                "peak_bytes": peak,
                "device": name,
                "dtype": str(lm.dtype),
                "model": lm.name,
            }
        )
    )


def main() -> None:
    """Run in turn and keep the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--comparisons", type=int, default=4)
    parser.add_argument("--model", default=models.EMBEDDED)
    parser.add_argument("--shape", default="own", choices=["own", "7b"])
    parser.add_argument("--child", choices=list(METHODS))
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked)
        return
    names = [name for name in METHODS if not name.startswith("trl") or find_spec("trl") is not None]
    runs = turns.in_turn(
        "benchmarks.packing_speed",
        names,
        ["--model", asked.model, "--comparisons", str(asked.comparisons), "--shape", asked.shape],
        rounds=asked.rounds,
        say=lambda one: f"{one['seconds']:.2f} s a comparison, {one['peak_bytes'] / 1e9:.2f} GB",
        once=[name for name in names if name.startswith("trl")],  # far the slowest
    )
    best = {name: min(one["seconds"] for one in each) for name, each in runs.items()}
    first = runs["packed"][0]
    records.keep(
        f"packing_speed{'' if first['device'] == 'cpu' else '-' + first['device'].replace(' ', '-')}.json",
        {
            "device": first["device"],
            "dtype": first["dtype"],
            "model": first["model"],
            "data": "real Nectar rows" if os.environ.get("STARLING_NB_REAL_DATA") else "drawn lengths",
            "comparisons": asked.comparisons,
            "times_faster_than": {name: seconds / best["packed"] for name, seconds in best.items()},
            "times_the_tokens": {name: each[0]["tokens"] / first["tokens"] for name, each in runs.items()},
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
