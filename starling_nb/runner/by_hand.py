"""A notebook opened alone, in JupyterLab or with plain papermill: its parameters and what it stands on."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starling_nb import files, profiles
from starling_nb.errors import StarlingError

PROFILE = "STARLING_NB_PROFILE"


def parameters(name: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook that is run without the runner, as :func:`starling_nb.stage.enter` says.

    Raises:
        ParameterError: the stage or an injected name is unknown.
    """
    if name not in profiles.STAGES:
        raise profiles.ParameterError(f"{name!r} is no stage; there are {', '.join(profiles.STAGES)}")
    known, laptop = profiles.kinds(name), profiles.values("laptop", name)
    injected = _injected(namespace.get("In", ()))
    if unknown := sorted(injected - known.keys()):
        raise profiles.ParameterError(f"{name} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    changed = {key for key in known if key in namespace and (key in injected or namespace[key] != laptop.get(key))}
    profile = namespace["profile"] if "profile" in changed else os.environ.get(PROFILE) or "laptop"
    return profiles.values(profile, name) | {key: namespace[key] for key in changed} | {"profile": profile}


def _injected(cells: Any) -> set[str]:
    """Names assigned by the cell that papermill puts below the parameters, from IPython's list of inputs."""
    found: set[str] = set()
    for source in cells:
        if source.startswith("# Parameters\n"):
            nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
            found |= {target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)}
    return found


def build(stage: str, asker: str, p: Any, out: Path) -> None:
    """Run ``stage``, which the stage ``asker`` with parameters ``p`` needs, with the runner.

    It gets a process of its own, because its kernel must not live in the asking one.

    Raises:
        StarlingError: the stage did not finish.
    """
    command = [sys.executable, "-m", "starling_nb", "reproduce", "--profile", p.profile]
    command += ["--out", str(out), "--only", stage[:2]]
    usual = profiles.values(p.profile, asker)
    for name in ("seed", "judge", "threads", "dtype"):
        if getattr(p, name) != usual[name]:
            command += ["--set", f"{name}={getattr(p, name)}"]
    child = subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            print(line, end="")
    if child.returncode:
        raise StarlingError(f"{stage} did not finish; its message stands above")
