"""Tasks of lm-evaluation-harness, MMLU of the hub among them, asked of our models and read with our intervals.

The harness (extra ``harness``; Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) asks and scores; what
it found comes back as one row a question, so that :mod:`~.mmlu.sets` and :mod:`starling_nb.stats` give clustered and
paired intervals where the harness gives a mean and its standard error. Tasks of the hub need the network, tasks in
local folders do not. A task's files may hold Python that the harness runs: take folders only from where you would take
programs.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from starling_nb.evaluation import EvaluationError
from starling_nb.evaluation.mmlu import COLUMNS
from starling_nb.models import LM

SAMPLES = ("task", "id", "filter", "metric", "value", "choice", "margin", "mean_margin")
OFFICIAL = ("task", "metric", "filter", "value", "shots", "n")


@dataclass(frozen=True)
class Run:
    """What the harness found.

    ``samples``: one row a question, filter and metric, columns :data:`SAMPLES`; ``value`` is the harness's own, and
    ``choice``, ``margin`` and ``mean_margin`` are as :func:`mmlu.score` has them (nats; NaN where nothing is chosen).
    ``official``: the harness's own figures for tasks and groups, columns :data:`OFFICIAL`. ``cut``: how many prompts
    were longer than the model reads and lost their beginning.
    """

    samples: pd.DataFrame
    official: pd.DataFrame
    cut: int


def run(
    lm: LM,
    tasks: Sequence[str],
    *,
    folders: Sequence[Path] = (),
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    batch: int = 16,
    seed: int = 0,
) -> Run:
    """Ask a model the questions of some tasks or groups of tasks.

    Args:
        lm: the model; a tuned one as :func:`starling_nb.policy.checkpoint.load` gives it.
        tasks: names in the harness (``mmlu``, ``gsm8k``, …) or in ``folders``.
        folders: with task files of one's own, in the harness's YAML.
        shots: solved examples before each question; default what the task says. A task that says 0 keeps to it.
        limit: of questions a task, the first ones.
        chat: prompts in the model's own chat template, solved examples as turns of their own.
        batch: sequences at a time.
        seed: decides the choice of examples where a task draws them, and sampling where a task samples.

    Raises:
        EvaluationError: the harness is not installed, a task is unknown, its data cannot be had, it would run what a
            model wrote, or a log-likelihood is not finite; with ``chat`` also where the harness would write another
            conversation than :class:`starling_nb.chat.ChatFormat` does.
    """
    if limit is not None and limit < 1:
        raise EvaluationError(f"limit = {limit}: ask one question a task at least")
    wrapped = wrap(lm, batch)
    from lm_eval.evaluator import evaluate

    with _quiet(seed):
        loaded = _loaded(tasks, folders)
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise EvaluationError(f"{name} runs what a model wrote, unconfined: use problems.coding")
            said = task.get_config("num_fewshot")
            task.set_config(key="num_fewshot", value=said or 0 if shots is None or said == 0 else shots)
            task.set_fewshot_seed(seed=seed)
        options = {"apply_chat_template": chat, "fewshot_as_multiturn": chat, "bootstrap_iters": 0}
        found = evaluate(lm=wrapped, task_dict=loaded, limit=limit, log_samples=True, **options)
    return Run(_samples(found["samples"]), _official(found), wrapped.cut)


def wrap(lm: LM, batch: int = 16) -> Any:
    """The model as the harness's ``HFLM``, its tokenizer a copy (the harness may give it a padding token).

    Raises:
        EvaluationError: the harness is not installed, or would put the input embeddings in place of a head of its own.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise EvaluationError(
            f"lm-evaluation-harness cannot be imported ({error}): pip install -c constraints.txt -e '.[harness]'"
        ) from error

    class Model(HFLM):
        cut = 0

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **more: Any) -> Any:
            self.cut += sum(len(before) + len(after) > self.max_length + 1 for _, before, after in requests)
            return super()._loglikelihood_tokens(requests, *args, **more)

        def tok_batch_encode(self, strings: Any, *args: Any, left_truncate_len: Any = None, **more: Any) -> Any:
            if left_truncate_len:
                self.cut += sum(len(self.tok_encode(text)) > left_truncate_len for text in strings)
            return super().tok_batch_encode(strings, *args, left_truncate_len=left_truncate_len, **more)

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            text: str = super().apply_chat_template(chat_history, add_generation_prompt)
            if add_generation_prompt and self.tok_encode(text) != lm.chat.prompt_ids(chat_history):
                raise EvaluationError(
                    f"the harness would not write a conversation as {lm.name} was loaded to (template "
                    f"{lm.chat.template!r}): load it with its tokenizer's own template, or ask without chat"
                )
            return text

    head = lm.model.get_output_embeddings().weight
    with _quiet(None):
        wrapped = Model(
            pretrained=lm.model, backend="causal", tokenizer=copy.deepcopy(lm.chat.tokenizer), batch_size=batch
        )
    if lm.model.get_output_embeddings().weight is not head:
        lm.model.get_output_embeddings().weight = head
        raise EvaluationError(f"{lm.name} has a head of its own, but its config ties it to the input: mend the config")
    return wrapped


@contextmanager
def _quiet(seed: int | None) -> Iterator[None]:
    """The harness's warnings left out, and torch's own randomness put back afterwards."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        logger.setLevel(level)


def _loaded(tasks: Sequence[str], folders: Sequence[Path]) -> Any:
    """Tasks with their data; the harness's own thousands are only looked through where the folders do not do, which
    takes longer than many a task."""
    from lm_eval.tasks import TaskManager

    if missing := [str(folder) for folder in folders if not Path(folder).is_dir()]:
        raise EvaluationError(f"{', '.join(missing)} is no folder: give those that hold task files")
    paths = [str(Path(folder).resolve()) for folder in folders]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=paths or None)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise EvaluationError(f"the harness has no task {', '.join(unknown)}: see `lm-eval ls tasks`, or give folders")
    if not tasks:
        raise EvaluationError("no tasks: name one at least")
    try:
        return manager.load(list(tasks))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"the tasks {', '.join(tasks)} cannot be loaded ({str(error).splitlines()[0]}): their data comes from the "
            "hub, which must be reached once, or from files that the task names"
        ) from error


def _samples(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    rows = []
    for task, samples in found.items():
        for sample in samples:
            # The hash keeps questions apart where the data has changed between two runs.
            id = f"{task}/{sample['doc_id']}-{sample['doc_hash'][:8]}"
            chosen = _chosen(sample, id)
            rows += [(task, id, sample["filter"], name, sample[name], *chosen) for name in sample["metrics"]]
    return pd.DataFrame(rows, columns=list(SAMPLES))


def _chosen(sample: Mapping[str, Any], id: str) -> tuple[str, float, float]:
    """What was chosen or said, and by how much the right choice is likelier than the best other and than their mean."""
    said = sample["filtered_resps"]
    if not all(isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[1], bool) for one in said):
        return str(said[0]), math.nan, math.nan
    logps = np.array([float(one[0]) for one in said])
    if not np.isfinite(logps).all():
        raise EvaluationError(f"question {id} has log-likelihoods that are not finite: look at the model's weights")
    names = [str(request[1]).strip() for request in sample["arguments"]]
    choice, target = names[int(logps.argmax())], sample["target"]
    right = target if isinstance(target, int) else names.index(target) if target in names else -1
    if len(logps) < 2 or len(set(names)) < len(names) or not 0 <= right < len(logps):
        return choice, math.nan, math.nan
    others = np.delete(logps, right)
    return choice, float(logps[right] - others.max()), float(logps[right] - others.mean())


def _official(found: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        shots, n = found["n-shot"].get(task), values.get("sample_len")
        for name, value in values.items():
            metric, comma, kept = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                rows.append((task, metric, kept, float(value), shots, n))
    return pd.DataFrame(rows, columns=list(OFFICIAL))


def scores(found: Run, metric: str = "acc", *, filter: str | None = None) -> pd.DataFrame:
    """One row a question with the columns of :func:`mmlu.score`, ``subject`` being the task, for
    :func:`sets.accuracy`, :func:`sets.change` and, with four choices, :func:`mmlu.compare`.

    ``correct`` is what the harness says: unlike ours it counts the first of equal choices as chosen.

    Args:
        found: see :func:`run`.
        metric: one that is 0 or 1 for every question, such as ``acc`` or ``exact_match``.
        filter: which reading of the answers, where the task has several (``strict-match``, ``flexible-extract``).

    Raises:
        EvaluationError: there is no such metric or filter, several filters, values other than 0 and 1, a question
            twice, or a mean that is not the harness's own.
    """
    rows = found.samples[found.samples["metric"] == metric]
    if rows.empty:
        raise EvaluationError(f"no metric {metric!r}: choose one of {', '.join(sorted(set(found.samples['metric'])))}")
    filters = sorted(set(rows["filter"]))
    if (filter is None and len(filters) > 1) or (filter is not None and filter not in filters):
        raise EvaluationError(f"{metric} has the filters {', '.join(filters)}: choose one of them")
    rows = rows[rows["filter"] == (filter or filters[0])]
    values = pd.to_numeric(rows["value"], errors="coerce")
    if not values.isin((0, 1)).all() or rows["id"].duplicated().any():
        raise EvaluationError(f"{metric} is not right or wrong once a question: use the table of samples")
    official = found.official[
        (found.official["metric"] == metric) & (found.official["filter"] == (filter or filters[0]))
    ]
    own = values.groupby(rows["task"]).mean()
    told = official.set_index("task")["value"].reindex(own.index)
    if not np.allclose(own, told, rtol=0, atol=1e-9):
        raise EvaluationError(f"the mean of {metric} over questions is not the harness's own: use its official figure")
    table = rows.assign(subject=rows["task"], correct=values.astype(bool))
    return table[list(COLUMNS)].reset_index(drop=True)
