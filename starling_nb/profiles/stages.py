"""The parameters of every stage, a frozen dataclass each: the only place where they get name, type and help."""

from __future__ import annotations

from dataclasses import dataclass

from starling_nb.profiles.values import ParameterError

DTYPES = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Common:
    """What every stage knows."""

    profile: str
    """Size of the run: smoke, laptop, study, gpu or paper."""
    out: str
    """Folder of the run; empty means outputs/<profile>."""
    seed: int
    """Seed of every random choice."""
    judge: str
    """Who ranks and grades: simulated, or the name of a model behind an OpenAI-compatible server."""
    threads: int
    """CPU threads of the numerical work; a part of the result, because sums round differently."""
    dtype: str
    """Number format of the model: auto, float32 or bfloat16."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ParameterError(f"threads = {self.threads}: at least one is needed")
        if self.dtype not in DTYPES:
            raise ParameterError(f"dtype = {self.dtype!r}: choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class StartHere(Common):
    """00: the whole chain on one prompt."""

    n_examples: int
    """Prompts shown, 2 or more."""
    best_of: int
    """Answers from which the reward picks one, 2 or more."""
    max_new_tokens: int
    """Cap on an answer, tokens."""


@dataclass(frozen=True)
class DatasetConstruction(Common):
    """01: prompts, answers and rankings."""

    n_prompts: int
    """Prompts ranked, 10 to 703."""
    n_live: int
    """Of these, prompts whose answers are sampled again now, 1 to n_prompts."""
    passes: int
    """Rankings of each prompt, in as many shown orders, merged by mean rank."""
    design: str
    """Shown orders: random, balanced, cyclic or two_pass."""
    variant: str
    """Ranking prompt, a name from starling_nb.nectar.ranking.VARIANTS."""


@dataclass(frozen=True)
class PositionalBias(Common):
    """02: what position does to a ranking."""

    variants: list
    """Ranking prompts compared."""
    real_rankings: str
    """Folder with the authors' raw ranking logs, or empty."""
    naive_labels: int
    """Tokens of each cure, in labels by the naive prompt."""
    worlds: int
    """Simulated worlds in which cures are compared."""


@dataclass(frozen=True)
class RewardTraining(Common):
    """03: a reward model from rankings."""

    real_rankings: str
    """File of rankings in Nectar's schema (the published one, your own); empty means those of notebook 01."""
    n_comparisons: int
    """Comparisons used, over all splits."""
    epochs: int
    """Passes over the training comparisons."""
    batch: int
    """Comparisons a step."""
    lr: float
    """Learning rate of the top blocks, AdamW."""
    head_lr: float
    """Learning rate of the score head."""
    weight_decay: float
    """AdamW weight decay."""
    depth: int
    """Blocks of the backbone kept; the middle reads quality best at this size."""
    readout: str
    """Where the score is read: last_token (as published), mean or both."""
    trainable: str
    """Which of the kept blocks learn."""
    curve_seeds: int
    """Subsets of the training comparisons for each point of the learning curves."""
    held_out: list
    """Responders whose answers no training comparison holds."""


@dataclass(frozen=True)
class PolicyTuning(Common):
    """04: a chat model from a reward model."""

    base: str
    """Start model: smollm2-135m, a folder or a hub id."""
    template: str
    """How the start model writes conversations: own, openchat, llama2 or yi."""
    reward: str
    """Reward model: a folder or a hub id; empty means that of notebook 03."""
    real_prompts: str
    """File of training prompts as starling-nb prompts writes it; empty means the embedded ones."""
    recipe: str
    """Setting of all switches that are no parameter here: corrected, or published with its oddities."""
    steps: int
    """Steps of APA, each one set of rollouts."""
    short_steps: int
    """Steps of PPO and P3O, and the budget of DPO."""
    rollouts: int
    """Answers sampled a step."""
    answers: int
    """Answers to one prompt in a step, each measured against the others."""
    epochs: int
    """Passes over each set of rollouts."""
    minibatch: int
    """Sequences an optimiser step."""
    lr: float
    """Learning rate of the top blocks, AdamW."""
    lam: float
    """APA's λ: larger stays nearer to the start model."""
    kl: float
    """Weight of the log-ratio in the reward, nats."""
    missing_eos: float
    """Reward of an answer that the cap cut off, in units of the reward's spread."""
    critic_warmup: int
    """Steps in which only the critic learns."""
    max_new_tokens: int
    """Cap on an answer, tokens."""
    prompt_tokens: int
    """Longest training prompt of one's own, tokens; 0: as the window allows."""
    trainable: str
    """Which blocks learn."""
    n_held_out: int
    """Held-out prompts, at most."""
    samples: int
    """Answers a held-out prompt, before and after."""
    split: str
    """Prompts on which the result is read: validation while trying, test once."""
    recorded_study: str
    """Table of a study over several seeds, as benchmarks/study.py writes it."""


@dataclass(frozen=True)
class Evaluation(Common):
    """05: what came of it."""

    base: str
    """Start model, the one of notebook 04."""
    template: str
    """How the start model writes conversations: own, openchat, llama2 or yi."""
    n_questions: int
    """Two-turn questions."""
    n_instructions: int
    """Single-turn instructions."""
    n_choice: int
    """Four-option questions."""
    n_safety: int
    """Contrast prompts."""
    shots: int
    """Solved examples before each four-option question, 0 to 5."""
    n_word: int
    """Word problems."""
    n_coding: int
    """Small programs."""
    problem_tokens: int
    """Cap on an answer to a word problem or a program, tokens."""
    n_pairs: int
    """Labelled pairs of a set on which the judge is tried, at most."""
    n_wrapped: int
    """Contrast prompts whose harmful requests are wrapped as well."""
    wrappers: list
    """Ways of wrapping them (starling_nb.evaluation.safety.jailbreaks.WRAPPERS)."""
    margin: float
    """Loss of log-likelihood margin that would be accepted, nats, fixed in advance."""
    max_new_tokens: int
    """Cap on an answer, tokens."""


@dataclass(frozen=True)
class Overoptimization(Common):
    """06: when more of the reward makes answers worse."""

    base: str
    """Start model, the one of notebook 04."""
    template: str
    """How the start model writes conversations: own, openchat, llama2 or yi."""
    n_prompts: int
    """Held-out prompts, at most."""
    samples: int
    """Answers of the start model a prompt, from which the best of n is chosen."""
    beyond: list
    """Policies past APA's, as shares of its way from the start; 0 is APA's."""
    policy_samples: int
    """Answers of each of these policies a prompt."""
    n_other: int
    """Rankings that the other reward model learns from, at most."""
    worlds: int
    """Planted worlds of each kind, on which the monitor is tried."""
    max_new_tokens: int
    """Cap on an answer, tokens."""
    recorded_run: str
    """Table of a long run, as benchmarks/overoptimization.py writes it."""


@dataclass(frozen=True)
class ScalingOut(Common):
    """07: what the published run takes, and how it is started."""

    planned: list
    """Profiles whose run of stage 04 is planned, smallest first."""
    ranks: int
    """Cards that train in this profile's run."""
    reward_cards: int
    """Cards that serve the reward model in this profile's run; 0: it lies beside the policy."""
    card: str
    """Card of this profile's run: here (the machine at hand), a100 or h100."""
    config: str
    """How accelerate spreads this profile's run: single, ddp, zero2 or fsdp2."""
    rows: int
    """Answers sampled to measure this machine's speed, and in a step of the training that is launched here."""
    max_new_tokens: int
    """Cap on an answer in what is measured and launched here, tokens."""
    launched_steps: int
    """Steps of the training that is launched here."""


STAGES: dict[str, type[Common]] = {
    "00_start_here": StartHere,
    "01_dataset_construction": DatasetConstruction,
    "02_positional_bias": PositionalBias,
    "03_reward_training": RewardTraining,
    "04_policy_tuning": PolicyTuning,
    "05_evaluation": Evaluation,
    "06_overoptimization": Overoptimization,
    "07_scaling_out": ScalingOut,
}
