"""Asking a judge, durably: a client over any OpenAI-compatible server, its ledger, and a simulated judge.

A stage supplies :class:`Request`; nothing here knows what is being judged.
"""

from starling_nb.judge.client import (
    Budget,
    BudgetExceeded,
    Judge,
    JudgeStopped,
    JudgeUnavailable,
    Outcome,
    Request,
)
from starling_nb.judge.ledger import Ledger
from starling_nb.judge.perceive import Calibration, perceive
from starling_nb.judge.simulated import Opinion, Shown, SimulatedJudge, register

__all__ = [
    "Budget",
    "BudgetExceeded",
    "Calibration",
    "Judge",
    "JudgeStopped",
    "JudgeUnavailable",
    "Ledger",
    "Opinion",
    "Outcome",
    "Request",
    "Shown",
    "SimulatedJudge",
    "perceive",
    "register",
]
