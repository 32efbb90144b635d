"""Results that are committed: every one with the commit and the machine that it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.runner import manifest

FOLDER = files.ROOT / "benchmarks" / "results"


def keep(name: str, found: Mapping[str, Any]) -> Path:
    """Write ``found`` to ``results/<name>`` beside commit, processor and number of cores, and say where."""
    about = manifest.head("benchmark", [])
    head = {"git": about["git"], "cpu": about["env"]["cpu"], "cores": about["env"]["cores"]}
    files.write_json(FOLDER / name, head | dict(found))
    print(FOLDER / name)
    return FOLDER / name
