"""What all tests share: quiet threads, checked shapes, and real data where somebody has it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}  # before torch is imported

import pytest
from jaxtyping import install_import_hook

# Interrupts are tested, and whoever is started in the background by a shell begins deaf to them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Shapes and types in the signatures of the losses are checked, in tests only.
install_import_hook(["starling_nb.losses"], "beartype.beartype")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it."""
    for name in ("STARLING_NB_STAGE", "STARLING_NB_PROFILE", "STARLING_NB_PROGRESS", "STARLING_NB_HEADLESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def real_data() -> Path:
    """Folder of real data made by others (``STARLING_NB_REAL_DATA``); without it the test is skipped."""
    folder = os.environ.get("STARLING_NB_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real data: set STARLING_NB_REAL_DATA to its folder")
    return Path(folder)
