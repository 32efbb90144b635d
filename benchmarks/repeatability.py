"""Does a run repeat itself, and does a killed one end where an undisturbed one does?

    python -m benchmarks.repeatability [--profile smoke] [--folder DIR]

Runs the whole story into fresh folders that share nothing: twice undisturbed, once killed without warning (SIGKILL) in
the middle of notebook 03 and again in the middle of 04, and notebook 00 with another seed. Compares ``metrics.json``
byte for byte and writes ``benchmarks/results/repeatability.json``. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starling_nb import files
from starling_nb.runner.manifest import head

RESULTS = files.ROOT / "benchmarks" / "results" / "repeatability.json"
# Long enough that each training loop has written a checkpoint before it is over.
LONGER = ("03.epochs=2", "03.batch=2", "04.steps=4")
KILLS = {"03_reward_training": "k_wise.pt", "04_policy_tuning": "apa.pt"}


def command(profile: str, out: Path, settings: Sequence[str] = LONGER, only: str = "") -> list[str]:
    """The command line of one run."""
    line = [sys.executable, "-m", "starling_nb", "reproduce", "--profile", profile, "--out", str(out)]
    for setting in settings:
        line += ["--set", setting]
    return [*line, "--only", only] if only else line


def run(line: Sequence[str], log: Path) -> None:
    """Run to the end; its words go to ``log``."""
    with log.open("a") as stream:
        subprocess.run(line, check=True, stdout=stream, stderr=subprocess.STDOUT)


def run_killed(line: Sequence[str], out: Path, stage: str, checkpoint: str, log: Path) -> None:
    """Start a run and kill it, and only it, without warning once ``stage`` has written ``checkpoint``."""
    with log.open("a") as stream:
        process = subprocess.Popen(line, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if any(out.glob(f".checkpoints/{stage}-*/{checkpoint}")):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                return
            time.sleep(0.05)
    raise SystemExit(f"the run ended before {stage} had written {checkpoint}: choose longer settings; see {log}")


def steps(out: Path) -> dict[str, Any]:
    """What the manifest says of each stage: seconds and the step it went on from."""
    stages = files.read_json(out / "manifest.json")["stages"]
    return {name: {key: entry[key] for key in ("seconds", "resumed_step", "key")} for name, entry in stages.items()}


def main() -> None:
    """Run, kill, compare, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="repeatability-"))
    log = folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    outs = {name: folder / name for name in ("first", "second", "killed", "seed")}
    for name in ("first", "second"):
        print(f"{name} run", flush=True)
        run(command(asked.profile, outs[name]), log)
    for stage, checkpoint in KILLS.items():
        print(f"a run killed in {stage}", flush=True)
        run_killed(command(asked.profile, outs["killed"]), outs["killed"], stage, checkpoint, log)
    print("its last part", flush=True)
    run(command(asked.profile, outs["killed"]), log)
    print("another seed", flush=True)
    run(command(asked.profile, outs["seed"], ("seed=1",), only="00"), log)
    texts = {name: (out / "metrics.json").read_bytes() for name, out in outs.items()}
    begun = {key: value for key, value in files.read_json(outs["first"] / "metrics.json").items() if key[:2] == "00"}
    resumed = {stage: steps(outs["killed"])[stage]["resumed_step"] for stage in KILLS}
    verdicts = {
        "two_runs_identical": texts["first"] == texts["second"],
        "killed_run_identical": texts["first"] == texts["killed"],
        "killed_run_resumed": all((step or 0) > 0 for step in resumed.values()),
        "another_seed_differs": files.read_json(outs["seed"] / "metrics.json") != begun,
    }
    about = head(asked.profile, [])
    files.write_json(
        RESULTS,
        {
            **{key: about[key] for key in ("git", "env") if key in about},
            "profile": asked.profile,
            "settings": list(LONGER),
            "metrics": len(files.read_json(outs["first"] / "metrics.json")),
            "resumed_step": resumed,
            "stages": {name: steps(out) for name, out in outs.items()},
            **verdicts,
        },
    )
    print(f"{verdicts}\n{RESULTS}; the runs are in {folder}")
    sys.exit(not all(verdicts.values()))


if __name__ == "__main__":
    main()
