"""The one place where messages become token ids.

Text is never tokenised twice and never split on role strings: a :class:`ChatFormat` turns messages into ids, and an
answer's ids are appended to its prompt's ids exactly as a policy would have sampled them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starling_nb.errors import StarlingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
TEMPLATES = ("own", "openchat", "llama2", "yi")
OPENCHAT = "GPT4 Correct"
"""The class of answers that OpenChat-3.5 is asked for where nothing else is said (its model card)."""


class ChatError(StarlingError):
    """Messages that cannot be rendered faithfully."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt followed by an answer: ``ids[:prompt_length]`` is the prompt, the rest the answer."""

    ids: list[int]
    prompt_length: int

    @property
    def answer_length(self) -> int:
        """Answer tokens, the end-of-turn token included."""
        return len(self.ids) - self.prompt_length


class ChatFormat:
    """How one model family writes a conversation.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: ``"own"`` (the tokenizer's chat template), ``"openchat"`` (``GPT4 Correct User: …``, OpenChat 3.5
            model card), ``"llama2"`` (``[INST] … [/INST] …``, without a system block, as Starling-RM-7B reads it) or
            ``"yi"`` (the ChatML text of Yi-34B-Chat, see :func:`yi_text`).
        condition: the class of answers that every prompt asks for (C-RLFT, Wang et al. 2023, arXiv 2309.11235). An
            OpenChat text names it before each role, ``GPT4 Correct`` where nothing is said; in other texts it is a
            paragraph at the head of the conversation's first message, which every template has a place for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "own", condition: str = "") -> None:
        if template not in TEMPLATES:
            raise ChatError(f"unknown chat template {template!r}: choose one of {', '.join(TEMPLATES)}")
        if template == "own" and not getattr(tokenizer, "chat_template", None):
            raise ChatError("this tokenizer has no chat template of its own: choose openchat, llama2 or yi")
        self.tokenizer: Any = tokenizer
        self.template = template
        self.condition = condition.strip() or (OPENCHAT if template == "openchat" else "")
        end = {"openchat": "<|end_of_turn|>", "yi": "<|im_end|>"}.get(template, tokenizer.eos_token)
        vocabulary = tokenizer.get_vocab()
        marks = ["<|im_start|>"] if template == "yi" else []
        if end not in vocabulary:
            raise ChatError(f"this tokenizer has no end-of-turn token {end!r}: choose the template of its model")
        if any(mark not in vocabulary for mark in marks):
            raise ChatError("this tokenizer has no token '<|im_start|>': choose the template of its model")
        self.eos_id = vocabulary[end]
        self._controls = list(dict.fromkeys([token for token in tokenizer.all_special_tokens if token] + [end, *marks]))
        self._refuse_controls(self.condition)

    def conditioned(self, condition: str) -> ChatFormat:
        """The same way of writing conversations, its prompts asking for another class of answers."""
        return ChatFormat(self.tokenizer, self.template, condition)

    def writes_like(self, other: ChatFormat) -> bool:
        """Whether both turn every conversation into the same ids."""
        return (
            self.template == other.template
            and self.condition == other.condition
            and (self.template != "own" or self.tokenizer.chat_template == other.tokenizer.chat_template)
            and self.tokenizer.get_vocab() == other.tokenizer.get_vocab()
        )

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to and including the open assistant turn.

        Raises:
            ChatError: roles out of order, empty text, a control token inside a message, a doubled BOS, or an end token
            after the open turn.
        """
        self._check(messages)
        text = self._render(messages)
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.template != "own")["input_ids"]
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ChatError("two BOS tokens at the start: the template adds one and so does the tokenizer")
        if ids[-1] == self.eos_id:
            raise ChatError("the tokenizer closes the open turn with an end token: load it with add_eos_token=False")
        return ids

    def fault(self, messages: Sequence[Message], answer: str = "") -> str:
        """Why a prompt with its answer cannot be encoded, as :meth:`encode` says it; empty where it can."""
        try:
            self.encode(messages, answer)
        except ChatError as error:
            return str(error)
        return ""

    def encode(self, messages: Sequence[Message], answer: str) -> Encoded:
        """Ids of a prompt and a finished answer, closed by exactly one end-of-turn token.

        Raises:
            ChatError: as :meth:`prompt_ids`; also for a control token inside the answer.
        """
        self._refuse_controls(answer)
        prompt = self.prompt_ids(messages)
        return Encoded([*prompt, *self._answer_ids(answer), self.eos_id], len(prompt))

    def _answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer as they follow the open turn; the space before it belongs to its first word."""
        if self.template == "own" or not answer:
            plain: list[int] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
            return plain
        mark, space = {"openchat": (":", " "), "llama2": ("]", " "), "yi": ("\n", "")}[self.template]
        before, joined = self.tokenizer([mark, f"{mark}{space}{answer}"], add_special_tokens=False)["input_ids"]
        if joined[: len(before)] != before:
            raise ChatError(f"this tokenizer joins {mark!r} with the answer's first word: use its own template")
        rest: list[int] = joined[len(before) :]
        return rest

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled answer ids: cut at the end of turn, control tokens removed, outer space stripped."""
        kept = list(ids)
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return self.without_controls(text).strip()

    def without_controls(self, text: str) -> str:
        """The text less everything that this tokenizer would take for a control token."""
        while found := [token for token in self._controls if token in text]:
            text = text.replace(found[0], "")
        return text

    def _render(self, messages: Sequence[Message]) -> str:
        if self.template == "openchat":
            return openchat_text(messages, self.condition)
        if self.condition:
            first = messages[0]
            messages = [{**first, "content": f"{self.condition}\n\n{first['content']}"}, *messages[1:]]
        if self.template == "own":
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            return text
        return {"llama2": llama2_text, "yi": yi_text}[self.template](messages)

    def _check(self, messages: Sequence[Message]) -> None:
        roles = [message["role"] for message in messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if not turns or turns != [ROLES[1 + i % 2] for i in range(len(turns))] or turns[-1] != "user":
            raise ChatError(f"roles must alternate user, assistant, … and end with user; got {roles}")
        for message in messages:
            if not message["content"].strip():
                raise ChatError(f"the {message['role']} message is empty: give it text or drop the conversation")
            self._refuse_controls(message["content"])

    def _refuse_controls(self, text: str) -> None:
        for token in self._controls:
            if token in text:
                raise ChatError(f"the text contains the control token {token!r}: remove it before encoding")


def user_turns(messages: Sequence[Mapping[str, str]]) -> int:
    """Number of the user's turns."""
    return sum(message["role"] == "user" for message in messages)


def openchat_text(messages: Sequence[Message], condition: str = OPENCHAT) -> str:
    """OpenChat-3.5 text with an open assistant turn; no space after the last colon (its model card).

    ``condition`` stands before every role: ``GPT4 Correct`` is what the released model is asked with, ``GPT3`` names
    the lesser class of its paper (Wang et al. 2023, arXiv 2309.11235).
    """
    names = {"user": f"{condition} User: ", "assistant": f"{condition} Assistant: ", "system": ""}
    turns = "".join(f"{names[m['role']]}{m['content']}<|end_of_turn|>" for m in messages)
    return turns + f"{condition} Assistant:"


def llama2_text(messages: Sequence[Message]) -> str:
    """Llama-2 chat text with an open assistant turn, as the Starling reward model reads it; BOS is the tokenizer's.

    Raises:
        ChatError: there is a system message, which that text has no place for.
    """
    parts = []
    for message in messages:
        if message["role"] not in ("user", "assistant"):
            raise ChatError("this Llama-2 text has no system turn: put its content into the first user message")
        mark = f"[INST] {message['content']} [/INST]"
        parts.append(mark if message["role"] == "user" else f" {message['content']}</s> ")
    return "".join(parts)


def yi_text(messages: Sequence[Message]) -> str:
    """ChatML text of Yi-34B-Chat with an open assistant turn; the answer follows the line break without a space."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return turns + "<|im_start|>assistant\n"


def nectar_text(messages: Sequence[Message]) -> str:
    """Nectar's prompt text: ``\\n\\nHuman: …\\n\\nAssistant: `` with the last assistant turn open.

    Raises:
        ChatError: a message contains one of the two role marks, so that the text could not be read back.
    """
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    for message in messages:
        if message["role"] not in names:
            raise ChatError("Nectar text has no system turn: put its content into the first user message")
        if any(mark in message["content"] for mark in ("\n\nHuman:", "\n\nAssistant:")):
            raise ChatError("a message contains a Nectar role mark: rewrite it before it becomes a row")
    return "".join(names[m["role"]] + m["content"] for m in messages) + names["assistant"]


def from_nectar_text(prompt: str) -> list[Message]:
    """Messages of a Nectar prompt: the inverse of :func:`nectar_text`.

    Raises:
        ChatError: the text does not start with a human turn or does not end with an open assistant turn.
    """
    if not prompt.startswith("\n\nHuman: ") or not prompt.endswith("\n\nAssistant: "):
        raise ChatError("not a Nectar prompt: it must start with '\\n\\nHuman: ' and end with '\\n\\nAssistant: '")
    messages: list[Message] = []
    for turn in prompt[: -len("\n\nAssistant: ")].split("\n\nHuman: ")[1:]:
        human, *replies = turn.split("\n\nAssistant: ")
        messages.append({"role": "user", "content": human})
        messages += [{"role": "assistant", "content": reply} for reply in replies]
    return messages
