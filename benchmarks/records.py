"""Results that are committed: every one with the commit and the machine that it was made with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.runner import manifest

FOLDER = files.ROOT / "benchmarks" / "results"
WIDTH = 240
_INNERMOST = re.compile(r"([\[{])\n\s*([^\[\]{}]*?)\n\s*([\]}])")


def written(found: Mapping[str, Any]) -> str:
    """``found`` as JSON in which an interval, or a short list, takes one line."""

    def joined(match: re.Match[str]) -> str:
        line = match[1] + re.sub(r"\n\s*", " ", match[2]) + match[3]
        return line if len(line) <= WIDTH else match[0]

    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return _INNERMOST.sub(joined, text) + "\n"


def keep(name: str, found: Mapping[str, Any]) -> Path:
    """Write ``found`` to ``results/<name>`` beside commit, processor and number of cores, and say where."""
    about = manifest.head("benchmark", [])
    head = {"git": about["git"], "cpu": about["env"]["cpu"], "cores": about["env"]["cores"]}
    files.write_text(FOLDER / name, written(head | dict(found)))
    print(FOLDER / name)
    return FOLDER / name
