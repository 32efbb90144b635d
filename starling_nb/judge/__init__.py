"""Asking a judge, durably: a client over any OpenAI-compatible server, its ledger, and a simulated judge.

A stage supplies :class:`Request`; nothing here knows what is being judged.
"""

from starling_nb.judge.asking import Outcome, Request, last_line
from starling_nb.judge.batch import Batches
from starling_nb.judge.client import Judge
from starling_nb.judge.ledger import Attempt, Ledger
from starling_nb.judge.simulation import Calibration, Opinion, Shown, SimulatedJudge, perceive, register
from starling_nb.judge.spending import Budget, BudgetExceeded, Forecast, JudgeStopped, Price
from starling_nb.judge.wire import JudgeUnavailable

__all__ = [
    "Attempt",
    "Batches",
    "Budget",
    "BudgetExceeded",
    "Calibration",
    "Forecast",
    "Judge",
    "JudgeStopped",
    "JudgeUnavailable",
    "Ledger",
    "Opinion",
    "Outcome",
    "Price",
    "Request",
    "Shown",
    "SimulatedJudge",
    "last_line",
    "perceive",
    "register",
]
