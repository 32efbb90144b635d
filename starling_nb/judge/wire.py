"""One call to a chat-completions server: the ``openai`` client, with our own patience.

Rate limits, server errors and timeouts are tried again after a growing, jittered pause, or after the pause
that the server names (``Retry-After``); the pause holds for every request of the session. Wrong keys, unknown
models and dead servers stop the run, since every further request would fail alike.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starling_nb.errors import StarlingError
from starling_nb.files import rng

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0  # seconds; doubled with every try
LONGEST_OBEYED = 600.0  # seconds a server may ask us to wait


class JudgeStopped(StarlingError):  # noqa: N818
    """Asking came to an early end; ``outcomes`` holds what :meth:`Judge.ask_all` had settled until then."""

    outcomes: Sequence[Any] = ()


class JudgeUnavailable(JudgeStopped):
    """The server cannot be reached, or refuses the key, the model or the account."""


class Unanswered(StarlingError):  # noqa: N818
    """This one request got no reply; others may."""


class Wire:
    """A connection that opens with the first request, so that a full ledger needs neither server nor key."""

    def __init__(
        self, model: str, base_url: str | None, api_key: str | None, retries: int, timeout: float, seed: int
    ) -> None:
        self.model, self.base_url, self._key = model, base_url, api_key
        self.retries, self.timeout, self.seed = retries, timeout, seed
        self._client: AsyncOpenAI | None = None
        self._quiet_until = 0.0
        self._sent = 0

    async def send(self, messages: Sequence[Mapping[str, str]], params: Mapping[str, Any]) -> dict[str, Any]:
        """Ask once, with patience: ``{reply, finish_reason, served_model, usage}``.

        Raises:
            Unanswered: this request failed for good.
            JudgeUnavailable: every request would fail.
            StarlingError: ``params`` holds a name that chat completions do not have.
        """
        import openai

        client: Any = self._open()
        self._sent += 1
        jitter = rng(self.seed, "pause", self._sent)
        for trial in range(self.retries + 1):
            await self._keep_quiet()
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**trial) * (0.5 + jitter.random())
            try:
                return self._record(
                    await client.chat.completions.create(model=self.model, messages=list(messages), **params)
                )
            except openai.APITimeoutError as error:
                failure: StarlingError = Unanswered(f"no answer within {self.timeout:g} s: raise timeout")
                cause: Exception = error
            except openai.APIConnectionError as error:
                failure = JudgeUnavailable(f"cannot reach the judge at {self._where()}: start it or mend base_url")
                cause = error
            except openai.APIStatusError as error:
                failure, cause = self._judge_status(error), error
                pause = max(pause, self._asked_pause(error))
            except TypeError as error:
                raise StarlingError(f"chat completions have no such parameter ({error}): mend params") from error
            except (openai.OpenAIError, ValueError) as error:
                raise Unanswered(self._safe(f"the judge's answer makes no sense ({error})")) from error
            if trial == self.retries:
                raise failure from cause
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """Close the connection, if one was opened."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _open(self) -> AsyncOpenAI:
        if self._client is None:
            import openai

            local = urlsplit(self.base_url or "").hostname in ("127.0.0.1", "localhost", "::1")
            secret = self._key or ("local" if local else os.environ.get("OPENAI_API_KEY"))
            if not secret:
                raise JudgeUnavailable(
                    f"no key for the judge at {self._where()}: set OPENAI_API_KEY (any text does for a "
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

    def _record(self, response: Any) -> dict[str, Any]:
        choices = getattr(response, "choices", None)
        if not choices:
            raise Unanswered(f"{self._where()} answered without choices: it does not speak chat completions")
        choice = choices[0]
        if choice.finish_reason == "content_filter":
            raise Unanswered("the server's content filter stopped the reply")
        counts = response.usage.model_dump() if response.usage else {}
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        return {
            "reply": choice.message.content or getattr(choice.message, "refusal", None) or "",
            "finish_reason": choice.finish_reason,
            "served_model": response.model,
            "usage": {name: int(counts.get(name) or 0) for name in names},
        }

    def _judge_status(self, error: APIStatusError) -> StarlingError:
        """The failure to raise should no further try help; raises at once where none can."""
        status, text = error.status_code, self._safe(_message(error))
        if status in (401, 403) or error.code == "insufficient_quota":
            raise JudgeUnavailable(f"{self._where()} refuses ({status}: {text}): mend the key or account") from error
        if status == 404:
            raise JudgeUnavailable(f"{self._where()} has no model {self.model!r} ({text}): mend it") from error
        if status in (408, 409, 429) or status >= 500:
            return Unanswered(f"still {status} after {self.retries + 1} tries ({text}): run again later")
        raise Unanswered(f"{status}: {text}") from error

    def _asked_pause(self, error: APIStatusError) -> float:
        """Seconds that the server asks for; they hold for the whole session."""
        asked = _retry_after(error.response.headers)
        self._quiet_until = max(self._quiet_until, time.monotonic() + asked)
        return asked

    async def _keep_quiet(self) -> None:
        while (left := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def _where(self) -> str:
        return self.base_url or "api.openai.com"

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _message(error: APIStatusError) -> str:
    body = error.body
    found = body.get("message") if isinstance(body, dict) else None
    return str(found or error.message)[:500]


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds in ``Retry-After-Ms`` or ``Retry-After`` (a number or an HTTP date), 0 where there is none."""
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        else:
            wait = float(headers.get("retry-after", "0"))
    except ValueError:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        wait = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return min(wait, LONGEST_OBEYED) if wait > 0 else 0.0
