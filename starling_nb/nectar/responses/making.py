"""From a file of prompts to a file of candidates, by the responders that a TOML file names.

[[responders]]
name = "gpt-3.5-turbo"            # its name in the data set
who = "gpt-3.5-turbo"             # a model behind a server: as for the judge
system = "You are a helpful assistant."
temperature = 0.1

[[responders]]
name = "smollm2"
model = "embedded"                # a model on this machine: embedded, a hub id or a folder
max_tokens = 200
may_be_cut = true
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starling_nb import files, progress
from starling_nb.errors import StarlingError
from starling_nb.judge import Ledger
from starling_nb.judge.connect import address, connect
from starling_nb.judge.spending import PRICES
from starling_nb.judge.wire import server
from starling_nb.nectar import candidates, tables
from starling_nb.nectar.candidates import Conversation
from starling_nb.nectar.responses.filling import Report, fill
from starling_nb.nectar.responses.responders import TRIES, Endpoint, Local, Responder, Settings
from starling_nb.profiles.values import read_toml, typed

if TYPE_CHECKING:
    from starling_nb.models import LM

EMBEDDED = "embedded"
REMEDY = "make it with starling-nb prompts"
ANSWERS = "answers"
COLUMNS = ("id", "messages", "source", "answers")


@dataclass(frozen=True)
class Asked(Settings):
    """A responder as a file describes it: behind a server (``who``) or on this machine (``model``)."""

    who: str = ""
    model: str = ""
    concurrency: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.who) == bool(self.model):
            raise StarlingError(f"responder {self.name}: give either who (a server's model) or model (on this machine)")


@dataclass(frozen=True)
class Responders:
    """Who may be asked."""

    responders: list[Asked] = field(default_factory=list)

    @classmethod
    def from_toml(cls, path: Path) -> Responders:
        """Read a file as above.

        Raises:
            StarlingError: the file is missing or is not TOML, or holds an unknown name or a value of a wrong type.
        """
        found: Responders = typed(cls, read_toml(path), str(path))
        return found


def prompts(path: Path) -> Iterator[Conversation]:
    """The prompts of a file that :func:`starling_nb.nectar.prompts.build` wrote, with the answers they came with.

    Raises:
        StarlingError: the file is missing or damaged, or lacks a column.
    """
    if path.suffix == ".parquet":
        rows: Iterator[dict[str, Any]] = tables.read(path, COLUMNS, REMEDY)
    else:
        rows = iter(files.read_jsonl(path))
    for row in rows:
        try:
            had = tuple((answer["model"], answer["answer"]) for answer in row["answers"])
            yield Conversation(row["id"], row["messages"], row["source"], had)
        except (KeyError, TypeError) as error:
            raise StarlingError(f"{path} has a row without {', '.join(COLUMNS)}: {REMEDY}") from error


def make(
    source: Path,
    asked: Responders,
    out: Path,
    k: int = 7,
    seed: int = 0,
    ledger: Path | None = None,
) -> Report:
    """Answer every prompt of ``source`` exactly ``k`` times and write the candidates to ``out``.

    Every answer is kept in ``ledger`` (beside ``out`` by default) as it comes, so that a run that was stopped goes on
    where it was. Prompts that cannot be filled are left out and named in the report.

    Raises:
        StarlingError: a file cannot be read or written, a model cannot be loaded, or two servers call theirs alike.
        JudgeUnavailable: a server cannot be reached, or refuses.
    """
    book = ledger or out.with_name(f"{out.stem}.ledger.sqlite")
    report = Report()
    with ExitStack() as stack:
        load = cache(_load)  # several responders may be one model, asked in different ways
        _told_apart(asked)
        paid = sum(_priced(one) for one in asked.responders)
        every = asked.responders
        responders = [_open(one, _twins(one, every[:i]), book, seed, stack, load, paid) for i, one in enumerate(every)]
        stack.callback(progress.abandon, ANSWERS)
        most = k * tables.count(source, REMEDY) if source.suffix == ".parquet" else None
        filled = fill(
            prompts(source),
            responders,
            k,
            seed,
            existing=lambda p: p.existing,
            report=report,
            progress=_shown(most, report),
        )
        candidates.write(filled, out)
    return report


def _shown(most: int | None, report: Report) -> Callable[[int, str], None]:
    """Reports answers as they come in; fewer than ``most`` are asked for where prompts have some already.

    Faulty answers stand beside them, since whoever gives many of them seems to stand still.
    """
    given: Counter[str] = Counter()

    def show(number: int, name: str) -> None:
        given[name] += number
        progress.report(given.total(), most, ANSWERS, faulty=report.faults.total())

    return show


def _load(model: str) -> LM:
    from starling_nb import models

    return models.load() if model == EMBEDDED else models.load(model)


def _told_apart(asked: Responders) -> None:
    """Refuse two servers whose models have one name: the ledger would take the one's answers for the other's."""
    found: dict[str, str] = {}
    for who in (one.who for one in asked.responders if one.who):
        model, url = address(who)
        if found.setdefault(model, server(url)) != server(url):
            raise StarlingError(
                f"{found[model]} and {server(url)} both call a model {model}: let one serve another name"
            )


def _priced(asked: Asked) -> bool:
    """Whether a responder is a server's model whose price is known."""
    return bool(asked.who) and address(asked.who)[0] in PRICES


def _twins(one: Asked, before: Sequence[Asked]) -> int:
    """How many responders before one ask the same model in the same way."""
    ways = [(other.who, other.system, other.temperature, other.max_tokens) for other in (one, *before)]
    return ways[1:].count(ways[0])


def _open(
    asked: Asked, twin: int, ledger: Path, seed: int, stack: ExitStack, load: Callable[[str], LM], paid: int
) -> Responder:
    """A responder, ready; the ``paid`` ones share what the environment's limit of dollars leaves."""
    if asked.who:
        among = paid if _priced(asked) else None
        judge = connect(asked.who, ledger, seed, among=among, attempts=TRIES, concurrency=asked.concurrency)
        return Endpoint(asked, stack.enter_context(judge), twin)
    book = Ledger(ledger)
    stack.callback(book.close)
    return Local(asked, load(asked.model), book)
