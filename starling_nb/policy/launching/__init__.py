"""Training as a child process: ``accelerate launch`` on ``starling-nb tune``, watched, stopped, taken up again.

A notebook's kernel cannot be several processes. So it starts the library's entry point as any shell would, follows its
log and its metrics in files, and ends it when it is interrupted itself. Beside this module lie accelerate's
configurations, one a way of spreading the work.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import psutil

from starling_nb import THREADS_WAIT, files, progress
from starling_nb.models import EMBEDDED
from starling_nb.policy.launching.serving import LaunchError, served
from starling_nb.policy.recipe import Recipe, written

FOLDER = Path(__file__).parent
CONFIGS = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
"""Ways to spread a training: ``single``, ``ddp``, ``fsdp2`` (weights, gradients and optimiser in shards, as ZeRO-3),
``zero2`` (gradients and optimiser in shards)."""
LOG, PROGRESS, LOCK = "training.log", "progress.jsonl", ".training.lock"
LINES = 20
"""Lines of the log that an error shows."""
POLL = 0.1
PORT = 8711
"""Of a served reward model, in the command that is shown; a launch takes any that is free."""
SHOWN = ("reward", "kl", "length", "eos_rate")


@dataclass(frozen=True)
class Launch:
    """One training: what ``starling-nb tune`` is told, and how its processes are started.

    Raises:
        LaunchError: an unknown configuration, or one that does not go with the number of processes.
    """

    data: Path | str
    """Prompts, as ``starling-nb prompts`` writes them."""
    reward: Path | str
    """The reward model: a folder or a hub id."""
    out: Path
    """Folder of the training; a training that was broken off there is taken up."""
    base: str = EMBEDDED
    """The start model."""
    recipe: Recipe = field(default_factory=Recipe)
    """How it is tuned."""
    setting: str = "corrected"
    """The recipe's name, from which ``recipe`` may differ in single switches."""
    held_out: int = 100
    """Test prompts answered before and after, at most."""
    config: str = "single"
    """A name of :data:`CONFIGS`."""
    processes: int = 1
    """Processes that train, one a GPU."""
    reward_cards: int = 0
    """1: the reward model has the next GPU for itself, and all processes ask it; 0: each holds it beside its policy."""
    template: str = "own"
    """How the start model writes conversations."""
    prompt_tokens: int = 0
    """Longer prompts are left out; 0: as the window allows."""

    def __post_init__(self) -> None:
        if self.config not in CONFIGS:
            raise LaunchError(f"unknown accelerate configuration {self.config!r}: choose {', '.join(CONFIGS)}")
        if self.processes < 1 or (self.config == "single") != (self.processes == 1):
            raise LaunchError(
                f"{self.processes} processes do not go with {self.config}: single is for one, the others for several"
            )
        if self.reward_cards not in (0, 1):
            raise LaunchError(f"reward_cards = {self.reward_cards}: one card serves the reward model, or none (0)")

    def words(self) -> list[str]:
        """The command line of the library's entry point, without its name."""
        words = ["tune", str(self.data), "--reward", str(self.reward), "--out", str(self.out), "--base", self.base]
        words += ["--template", self.template]
        words += ["--objective", self.recipe.objective, "--recipe", self.setting]
        words += [word for text in written(self.recipe, self.setting) for word in ("--set", text)]
        words += ["--prompt-tokens", str(self.prompt_tokens)] if self.prompt_tokens else []
        return [*words, "--held-out", str(self.held_out)]

    def options(self) -> list[str]:
        """What ``accelerate launch`` is told before the entry point."""
        several = ["--main_process_port", "0"] if self.processes > 1 else []  # 0: any that is free
        config = str(FOLDER / f"{self.config}.yaml")
        return ["--quiet", "--config_file", config, "--num_processes", str(self.processes), *several]

    def command(self) -> list[str]:
        """The whole command, in this interpreter."""
        start = [sys.executable, "-m", "accelerate.commands.launch", *self.options()]
        return [*start, "-m", "starling_nb", *self.words()]

    @property
    def configuration(self) -> str:
        """The text of accelerate's configuration."""
        return (FOLDER / f"{self.config}.yaml").read_text(encoding="utf-8")

    def shown(self) -> str:
        """The command as a user would type it in the project's folder, an option a line; a served reward model has a
        line of its own before it."""
        server, own = "", self
        if self.reward_cards:
            name = shlex.quote(str(self.reward))
            server = f"CUDA_VISIBLE_DEVICES={self.processes} starling-nb serve-reward {name} --port {PORT} &\n"
            own = replace(self, reward=f"http://127.0.0.1:{PORT}")
        words = ["accelerate launch", *self.options(), "-m starling_nb", *own.words()]
        text = " ".join(word if " " in word else shlex.quote(word) for word in words)
        text = text.replace(" --", " \\\n    --").replace(" -m ", " \\\n    -m ")
        return f"{server}{text}".replace(f"{files.ROOT}{os.sep}", "")


@dataclass(frozen=True)
class Trained:
    """What a training left: one row a step, its measure on test prompts, and the folder of the policy."""

    curve: pd.DataFrame
    evaluation: pd.DataFrame
    policy: Path


def run(launch: Launch, say: Callable[[str], None] = print) -> Trained:
    """Train in child processes and wait for the end; started again, a training goes on from its last checkpoint.

    ``say`` gets the lines of the child's log and a line a training step. An interrupt (or any other exception here)
    ends the child with all its processes before it is passed on.

    Raises:
        LaunchError: another training is at work in the folder, or the training failed; then the message ends with the
            tail of its log.
    """
    env = _environment(launch.out)
    with ExitStack() as stack:
        lock, log = stack.enter_context(_alone(launch.out)), stack.enter_context((launch.out / LOG).open("ab"))
        (launch.out / PROGRESS).unlink(missing_ok=True)
        watch, held = _Watch(launch, say, log.tell()), [lock]
        if launch.reward_cards:
            say(f"reading the reward model {launch.reward}, which gets a card of its own")
            where, descriptor = stack.enter_context(
                served(str(launch.reward), launch.processes, launch.out, env, log, watch.tail)
            )
            launch, held = replace(launch, reward=where), [lock, descriptor]
        child = subprocess.Popen(
            launch.command(), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=held
        )
        try:
            while child.poll() is None:
                watch.look()
                time.sleep(POLL)
            watch.look()
        except BaseException:
            _end(child)
            say(f"stopped; started again, the training in {launch.out} goes on from its last checkpoint")
            raise
        finally:
            progress.abandon(launch.recipe.objective.upper())
    if child.returncode:
        raise LaunchError(
            f"the training in {launch.out} ended with code {child.returncode}. Put right what the end of its log says, "
            f"and start it again:\n{watch.tail()}"
        )
    curve, evaluation = (pd.read_csv(launch.out / name) for name in ("curve.csv", "evaluation.csv"))
    return Trained(curve, evaluation, launch.out / "policy")


class _Watch:
    """Passes on what a child writes: lines of its log, and its progress."""

    def __init__(self, launch: Launch, say: Callable[[str], None], start: int) -> None:
        self.log, self.name, self.say = launch.out / LOG, launch.recipe.objective.upper(), say
        self.start = self.read = start
        self.told = 0
        self.steps = progress.Tail(launch.out / PROGRESS)

    def look(self) -> None:
        """Say what is new."""
        with self.log.open("rb") as stream:
            stream.seek(self.read)
            block = stream.read()
        whole = block[: block.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            self.say(line)
        for record in self.steps.new():
            step, total, rates = record["step"], record["total"], record["rates"]
            progress.report(step, total, record["desc"], **rates)
            if record["desc"] == self.name and step > self.told:  # several ranks may report one step
                self.told = step
                known = [f"{name.replace('_', ' ')} {rates[name]:.3g}" for name in SHOWN if name in rates]
                self.say(f"{self.name} step {step}/{total}: {', '.join(known)}")

    def tail(self) -> str:
        """The last lines of this start's log."""
        with self.log.open("rb") as stream:
            stream.seek(self.start)
            lines = stream.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-LINES:]) or f"(it is empty: was the process killed, for want of memory? {self.log})"


def _environment(out: Path) -> dict[str, str]:
    """A batch run's environment: quiet threads, progress into a file, nothing of the notebook's own stage."""
    inherited = {name: value for name, value in os.environ.items() if name != "STARLING_NB_STAGE"}
    path = os.pathsep.join(filter(None, [str(files.ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**THREADS_WAIT, **inherited, **own, progress.HEADLESS: "1", progress.FILE: str(out / PROGRESS)}


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[int]:
    """Hold the folder; the child inherits the hold, so that it lasts while the child lives, even without its parent."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"a training is at work in {out}: wait for it or end it (log: {out / LOG}), or take another folder"
            ) from error
        yield stream.fileno()


def _end(child: subprocess.Popen[bytes], patience: float = 3.0) -> None:
    """End a child and all that it started: first by itself (an interrupt reaches it too), then ever less politely."""
    try:
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
    except psutil.NoSuchProcess:
        return
    for word, seconds in (
        (0, patience),
        (signal.SIGINT, 10 * patience),
        (signal.SIGTERM, patience),
        (signal.SIGKILL, patience),
    ):
        for process in family if word else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(word)
        _, family = psutil.wait_procs(family, timeout=seconds)
        if not family:
            break
    child.wait()
