"""A judge that fails in every way: each request must end as exactly one right verdict or one recorded failure.

    python -m benchmarks.fault_storm [--requests 10000]

The storm judge (:mod:`benchmarks.storm`) decides by hashes how each arrival of each request is treated, so that every
outcome can be checked against what was foretold: a valid ranking is the one that the judge meant, and a failure is the
reply, or the silence, that was planned.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import records, storm, synthetic
from benchmarks.storm import replies
from starling_nb.judge import Judge, wire
from starling_nb.nectar import labelling

RESULT = "fault_storm.json"
SEED, TIMEOUT = 3, 0.6
RATES = {
    **dict.fromkeys(replies.LIMITED, 0.003),
    **dict.fromkeys(replies.ERRORS, 0.02),
    **dict.fromkeys(replies.CONNECTION, 0.01),
    **dict.fromkeys(replies.BODY, 0.015),
    **dict.fromkeys(replies.TEXT, 0.015),
    **dict.fromkeys(replies.DRESSED, 0.025),
}


def run(n: int) -> dict[str, Any]:
    """Send ``n`` requests through the storm and check every outcome.

    Raises:
        AssertionError: an outcome is not what the judge did.
    """
    pauses = wire.FIRST_PAUSE, wire.LONGEST_PAUSE
    wire.FIRST_PAUSE, wire.LONGEST_PAUSE = 0.01, 0.2
    plan, items = labelling.Plan(), synthetic.Many(n)
    outcomes: dict[str, Any] = {}
    try:
        with storm.Process() as server, tempfile.TemporaryDirectory() as folder:
            server.faults(rates=RATES, seed=SEED, hang=5 * TIMEOUT, drip=0.02, pause=0.02)
            judge = Judge(
                storm.MODEL,
                server.url,
                ledger=Path(folder) / "ledger.sqlite",
                concurrency=64,
                timeout=TIMEOUT,
                retries=4,
            )
            began = time.monotonic()
            judge.run(labelling.requests(items, plan), lambda request, outcome: outcomes.update({request.id: outcome}))
            seconds = time.monotonic() - began
            counts, attempts = server.counts(), judge.ledger.counts()
            judge.close()
    finally:
        wire.FIRST_PAUSE, wire.LONGEST_PAUSE = pauses
    assert len(outcomes) == n
    verdicts = 0
    for item, (request,) in labelling.asked(items, plan):
        verdicts += _check(outcomes[item.prompt.id], request.messages, counts)
    sent = sum(counts["answered"].values()) + counts["kinds"].get("null_content", 0)
    late = sent - attempts["reply"]  # whole replies that came, dripping, after their connection was given up
    assert 0 <= late <= attempts.get("timeout", 0), (late, attempts)
    return {
        "requests": n,
        "verdicts": verdicts,
        "failures": n - verdicts,
        "failures_by_type": dict(Counter((o.error or "").partition(":")[0] for o in outcomes.values() if o.error)),
        "arrivals": sum(counts["asked"].values()),
        "kinds": counts["kinds"],
        "attempts": attempts,
        "seconds": seconds,
    }


def _check(outcome: Any, messages: list[dict[str, str]], counts: dict[str, Any]) -> bool:
    """Whether the outcome is a verdict; and that it is what the last arrival was planned to give."""
    content = storm.content_of(messages)
    planned = storm.reply_for(content, counts["asked"][content], SEED, RATES, storm.letters_of(messages))
    if outcome.value is not None:
        assert tuple(outcome.value.ranking) == planned.expected_ranking, (outcome, planned)
        return True
    assert outcome.error, outcome
    assert planned.expected_ranking is None or outcome.error.startswith("Unanswered: no answer within"), (
        outcome,
        planned,
    )
    return False


def main() -> None:
    """Read the command line, run, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    found = run(parser.parse_args().requests)
    records.keep(RESULT, found)


if __name__ == "__main__":
    main()
