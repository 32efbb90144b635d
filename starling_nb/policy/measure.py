"""What tuning did, on prompts that it never saw: quality by part, divergence from the start model, samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

import pandas as pd
import torch

from starling_nb import progress, rubric
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy.experience import collate_rollouts
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.rollouts import RewardOnTrunk, Rollout, collect
from starling_nb.reward.serving import Reward
from starling_nb.stats import Interval, mean_interval, paired_difference

# A sentence's end and the quotes or brackets that close with it; the number before a list item ends nothing.
ENDS = re.compile(r"(?<!^\d)(?<!^\d\d)[.!?…][\"'”’)\]]*(?=\s|$)", re.MULTILINE)


def held_out(
    lm: LM,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    max_new_tokens: int,
    capture: Collection[int] = (),
    desc: str = "held-out answers",
) -> list[Rollout]:
    """``samples`` answers a prompt at temperature 1; equal seeds give equal random numbers to every model."""
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    ids = [f"held-out/{prompt.id}/{i % samples}" for i, prompt in enumerate(repeated)]
    said = progress.sampling(len(ids), desc)
    return collect(lm, repeated, ids, seed=seed, max_new_tokens=max_new_tokens, capture=capture, progress=said)


def scored(
    lm: LM,
    reward: Reward,
    prompts: Sequence[Prompt],
    start: int,
    *,
    samples: int,
    seed: int,
    max_new_tokens: int,
    desc: str = "held-out answers",
) -> list[Rollout]:
    """:func:`held_out` answers with their scores; ``start`` is the first block that learns or has learned."""
    score = RewardOnTrunk(reward, lm, start)
    how = {"samples": samples, "seed": seed, "max_new_tokens": max_new_tokens}
    found = held_out(lm, prompts, capture=score.capture, desc=desc, **how)
    score(found)
    return found


def grade(rollouts: Sequence[Rollout], edit: Callable[[str], str] | None = None) -> pd.DataFrame:
    """Rubric grades, one row a rollout: prompt_id, utility (1 to 10), the rubric's parts (0 to 1), words, eos.

    ``edit`` changes the texts first, for baselines such as :func:`to_last_sentence`.
    """
    rows = []
    for rollout in rollouts:
        text = edit(rollout.text) if edit else rollout.text
        found = rubric.grade(rollout.prompt.rubric, rollout.prompt.messages, text)
        parts = {name: float(value) for name, value in found.parts.items()}
        words = {"words": float(len(text.split())), "eos": float(rollout.sample.finished)}
        rows.append({"prompt_id": rollout.prompt.id, "utility": found.utility, **parts, **words})
    return pd.DataFrame(rows)


def to_last_sentence(text: str) -> str:
    """The text up to its last finished sentence: the baseline of a policy that only learned to stop in time."""
    ends = [match.end() for match in ENDS.finditer(text)]
    return text[: ends[-1]] if ends else text


def gain(before: pd.DataFrame, after: pd.DataFrame, part: str) -> Interval:
    """Mean change of one column of two gradings, paired by row, interval clustered by prompt."""
    return paired_difference(after[part], before[part], clusters=before.prompt_id)


def change(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Every column of two gradings side by side, paired by row, intervals clustered by prompt.

    Columns: part, before, after, value (the difference), low, high, n.
    """
    rows = []
    for part in [column for column in before.columns if column != "prompt_id"]:
        means = {"before": before[part].mean(), "after": after[part].mean()}
        rows.append({"part": part, **means, **vars(gain(before, after, part))})
    return pd.DataFrame(rows)


def divergence(hydra: Hydra, rollouts: Sequence[Rollout], dtype: torch.dtype, batch: int = 16) -> Interval:
    """KL(policy ‖ start model) in nats a sequence, mean over prompts (:func:`sequence_kl`)."""
    return mean_interval(sequence_kl(hydra, rollouts, dtype, batch), [rollout.prompt.id for rollout in rollouts])


@torch.no_grad()
def sequence_kl(hydra: Hydra, rollouts: Sequence[Rollout], dtype: torch.dtype, batch: int = 16) -> list[float]:
    """KL(policy ‖ start model) of each rollout, nats: exact over the vocabulary, summed over the sampled tokens."""
    found: list[float] = []
    for first in progress.track(range(0, len(rollouts), batch), "divergence from the start model", printed=False):
        sequences = collate_rollouts(rollouts[first : first + batch])
        with torch.autocast(sequences.states.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            kl = hydra.compare(sequences).kl
        found += sequences.unflatten(kl).sum(1).tolist()
    return found
