"""The commands about models: train and use a reward model, tune a policy, plan a large run."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def train_reward(
    data: Annotated[Path, typer.Argument(help="Rankings in Nectar's schema: .parquet, .jsonl or .jsonl.gz.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its evaluation and the checkpoint.")] = Path(
        "reward"
    ),
    base: Annotated[str, typer.Option(help="Backbone: smollm2-135m, a folder or a hub id.")] = "smollm2-135m",
    depth: Annotated[int, typer.Option(min=0, help="Blocks of the backbone that are kept; 0 keeps all.")] = 0,
    loss: Annotated[str, typer.Option(help="k_wise or pairwise.")] = "k_wise",
    trainable: Annotated[str, typer.Option(help="What learns: last:k, blocks:a-b, lora:r, full or head.")] = "last:4",
    readout: Annotated[str, typer.Option(help="Where the score is read: last_token, mean or both.")] = "last_token",
    lr: Annotated[float, typer.Option(help="Learning rate of the blocks.")] = 1e-4,
    head_lr: Annotated[float, typer.Option(help="Learning rate of the head.")] = 1e-3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the comparisons.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Comparisons a step, over all processes.")] = 6,
    held_out: Annotated[list[str] | None, typer.Option(help="Responder that is not trained on.")] = None,
    limit: Annotated[int, typer.Option(min=16, help="Tokens a prompt with an answer may take.")] = 2048,
    judge: Annotated[str, typer.Option(help="Who ranked the answers, for the model card.")] = "not told",
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
) -> None:
    """Train a reward model on rankings; measure it on prompts of the test split; run it again to go on."""
    from starling_nb.progress import named
    from starling_nb.reward import running
    from starling_nb.reward.training import Recipe

    recipe = Recipe(
        loss=loss,  # type: ignore[arg-type]
        lr=lr,
        head_lr=head_lr,
        epochs=epochs,
        batch=batch,
        trainable=trainable,
        readout=readout,
        seed=seed,
    )
    plan = running.Plan(data, out, base, depth, limit, tuple(held_out or ()), judge=judge, recipe=recipe)
    done = running.run(plan, named)
    if done is None:  # the main process speaks for all
        return
    dropped = ", ".join(f"{count} {reason}" for reason, count in done.dropped.items()) or "none"
    typer.echo(f"comparisons: {done.sizes}; left out: {dropped}; prompt tokens cut: {done.cut}")
    typer.echo(done.board[done.board.metric == "pairwise_accuracy"].to_string(index=False))
    for warning in done.warnings:
        typer.echo(f"look: {warning}", err=True)
    typer.echo(f"{done.model}")


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="Reward model: a folder or a hub id.")],
    source: Annotated[str, typer.Argument(help="Rankings in Nectar's schema, JSON lines with messages, a benchmark.")],
    out: Annotated[Path, typer.Option(help="File to write, one JSON line an answer.")] = Path("scores.jsonl"),
    benchmark: Annotated[str | None, typer.Option(help="human, safety, truth, reward_bench, rm_bench, …")] = None,
) -> None:
    """Score answers by a reward model, ours or a released one; with a benchmark, say how well."""
    from functools import partial

    from starling_nb.reward import RewardModel, benchmarks, running

    loaded = RewardModel.from_pretrained(model)
    if benchmark is None:
        found = running.score(loaded, Path(source), out)
        left = f"; left without one, with the reason: {found.refused}" if found.refused else ""
        typer.echo(f"{out}: {found.scored} scores; prompts cut to the model's window: {found.cut}{left}")
        return
    found = benchmarks.evaluate(benchmark, source, partial(loaded.score, truncate=True), label=model, path=out)
    typer.echo(f"{found.to_string(index=False)}\n{out}")


@app.command("serve-reward")
def serve_reward(
    reward: Annotated[str, typer.Argument(help="Reward model: a folder or a hub id.")],
    port: Annotated[int, typer.Option(min=0, help="0 for any that is free.")] = 0,
    address: Annotated[Path | None, typer.Option(help="A file that gets the address when the model is ready.")] = None,
    attached: Annotated[bool, typer.Option("--attached", help="End when standard input ends.")] = False,
) -> None:
    """Hold a reward model on a card of its own; tune --reward ADDRESS asks it from any number of processes."""
    from starling_nb import files, models
    from starling_nb.reward import RewardModel, serving

    typer.echo(f"reading {reward}", err=True)
    stop, where = serving.serve(RewardModel.from_pretrained(reward, dtype=models.native_dtype()), reward, port)
    typer.echo(where)
    try:
        if address is not None:
            files.write_text(address, where)
        if attached:
            sys.stdin.read()
        else:
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        stop()


@app.command()
def tune(
    data: Annotated[Path, typer.Argument(help="Prompts, as starling-nb prompts writes them.")],
    reward: Annotated[str, typer.Option(help="Reward model: a folder, a hub id, or a served one's address.")],
    out: Annotated[Path, typer.Option(help="Folder for the policy, its evaluation and the checkpoint.")] = Path(
        "policy"
    ),
    base: Annotated[str, typer.Option(help="Start model: smollm2-135m, a folder or a hub id.")] = "smollm2-135m",
    template: Annotated[str, typer.Option(help="How it writes conversations: own, openchat, llama2 or yi.")] = "own",
    objective: Annotated[str, typer.Option(help="apa, ppo, p3o or rloo.")] = "apa",
    recipe: Annotated[str, typer.Option(help="corrected, or published with its oddities.")] = "corrected",
    settings: Annotated[list[str] | None, typer.Option("--set", help="A switch of the recipe: lam=0.5.")] = None,
    rules: Annotated[
        list[str] | None, typer.Option("--rule", help="A rule or question and its weight: declines=-0.5.")
    ] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Test prompts answered before and after, at most.")] = 100,
    prompt_tokens: Annotated[int, typer.Option(min=0, help="Longer prompts are left out; 0: as they fit.")] = 0,
    sampler: Annotated[str, typer.Option(help="Who samples: own, or vllm on the same GPU.")] = "own",
    judge: Annotated[str | None, typer.Option(help="Who settles rules that are questions, as for judge.")] = None,
    dollars: Annotated[float | None, typer.Option(help="Stop before the judge could be paid more.")] = None,
    requests: Annotated[int | None, typer.Option(help="Stop after so many paid requests to the judge.")] = None,
) -> None:
    """Tune a model on prompts by a reward model; measure it on test prompts; run it again to go on.

    Under accelerate launch (or torchrun, on CPUs too) several processes share it.
    """
    from starling_nb.judge import Budget
    from starling_nb.judge.connect import connect
    from starling_nb.policy import running
    from starling_nb.policy.recipe import made
    from starling_nb.policy.rewards.rules import BatchRule, weighted

    chosen = made(recipe, objective, settings or ())
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    budget = Budget(requests, None, dollars).split(ranks)
    asked = connect(judge, out / "ledger.sqlite", 0, budget, ranks, attempts=3) if judge else nullcontext()
    with asked as connected:
        added = weighted(rules or (), connected)
        how = {
            "template": template,
            "held_out": held_out,
            "prompt_tokens": prompt_tokens,
            "recipe": chosen,
            "rules": added,
            "sampler": sampler,
        }
        plan = running.Plan(data, reward, out, base, **how)  # type: ignore[arg-type]
        done = running.run(plan)
    if done is None:  # the main process speaks for all
        return
    typer.echo(done.table.to_string(index=False))
    for name, (_, rule) in added.items():
        if isinstance(rule, BatchRule):
            typer.echo(f"rule {name}: {rule}")
    for warning in done.warnings:
        typer.echo(f"look: {warning}", err=True)
    typer.echo(f"{done.policy}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub id, or tuned blocks (.safetensors) of the start.")],
    start: Annotated[str, typer.Option(help="Compared with: smollm2-135m, a folder or a hub id.")] = "smollm2-135m",
    judge: Annotated[str | None, typer.Option(help="Who grades and compares; without one, what needs none.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for figures, answers and judgments.")] = Path("evaluation"),
    bench: Annotated[
        list[str] | None, typer.Option(help="mt_bench, alpaca_eval, mmlu, word_problems, programs or safety.")
    ] = None,
    official: Annotated[bool, typer.Option("--official", help="MT-Bench's and MMLU's own questions (wheels).")] = False,
    instructions: Annotated[Path | None, typer.Option(help="An official alpaca_eval.json.")] = None,
    items: Annotated[int, typer.Option(min=0, help="Questions of each benchmark, at most; 0 asks all.")] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Cap on an answer, tokens.")] = 512,
    shots: Annotated[int, typer.Option(min=0, max=5, help="Solved examples before a four-option question.")] = 5,
    template: Annotated[str, typer.Option(help="How they write conversations: own, openchat, llama2 or yi.")] = "own",
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    dollars: Annotated[float | None, typer.Option(help="Stop before the judge could be paid more.")] = None,
    requests: Annotated[int | None, typer.Option(help="Stop after so many paid requests to the judge.")] = None,
) -> None:
    """Put a model and its start through the benchmarks, with intervals; run it again to go on."""
    from starling_nb.evaluation import running
    from starling_nb.judge import Budget
    from starling_nb.judge.connect import connect

    plan = running.Plan(
        model,
        start,
        out,
        tuple(bench or ()),
        official=official,
        instructions=instructions,
        n=items,
        max_new_tokens=tokens,
        shots=shots,
        template=template,
        seed=seed,
    )
    budget = Budget(requests, None, dollars)
    with connect(judge, out / "ledger.sqlite", seed, budget) if judge else nullcontext() as asked:
        table = running.run(plan, asked)
    typer.echo(f"{table.round(3).to_string(index=False)}\n{out / 'evaluation.csv'}")


@app.command()
def plan(
    cards: Annotated[int, typer.Option(min=1, help="Cards that train the policy.")] = 7,
    reward_cards: Annotated[int, typer.Option(min=0, help="Cards that serve the reward model; 0: beside it.")] = 1,
    card: Annotated[str, typer.Option(help="a100, h100 (80 GB), or here: this machine, measured now.")] = "a100",
    memory: Annotated[float | None, typer.Option(help="Gigabytes of a card, where it has others.")] = None,
    price: Annotated[float | None, typer.Option(help="Dollars an hour and card.")] = None,
    trainable: Annotated[str, typer.Option(help="last:k, blocks:a-b, lora:r or full.")] = "last:4",
    rows: Annotated[int, typer.Option(min=1, help="Answers a card samples before it learns from them.")] = 64,
    together: Annotated[int, typer.Option(min=1, help="Sequences that a card learns from at a time.")] = 4,
    flight: Annotated[int, typer.Option(min=1, help="Answers that a card samples at a time.")] = 64,
    updates: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 10_000,
) -> None:
    """Say what tuning at the published size takes: memory a card, time, money; refuse what does not fit."""
    import torch

    from starling_nb import models
    from starling_nb.policy import scaling
    from starling_nb.policy.scaling import plan as planning
    from starling_nb.policy.scaling import speed

    dtype, measured = models.native_dtype(), None
    if card == "here":
        measured = speed.limits(dtype, torch.device(models.device()), scaling.room())
    run = planning.Run(
        trainable=trainable,
        ranks=cards,
        reward_cards=reward_cards,
        rows=rows,
        together=together,
        flight=flight,
        updates=updates,
        width=dtype.itemsize if measured else 2,
    )
    typer.echo(planning.told(run, planning.card(card, memory, price, measured)))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="smollm2-135m, a folder or a hub id.")] = "smollm2-135m",
    policy: Annotated[Path | None, typer.Option(help="Tuned blocks of it, as notebook 04 writes them.")] = None,
    beside: Annotated[bool, typer.Option("--beside", help="Let the start model answer, too.")] = False,
    template: Annotated[str, typer.Option(help="How it writes conversations: own, openchat, llama2 or yi.")] = "own",
    system: Annotated[str, typer.Option(help="What the system says first.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    tokens: Annotated[int, typer.Option(min=1, help="Cap on an answer, tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="The same words get the same answers.")] = 0,
) -> None:
    """Talk to a model in the terminal, a line a turn: /new, /undo, /again, /quit."""
    from starling_nb import models
    from starling_nb.explore import talk
    from starling_nb.policy import checkpoint

    start = models.load(model, template=template)
    those = {"tuned": checkpoint.load(start, policy)} if policy else {"model": start}
    those |= {"start": start} if beside and policy else {}
    begun = talk.Talk(those, temperature, tokens, seed, system)
    typer.echo(talk.HELP)
    for told in talk.held(begun, iter(input_line, "")):
        typer.echo(told)


def input_line() -> str:
    """The next line that is typed, its end included; nothing at the end of input."""
    if sys.stdin.isatty():
        typer.echo("> ", nl=False)
    return sys.stdin.readline()
