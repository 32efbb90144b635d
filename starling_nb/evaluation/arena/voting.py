"""Blind votes on two answers to one prompt, kept in a file that survives a crash.

The session knows which system wrote which answer; what it shows does not. The file holds one JSON line for every vote,
undo and reveal, synchronised to the disk one by one and never rewritten; it names no system, so that whoever opens it
stays blind. What an answer says of its own writer is shown as it stands.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from starling_nb import files
from starling_nb.chat import Message
from starling_nb.evaluation import EvaluationError, arena
from starling_nb.evaluation.arena.vote_log import VoteLog
from starling_nb.stats import proportion_interval

CHOICES = {"A": "model_a", "B": "model_b", "tie": "tie", "both bad": "tie (bothbad)"}
"""What a voter may say, and the ``winner`` of Chatbot Arena's tables that it means."""
COLUMNS = ("question_id", "model_a", "model_b", "winner", "voter", "blind", "by_rule", "length_a", "length_b")


@dataclass(frozen=True)
class Shown:
    """What a voter sees of one battle: its ``number`` of ``total``, the prompt and the two answers."""

    number: int
    total: int
    prompt: str
    a: str
    b: str


@dataclass(frozen=True)
class _Battle:
    question: str
    prompt: str
    models: tuple[str, str]
    texts: tuple[str, str]


class ArenaSession:
    """One voter's battles, in an order and with sides that ``seed`` decides, as far as ``path`` says they were voted.

    Every two systems meet on every prompt that both have answered. Answers that are equal word for word are not shown:
    where the sequence passes them they count as a tie. ``skipped`` counts what makes no battle, by reason.

    Args:
        path: the file of votes (``.jsonl``); the next vote goes on where it ends. A last line that a crash left half
            written is no vote and is cut off by the next one.
        prompts: text or messages by question id.
        answers: by system, the answer's text by question id.
        seed: decides the order of battles and who is shown as A.
        voter: who votes, a name for the file and the table.

    Raises:
        EvaluationError: fewer than two systems, no battle, or a file that holds other battles, another voter's votes or
            something else.
    """

    def __init__(
        self,
        path: Path,
        prompts: Mapping[str, str | Sequence[Message]],
        answers: Mapping[str, Mapping[str, str]],
        *,
        seed: int = 0,
        voter: str = "",
    ) -> None:
        self.path, self.voter, self.revealed = path, voter, False
        self.skipped: dict[str, int] = {}
        self._battles = self._paired(prompts, answers, seed)
        if not self._battles:
            raise EvaluationError("there is no battle: give two systems' answers to the same prompts")
        told = [[b.question, b.prompt, *b.models, *b.texts] for b in self._battles]
        self._votes: list[tuple[int, str, bool]] = []
        self._seen = False
        self._log = VoteLog(path, {"arena": 1, "battles": files.hash_value(told), "voter": voter})
        for number, record in self._log.records:
            try:
                self._take(record)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise EvaluationError(
                    f"{path}, line {number}, follows from no vote before: restore the file"
                ) from error

    def __repr__(self) -> str:
        return f"ArenaSession({self.path.name}: {len(self._votes)} votes, {self.left} battles left)"

    def _paired(
        self, prompts: Mapping[str, str | Sequence[Message]], answers: Mapping[str, Mapping[str, str]], seed: int
    ) -> list[_Battle]:
        """All battles in the order of voting, sides drawn by (seed, question, systems)."""
        lost = sum(question not in prompts for given in answers.values() for question in given)
        found, missing = [], 0
        for question in sorted(prompts):
            for models in combinations(sorted(answers), 2):
                texts = [answers[model].get(question) for model in models]
                if not all(isinstance(text, str) for text in texts):
                    missing += 1
                    continue
                turned = files.rng(seed, "arena side", question, *models).random() < 0.5
                order = (1, 0) if turned else (0, 1)
                sides = [(models[i], str(texts[i])) for i in order]
                names, shown = zip(*sides, strict=True)
                found.append(_Battle(question, _text(prompts[question]), names, shown))
        reasons = {"an answer is missing": missing, "an answer to no prompt": lost}
        self.skipped = {reason: number for reason, number in reasons.items() if number}
        return [found[i] for i in files.rng(seed, "arena order").permutation(len(found))]

    @property
    def left(self) -> int:
        """Battles still to be voted on."""
        return sum(not _equal(battle) for battle in self._battles[self._next :])

    @property
    def current(self) -> Shown | None:
        """The battle to vote on; None when all are decided."""
        if not self.left:
            return None
        battle = self._battles[self._next]
        total = len(self._votes) + self.left
        return Shown(len(self._votes) + 1, total, battle.prompt, *battle.texts)

    @property
    def _next(self) -> int:
        """The first battle that is not decided."""
        at = self._votes[-1][0] + 1 if self._votes else 0
        while at < len(self._battles) and _equal(self._battles[at]):
            at += 1
        return at

    def vote(self, choice: str) -> None:
        """Decide the current battle; the vote is on the disk when this returns.

        Raises:
            EvaluationError: an unknown choice, no battle left, or the vote could not be saved.
        """
        if choice not in CHOICES:
            raise EvaluationError(f"{choice!r} is no choice: say one of {', '.join(CHOICES)}")
        if self.current is None:
            raise EvaluationError("all battles are decided: reveal them, or undo the last vote")
        self._note_peek()
        self._enter({"vote": self._next, "choice": choice, "blind": not self.revealed, "time": round(time.time(), 3)})

    def undo(self) -> None:
        """Take the last vote back; the file keeps both.

        Raises:
            EvaluationError: there is no vote, or this could not be saved.
        """
        if not self._votes:
            raise EvaluationError("there is no vote to take back")
        self._note_peek()
        self._enter({"undo": self._votes[-1][0]})

    def reveal(self) -> pd.DataFrame:
        """Say who wrote what, see :meth:`battles`; votes after this are recorded as not blind."""
        if not self.revealed:
            self._enter({"reveal": self.left})
        return self.battles()

    def battles(self) -> pd.DataFrame:
        """The decided battles in Chatbot Arena's columns, ready for :func:`starling_nb.evaluation.arena.bradley_terry`.

        Beside model_a (shown as A), model_b and winner: question_id, voter, whether the vote was blind, whether it was
        decided by rule (equal answers), and the answers' lengths in characters.

        Raises:
            EvaluationError: battles are left and nothing was revealed.
        """
        if self.left and not self.revealed:
            raise EvaluationError(
                f"{self.left} battles are left: decide them, or call reveal(), which ends blind voting"
            )
        self._seen = True
        return self._table()

    def summary(self) -> dict[str, pd.DataFrame]:
        """Tables of what was voted, by name: ``votes`` (each choice's share), ``ratings`` of the blind votes (clustered
        by question) and ``left out``. They name the systems, but no answer's writer."""
        table = self._table()
        cast = table[~table["by_rule"]]
        votes = [_share(name, int((cast["winner"] == winner).sum()), len(cast)) for name, winner in CHOICES.items()]
        decided = cast[cast["winner"].isin(["model_a", "model_b"])]
        votes.append(_share("A, where one won", int((decided["winner"] == "model_a").sum()), len(decided)))
        out = {**self.skipped, "battles left": self.left, "votes after a reveal": int((~table["blind"]).sum())}
        try:
            if table.empty:
                raise EvaluationError("nobody has voted yet")
            found = arena.bradley_terry(table[table["blind"]], clusters="question_id")
            ratings = found.table.assign(questions=found.n)
            out |= found.dropped
        except EvaluationError as error:
            ratings = pd.DataFrame({"no ratings": [str(error)]})
        out["equal answers, a tie by rule"] = int(table["by_rule"].sum())
        left = pd.DataFrame([(reason, number) for reason, number in out.items() if number], columns=["what", "battles"])
        return {"votes": pd.DataFrame(votes), "ratings": ratings, "left out": left}

    def _table(self) -> pd.DataFrame:
        cast = {number: (CHOICES[choice], blind, False) for number, choice, blind in self._votes}
        rows = []
        for number, battle in enumerate(self._battles[: self._next]):
            winner, blind, by_rule = cast.get(number, ("tie", True, True))
            lengths = map(len, battle.texts)
            rows.append((battle.question, *battle.models, winner, self.voter, blind, by_rule, *lengths))
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"blind": bool, "by_rule": bool})

    def _note_peek(self) -> None:
        """Record that the writers were seen at the end, before anything is changed with that knowledge."""
        if self._seen and not self.revealed:
            self._enter({"reveal": self.left})

    def _take(self, record: Mapping[str, Any]) -> None:
        """Follow one line."""
        if "vote" in record:
            if record["vote"] != self._next or record["choice"] not in CHOICES or not self.left:
                raise ValueError("a vote on another battle than was due")
            self._votes.append((record["vote"], record["choice"], bool(record["blind"])))
        elif "undo" in record:
            if record["undo"] != self._votes.pop()[0]:
                raise ValueError("another vote is taken back than was last")
        else:
            self.revealed = record["reveal"] >= 0

    def _enter(self, record: Mapping[str, Any]) -> None:
        """Save a line, then follow it."""
        self._log.append(record)
        self._take(record)


def _text(prompt: str | Sequence[Message]) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def _equal(battle: _Battle) -> bool:
    return battle.texts[0] == battle.texts[1]


def _share(name: str, votes: int, total: int) -> dict[str, Any]:
    """A row of a table: share of ``total`` with Wilson's interval."""
    share = proportion_interval(votes, total) if total else None
    ends = (share.value, share.low, share.high) if share else (float("nan"),) * 3
    return {"choice": name, "votes": votes, **dict(zip(("share", "low", "high"), ends, strict=True)), "n": total}
