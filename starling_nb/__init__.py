"""Starling-7B, reproduced: prompts, rankings, a reward model, a tuned policy and its evaluation.

The numbered notebooks tell the story; this package does the work. Nothing heavy is imported here.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# How OpenMP workers wait for the next small job. Spinning for long makes torch up to ten times slower beside a busy
# neighbour; not spinning at all costs a wake-up for each of a model's thousands of small operations, which made
# sampling 1.4 times slower on a quiet machine. A short spin, 2,000 turns, costs neither.
THREADS_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}

if "OMP_WAIT_POLICY" not in os.environ and "torch" in sys.modules:
    warnings.warn(
        "torch was imported before starling_nb: set OMP_WAIT_POLICY=PASSIVE in the environment, "
        "or import starling_nb first, or training may be several times slower",
        stacklevel=2,
    )
for _name, _value in THREADS_WAIT.items():
    os.environ.setdefault(_name, _value)

if TYPE_CHECKING:
    from starling_nb.stage import Stage


def enter(name: str, namespace: dict[str, Any]) -> Stage:
    """Enter a stage from its notebook: see :func:`starling_nb.stage.enter`."""
    from starling_nb.stage import enter as _enter

    return _enter(name, namespace)
