"""A long run at weak KL, watched: does the rubric turn while the reward model's score still rises?

    python -m benchmarks.overoptimization [--method apa] [--kl 0.002] [--steps 60] [--every 4] [--labels full]

Hours on two cores, and resumable step by step: the run stops every few steps, its policy answers held-out prompts, and
proxy, another reward model, judge and rubric measure the answers. The proxy is notebook 03's recipe, unchanged, on the
labels that are named (a quarter of them makes a weaker one); the other reward model learns from validation rows. Beside
it stands the best of n of the start model's answers. A guard that stops the run ends its curve, and is kept with it.
Writes ``benchmarks/results/overoptimization/answers.parquet``, what every measure makes of each answer, from which
notebook 06 computes both curves and their fits, and ``run.json``: commit, machine, recipe and the monitor's verdicts.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from benchmarks import records, study
from starling_nb import files, progress
from starling_nb.evaluation.overoptimization import goodhart
from starling_nb.judge.connect import connect
from starling_nb.models import LM
from starling_nb.nectar import prompts
from starling_nb.policy import tuning
from starling_nb.policy.recipe import Recipe, TuningError
from starling_nb.policy.study import arms
from starling_nb.policy.study.arms import Ground


def kept(path: Path, make: pd.DataFrame | None = None) -> pd.DataFrame:
    """A table of answers, written whole where it was just made, else read."""
    if make is not None:
        with files.replacing(path) as part:
            make.to_parquet(part)
    return pd.read_parquet(path)


def watched(
    ground: Ground, recipe: Recipe, asked: argparse.Namespace, panel: goodhart.Panel
) -> tuple[dict[str, pd.DataFrame], str | None]:
    """The run's answers every few steps, by name, and why a guard stopped it; what is there is not made again.

    A run goes on from its last checkpoint whatever its length, so that it is asked for a few more steps each time.

    Raises:
        TuningError: a guard stopped the run before it was measured twice.
    """
    _, offsets = arms.reward_model(ground, asked.labels, asked.seed)
    held_out, found = prompts.load(split="test", limit=asked.prompts), {}
    for step in range(asked.every, recipe.steps + 1, asked.every):
        path = asked.out / f"step-{step:04}.parquet"
        if not path.exists():
            fresh = LM(copy.deepcopy(ground.lm.model), ground.lm.chat, ground.lm.name)
            try:
                tuning.tune(
                    fresh,
                    panel.proxy,
                    ground.prompts("train"),
                    replace(recipe, steps=step),
                    offsets=offsets,
                    checkpoint=asked.out / "run.pt",
                    report=progress.named(f"{asked.method}, to step {step}"),
                )
            except TuningError as error:
                if len(found) < 2:
                    raise
                return found, str(error)
            kept(path, panel.measured(fresh, ground.lm, held_out, asked.policy_samples, f"step {step}"))
        found[f"step {step}"] = kept(path)
    return found, None


def run(asked: argparse.Namespace) -> None:
    """Measure the start and the run, fit, and keep what was found."""
    ground = study.ground(asked.study, asked.profile)
    rows = ground.rows["final"]
    if not rows.exists():
        line = [sys.executable, "-m", "starling_nb", "reproduce", "--only", "01", "--profile", asked.profile]
        subprocess.run([*line, "--out", str(asked.study / "final")], check=True)
    changes = {"objective": asked.method, "kl": asked.kl, "steps": asked.steps, "seed": asked.seed}
    recipe = replace(ground.recipe, **changes)
    proxy, _ = arms.reward_model(ground, asked.labels, asked.seed)
    other = goodhart.other_reward(ground.lm, rows, proxy, asked.n_other, progress.named)
    asked.out.mkdir(parents=True, exist_ok=True)
    with connect(asked.judge, asked.out / "ledger.sqlite", asked.seed) as judge:
        panel = goodhart.Panel(proxy, other, judge, asked.seed, recipe.max_new_tokens)
        path = asked.out / f"start-{asked.samples}.parquet"
        if not path.exists():
            held_out = prompts.load(split="test", limit=asked.prompts)
            kept(path, panel.measured(ground.lm, ground.lm, held_out, asked.samples, "start"))
        start, (after, stopped) = kept(path), watched(ground, recipe, asked, panel)
    keep(asked, recipe, start, after, stopped)


def keep(
    asked: argparse.Namespace, recipe: Recipe, start: pd.DataFrame, after: dict[str, pd.DataFrame], stopped: str | None
) -> None:
    """The committed record: every answer's measures, settings, and verdicts in each measure's own unit."""
    found = goodhart.watch(start, after, asked.method)
    print(found.verdicts[["way", "measure", "seen", "n", "said"]].to_string(index=False))
    numbers = dict.fromkeys([*goodhart.MEASURES, "kl"], "float32")
    columns = ["policy", "prompt_id", "sample", *numbers, "words"]
    rows = pd.concat([table.assign(policy=name) for name, table in {"start": start, **after}.items()])
    about = {
        "asked": {name: value for name, value in vars(asked).items() if not isinstance(value, Path)},
        "recipe": asdict(recipe),
        "stopped": stopped,
        "left_out": found.left_out,
        "verdicts": json.loads(found.verdicts.to_json(orient="records", double_precision=6)),
    }
    records.keep(f"{asked.name}/run.json", about)
    with files.replacing(records.FOLDER / asked.name / "answers.parquet") as part:
        rows[columns].astype(numbers).to_parquet(part, index=False)


def main() -> None:
    """Read the settings and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=arms.ONLINE, default="apa")
    parser.add_argument("--kl", type=float, default=0.002, help="weight of the log-ratio in the reward")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=4, help="steps between two measurements")
    parser.add_argument("--labels", choices=arms.LABELS, default="full", help="what the proxy learns from")
    parser.add_argument("--prompts", type=int, default=138, help="held-out prompts, at most")
    parser.add_argument("--samples", type=int, default=64, help="answers of the start model a prompt")
    parser.add_argument("--policy-samples", type=int, default=3, help="answers of each policy a prompt")
    parser.add_argument("--n-other", type=int, default=100, help="rankings of the other reward model, at most")
    parser.add_argument("--judge", default="simulated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", default="study")
    parser.add_argument("--study", type=Path, default=files.ROOT / "outputs" / "study", help="rows and reward models")
    parser.add_argument("--out", type=Path, default=files.ROOT / "outputs" / "overoptimization")
    parser.add_argument("--name", default="overoptimization", help="folder of the record")
    asked = parser.parse_args()
    if asked.steps < 2 * asked.every:
        parser.error(f"--steps {asked.steps} leaves less than two measurements: raise it, or lower --every")
    run(asked)


if __name__ == "__main__":
    main()
