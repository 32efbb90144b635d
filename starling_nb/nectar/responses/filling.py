"""Exactly K distinct usable answers for each prompt: existing ones first, then whoever is asked next.

What is empty, cut off, a dialogue or a repetition is replaced by another responder's answer and never passed on. A
prompt that runs out of responders is left out, and told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.nectar.candidates import Candidates
from starling_nb.nectar.responses.responders import Endpoint, Responder, fault, same
from starling_nb.nectar.tables import grouped

CHUNK = 1000
"""Prompts whose answers are sought together."""
Order = Callable[[str, Sequence[Responder], int, int], list[Responder]]
"""(prompt id, responders, k, seed) → the responders in the order in which they are asked."""


@dataclass
class Report:
    """What filling met: prompts filled and left out, answers kept by responder, faults by responder and kind."""

    filled: int = 0
    short: list[str] = field(default_factory=list)  # ids of the prompts that ran out of responders
    kept: Counter[str] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)


def weighted_order(prompt_id: str, responders: Sequence[Responder], k: int, seed: int) -> list[Responder]:
    """Responders drawn without return, by weight (Efraimidis and Spirakis 2006), decided by the prompt's id."""
    uniforms = files.rng(seed, "responders", prompt_id).random(len(responders))
    keys = {r.name: u ** (1 / r.weight) for r, u in zip(responders, uniforms, strict=True)}
    return sorted(responders, key=lambda r: -keys[r.name])


def fill(
    prompts: Iterable[Any],
    responders: Sequence[Responder],
    k: int = 7,
    seed: int = 0,
    *,
    order: Order = weighted_order,
    existing: Callable[[Any], Sequence[tuple[str, str]]] = lambda prompt: (),
    report: Report | None = None,
    progress: Callable[[int, str], object] | None = None,
) -> Iterator[Candidates]:
    """Candidates with exactly K answers, in the order of the prompts; those that cannot be filled are left out.

    Args:
        prompts: the prompts, streamed.
        responders: who may be asked; their names must differ.
        k: answers a prompt, 2 to 26.
        seed: of the choice of responders and of their draws.
        order: decides who is asked for a prompt, and who next.
        existing: answers (model, text) that a prompt already has; the first usable ones of different models are kept.
        report: filled in on the way.
        progress: called with (answers won, responder's name) after each group of answers and each faulty one.

    Raises:
        StarlingError: K is out of range, or two responders share a name.
    """
    if not 2 <= k <= 26:
        raise StarlingError(f"k = {k}: 2 to 26 answers a prompt can be ranked")
    if len({responder.name for responder in responders}) < len(responders):
        raise StarlingError("two responders have the same name: rename one")
    report = report if report is not None else Report()
    for chunk in grouped(prompts, CHUNK):
        rows = [_Row(prompt, k, order(prompt.id, responders, k, seed) if responders else []) for prompt in chunk]
        for row in rows:
            for model, text in _spread(existing(row.prompt)):
                row.offer(model, text, report)
        while _ask(rows, seed, report, progress):
            pass
        for row in rows:
            if len(row.kept) == k:
                report.filled += 1
                report.kept.update(model for model, _ in row.kept)
                yield Candidates(row.prompt, [model for model, _ in row.kept], [text for _, text in row.kept])
            else:
                report.short.append(row.prompt.id)


@dataclass
class _Row:
    """A prompt on its way to K answers."""

    prompt: Any
    k: int
    queue: list[Responder]
    kept: list[tuple[str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def offer(self, model: str, text: str, report: Report) -> None:
        """Keep an answer if it can stand and a place is free."""
        wrong = fault(text) or ("duplicate" if same(text) in self.seen else None)
        if wrong is not None:
            report.faults[model, wrong] += 1
        elif len(self.kept) < self.k:
            self.seen.add(same(text))
            self.kept.append((model, text))

    def next(self) -> list[Responder]:
        """As many responders as answers are missing."""
        lacking = self.k - len(self.kept)
        asked, self.queue = self.queue[:lacking], self.queue[lacking:]
        return asked


def _spread(answers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Answers with every model's first before any model's second."""
    nth: Counter[str] = Counter()
    places = []
    for model, text in answers:
        places.append((nth[model], model, text))
        nth[model] += 1
    return [(model, text) for _, model, text in sorted(places, key=lambda place: place[0])]


def _ask(rows: Sequence[_Row], seed: int, report: Report, progress: Callable[[int, str], object] | None) -> bool:
    """Ask for what is missing, once; False where nothing is missing or nobody is left to ask."""
    asked = [(row, row.next()) for row in rows]
    groups: dict[str, tuple[Responder, list[Any]]] = {}
    for row, responders in asked:
        for responder in responders:
            groups.setdefault(responder.name, (responder, []))[1].append(row.prompt)
    if not groups:
        return False

    def answers(name: str) -> dict[str, str]:
        responder, prompts = groups[name]

        def noted(wrong: str) -> None:
            report.faults[name, wrong] += 1
            if progress is not None:
                progress(0, name)

        found = responder.answer(prompts, seed, noted)
        if progress is not None:
            progress(len(found), name)
        return found

    remote = [name for name, (responder, _) in groups.items() if isinstance(responder, Endpoint)]
    found: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(max(1, len(remote))) as threads:  # servers work at the same time
        coming = {name: threads.submit(answers, name) for name in remote}
        found |= {name: answers(name) for name in groups if name not in coming}
        found |= {name: future.result() for name, future in coming.items()}
    for row, responders in asked:
        for responder in responders:
            if (text := found[responder.name].get(row.prompt.id)) is not None:
                row.offer(responder.name, text, report)
    return True
