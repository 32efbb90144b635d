"""The model card: the README of a reward model's folder, and the folder's way to the hub.

What the folder's own files say (how a score is read, how conversations are written, the decoder's shape) is read from
them; the rest is told by :class:`About`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from starling_nb import embedded_model, files, hub
from starling_nb.reward.layout import INDEX, RewardError, weight_files

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?=$|, )")
SMALL_FILES = (
    "README.md",
    "config.json",
    "starling.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What goes to the hub beside the weights, where it is there."""
LOSSES = {
    "k_wise": "the K-wise likelihood of whole rankings (Plackett-Luce; Zhu, Jiao and Jordan 2023, arXiv 2301.11270)",
    "pairwise": "the likelihood of all pairs (Bradley-Terry)",
}
READ_AT = {
    "last_token": "at the last token of the answer",
    "mean": "as the mean over the tokens of the answer",
    "both": "as the mean of what stands at the last token and of the mean over all tokens of the answer",
    "last_column": "at the last column of a text padded to {column} tokens, as the card of Starling-RM-7B-alpha does",
}


@dataclass(frozen=True)
class About:
    """What the folder does not say of itself."""

    base: str
    """The language model that it was trained from; a hub id, if it has one."""
    loss: str
    """``k_wise``, ``pairwise``, or another in plain words."""
    judge: str
    """Who ranked the answers."""
    datasets: Sequence[str] = ()
    """Hub ids, or names, of the rankings."""
    comparisons: int | None = None
    """Rankings that it was trained on."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training, such as ``dataclasses.asdict`` of a :class:`starling_nb.reward.training.Recipe`."""
    simulated: bool = False
    """Whether the labels are simulated; a judge whose name begins with "simulated" says so itself."""
    title: str = "A reward model in the manner of Starling"
    licence: str = "other"
    """One of the hub's licence identifiers."""

    @classmethod
    def of(cls, folder: Path, judge: str, **told: Any) -> About:
        """What the notes of a folder say of base model, data, recipe and loss; ``told`` comes before them.

        Raises:
            RewardError: neither the notes nor ``told`` name base and loss.
        """
        notes = files.read_json(folder / "starling.json")
        recipe = told.get("recipe", notes.get("recipe", {}))
        known = {"base": notes.get("base"), "loss": notes.get("loss", recipe.get("loss")), "recipe": recipe}
        known |= {"datasets": [notes["data"]] if "data" in notes else [], **told}
        if gone := [name for name in ("base", "loss") if not known[name]]:
            raise RewardError(f"{folder / 'starling.json'} does not name the {' and the '.join(gone)}: tell it here")
        return cls(judge=judge, **known)

    @property
    def by_simulation(self) -> bool:
        """Whether the labels must be called simulated."""
        return self.simulated or self.judge.startswith("simulated")

    @property
    def base_id(self) -> str | None:
        """The base model's hub id, if its name is or holds one (``owner/name, first 16 blocks``)."""
        name = self.base.partition(", ")[0]
        name = embedded_model.HUB_ID if name == embedded_model.EMBEDDED else name
        return name if HUB_ID.fullmatch(name) else None


def write(folder: Path, about: About, results: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write ``README.md`` into a reward model's folder, atomically; returns its path.

    Args:
        folder: as :meth:`starling_nb.reward.RewardModel.save_pretrained` writes it.
        about: base model, data, loss, recipe, judge, licence.
        results: rows of the evaluation: ``method``, ``metric``, ``value`` and, where known, ``low`` and ``high`` (the
            ends of the 95 % interval) and ``n``.

    Raises:
        StarlingError: the folder holds no reward model of ours, or a result lacks method, metric or value.
    """
    notes, config = (files.read_json(folder / name) for name in ("starling.json", "config.json"))
    weight_files(folder)
    sections = [*_head(about, notes, config), *_training(about), *_evaluation(results), *_use(), *_limits(about, notes)]
    files.write_text(folder / "README.md", f"{front_matter(about)}\n" + "\n\n".join(sections) + "\n")
    return folder / "README.md"


def front_matter(about: About) -> str:
    """The YAML block by which the hub finds licence, base model and data; local names and paths are left out."""
    fields: dict[str, Any] = {
        "license": about.licence,
        "language": ["en"],
        "library_name": "starling_nb",
        "tags": ["reward-model", "RLAIF", "preference", "K-wise ranking"] + ["simulated judge"] * about.by_simulation,
    }
    if about.base_id:
        fields["base_model"] = about.base_id
    if named := [name for name in about.datasets if HUB_ID.fullmatch(name)]:
        fields["datasets"] = named
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def push_to_hub(folder: Path, repo_id: str, private: bool = True) -> str:
    """Put a reward model on the Hugging Face hub; returns its address.

    Weights (safetensors), config, tokenizer, ``starling.json`` and card go there, and nothing else of the folder. The
    token is the one of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        folder: a reward model with its card.
        repo_id: ``owner/name``; made where it does not exist.
        private: whether only its owner may see it. A repository that is already public is then refused.

    Raises:
        StarlingError: no card, no safetensors, a file missing; no token, or the hub cannot be reached or refuses.
    """
    weights = [path.name for path in weight_files(folder)]
    if not all(name.endswith(".safetensors") for name in weights):
        raise RewardError(f"{folder} holds torch files, which can carry code: load it and save it anew, then push that")
    for name, remedy in (
        ("README.md", "write the card first (starling_nb.reward.card.write)"),
        ("starling.json", "save the model with save_pretrained"),
        ("config.json", "save the model with save_pretrained"),
    ):
        if not (folder / name).is_file():
            raise RewardError(f"{folder / name} is missing: {remedy}")
    names = [name for name in (*SMALL_FILES, INDEX) if (folder / name).is_file()] + weights
    digest = files.sha256("".join(files.hash_file(folder / name) for name in weights).encode())[:12]
    message = f"Reward model with its card, weights {digest}"
    return hub.push(folder, repo_id, kind="model", private=private, files=names, message=message)


def _head(about: About, notes: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    warning = (
        "> **Simulated labels.** No person and no language model ranked the answers that this model learned from: a "
        "simulated judge did. Its scores show that the code works, not what people prefer."
    )
    read = READ_AT[notes.get("readout", "last_token")].format(column=notes.get("column"))
    shape = ", ".join(
        f"{config[name]} {word}"
        for name, word in (("num_hidden_layers", "blocks"), ("hidden_size", "wide"))
        if config.get(name)
    )
    said = (
        f"A {config.get('model_type', 'llama')} decoder ({shape}) with one linear layer on its last hidden state gives "
        f"a conversation one number, read {read}. Conversations are written in the form `{notes.get('template')}`."
    )
    return [f"# {_plain(about.title)}", *([warning] if about.by_simulation else []), said]


def _training(about: About) -> list[str]:
    count = f"{about.comparisons:,} rankings" if about.comparisons is not None else "Rankings"
    data = f" from {_listed(about.datasets)}" if about.datasets else ""
    kind = "a simulated judge, " if about.by_simulation else ""
    parts = [
        "## Training",
        f"Base model: {_listed([about.base])}. {count}{data}, ranked by {kind}`{_plain(about.judge)}`. "
        f"Loss: {LOSSES.get(about.loss, _plain(about.loss))}.",
    ]
    if about.recipe:
        parts.append(_table(("setting", "value"), [(_plain(k), _plain(str(v))) for k, v in about.recipe.items()]))
    return parts


def _evaluation(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return ["## Evaluation", "None was made."]
    rows = []
    for number, row in enumerate(results):
        if gone := [name for name in ("method", "metric", "value") if row.get(name) is None]:
            raise RewardError(f"result {number} has no {' and no '.join(gone)}: give all three, or leave it out")
        low, high, n = row.get("low"), row.get("high"), row.get("n")
        known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
        between = f"{low:.3f} to {high:.3f}" if known else "–"
        size = "–" if n is None else f"{n:,.0f}"
        rows.append((_plain(str(row["method"])), _plain(str(row["metric"])), f"{row['value']:.3f}", between, size))
    return ["## Evaluation", _table(("method", "metric", "value", "95 % interval", "n"), rows)]


def _use() -> list[str]:
    code = (
        "from starling_nb.reward import RewardModel\n\n"
        'reward = RewardModel.from_pretrained("owner/name")  # this repository, or a folder with its files\n'
        'question = {"role": "user", "content": "Why is the sea salty?"}\n'
        'answers = ["Rivers carry salts into it, and only water leaves.", "It just is."]\n'
        'print(reward.score([[question, {"role": "assistant", "content": text}] for text in answers]))'
    )
    return ["## Use", f"```python\n{code}\n```"]


def _limits(about: About, notes: Mapping[str, Any]) -> list[str]:
    lines = [
        "Only the difference between two scores of one prompt means anything: training leaves a constant for each "
        "prompt open, so that scores of different prompts cannot be compared, nor their sign read.",
        "Length may be rewarded for its own sake. Compare with the rule that the longer answer is better before you "
        "trust a gain, and watch the length of answers that are tuned against this model.",
        "It has learned one judge's taste, on prompts and answers like those above. A policy tuned against it for long "
        "finds answers that it scores too high.",
    ]
    if about.by_simulation:
        lines.append("The labels are simulated: its accuracy tells how well it learned the simulation, nothing else.")
    if notes.get("readout") == "last_column":
        lines.append("Read at the last column, a score depends on the column: keep the one that is given here.")
    return [
        "## Limits",
        "\n".join(f"- {line}" for line in lines),
        "## Licence",
        f"{about.licence}; the base model and the data keep their own terms.",
    ]


def _listed(names: Sequence[str]) -> str:
    """Names in code marks; of a path only its last part, for the rest tells of one machine."""
    own = [name if HUB_ID.match(name) else Path(name).name for name in names]
    return ", ".join(f"`{_plain(name)}`" for name in own)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def _plain(text: str) -> str:
    """Text for one cell: on one line, its bars, angle brackets and code marks harmless."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
