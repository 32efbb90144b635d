"""One word decides who judges: ``simulated``, or a real model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starling_nb.errors import StarlingError
from starling_nb.judge.client import Judge
from starling_nb.judge.simulated import SimulatedJudge

SIMULATED = "simulated"


@contextmanager
def connect(who: str, ledger: Path | None = None, seed: int = 0, budget: int | None = None) -> Iterator[Judge]:
    """A judge for the time of a ``with`` block.

    Args:
        who: ``"simulated"`` starts the simulated judge's server on the loopback interface; ``"gpt-4-0613"`` asks
            OpenAI with the key in ``OPENAI_API_KEY``; ``"model@http://host:port/v1"`` asks any compatible server.
        ledger: file of paid replies; a second run with the same file pays nothing twice.
        seed: of the requests.
        budget: the most requests that may be paid for.

    Raises:
        StarlingError: ``who`` is empty, or its address is none.
    """
    if not who.strip():
        raise StarlingError("judge is empty: write simulated, a model's name, or model@http://host:port/v1")
    if who == SIMULATED:
        with SimulatedJudge(seed=seed) as server:
            yield Judge(server.model, server.base_url, ledger=ledger, seed=seed, budget=budget)
        return
    model, _, url = who.rpartition("@") if "://" in who else (who, "", "")
    if url and not (model and url.startswith(("http://", "https://"))):
        raise StarlingError(f"judge={who!r}: write model@http://host:port/v1")
    yield Judge(model, url or None, ledger=ledger, seed=seed, budget=budget)
