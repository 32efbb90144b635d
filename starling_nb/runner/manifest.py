"""The manifest: what was run, where, with what, and what came of it. The next run starts from it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from starling_nb import files

SCHEMA = 1
REFERENCE = files.ROOT / "outputs" / "reference"


def load(out: Path) -> dict[str, Any]:
    """The manifest of the run folder, or an empty one.

    Raises:
        StarlingError: the file is damaged.
    """
    path = out / "manifest.json"
    empty: dict[str, Any] = {"schema": SCHEMA, "stages": {}}
    if not path.exists():
        return empty
    found = files.read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("stages"), dict):
        raise files.StarlingError(
            f"{path} is not a manifest of this version: delete it, or choose another folder with --out"
        )
    return found


def save(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest atomically."""
    files.write_json(out / "manifest.json", manifest)


def head(profile: str, command: list[str]) -> dict[str, Any]:
    """The part of the manifest that describes the run as a whole."""
    constraints = files.ROOT / "constraints.txt"
    return {
        "schema": SCHEMA,
        "profile": profile,
        "command": " ".join(command),
        "git": git(),
        "env": environment(),
        "constraints_sha256": files.hash_file(constraints) if constraints.exists() else None,
    }


def environment() -> dict[str, Any]:
    """Python, platform, processor and the version of every installed package."""
    packages = {dist.name: dist.version for dist in metadata.distributions() if dist.name}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": dict(sorted(packages.items())),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git() -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a repository or without git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=files.ROOT, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def command_line() -> list[str]:
    """The command as a user would type it, without the path of the program."""
    name = Path(sys.argv[0]).name
    return ["starling-nb" if name in ("starling-nb", "__main__.py") else name, *sys.argv[1:]]


def usual_time(stage: str) -> str:
    """About how long a stage takes, from the committed reference run."""
    path = REFERENCE / "manifest.json"
    seconds = files.read_json(path)["stages"].get(stage, {}).get("seconds") if path.exists() else None
    return "its usual time is not known" if seconds is None else f"about {max(1, round(seconds / 60))} min on a laptop"


def shown(path: Path) -> str:
    """A path for messages: relative to the project where it lies inside."""
    return path.relative_to(files.ROOT).as_posix() if path.is_relative_to(files.ROOT) else str(path)


def changed_files(folder: str) -> list[str] | None:
    """Files of ``folder`` that differ from the commit or are not in it; None where git cannot tell."""
    if _git("rev-parse", "HEAD") is None:
        return None
    text = _git("status", "--porcelain", "--", folder)
    return None if text is None else [line.split(maxsplit=1)[1] for line in text.splitlines() if line.strip()]
