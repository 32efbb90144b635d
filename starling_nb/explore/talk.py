"""A conversation with a model, or with several side by side, each of which remembers its own answers."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starling_nb.chat import Message
from starling_nb.errors import StarlingError

if TYPE_CHECKING:
    from starling_nb.models import LM

HELP = "/new begins anew, /undo takes the last turn back, /again answers it once more, /quit ends"


@dataclass
class Talk:
    """What was said so far, by model.

    ``temperature`` 0 is greedy; ``max_new_tokens`` caps an answer; the same words under the same ``seed`` get the same
    answers.
    """

    models: Mapping[str, LM]
    temperature: float = 0.7
    max_new_tokens: int = 256
    seed: int = 0
    system: str = ""
    messages: dict[str, list[Message]] = field(default_factory=dict)
    _again: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise StarlingError("there is nobody to talk to: give one model or more")
        self.new()

    @property
    def turns(self) -> int:
        """How often the user has spoken."""
        return sum(message["role"] == "user" for message in next(iter(self.messages.values())))

    def new(self) -> None:
        """Forget everything but the system's words."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        self.messages = {name: list(first) for name in self.models}

    def undo(self) -> None:
        """Take back the last question and its answers."""
        if self.turns:
            self.messages = {name: said[:-2] for name, said in self.messages.items()}

    def again(self) -> dict[str, str]:
        """Other answers to the last question.

        Raises:
            StarlingError: nothing was asked yet.
        """
        if not self.turns:
            raise StarlingError("there is no question to answer again: ask one")
        asked = next(iter(self.messages.values()))[-2]["content"]
        self.undo()
        self._again += 1
        return self.say(asked)

    def say(self, text: str) -> dict[str, str]:
        """Every model's answer to ``text``, after what it has answered so far.

        Raises:
            StarlingError: no words.
        """
        from starling_nb.evaluation.answering import answer
        from starling_nb.evaluation.mt_bench import NO_ANSWER

        if not text.strip():
            raise StarlingError("say something: an empty message has no answer")
        found = {}
        for name, lm in self.models.items():
            asked = [*self.messages[name], {"role": "user", "content": text.strip()}]
            found[name] = answer(
                lm,
                {f"talk/{self.turns}/{self._again}": asked},
                seed=self.seed,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                desc=f"{name} answers",
            ).popitem()[1]
        for name, said in found.items():
            turn = [{"role": "user", "content": text.strip()}, {"role": "assistant", "content": said or NO_ANSWER}]
            self.messages[name] += turn
        return found

    def to_html(self) -> str:
        """All of it as a table, a column a model; the words are escaped."""
        names = list(self.models)
        rows = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in names)}</tr>"]
        for place, message in enumerate(self.messages[names[0]]):
            if message["role"] == "assistant":
                cells = "".join(f"<td>{_shown(self.messages[name][place]['content'])}</td>" for name in names)
                rows.append(f"<tr>{cells}</tr>")
            else:
                rows.append(f'<tr><td colspan="{len(names)}"><b>{_shown(message["content"])}</b></td></tr>')
        return f'<table style="text-align: left">{"".join(rows)}</table>'


def _shown(text: str) -> str:
    return html.escape(text).replace("\n", "<br>") or "(no words)"


def held(talk: Talk, lines: Iterable[str]) -> Iterator[str]:
    """What a terminal prints for the lines that a user types; ends at ``/quit``, or where the lines do."""
    orders = {"/new": talk.new, "/undo": talk.undo}
    for line in lines:
        word = line.strip()
        if word == "/quit":
            return
        if word in orders:
            orders[word]()
            yield f"({talk.turns} turns)"
        elif word.startswith("/") and word != "/again":
            yield HELP
        elif word:
            try:
                answers = talk.again() if word == "/again" else talk.say(word)
            except StarlingError as error:
                yield str(error)
                continue
            named = len(answers) > 1
            yield "\n".join(f"{name}: {text}" if named else text for name, text in answers.items())
