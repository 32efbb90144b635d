"""One word decides who judges: ``simulated``, or a real model behind an OpenAI-compatible server."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starling_nb.errors import StarlingError
from starling_nb.judge.client import Judge
from starling_nb.judge.ledger import Ledger, is_one
from starling_nb.judge.simulation import SimulatedJudge
from starling_nb.judge.spending import PRICES, Budget
from starling_nb.judge.wire import server

SIMULATED = "simulated"
DOLLARS = "STARLING_NB_DOLLARS"
"""Environment variable: the most that the judges whose ledgers lie in a folder may cost together, those of earlier runs
included; for a run, its ``ledgers/``."""


def ledger_of(stage: Any) -> Path:
    """Where a stage keeps its judge's replies.

    What was paid outlives the stage's own folder, which is emptied whenever the stage runs again: it lies in the run's
    ``ledgers/``. A simulated judge's replies cost nothing, and its code may have changed: they go with the folder.
    """
    if stage.p.judge == SIMULATED:
        return Path(stage.dir) / "ledger.sqlite"
    return Path(stage.out) / "ledgers" / f"{stage.name}.sqlite"


@contextmanager
def connect(
    who: str,
    ledger: Path | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    among: int | None = 1,
    **settings: Any,
) -> Iterator[Judge]:
    """A judge for the time of a ``with`` block.

    Args:
        who: ``"simulated"`` starts the simulated judge's server on the loopback interface; ``"gpt-4-0613"`` asks
            OpenAI with the key in ``OPENAI_API_KEY``; ``"model@http://host:port/v1"`` asks any compatible server.
        ledger: file of paid replies; a second run with the same file pays nothing twice.
        seed: of the requests.
        budget: the most it may spend; where it names no dollars and there is a ledger, :data:`DOLLARS` does.
        among: how many judges share what that leaves; None: it does not limit this one.
        settings: further arguments of :class:`~starling_nb.judge.Judge`, such as ``concurrency``.

    Raises:
        StarlingError: ``who`` is empty, or its address is none, or the judge's price is not known and dollars are
            limited.
    """
    with ExitStack() as stack:
        model, url = address(who)
        if who == SIMULATED:
            simulated = stack.enter_context(SimulatedJudge(seed=seed))
            model, url = simulated.model, simulated.base_url
        elif ledger is not None and among is not None:
            budget = left(model, ledger.parent, budget, among)
        judge = Judge(model, url, ledger=ledger, seed=seed, budget=budget, **settings)
        stack.callback(judge.close)
        if who != SIMULATED and ledger is not None:
            _tell_of_others(judge)
        yield judge


def _tell_of_others(judge: Judge) -> None:
    """Warn where a ledger's replies may be those of another model with the same name: its keys hold no address."""
    others = judge.ledger.met(judge.model, server(judge.base_url))
    if others and judge.ledger.mean_tokens(judge.model) is not None:
        warnings.warn(
            f"{judge.ledger.path} holds replies of {judge.model} at {', '.join(others)}; they count for "
            f"{server(judge.base_url)} too. If that is another model, give it another folder",
            stacklevel=2,
        )


def left(model: str, ledgers: Path, budget: Budget | None = None, among: int = 1) -> Budget | None:
    """``budget``, and where it names no dollars, those that :data:`DOLLARS` leaves ``model`` after all replies in a
    folder's ledgers, shared ``among`` so many judges.

    Raises:
        StarlingError: the variable holds no amount of dollars, or the model's price is not known.
    """
    given = os.environ.get(DOLLARS, "")
    if not given or (budget is not None and budget.dollars is not None):
        return budget
    try:
        limit = float(given)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise StarlingError(f"{DOLLARS}={given!r}: write an amount of dollars, such as 50, or unset it")
    need_price(model)
    spent = sum(_cost(path) for path in sorted(ledgers.glob("*.sqlite")) if is_one(path))
    share = Budget(dollars=limit, before=spent).split(among)
    return share if budget is None else replace(share, requests=budget.requests, tokens=budget.tokens)


def need_price(model: str) -> None:
    """Refuse to limit dollars where it is not known what a model costs.

    Raises:
        StarlingError: it is not.
    """
    if model not in PRICES:
        raise StarlingError(
            f"what {model} costs is not known, so dollars cannot limit it: leave --dollars out (and unset {DOLLARS})"
        )


def _cost(path: Path) -> float:
    """Dollars that a ledger's replies cost by the list; those of models without a price, nothing."""
    ledger = Ledger(path)
    try:
        return sum(PRICES[model].of(usage) for model, usage in ledger.used().items() if model in PRICES)
    finally:
        ledger.close()


def address(who: str) -> tuple[str, str | None]:
    """Model and base URL that ``who`` names, see :func:`connect`.

    Raises:
        StarlingError: ``who`` is empty, its address is none, or has room for a key or a password in it: what is asked
            for is written down with a run.
    """
    if not who.strip():
        raise StarlingError("judge is empty: write simulated, a model's name, or model@http://host:port/v1")
    model, _, url = who.rpartition("@") if "://" in who else (who, "", "")
    if "://" in model or "?" in url:  # model@http://user:password@host, or ?api_key=
        raise StarlingError("no keys or passwords in the judge's address: set OPENAI_API_KEY instead")
    if url and not (model and url.startswith(("http://", "https://")) and _has_port(url)):
        raise StarlingError(f"judge={who!r}: write model@http://host:port/v1")
    return model, url or None


def _has_port(url: str) -> bool:
    """Whether its port, if it names one, is a number that a port can have."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False
