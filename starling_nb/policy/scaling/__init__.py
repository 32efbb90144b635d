"""Notebook 07, step by step: the run of each profile, its plan, and its bytes beside those of the classes that run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, MistralConfig

from starling_nb import files, models, profiles
from starling_nb.decoding import SlabLayer
from starling_nb.models import LM
from starling_nb.policy.hydra import Hydra
from starling_nb.policy.launching import Launch
from starling_nb.policy.recipe import Recipe
from starling_nb.policy.rollouts import RewardOnTrunk
from starling_nb.policy.scaling import plan as planning
from starling_nb.policy.scaling.plan import LEARNING, SAMPLING, Card, Plan, Run, Shape
from starling_nb.reward import RewardModel

TUNING, SCALING = "04_policy_tuning", "07_scaling_out"
RELEASED: dict[str, Any] = {
    "openchat/openchat_3.5": MistralConfig(vocab_size=32_002, intermediate_size=14_336, num_key_value_heads=8),
    "berkeley-nest/Starling-RM-7B-alpha": LlamaConfig(),
}
"""Configurations of the released models, so that a plan needs no network."""
FLIGHT = inspect.signature(models.sample).parameters["batch"].default
"""Answers that the sampler takes at a time, at most."""
HERE = "here"
"""The machine that a notebook runs on, where a card is asked for."""


@dataclass(frozen=True)
class Sized:
    """The run of stage 04 in one profile, the card it is for, and the configurations of its two models."""

    profile: str
    run: Run
    card: Card
    policy: Any
    reward: Any

    @property
    def plan(self) -> Plan:
        """The run's plan on its card; raises :class:`~.scaling.plan.PlanError` where it does not fit."""
        return planning.plan(self.run, self.card)


def parameters(profile: str) -> tuple[Any, Any]:
    """What a profile says of tuning (stage 04) and of the machines for it (stage 07)."""
    tuning, scaling = (profiles.make(stage, profiles.values(profile, stage)) for stage in (TUNING, SCALING))
    return tuning, scaling


def sized(profile: str, lm: LM, reward: RewardModel, prompts: Sequence[Any], here: Card) -> Sized:
    """The run that a profile describes.

    Args:
        profile: its name.
        lm: the embedded start model, for profiles that start from it; its prompts are counted in its tokens.
        reward: the reward model of notebook 03, likewise.
        prompts: the training prompts.
        here: this machine, for profiles that ask for no card.
    """
    p, q = parameters(profile)
    configs = [RELEASED.get(p.base, lm.model.config), RELEASED.get(p.reward, reward.transformer.config)]
    rows = p.rollouts // q.ranks
    run = Run(
        policy=Shape.of(configs[0]),
        reward=Shape.of(configs[1]),
        trainable=p.trainable,
        ranks=q.ranks,
        reward_cards=q.reward_cards,
        rows=rows,
        together=p.minibatch // q.ranks,
        flight=min(rows, FLIGHT),
        answers=p.answers,
        epochs=p.epochs,
        updates=p.steps * p.epochs * p.rollouts // p.minibatch,
        sharded=q.config.startswith(("fsdp", "zero")),
    )
    if p.base not in RELEASED:
        lengths = [len(lm.chat.prompt_ids(prompt.messages)) for prompt in prompts]
        shared = RewardOnTrunk(reward, lm, lm.model.config.num_hidden_layers - run.depth).shared
        longest, mean = (max(lengths), p.max_new_tokens), (round(sum(lengths) / len(lengths)), p.max_new_tokens)
        run = replace(run, longest=longest, mean=mean, shared=shared, width=lm.dtype.itemsize)
    card = here if q.card == HERE else planning.card(q.card)
    return Sized(profile, run, card, *configs)


def settings(plans: Sequence[Sized]) -> pd.DataFrame:
    """The runs side by side, one column a profile."""
    columns = {}
    for one in plans:
        run = one.run
        columns[one.profile] = {
            "policy, million weights": f"{run.policy.weights / 1e6:,.0f}",
            "reward model, million weights": f"{run.reward.decoder / 1e6:,.0f}",
            "cards that train + that serve the reward": f"{run.ranks} + {run.reward_cards}",
            "batch (sequences an update, all cards)": f"{run.ranks * run.together}",
            "updates": f"{run.updates:,}",
            "answers sampled": f"{run.updates * run.ranks * run.together // run.epochs:,}",
            "longest prompt + answer, tokens": f"{run.longest[0]} + {run.longest[1]}",
        }
    return pd.DataFrame(columns)


def memory(plans: Sequence[Sized]) -> pd.DataFrame:
    """Planned gigabytes of a training card: profile, component, when (always, sampling, learning), gigabytes."""
    when = dict.fromkeys(SAMPLING, "sampling") | dict.fromkeys(LEARNING, "learning")
    return pd.DataFrame(
        [
            {"profile": one.profile, "component": name, "when": when.get(name, "always"), "gigabytes": size / 1e9}
            for one in plans
            for name, size in planning.memory(one.run).items()
        ]
    )


def time(plans: Sequence[Sized], shares: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Planned time and money: a row a profile, seconds of a set of rollouts by phase, hours, dollars."""
    rows = []
    for one in plans:
        found = planning.plan(one.run, one.card, shares)
        rows.append({"profile": one.profile, **found.seconds, "hours": found.hours, "dollars": found.dollars})
    return pd.DataFrame(rows)


def on_no_device(config: Any, kind: Any = AutoModelForCausalLM, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A model of shapes alone: every weight counted, none held."""
    with torch.device("meta"):
        return kind.from_config(config, dtype=dtype)


def shaped(config: Any, chat: Any) -> LM:
    """A language model of shapes alone."""
    return LM(on_no_device(config), chat, "shapes")


def held(run: Run, lm: LM, reward: Any) -> dict[str, float]:
    """Bytes of the tensors that the classes of a run really make, by component of the plan.

    Args:
        run: the run.
        lm: its policy, real or of shapes alone; nothing is written into it.
        reward: the reward model's decoder.
    """
    hydra = Hydra(lm, run.trainable, "branch" if run.branch else "head")
    policy, critic = hydra.learning()
    learned = [*policy, *critic]
    for weight in learned:
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(learned, lr=0.0, foreach=False)
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    config, tokens = lm.model.config, sum(run.longest)
    made: dict[str, Any] = {"dtype": lm.dtype, "device": lm.device}
    layer = SlabLayer(run.flight, tokens + 1)
    keys = torch.empty(run.flight, config.num_key_value_heads, 1, run.policy.width // run.policy.heads, **made)
    layer.lazy_initialization(keys, keys)
    kept = 2 if 0 < run.shared < hydra.start else 1
    states = [torch.empty(run.rows, tokens, config.hidden_size, **made) for _ in range(kept)]
    found = {
        "sampled policy": size(lm.model.parameters()),
        "policy's top, float32": size(hydra.top.parameters()),
        "reference's top, float32": size(hydra.reference.parameters()),
        "critic, float32": size(critic),
        "optimiser, float32": size(state) / run.shards,
        "trunk states of the rollouts": size(states),
        "keys and values": config.num_hidden_layers * size([layer._keys, layer._values]),
        "gradients, float32": size(weight.grad for weight in learned) / run.shards,
    }
    return found if run.reward_cards else found | {"reward model": size(reward.parameters())}


def size(tensors: Any) -> float:
    """Bytes of tensors."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def bytes_beside(plans: Sequence[Sized], lm: LM, reward: RewardModel) -> pd.DataFrame:
    """Plan beside instantiation, in gigabytes: profile, component, planned, measured, ratio.

    The embedded models are real, the released ones of shapes alone.
    """
    rows = []
    for one in plans:
        real = one.policy is lm.model.config
        model = lm if real else shaped(one.policy, lm.chat)
        decoder = reward.transformer if real else on_no_device(one.reward, AutoModel)
        planned = planning.memory(one.run)
        for name, measured in held(one.run, model, decoder).items():
            sizes = {"planned": planned[name] / 1e9, "measured": measured / 1e9, "ratio": planned[name] / measured}
            rows.append({"profile": one.profile, "component": name, **sizes})
    return pd.DataFrame(rows)


def refused(run: Run, card: Card) -> str:
    """Why a run does not fit a card, and what to change; empty where it fits."""
    try:
        planning.plan(run, card)
    except planning.PlanError as error:
        return str(error)
    return ""


def launch(profile: str, data: Path | str, reward: Path | str, out: Path, held_out: int = 100) -> Launch:
    """The training of a profile as it would be launched; ``reward`` where the profile names none."""
    p, q = parameters(profile)
    how = (held_out, q.config, q.ranks, q.reward_cards, p.template, p.prompt_tokens)
    return Launch(data, p.reward or reward, out, p.base, Recipe.of(p), p.recipe, *how)


def write_prompts(path: Path, prompts: Sequence[Any]) -> Path:
    """Prompts as ``starling-nb prompts`` writes them."""
    rows = ({"id": one.id, "messages": one.messages, "source": one.source, "answers": []} for one in prompts)
    files.write_jsonl(path, rows)
    return path


def room() -> float:
    """Bytes of memory that this machine's models can have: the GPU's, else all of it."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(psutil.virtual_memory().total)
