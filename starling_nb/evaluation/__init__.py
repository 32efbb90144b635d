"""Stage 05: how good the tuned model is, and against what.

``mt_bench`` and ``alpaca_eval`` ask a judge; ``mmlu`` and ``safety`` need none; ``published`` holds what
the authors reported. Every number comes with its interval, and changes are paired by item.
"""

from __future__ import annotations

from starling_nb.errors import StarlingError


class EvaluationError(StarlingError):
    """Bench questions, answers or judgments that cannot be used."""
