"""The commands ``train-reward`` and ``score``: from a file of rankings to a reward model, from that to scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from accelerate import PartialState

from starling_nb import files, models
from starling_nb.chat import Message
from starling_nb.errors import StarlingError
from starling_nb.reward import card, scoreboard, scoring
from starling_nb.reward import comparisons as ranked
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.model import RewardModel
from starling_nb.reward.training import Recipe, train

Named = Callable[[str], scoring.Report]


@dataclass(frozen=True)
class Plan:
    """What ``train-reward`` is told."""

    data: Path
    """Rankings in Nectar's schema, parquet or JSON lines."""
    out: Path
    """Folder for the model, its evaluation and the checkpoint."""
    base: str = models.EMBEDDED
    """The backbone: the embedded one, a folder or a hub id."""
    depth: int = 0
    """Blocks of the backbone that are kept; 0 keeps all."""
    limit: int = 2048
    """Positions a prompt with an answer may take."""
    held_out: tuple[str, ...] = ()
    """Responders whose answers are not trained on."""
    template: str = "own"
    """How conversations are written; see :class:`starling_nb.chat.ChatFormat`."""
    dtype: str = "auto"
    """Of the backbone."""
    judge: str = "not told"
    """Who ranked the answers, for the model card; a name that begins with "simulated" says so."""
    recipe: Recipe = field(default_factory=Recipe)
    """How it is trained."""


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    model: Path
    board: pd.DataFrame
    """method, metric, value, low, high, n: on prompts of the test split, beside the longest answer."""
    dropped: dict[str, int]
    """What was left out, by reason."""
    sizes: dict[str, int]
    """Comparisons by split."""
    cut: int
    """Prompt tokens left out so that answers fit."""
    warnings: list[str]
    """Flat scores, accuracy at chance: what should be looked at before the model is used."""


def run(plan: Plan, named: Named) -> Trained | None:
    """Train on the training prompts of a file, measure on its test prompts, write ``<out>/model``.

    Under ``accelerate launch`` or ``torchrun`` the processes share the training; the main one measures and writes, the
    others return None.

    A broken-off run goes on from ``<out>/training.pt`` when it is started again. ``<out>/evaluation.csv`` holds the
    scoreboard, ``<out>/curve.csv`` one row a step.

    Raises:
        StarlingError: the file holds nothing to train on or nothing to test on, or as :func:`train`.
    """
    processes = PartialState(cpu=models.device() == "cpu")
    with processes.main_process_first():  # it may have to fetch and convert the model
        lm = models.load(plan.base, dtype=plan.dtype, template=plan.template)
    lm = models.shallow(lm, plan.depth) if plan.depth else lm
    limit = min(plan.limit, lm.window)  # the finished model reads no further
    parts, dropped = ranked.read(plan.data, lm.chat, plan.held_out, limit)
    size = {"limit": limit, "row_tokens": plan.recipe.row_tokens}
    ready = {
        part: scoring.prepare(lm, parts[part], plan.recipe.trainable, named(f"trunk, {part}"), **size)
        for part in ("train", "test")
    }
    scorer, history, _ = train(
        lm, ready["train"], plan.recipe, checkpoint=plan.out / "training.pt", report=named("training")
    )
    if not processes.is_main_process:
        return None
    found = scoring.predict(scorer, ready["test"], lm.dtype, plan.recipe.row_tokens)
    scores: dict[str, scoreboard.Scores] = {plan.recipe.loss: found}
    scores |= scoreboard.baselines(parts["train"], parts["test"])
    board = scoreboard.table(parts["test"], scores, plan.held_out)
    told = {"base": lm.name, "data": plan.data.name, "held_out": list(plan.held_out), "recipe": asdict(plan.recipe)}
    scoring.assemble(lm, scorer).save_pretrained(plan.out / "model", told)
    about = card.About.of(plan.out / "model", plan.judge, comparisons=len(parts["train"]))
    card.write(plan.out / "model", about, board.to_dict("records"))
    files.write_text(plan.out / "evaluation.csv", board.to_csv(index=False))
    files.write_text(plan.out / "curve.csv", pd.DataFrame(history).to_csv(index=False))
    sizes = {name: len(items) for name, items in parts.items()}
    cut = sum(item.packed.cut for items in ready.values() for item in items)
    warnings = scoreboard.warnings_of(board, scores, [plan.recipe.loss])
    return Trained(plan.out / "model", board, dropped, sizes, cut, warnings)


class Scored(NamedTuple):
    """How many answers were scored, how many of their prompts were cut to fit, how many could not be encoded."""

    scored: int
    cut: int
    refused: int


def score(model: RewardModel, source: Path, out: Path) -> Scored:
    """Score a file and write one JSON line an answer.

    ``source`` holds rankings in Nectar's schema (``.parquet``, ``.jsonl``, ``.jsonl.gz``), or JSON lines with a
    conversation each: ``{"messages": [{"role": …, "content": …}, …]}``, ending with the assistant. The lines written
    are ``prompt_id, model, answer, score`` in the first case, and the given line with its ``score`` in the second;
    a score is null, with an ``error``, where a text holds a control token, say.

    Raises:
        StarlingError: neither of these, or as :meth:`RewardModel.score`.
    """
    rows = files.read_jsonl(source) if source.name.endswith((".jsonl", ".jsonl.gz")) else []
    if rows and all(isinstance(row, Mapping) and "messages" in row for row in rows):
        told = [dict(row) for row in rows]
        texts = [_conversation(row["messages"], number) for number, row in enumerate(rows, 1)]
    else:
        pairs = list(_answers(ranked.load(source)))
        told, texts = [one for one, _ in pairs], [text for _, text in pairs]
    faults = [model.chat.fault(text[:-1], text[-1]["content"]) for text in texts]
    scores = iter(model.score([text for text, fault in zip(texts, faults, strict=True) if not fault], truncate=True))
    told = [
        one | ({"score": None, "error": fault} if fault else {"score": next(scores)})
        for one, fault in zip(told, faults, strict=True)
    ]
    files.write_jsonl(out, told)
    return Scored(sum(not fault for fault in faults), model.truncated, sum(map(bool, faults)))


def _answers(every: Sequence[Comparison]) -> Iterator[tuple[dict[str, Any], list[Message]]]:
    """Every answer of every comparison: what names it, and its conversation."""
    for one in every:
        for answer, name in zip(one.answers, one.responders, strict=True):
            named = {"prompt_id": one.prompt_id, "model": name, "answer": answer}
            yield named, [*one.messages, {"role": "assistant", "content": answer}]


def _conversation(messages: Any, line: int) -> list[Message]:
    """Messages of a line, checked."""
    fine = isinstance(messages, list) and all(
        isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in messages
    )
    if not fine or not messages or messages[-1]["role"] != "assistant":
        raise StarlingError(
            f"line {line}: messages must be role and content each, both text, the last one the assistant's"
        )
    return [{"role": one["role"], "content": one["content"]} for one in messages]
