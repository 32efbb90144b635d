"""One command sets everything up: pins, conda file, Makefile, CI script."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from starling_nb import files

ROOT = files.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]

FAKE_PYTHON = """#!/bin/sh
# Stands in for Python: -c succeeds, -m venv DIR copies itself there, -m pip fails where ./offline lies.
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip") echo pip >> pip.log; test ! -e offline ;;
esac
"""


def pins() -> dict[str, str]:
    """Canonical name → version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip()]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_pins_are_portable_and_installed() -> None:
    assert [version for version in pins().values() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)] == []
    assert metadata.version("papermill") == pins()["papermill"]


def test_conda_takes_its_versions_from_the_same_files() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, _, inner = content["dependencies"]
    assert python == "python=3.11"
    assert inner == {"pip": ["-c constraints.txt", "-e .[dev]"]}


def test_profiles_travel_with_the_package() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "profiles/*.toml" in found["package-data"]["starling_nb"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make with the stand-in for Python."""
    command = ["make", "--no-print-directory", f"PYTHON={project / 'python'}", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)


def test_make_sets_up_once_and_again_when_the_pins_change(project: Path) -> None:
    assert make(project).returncode == 0
    assert make(project).returncode == 0
    assert (project / "pip.log").read_text().count("pip") == 1
    os.utime(project / "constraints.txt", (2e9, 2e9))
    assert make(project).returncode == 0
    assert (project / "pip.log").read_text().count("pip") == 2
    assert sorted(path.name for path in (project / ".venv").iterdir()) == [".ok", "bin"]


def test_a_half_made_environment_is_made_anew(project: Path) -> None:
    (project / "offline").touch()
    assert make(project).returncode != 0
    (project / ".venv" / "rubbish").touch()
    (project / "offline").unlink()
    assert make(project).returncode == 0
    assert not (project / ".venv" / "rubbish").exists()
    assert (project / ".venv" / ".ok").exists()


def test_an_environment_made_by_hand_is_kept(project: Path) -> None:
    (project / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(project / "python", project / ".venv" / "bin" / "python")
    (project / ".venv" / "mine").touch()
    assert make(project).returncode == 0
    assert (project / ".venv" / "mine").exists()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("exit 1", "Python 3.11 or newer is needed"),
        ('case "$2" in *venv*) exit 1 ;; esac', "venv module is missing"),
    ],
)
def test_what_is_missing_is_one_message(project: Path, broken: str, message: str) -> None:
    (project / "python").write_text(f"#!/bin/sh\n{broken}\n")
    done = make(project)
    assert done.returncode != 0
    assert message in done.stdout
    assert not (project / ".venv").exists()


def test_a_full_disk_is_one_message(project: Path) -> None:
    done = make(project, "FREE_KB=99999999999999")
    assert "free disk" in done.stdout
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("reproduce", "starling-nb reproduce --profile smoke --out outputs/smoke"),
        ("test", "python -m pytest"),
        ("lab", "--ServerApp.ip=127.0.0.1"),
        ("lint", "ruff format --check ."),
        ("evidence", "--profile laptop --out outputs/laptop --strict"),
    ],
)
def test_targets_set_up_first_and_then_do_their_work(project: Path, target: str, command: str) -> None:
    lines = make(project, "-n", target, "PROFILE=smoke").stdout
    assert command in lines
    assert lines.index("-m pip install") < lines.index(command)


def test_the_ci_script_is_whole() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    assert all(step in text for step in ("set -euo pipefail", "make lint", "make test", "--profile smoke"))
