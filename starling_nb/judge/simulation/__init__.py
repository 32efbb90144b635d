"""The simulated judge: what it makes of answers, how it fails, and the server that it speaks through.

A server on the loopback interface speaks the OpenAI protocol: single requests, files and batches.
"""

from starling_nb.judge.simulation.batch_server import BatchRules
from starling_nb.judge.simulation.failures import Failures
from starling_nb.judge.simulation.judge import MODEL, Opinion, Shown, SimulatedJudge, register
from starling_nb.judge.simulation.perception import Calibration, count_words, overlap, perceive
from starling_nb.judge.simulation.protocol import Refused
from starling_nb.judge.simulation.server import serve

__all__ = [
    "MODEL",
    "BatchRules",
    "Calibration",
    "Failures",
    "Opinion",
    "Refused",
    "Shown",
    "SimulatedJudge",
    "count_words",
    "overlap",
    "perceive",
    "register",
    "serve",
]
