"""A teacher behind an OpenAI-compatible server: requests, bounded concurrency, retries. It knows HTTP and the chat format; no
skill, no file.

The key comes from the environment and is cut out of whatever the server sends back, so that no log or file can hold it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trajscore.errors import EngineError, MissingExtraError, TrajscoreError, UsageError
from trajscore.skills.calls import Call, Done, Reply

if TYPE_CHECKING:
    import httpx

KEYS = ("TRAJSCORE_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first one that is set is used."""

_RETRIED = (408, 409, 425, 429)
_MANY_FAILURES = 10
_LONGEST_WAIT = 60.0
_LONGEST_RETRY_AFTER = 300.0


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked.

    Attributes:
        base_url: the address up to `/v1`.
        concurrency: requests at a time.
        timeout: seconds to wait for one reply.
        max_retries: repetitions after 429, 5xx, a lost connection or a timeout.
        backoff: seconds before the first repetition, doubled each time, with jitter; a server's Retry-After counts more.
        request: fields that are added to every request body; a null removes the field.

    Raises:
        UsageError: a value is out of range, or the address is none.
    """

    base_url: str
    concurrency: int = 8
    timeout: float = 600.0
    max_retries: int = 6
    backoff: float = 1.0
    request: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise UsageError(f"--base-url {self.base_url}: no address.", "Give one such as http://localhost:8000/v1.")
        if "@" in self.base_url.partition("://")[2].partition("/")[0]:
            raise UsageError(
                "--base-url holds a name or a password.", f"Put the key into the environment as {KEYS[0]}."
            )
        for name, low in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}.", f"Give at least {low}.")
        if not self.timeout > 0:
            raise UsageError(f"--timeout is {self.timeout}.", "Give seconds above 0.")


class ChatServer:
    """A `Teacher` that is asked over HTTP.

    Args:
        options: how.

    Raises:
        MissingExtraError: httpx is not installed.
    """

    def __init__(self, options: ServerOptions) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("httpx", "skills") from error
        self._httpx = httpx
        self._options = options
        self._key_name = next((name for name in KEYS if os.environ.get(name)), None)
        self._key = _key(self._key_name) if self._key_name else ""
        self._failures_in_a_row = 0

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        """Ask all, at most `concurrency` at a time.

        Raises:
            UsageError: the server rejects the key (401, 403) or knows no such model or address (404).
            EngineError: call after call fails.
        """
        if calls:
            _run(self._answer(calls, done))

    async def _answer(self, calls: Sequence[Call], done: Done) -> None:
        httpx, options = self._httpx, self._options
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=options.concurrency)
        waiting = iter(calls)
        async with httpx.AsyncClient(headers=headers, timeout=options.timeout, limits=limits) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(options.concurrency, len(calls))):
                        group.create_task(self._work(client, waiting, done))
            except BaseExceptionGroup as group:
                raise _one(group) from None

    async def _work(self, client: httpx.AsyncClient, waiting: Iterator[Call], done: Done) -> None:
        for call in waiting:
            reply = await self._ask(client, call)
            done(call, reply)
            self._failures_in_a_row = self._failures_in_a_row + 1 if reply.failure else 0
            if self._failures_in_a_row >= _MANY_FAILURES:
                raise EngineError(
                    f"{self._options.base_url}: {_MANY_FAILURES} calls in a row failed; the last one: {reply.failure}.",
                    "See to the server and run the same command again; answered calls are kept.",
                )

    async def _ask(self, client: httpx.AsyncClient, call: Call) -> Reply:
        url = f"{self._options.base_url.rstrip('/')}/chat/completions"
        body = request_body(call, self._options.request)
        failure = ""
        for attempt in range(self._options.max_retries + 1):
            wait = None
            try:
                response = await client.post(url, json=body)
            except self._httpx.TransportError as error:
                failure = self._clean(f"{type(error).__name__}: {error}")
            except self._httpx.InvalidURL as error:
                raise UsageError(f"--base-url {self._options.base_url}: no address ({error}).") from error
            else:
                if response.status_code == 200:
                    reply = self._reply(response)
                    if reply is not None:
                        return reply
                    failure = f"the reply is no chat completion: {self._clean(response.text)[:200]!r}"
                else:
                    failure = f"HTTP {response.status_code}: {self._clean(response.text)[:300]!r}"
                    self._stop_on(response.status_code, failure)
                    if response.status_code < 500 and response.status_code not in _RETRIED:
                        return Reply(failure=failure)
                    wait = _retry_after(response.headers.get("retry-after"))
            if attempt < self._options.max_retries:
                await asyncio.sleep(_pause(attempt, self._options.backoff) if wait is None else wait)
        return Reply(failure=failure)

    def _stop_on(self, status: int, failure: str) -> None:
        if status in (401, 403):
            key = (
                f"the key in {self._key_name}" if self._key_name else f"a request without a key ({KEYS[0]} is not set)"
            )
            raise UsageError(
                f"{self._options.base_url} does not accept {key}: {failure}.",
                f"Set {KEYS[0]} and run the same command again; answered calls are kept.",
            )
        if status == 404:
            raise UsageError(
                f"{self._options.base_url}: {failure}.", "Check --base-url (it ends in /v1) and the model's name."
            )

    def _reply(self, response: httpx.Response) -> Reply | None:
        """The chat completion in a response, None if it holds none."""
        try:
            body = response.json()
            choice = body["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            usage = body.get("usage") or {}
            if not isinstance(text, str | None) or not isinstance(refusal, str | None):
                return None
            filtered = (
                "" if choice.get("finish_reason") != "content_filter" else "stopped by the server's content filter"
            )
            return Reply(
                text=None if text is None else self._clean(text),
                refusal=self._clean(refusal or filtered),
                complete=choice.get("finish_reason") != "length",
                prompt_tokens=_count(usage.get("prompt_tokens")),
                completion_tokens=_count(usage.get("completion_tokens")),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None

    def _clean(self, text: str) -> str:
        """Text without the key and without halves of surrogate pairs, which no file can hold."""
        whole = text.encode("utf-8", "replace").decode()
        return whole.replace(self._key, "[key]") if self._key else whole


def _key(name: str) -> str:
    """The key in an environment variable; files and secrets often end it with a newline, which no header can hold.

    Raises:
        UsageError: it is no key; the message does not show it.
    """
    key = os.environ[name].strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"{name} holds no key: blank, or with characters that no HTTP header can hold.", "Set it anew."
        )
    return key


def _count(value: Any) -> int | None:
    """A number of tokens as the server gave it; None where that is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def request_body(call: Call, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body of a call; `changes` add, replace or (null) remove fields."""
    settings = call.settings
    body = {
        "model": settings["model"],
        "messages": [{"role": "user", "content": call.content}],
        "temperature": settings["temperature"],
        "max_tokens": settings["max_tokens"],
        "seed": settings["seed"] + call.sample,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": call.task, "schema": call.schema, "strict": True},
        },
    }
    return {name: value for name, value in {**body, **changes}.items() if value is not None}


def _pause(attempt: int, backoff: float) -> float:
    return float(min(_LONGEST_WAIT, backoff * 2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def _retry_after(value: str | None) -> float | None:
    try:
        return None if value is None else min(_LONGEST_RETRY_AFTER, max(0.0, float(value)))
    except ValueError:
        return None


def _one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a user should see of those that stopped the run together."""
    flat = list(_flat(group))
    return next((error for error in flat if isinstance(error, TrajscoreError)), flat[0])


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _flat(error) if isinstance(error, BaseExceptionGroup) else (error,)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, work).result()
