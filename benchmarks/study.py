"""The study of policies: every method, its labels, its blocks and the switches of its recipe over several seeds.

    python -m benchmarks.study [CHAPTER ...] [--seeds 0 1 2] [--workers 2] [--record benchmarks/results/study]

Hours on two cores, and resumable arm by arm: each is a process of its own with one thread, and is kept when it is done.
With ``--record`` the arms of an earlier record count as done too: a study goes on, chapter by chapter, on another
machine.
``trials`` come first: every method gets the same learning rates, for fewer steps, on validation prompts; the best goes
into all other chapters, which are measured on test prompts. A rate at which a guard stops the method while it learns,
for any seed of ``methods``, is not one to tune with: its next best takes its place, for all seeds, as the record says.
Arms of the other chapters are measured even where their answers no longer end: to leave those out would hide what an
arm's labels or switches do.

``methods``   APA, PPO, P3O, RLOO and DPO on as many sequences, beside the start model
``labels``    APA, PPO and P3O with a reward model from a quarter of the rankings, from noisy ones, from a naive judge's
``parts``     APA on the last blocks, on middle blocks, and on adapters
``starts``    DPO and APA from the chat model's imitation of the data set's best answers
``beyond``    APA's policies, extrapolated
``switches``  APA with a part of the published recipe at a time, and with all of it

Writes ``benchmarks/results/study/policy.parquet``, the mean of an arm's answers to each prompt, from which notebook 04
computes every interval, and ``policy.json``: commit, machine, recipe, the trials and the steps of every arm.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import records
from starling_nb import files, models, profiles, progress
from starling_nb.errors import StarlingError
from starling_nb.policy.offline import baselines, c_rlft
from starling_nb.policy.recipe import PARTS, PUBLISHED, SCALED, Recipe, TuningError
from starling_nb.policy.study import arms, effects
from starling_nb.policy.study.arms import Arm, Ground
from starling_nb.reward import comparisons, scoring, training
from starling_nb.runner import manifest

SEEDS = (0, 1, 2)
TRIAL_SEED = 100
RATES = ("2e-4", "4e-4")
TRIAL = "steps=6"
METHODS = (*arms.ONLINE, "dpo")
ROWS = {"final": (), "naive": ("--set", "01.variant=naive")}
KEPT = [*effects.ARM, "split", "seed", "prompt_id"]
IMITATION = c_rlft.Recipe.best_answers(lr=1e-4)


def ground(folder: Path, profile: str) -> Ground:
    """What the arms have in common, in the sizes of a profile."""
    ours: Any = profiles.make("04_policy_tuning", profiles.values(profile, "04_policy_tuning"))
    theirs: Any = profiles.make("03_reward_training", profiles.values(profile, "03_reward_training"))
    return Ground(
        lm=models.load(dtype=ours.dtype, threads=1),
        rows={name: folder / name / "01_dataset_construction" / "nectar.parquet" for name in ROWS},
        folder=folder,
        recipe=Recipe.of(ours),
        reward=training.Recipe(
            **{x.name: getattr(theirs, x.name) for x in fields(training.Recipe) if hasattr(theirs, x.name)}
        ),
        imitation=replace(IMITATION, trainable=ours.trainable),
        depth=theirs.depth,
        held_out=theirs.held_out,
        samples=ours.samples,
        limit=None if profile == "study" else ours.n_held_out,
        named=progress.named,
    )


def trials() -> list[Arm]:
    """Every method at every learning rate."""
    tried = [Arm(m, TRIAL_SEED, changes=(f"lr={r}", TRIAL), split="validation") for r in RATES for m in METHODS]
    return [Arm("start", TRIAL_SEED, split="validation"), *tried]


def chosen(folder: Path) -> dict[str, str]:
    """The learning rate of each method whose trial did best by the rubric, as a change, of those no guard stopped.

    Raises:
        StarlingError: a guard has stopped a method at every rate.
    """
    table = pd.concat([pd.read_parquet(_kept(folder, arm)) for arm in trials() if not _stop(folder, arm).exists()])
    for method, rate in itertools.product(METHODS, RATES):
        if ruled_out(folder, Arm(method, changes=(f"lr={rate}",))):
            table = table[(table.method != method) | (table.changes != f"lr={rate} {TRIAL}")]
    best = effects.best_rate(table[table.method.isin(METHODS)])
    if lost := [method for method in METHODS if method not in best]:
        raise StarlingError(f"guards have stopped {', '.join(lost)} at every rate: add a smaller one to RATES")
    return {method: changes.removesuffix(f" {TRIAL}") for method, changes in best.items()}


def chapters(rates: dict[str, str]) -> dict[str, list[Arm]]:
    """The arms of each chapter, seed by seed."""

    def arm(method: str, seed: int, *changes: str, **other: str) -> Arm:
        return Arm(method, seed, changes=(rates[method], *changes), **other)

    def imitations(seed: int) -> list[Arm]:
        tuned = [arm(method, seed, start="imitation") for method in ("dpo", "apa")]
        return [Arm("start", seed, start="imitation"), *tuned]

    switches = {name: f"{name}={value}".lower() for name, value, _ in PUBLISHED if name not in SCALED}
    sets = [[switches[name] for name in names] for names in (switches, *PARTS.values())]
    return {
        "methods": [one for s in SEEDS for one in (Arm("start", s), *(arm(m, s) for m in METHODS))],
        "labels": [arm(m, s, labels=x) for s in SEEDS for x in arms.LABELS[1:] for m in arms.ONLINE[:3]],
        "parts": [arm("apa", s, f"trainable={part}") for s in SEEDS for part in ("blocks:13-16", "lora:8")],
        "starts": [one for s in SEEDS for one in imitations(s)],
        "beyond": [replace(arm("apa", s), method="expo") for s in SEEDS],
        "switches": [arm("apa", s, *changes) for s in SEEDS for changes in sets],
    }


def _kept(folder: Path, arm: Arm) -> Path:
    return folder / "arms" / f"{arm.name}.parquet"


def _stop(folder: Path, arm: Arm) -> Path:
    return folder / "arms" / f"{arm.name}.stopped.json"


def ruled_out(folder: Path, arm: Arm) -> bool:
    """Whether a guard has stopped the arm's method, for any seed, at the arm's learning rate."""
    return any(_stop(folder, Arm(arm.method, seed, changes=arm.changes[:1])).exists() for seed in SEEDS)


def over(folder: Path, arm: Arm) -> bool:
    """Whether an arm has been measured, or stopped by a guard."""
    return _kept(folder, arm).exists() or _stop(folder, arm).exists()


def child(asked: argparse.Namespace, *words: str) -> None:
    """One job in a process of its own; what it says is kept below the folder."""
    log = asked.out / "logs" / f"{'-'.join(words).strip('-').replace(':', '')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "benchmarks.study", "--profile", asked.profile, "--out", str(asked.out), *words]
    with log.open("w") as out:
        code = subprocess.run(line, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    print(f"{'done' if code == 0 else f'FAILED, see {log}'}: {' '.join(words)}", flush=True)
    if code:
        raise SystemExit(code)


def decides(arm: Arm) -> bool:
    """Whether an arm is one of those that decide on the rates: a trial, or one of ``methods``."""
    return arm.split == "validation" or (arm.labels == "full" and arm.start == "chat" and len(arm.changes) < 2)


def alone(asked: argparse.Namespace, arm: Arm) -> None:
    """One arm in this process; the commit goes beside its record. One that a guard stops is over, with the reason."""
    common = ground(asked.out, asked.profile)
    if not decides(arm):
        common = replace(common, recipe=replace(common.recipe, eos_floor=0.0))
    try:
        arms.run(common, arm)
    except TuningError as error:
        print(f"stopped: {error}", flush=True)
        files.write_json(_stop(asked.out, arm), {"reason": str(error)})
        _kept(asked.out, arm).with_suffix(".pt").unlink(missing_ok=True)
        return
    note = _kept(asked.out, arm).with_suffix(".json")
    files.write_json(note, {"commits": [manifest.git()["commit"]], **files.read_json(note)})


def run(asked: argparse.Namespace, wanted: Sequence[Arm]) -> None:
    """Make the rows, the arms that are not over yet and the reward models these need, ``workers`` at a time."""
    wanted = [arm for arm in wanted if not over(asked.out, arm)]
    for name, settings in ROWS.items():
        if not (asked.out / name / "01_dataset_construction" / "stage.json").exists():
            line = [sys.executable, "-m", "starling_nb", "reproduce", "--only", "01", "--out", str(asked.out / name)]
            subprocess.run([*line, "--profile", asked.profile, *settings], check=True)
    rewards = sorted({(labels, arm.seed) for arm in wanted for labels in ("full", arm.labels)})
    names = [f"{labels}-{seed}" for labels, seed in rewards]
    missing = [name for name in names if not (asked.out / "rewards" / name / "offsets.json").exists()]
    shares = [share for i in range(asked.workers) if (share := missing[i :: asked.workers])]
    with ThreadPoolExecutor(asked.workers) as pool:
        list(pool.map(lambda share: child(asked, "--reward", *share), shares))
        # A start model is trained by its own arm; those that begin with it find it there.
        for starts in (True, False):
            left = [arm for arm in wanted if (arm.method == "start") is starts]
            list(pool.map(lambda arm: ruled_out(asked.out, arm) or child(asked, "--arm", arm.name), left))


def unpack(record: Path, folder: Path, profile: str) -> None:
    """Lay the arms of a record into ``folder``, but for those that are there: a row a prompt of each, no weights.

    Raises:
        StarlingError: a study of another profile or recipe.
    """
    about, rows = files.read_json(record / "policy.json"), effects.read(record / "policy.parquet")
    ours = {"profile": profile, "recipe": asdict(ground(folder, profile).recipe)}
    if ours != {name: about[name] for name in ours}:
        raise StarlingError(f"{record} is a study of another profile or recipe: leave --record out")
    for name, reason in about["stopped"].items():
        files.write_json(folder / "arms" / f"{name}.stopped.json", {"reason": reason})
    own = rows.assign(method=rows.method.where(~rows.method.str.startswith("best of "), "start"))
    for key, places in own.groupby([*effects.ARM, "split", "seed"], sort=False).groups.items():
        method, labels, start, changes, split, seed = key
        arm = Arm(method, seed, labels, start, tuple(changes.split()), split)
        if method != effects.DEMONSTRATION and not over(folder, arm):
            history = pd.DataFrame(about["steps"][arm.name]).to_dict("records")
            files.write_json(_kept(folder, arm).with_suffix(".json"), {"commits": about["commits"], "history": history})
            with files.replacing(_kept(folder, arm)) as part:
                rows.loc[places].to_parquet(part)


def gather(folder: Path, profile: str) -> None:
    """Write what there is of all chapters into the committed record."""
    rates = chosen(folder)
    every = [*trials(), *(arm for part in chapters(rates).values() for arm in part)]
    found = [arm for arm in every if _kept(folder, arm).exists()]
    tables = [pd.read_parquet(_kept(folder, arm)) for arm in found]
    tables += [best(table) for table in tables if (table.method == "start").all()]
    tables.append(demonstrated(folder, profile))
    numbers = ["utility", "facts", "words", "eos", "reward", "kl"]
    every_column = [table.reindex(columns=[*KEPT, *numbers]) for table in tables]
    means = pd.concat([table.groupby(KEPT, sort=False)[numbers].mean().reset_index() for table in every_column])
    notes = {arm.name: files.read_json(_kept(folder, arm).with_suffix(".json")) for arm in found}
    steps = {name: pd.DataFrame(note["history"]).round(6).to_dict("list") for name, note in notes.items()}
    stops = {path.name.removesuffix(".stopped.json"): path for path in (folder / "arms").glob("*.stopped.json")}
    reasons = {name: files.read_json(path)["reason"] for name, path in sorted(stops.items())}
    # An APA arm that its extrapolation trained, in its own process, has none.
    commits = sorted({commit for note in notes.values() for commit in note.get("commits", ())})
    about = {"profile": profile, "rates": rates, "stopped": reasons, "recipe": asdict(ground(folder, profile).recipe)}
    records.keep("study/policy.json", about | {"commits": commits, "missing": len(every) - len(found), "steps": steps})
    with files.replacing(records.FOLDER / "study" / "policy.parquet") as part:
        means.astype(dict.fromkeys(numbers, "float32")).to_parquet(part, index=False)


def best(start: pd.DataFrame) -> pd.DataFrame:
    """For each prompt the answer of the start model that the reward model likes best: best of n, and its divergence."""
    place = start.groupby("prompt_id", sort=False).reward.idxmax()
    n = len(start) // len(place)
    return start.loc[place].assign(method=f"best of {n}", kl=baselines.best_of_n_kl(n))


def demonstrated(folder: Path, profile: str) -> pd.DataFrame:
    """What the data set's first-ranked answers to test prompts are worth, as rows of an arm; the same for all seeds."""
    common = ground(folder, profile)
    found = baselines.best_demonstrations(common.prompts("test"), comparisons.load(common.rows["final"]))
    rows = found.rename(columns={"by_rank": "utility"})[["prompt_id", "utility"]]
    arm = {"method": effects.DEMONSTRATION, "labels": "full", "start": "chat", "changes": "", "split": "test"}
    return pd.concat([rows.assign(**arm, seed=seed) for seed in SEEDS])


def _now(asked: argparse.Namespace, name: str) -> list[Arm]:
    """The arms of a chapter and of the seeds asked for, at the rates chosen by now."""
    return [arm for arm in chapters(chosen(asked.out))[name] if arm.seed in asked.seeds]


def main() -> None:
    """Run what is missing of the chapters, then gather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapter", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=SEEDS, help="only these, for now")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--profile", default="study")
    parser.add_argument("--out", type=Path, default=files.ROOT / "outputs" / "study")
    parser.add_argument("--record", type=Path, help="a folder like benchmarks/results/study, whose arms count as done")
    parser.add_argument("--reward", nargs="+", metavar="LABELS-SEED", help="train these reward models, and no more")
    parser.add_argument("--arm", help="run one arm by its name, and no more")
    asked = parser.parse_args()
    if asked.reward:
        common, trunk = ground(asked.out, asked.profile), dict[str, scoring.Prepared]()
        for labels, _, seed in (name.rpartition("-") for name in asked.reward):
            arms.reward_model(common, labels, int(seed), trunk)
        return
    parts = [chapters(dict.fromkeys(METHODS, f"lr={rate}")) for rate in RATES]
    if asked.arm:
        known = [*trials(), *(arm for one in parts for part in one.values() for arm in part)]
        named = {arm.name: arm for arm in known}
        if asked.arm not in named:
            parser.error(f"unknown arm {asked.arm}: choose from {', '.join(named)}")
        alone(asked, named[asked.arm])
        return
    if unknown := [name for name in asked.chapter if name not in parts[0]]:
        parser.error(f"unknown chapter {', '.join(unknown)}: choose from {', '.join(parts[0])}")
    if asked.record:
        unpack(asked.record, asked.out, asked.profile)
    run(asked, trials())
    for name in asked.chapter or parts[0]:
        while left := [arm for arm in _now(asked, name) if not over(asked.out, arm)]:
            run(asked, left)
    gather(asked.out, asked.profile)


if __name__ == "__main__":
    main()
