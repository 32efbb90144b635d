"""Arms of a study: policies tuned each in its own way, measured alike on the same prompts, kept one by one.

An arm differs from another in what it learns by (the objective, a switch of the recipe), from (the start) or of (the
labels behind the reward model). Arms of one seed sample with the same random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from starling_nb import files
from starling_nb.errors import StarlingError
from starling_nb.models import LM, shallow
from starling_nb.nectar import prompts
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy import checkpoint, measure, offline, tuning
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.offline import c_rlft
from starling_nb.policy.offline.baselines import extrapolate
from starling_nb.policy.recipe import Recipe, parsed
from starling_nb.reward import RewardModel, comparisons, scoring, training
from starling_nb.reward.comparisons import Comparison
from starling_nb.reward.scoring import Prepared

Named = Callable[[str], Callable[[int, int, dict[str, float]], None]]
ONLINE = ("apa", "ppo", "p3o", "rloo")
BEYOND = 0.5
"""How far extrapolation goes beyond APA's policy, as a share of its way from the start."""
LABELS = ("full", "quarter", "noise", "naive")
"""What the reward model learns from: every ranking; a quarter of them; all, three in ten of them replaced by a random
order; as many by the naive prompt."""


@dataclass(frozen=True)
class Arm:
    """One policy: ``method`` is an online objective, ``dpo``, ``expo`` (the same arm's APA policy, extrapolated by
    :data:`BEYOND`), or ``start`` for the model that all begin with."""

    method: str
    seed: int = 0
    labels: str = "full"
    start: str = "chat"
    """What it begins with: the ``chat`` model, or its ``imitation`` of the data set's best answers."""
    changes: tuple[str, ...] = ()
    """Switches of the recipe, as text (``lr=1e-4``)."""
    split: str = "test"
    """Prompts on which it is measured."""

    @property
    def name(self) -> str:
        """A name that is this arm's alone, fit for a file: many changes are told by their number and a hash."""
        changes = "-".join(self.changes)
        if len(changes) > 120:
            changes = f"{len(self.changes)}-changes-{files.hash_value(self.changes)[:8]}"
        start = "" if self.start == "chat" else self.start
        own = [self.method, self.labels, start, changes, self.split, str(self.seed)]
        return "-".join(filter(None, own)).replace(":", "")


@dataclass(frozen=True)
class Ground:
    """What arms have in common.

    ``rows`` are files in Nectar's schema: ``final``, and ``naive`` where arms learn of those labels. ``recipe`` is each
    arm's before its changes; ``reward`` that of the reward models, on the first ``depth`` blocks; ``imitation`` that of
    the other start; everything is kept below ``folder``.
    """

    lm: LM
    rows: Mapping[str, Path]
    folder: Path
    recipe: Recipe
    reward: training.Recipe
    imitation: c_rlft.Recipe
    depth: int
    held_out: Sequence[str] = ()
    samples: int = 3
    limit: int | None = None
    """Prompts a split, at most."""
    named: Named = field(default=lambda _: lambda *_: None)

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of a split."""
        return prompts.load(split=split, limit=self.limit)


def labelled(ground: Ground, labels: str, seed: int) -> list[Comparison]:
    """The training comparisons under the given labels (see :data:`LABELS`).

    Raises:
        StarlingError: unknown labels, or their file is not among the ground's.
    """
    if labels not in LABELS:
        raise StarlingError(f"labels = {labels!r}: choose one of {', '.join(LABELS)}")
    source = "naive" if labels == "naive" else "final"
    if source not in ground.rows:
        raise StarlingError(f"labels = {labels!r} need the {source} rows: make them by notebook 01")
    found = comparisons.read(ground.rows[source], ground.lm.chat, ground.held_out)[0]["train"]
    draw = files.rng(seed, "labels", labels)
    if labels == "quarter":
        return [found[int(i)] for i in sorted(draw.choice(len(found), len(found) // 4, replace=False))]
    if labels == "noise":
        wrong = set(draw.choice(len(found), round(0.3 * len(found)), replace=False).tolist())
        return [replace(c, ranks=draw.permutation(c.ranks).tolist()) if i in wrong else c for i, c in enumerate(found)]
    return found


def reward_model(
    ground: Ground, labels: str, seed: int, trunk: dict[str, Prepared] | None = None
) -> tuple[RewardModel, dict[str, float]]:
    """A reward model trained on the labels, and what is taken off each prompt's scores; trained once and kept.

    Scores of *every* training prompt are centred, those of prompts without a label too: a policy meets them all.
    ``trunk`` holds what models of other labels and seeds have left of the frozen trunk, which is the same for all.
    """
    folder = ground.folder / "rewards" / f"{labels}-{seed}"
    half_done = folder.with_name(f"{folder.name}.pt")
    if not (folder / "offsets.json").exists():
        lm = shallow(ground.lm, ground.depth)
        recipe, trunk = replace(ground.reward, seed=seed), {} if trunk is None else trunk
        train, every = (labelled(ground, x, seed) for x in (labels, "full" if labels == "quarter" else labels))
        ready = _on_trunk(ground, lm, every, trunk)
        learned = {c.prompt_id for c in train}
        own = [one for one, c in zip(ready, every, strict=True) if c.prompt_id in learned]
        said = ground.named(f"reward model, {labels} labels, seed {seed}")
        scorer, _, _ = training.train(lm, own, recipe, checkpoint=half_done, report=said)
        scoring.assemble(lm, scorer).save_pretrained(folder, {"base": lm.name, "labels": labels})
        ranked = scoring.predict(scorer, ready, lm.dtype)
        files.write_json(folder / "offsets.json", comparisons.offsets(every, ranked))
        half_done.unlink(missing_ok=True)
    model = RewardModel.from_pretrained(folder, dtype=ground.lm.dtype)
    return model, files.read_json(folder / "offsets.json")


def _on_trunk(ground: Ground, lm: LM, found: Sequence[Comparison], trunk: dict[str, Prepared]) -> list[Prepared]:
    """Comparisons after the frozen trunk, under their own ranks; computed where ``trunk`` has no such answers."""
    keys = [files.hash_value([c.messages, c.answers]) for c in found]
    new = {key: c for key, c in zip(keys, found, strict=True) if key not in trunk}
    said = ground.named("trunk of reward models")
    trunk.update(zip(new, scoring.prepare(lm, list(new.values()), ground.reward.trainable, said), strict=True))
    ranks = [torch.tensor(c.ranks, dtype=torch.float64) for c in found]
    return [replace(trunk[key], ranks=own) for key, own in zip(keys, ranks, strict=True)]


def start_model(ground: Ground, arm: Arm) -> LM:
    """A model of the arm's own to begin with; the imitation is trained once a seed, on all labels, and kept.

    Raises:
        StarlingError: an unknown start.
    """
    lm = LM(copy.deepcopy(ground.lm.model), ground.lm.chat, ground.lm.name)
    if arm.start == "chat":
        return lm
    if arm.start != "imitation":
        raise StarlingError(f"start = {arm.start!r}: choose chat or imitation")
    path = ground.folder / "starts" / f"{arm.start}-{arm.seed}.safetensors"
    if not path.exists():
        recipe = replace(ground.imitation, seed=arm.seed)
        found = c_rlft.demonstrations(lm, labelled(ground, "full", arm.seed), recipe)
        said = ground.named(f"imitation, seed {arm.seed}")
        tuned = c_rlft.tune(lm, found, recipe, checkpoint=path.with_suffix(".pt"), report=said)
        checkpoint.save(tuned.hydra, path, ground.lm.name)
        path.with_suffix(".pt").unlink(missing_ok=True)
    return replace(checkpoint.load(ground.lm, path), name=f"{ground.lm.name}, {arm.start} {arm.seed}")


def run(ground: Ground, arm: Arm) -> pd.DataFrame:
    """Tune and measure an arm, or read what was kept of it: one row an answer.

    Columns: the arm's method, seed, labels, start, changes and split; prompt_id; utility (rubric, 1 to 10) and the
    rubric's parts; words; eos; reward (of the reward model on all labels, whatever the arm learned from); kl (nats a
    sequence from its own start).
    """
    kept = ground.folder / "arms" / f"{arm.name}.parquet"
    if not kept.exists():
        judge, _ = reward_model(ground, "full", arm.seed)
        recipe = replace(ground.recipe, seed=arm.seed, **parsed(arm.changes))
        fresh = start_model(ground, arm)
        hydra, history = Hydra(fresh, recipe.trainable), list[dict[str, float]]()
        if arm.method != "start":
            hydra, history = _tuned(ground, arm, fresh, recipe)
            checkpoint.save(hydra, kept.with_suffix(".safetensors"), fresh.name)
        found = measured(ground, fresh, hydra, judge, recipe, arm.split)
        told = {name: value for name, value in asdict(arm).items() if name != "changes"}
        files.write_json(kept.with_suffix(".json"), {"arm": asdict(arm), "recipe": asdict(recipe), "history": history})
        with files.replacing(kept) as part:
            found.assign(**told, changes=" ".join(arm.changes)).to_parquet(part)
        kept.with_suffix(".pt").unlink(missing_ok=True)
    return pd.read_parquet(kept)


def _tuned(ground: Ground, arm: Arm, lm: LM, recipe: Recipe) -> tuple[Hydra, list[dict[str, float]]]:
    path = ground.folder / "arms" / f"{arm.name}.pt"
    said = ground.named(arm.name)
    if arm.method == "expo":
        return _beyond(ground, arm, lm, recipe), []
    if arm.method == "dpo":
        return direct(lm, labelled(ground, arm.labels, arm.seed), recipe, path, ground.named)
    if arm.method not in ONLINE:
        raise StarlingError(f"method = {arm.method!r}: choose one of start, {', '.join(ONLINE)}, dpo, expo")
    model, offsets = reward_model(ground, arm.labels, arm.seed)
    own = replace(recipe, objective=arm.method)  # type: ignore[arg-type]
    tuned = tuning.tune(lm, model, ground.prompts("train"), own, offsets=offsets, checkpoint=path, report=said)
    return tuned.hydra, tuned.history


def _beyond(ground: Ground, arm: Arm, lm: LM, recipe: Recipe) -> Hydra:
    """The policy of an arm's APA, extrapolated; ``lm`` becomes it."""
    tuned = replace(arm, method="apa")
    weights = ground.folder / "arms" / f"{tuned.name}.safetensors"
    if not weights.exists():  # an arm may come from a record, which keeps no weights
        weights.with_suffix(".parquet").unlink(missing_ok=True)
    run(ground, tuned)
    policy = checkpoint.load(lm, weights)
    hydra = Hydra(lm, recipe.trainable)
    hydra.top = Hydra(extrapolate(lm, policy, BEYOND), recipe.trainable).top
    hydra.top.write_into(lm.model.model)
    return hydra


def direct(
    lm: LM, ranked: Sequence[Comparison], recipe: Recipe, path: Path, named: Named
) -> tuple[Hydra, list[dict[str, float]]]:
    """DPO on pairs of ``ranked``: as many sequences as an online run of ``recipe`` learns from, two a pair."""
    pairs = offline.pairs(ranked, recipe.steps * recipe.rollouts * recipe.epochs // 2, recipe.seed)
    prepared = scoring.prepare(lm, pairs, recipe.trainable, named("trunk for DPO"))
    own = offline.Recipe(batch=recipe.minibatch // 2, lr=recipe.lr, trainable=recipe.trainable, seed=recipe.seed)
    return offline.tune(lm, prepared, own, checkpoint=path, report=named("DPO"))


def measured(ground: Ground, lm: LM, hydra: Hydra, judge: RewardModel, recipe: Recipe, split: str) -> pd.DataFrame:
    """Answers of a policy to the prompts of a split, graded; columns as in :func:`run` less the arm's own."""
    how = {"samples": ground.samples, "seed": recipe.seed, "max_new_tokens": recipe.max_new_tokens}
    rollouts = measure.scored(lm, judge, ground.prompts(split), hydra.start, desc=f"{split} answers", **how)
    rewards, kl = [rollout.score for rollout in rollouts], measure.sequence_kl(hydra, rollouts, lm.dtype)
    return measure.grade(rollouts).assign(reward=rewards, kl=kl)
