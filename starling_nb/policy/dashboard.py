"""A run of tuning as it goes: one figure that is redrawn in JupyterLab, one line a step elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from starling_nb import progress
from starling_nb.models import LM
from starling_nb.nectar.prompts import Prompt
from starling_nb.policy import measure
from starling_nb.reward import RewardModel

SHOWN = ("reward", "held_out_reward", "kl", "length", "eos_rate", "entropy")


class Dashboard:
    """Shows a run, step by step: pass it to :func:`starling_nb.policy.tuning.tune` as ``report``.

    Where somebody watches (JupyterLab, not a batch run), the present policy answers ``prompts`` every ``every`` steps
    with the same random numbers, and the reward of these answers and one of them are shown beside the run's record.

    Args:
        name: of the run.
        lm: the model that is being tuned; the loop writes the policy into it after every step.
        reward: scores the answers.
        prompts: not trained on; none are answered where there are none.
        max_new_tokens: cap on these answers, tokens.
        every: steps between them.

    ``history`` holds the records shown; ``text`` the last answer to the first prompt.
    """

    def __init__(
        self, name: str, lm: LM, reward: RewardModel, prompts: Sequence[Prompt], max_new_tokens: int, every: int = 2
    ) -> None:
        self.name, self.lm, self.reward, self.prompts = name, lm, reward, prompts
        self.max_new_tokens, self.every = max_new_tokens, every
        self.history: list[dict[str, Any]] = []
        self.text = ""
        self._line = progress.named(name)
        self._handles: dict[str, Any] = {}

    def __call__(self, step: int, total: int, record: dict[str, float]) -> None:
        """Take the record of one step."""
        self._line(step, total, record)
        if not progress.watched():
            return
        told: dict[str, Any] = {name: record[name] for name in SHOWN if name in record}
        if self.prompts and (step % self.every == 0 or step == total):
            told["held_out_reward"] = self._answer()
        self.history.append({"step": step, "method": self.name, **told})
        self._draw()

    def _answer(self) -> float:
        """Mean reward of the present policy's answers to the watched prompts."""
        rollouts = measure.held_out(
            self.lm, self.prompts, samples=1, seed=0, max_new_tokens=self.max_new_tokens, desc=f"{self.name}, watched"
        )
        self.text = rollouts[0].text
        texts = [[*r.prompt.messages, {"role": "assistant", "content": r.text}] for r in rollouts]
        return sum(self.reward.score(texts)) / len(texts)

    def _draw(self) -> None:
        from IPython.display import HTML

        from starling_nb import plots

        table = pd.DataFrame(self.history)
        columns = ["step", "method", *(name for name in SHOWN if name in table)]
        self._show("curves", plots.training_curves(table[columns], {"held_out_reward": "held-out reward"}))
        if self.text:
            asked = html.escape(self.prompts[0].messages[-1]["content"])
            self._show("sample", HTML(f"<p><b>{asked}</b></p><p>{html.escape(self.text)}</p>"))

    def _show(self, name: str, thing: Any) -> None:
        from IPython.display import display

        if name in self._handles:
            self._handles[name].update(thing)
        else:
            self._handles[name] = display(thing, display_id=True)
