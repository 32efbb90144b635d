"""One call to a chat-completions server: the ``openai`` client, with our own patience.

Rate limits, server errors, timeouts, cut connections and torn answers are tried again after a growing, jittered pause,
or after the pause that the server names. Wrong keys, unknown models and dead servers stop the run, since every further
request would fail alike. Every failed try is told to ``note``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from starling_nb.errors import StarlingError
from starling_nb.files import rng
from starling_nb.judge.limits import RateLimit
from starling_nb.judge.spending import JudgeStopped

if TYPE_CHECKING:
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI

R = TypeVar("R")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds; doubled with every try
REFUSALS_PER_RETRY = 3  # a server may refuse for its rate this many times as often as it may fail
OPENAI = "https://api.openai.com/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECRET = 16
"""Characters from which on a key is a secret that must not stand in a reply; shorter ones are words, such as the
``ollama`` that servers without keys are given."""

Note = Callable[[str, str, Mapping[str, int]], object]
"""Called with the name of a failure (``http_429``, ``timeout``, …), what is known of it, and the tokens it cost."""


def _unheard(name: str, told: str, usage: Mapping[str, int]) -> None:
    """Nobody wants to know of a failure."""


class JudgeUnavailable(JudgeStopped):
    """The server cannot be reached, or refuses the key, the model or the account."""

    failure = "refused"


class Unanswered(StarlingError):  # noqa: N818
    """This one request got no reply; others may. ``failure`` is the ledger's word for it, ``usage`` what it cost."""

    def __init__(self, told: str, failure: str = "refused", usage: Mapping[str, int] | None = None) -> None:
        super().__init__(told)
        self.failure, self.usage = failure, usage or {}


class _Failed(Exception):  # noqa: N818
    """One try failed: its name, the error to raise when no further try helps, seconds that the server asks for."""

    def __init__(self, name: str, error: StarlingError, asked: float = 0.0) -> None:
        super().__init__(name)
        self.name, self.error, self.asked = name, error, asked


class Wire:
    """A connection that opens with the first request, so that a full ledger needs neither server nor key."""

    def __init__(
        self, model: str, base_url: str | None, api_key: str | None, retries: int, timeout: float, seed: int
    ) -> None:
        self.model, self.base_url, self._key = model, base_url, api_key
        self.retries, self.timeout, self.seed = retries, timeout, seed
        self.limit = RateLimit()
        self._left = False
        self._resting: set[asyncio.Task[Any]] = set()
        self._client: AsyncOpenAI | None = None
        self._sent = 0

    async def send(
        self, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any], tokens: int = 0, note: Note = _unheard
    ) -> dict[str, Any]:
        """Ask once, with patience: ``{reply, finish_reason, served_model, usage}``.

        Raises:
            Unanswered: this request failed for good.
            JudgeUnavailable: every request would fail.
            StarlingError: ``params`` holds a name that chat completions do not have.
        """
        client: Any = self.open()

        async def call() -> dict[str, Any]:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.model, messages=list(messages), **params
            )
            self.limit.learn(raw.headers)
            self.limit.answered()
            try:
                return self.record(json.loads(raw.http_response.content))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                told = f"the answer of {self.where()} is no chat completion ({type(error).__name__}: {error})"
                raise _Failed("malformed", Unanswered(self.safe(told))) from error

        return await self.patiently(call, tokens, note)

    async def patiently(self, call: Callable[[], Awaitable[R]], tokens: int = 0, note: Note = _unheard) -> R:
        """What ``call`` returns, tried again while it fails in a way that may pass.

        Raises:
            Unanswered, JudgeUnavailable, StarlingError: as :meth:`send`.
        """
        self._sent += 1
        jitter = rng(self.seed, "pause", self._sent)
        failed = refused = 0
        while True:
            with self._rest():
                await self.limit.acquire(tokens)
            try:
                return await self._once(call)
            except _Failed as failure:
                note(failure.name, str(failure.error), {})
                limited = failure.name == "http_429"
                refused, failed = refused + limited, failed + (not limited)
                if failed > self.retries or refused > self.retries * REFUSALS_PER_RETRY or self._left:
                    raise failure.error from failure.__cause__
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failed + refused - 1)) * (0.5 + jitter.random())
                with self._rest():
                    await asyncio.sleep(max(pause, failure.asked))
            except (Unanswered, JudgeUnavailable) as error:
                note(error.failure, str(error), getattr(error, "usage", {}))
                raise

    @contextmanager
    def _rest(self) -> Iterator[None]:
        """A time in which nothing of this request is under way, so that leaving may end it here."""
        if self._left:
            raise Unanswered("the session ended before it was sent")
        task = asyncio.current_task()
        assert task is not None
        self._resting.add(task)
        try:
            yield
        finally:
            self._resting.discard(task)

    def leave(self) -> None:
        """Send nothing again: requests that wait for their turn or sit out a pause are cancelled, sent ones are not."""
        self._left = True
        for task in self._resting:
            task.cancel()

    async def _once(self, call: Callable[[], Awaitable[R]]) -> R:
        import openai

        try:
            return await call()
        except openai.APITimeoutError as error:
            raise _Failed("timeout", Unanswered(f"no answer within {self.timeout:g} s: raise timeout")) from error
        except openai.APIConnectionError as error:
            raise self._unconnected(error) from error
        except openai.APIStatusError as error:
            raise self._judge_status(error) from error
        except openai.OpenAIError as error:
            raise _Failed("malformed", Unanswered(self.safe(f"the answer makes no sense ({error})"))) from error
        except TypeError as error:
            raise StarlingError(f"the openai client takes no such parameter ({error}): mend params") from error

    async def close(self) -> None:
        """Close the connection, if one was opened."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def open(self) -> AsyncOpenAI:
        """The connected client.

        Raises:
            JudgeUnavailable: there is no key for a server elsewhere.
        """
        if self._client is None:
            import openai

            local = urlsplit(self.base_url or "").hostname in LOOPBACK
            secret = self._key or ("local" if local else os.environ.get("OPENAI_API_KEY"))
            if not secret:
                raise JudgeUnavailable(
                    f"no key for the judge at {self.where()}: set OPENAI_API_KEY (any text does for a "
                    "server without keys), or use the simulated judge, which needs none"
                )
            self._key = secret
            self._client = openai.AsyncOpenAI(
                api_key=secret,
                base_url=self.base_url,
                max_retries=0,
                timeout=self.timeout,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=not local),  # no proxy to this machine
            )
        return self._client

    def record(self, body: Any) -> dict[str, Any]:
        """What the ledger keeps of a chat completion's JSON.

        Raises:
            Unanswered: the content filter stopped it.
            ValueError, LookupError, TypeError, AttributeError: it is no chat completion.
        """
        choice, told = body["choices"][0], body.get("usage") or {}
        counts = {name: int(told.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        usage = {**counts, "total_tokens": sum(counts.values())}
        if choice.get("finish_reason") == "content_filter":
            raise Unanswered("the server's content filter stopped the reply", "content_filter", usage)
        message = choice["message"]
        reply = message.get("content") or message.get("refusal") or ""
        if not isinstance(reply, str):
            raise ValueError("the message's content is no text")
        return {
            "reply": self.safe(reply, SECRET),
            "finish_reason": choice.get("finish_reason"),
            "served_model": body.get("model"),
            "usage": usage,
        }

    def _unconnected(self, error: APIConnectionError) -> _Failed:
        """A server that cannot be reached stops the run; a connection that broke costs this request a try."""
        if _refused(error):
            told = f"cannot reach the judge at {self.where()}: start it or mend base_url"
            return _Failed("unreachable", JudgeUnavailable(told))
        return _Failed(
            "cut", Unanswered(f"the connection to {self.where()} broke off again and again: run again later")
        )

    def _judge_status(self, error: APIStatusError) -> _Failed:
        """A failure that may pass; raises at once where none can."""
        status, text = error.status_code, self.safe(_message(error))
        if status in (401, 403) or error.code == "insufficient_quota":
            raise JudgeUnavailable(f"{self.where()} refuses ({status}: {text}): mend the key or account") from error
        if status == 404:
            told = (
                f"{self.where()} knows nothing of the kind ({text}): mend the model's name ({self.model}) or base_url"
            )
            raise JudgeUnavailable(told) from error
        if status in (408, 409, 429) or status >= 500:
            asked = self.limit.refused(error.response.headers, status == 429) if status in (429, 503) else 0.0
            told = f"still {status} after {self.retries + 1} tries ({text}): run again later"
            return _Failed(f"http_{status}", Unanswered(told), asked)
        name = "content_filter" if error.code == "content_filter" else f"http_{status}"
        raise Unanswered(f"{status}: {text}", name) from error

    def where(self) -> str:
        """The server's address, without anything secret in it."""
        return public(self.base_url) if self.base_url else "api.openai.com"

    def safe(self, text: str, least: int = 6) -> str:
        """The text without the key, if that has ``least`` characters."""
        return text.replace(self._key, "***") if self._key and len(self._key) >= least else text


def public(url: str) -> str:
    """An address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def server(url: str | None) -> str:
    """One spelling for a server, whichever of its own the user writes; None is OpenAI itself."""
    parts = urlsplit(public(url or OPENAI))
    host = "127.0.0.1" if parts.hostname in LOOPBACK else parts.hostname or ""
    port = f":{parts.port}" if parts.port not in (None, {"http": 80, "https": 443}.get(parts.scheme)) else ""
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def _refused(error: BaseException) -> bool:
    """Whether no connection came about at all; told by name, for httpx changes its own with the openai client."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in ("ConnectError", "UnsupportedProtocol", "InvalidURL"):
            return True
        cause = cause.__cause__
    return False


def _message(error: APIStatusError) -> str:
    body = error.body
    found = body.get("message") if isinstance(body, dict) else None
    return str(found or error.message)[:500]
