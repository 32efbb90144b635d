"""Exactly K distinct answers for each prompt, from any mix of responders."""

from starling_nb.nectar.responses import embedded as embedded
from starling_nb.nectar.responses.filling import Report, fill, weighted_order
from starling_nb.nectar.responses.responders import (
    Endpoint,
    FaultyAnswerError,
    Local,
    Responder,
    Settings,
    fault,
    same,
)

__all__ = [
    "Endpoint",
    "FaultyAnswerError",
    "Local",
    "Report",
    "Responder",
    "Settings",
    "embedded",
    "fault",
    "fill",
    "same",
    "weighted_order",
]
