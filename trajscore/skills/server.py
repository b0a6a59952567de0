"""An annotator behind an OpenAI-compatible server: what is sent, how many requests at a time, what is tried again, and what a
reply says. How a request is bounded in time and bytes lives in `trajscore.io.http`.

The key comes from the environment and is cut out of whatever the server sends back, so that no log or file can hold it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from trajscore.errors import EngineError, MissingExtraError, TrajscoreError, UsageError
from trajscore.skills.calls import Call, Done, Reply, token_count

if TYPE_CHECKING:
    from trajscore.io.http import HttpReply, JsonServer

KEYS = ("TRAJSCORE_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first one that is set is used."""

MOST_BYTES = 8 << 20
"""A longer reply is no chat completion."""
_RETRIED = (408, 409, 425, 429)
_UNUSABLE_RETRIES = 2
_MANY_FAILURES = 10
_LONGEST_PAUSE = 60.0
_LONGEST_RETRY_AFTER = 300.0
_log = logging.getLogger("trajscore")


class ChatServer:
    """An `Annotator` that is asked over HTTP.

    Args:
        base_url: the URL up to `/v1`.
        concurrency: requests at a time.
        timeout: seconds for one whole request, from the connection to the last byte of the reply.
        max_retries: repetitions after 429, 5xx, a lost connection or a timeout; two at most after a reply of status 200 that
            is no chat completion.
        backoff: seconds before the first repetition, doubled each time, with jitter; a server's Retry-After counts more.
        request: fields that are added to every request body; a null removes the field.

    Raises:
        UsageError: a value is out of range, the URL is not valid, or the key is none.
        MissingExtraError: openai is not installed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        concurrency: int = 8,
        timeout: float = 600.0,
        max_retries: int = 6,
        backoff: float = 1.0,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        check_server(base_url, concurrency, timeout, max_retries)
        try:
            from trajscore.io import http
        except ImportError as error:
            raise MissingExtraError("openai", "skills") from error
        self._http = http
        self._base_url = base_url
        self._concurrency = concurrency
        self._timeout = timeout
        self._max_retries = max_retries
        self._backoff = backoff
        self._request = request or {}
        self._key_name = next((name for name in KEYS if os.environ.get(name)), None)
        self._key = _key(self._key_name) if self._key_name else ""
        self._failures_in_a_row = 0
        self._unusable = 0
        self._heard = self._understood = False

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        """Ask all, at most `concurrency` at a time.

        Raises:
            UsageError: the server rejects the key (401, 403), knows no such model or address (404), redirects, or has no
                certificate that is trusted.
            EngineError: nothing was ever heard of the server, or call after call fails.
        """
        if calls:
            _run(self._answer(calls, done))

    async def _answer(self, calls: Sequence[Call], done: Done) -> None:
        waiting = iter(calls)
        async with self._http.JsonServer(
            self._base_url, self._key, self._timeout, MOST_BYTES, self._concurrency
        ) as server:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._concurrency, len(calls))):
                        group.create_task(self._work(server, waiting, done))
            except BaseExceptionGroup as group:
                raise _one(group) from None

    async def _work(self, server: JsonServer, waiting: Iterator[Call], done: Done) -> None:
        for call in waiting:
            reply = await self._ask(server, call)
            done(call, reply)
            self._failures_in_a_row = self._failures_in_a_row + 1 if reply.failure else 0
            hint = "See to the server and run the same command again; answered calls are kept."
            if reply.failure and not self._heard:
                raise EngineError(f"{self._base_url}: no reply at all; {reply.failure}.", hint)
            if self._failures_in_a_row >= _MANY_FAILURES:
                raise EngineError(
                    f"{self._base_url}: {_MANY_FAILURES} calls in a row failed; the last one: {reply.failure}.", hint
                )

    async def _ask(self, server: JsonServer, call: Call) -> Reply:
        """The reply to a call, after as many repetitions as it takes and is allowed."""
        body = request_body(call, self._request)
        for attempt in itertools.count():
            reply, again, wait = await self._once(server, body)
            pause = _pause(attempt, self._backoff) if wait is None else wait
            if not again or attempt == self._max_retries or pause > _LONGEST_RETRY_AFTER:
                break
            if reply.unusable and (attempt >= _UNUSABLE_RETRIES or not self._hopeful()):
                break
            await asyncio.sleep(pause)
        if reply.unusable:
            self._unusable += 1
            if self._unusable == 1:
                _log.warning("%s: %s", self._base_url, reply.unusable)
        return reply

    def _hopeful(self) -> bool:
        """Whether a reply that is no chat completion may be an accident: not where nothing else ever came."""
        return self._understood or self._unusable < _MANY_FAILURES

    async def _once(self, server: JsonServer, body: Mapping[str, Any]) -> tuple[Reply, bool, float | None]:
        """One request: its reply, whether another try may help, and the seconds that the server asks to wait before it."""
        try:
            came = await server.post("/chat/completions", body)
        except self._http.NoReplyError as error:
            return Reply(failure=self._clean(str(error))), True, None
        except self._http.UnusableReplyError as error:
            self._heard = True
            return Reply(unusable=f"the reply is no chat completion: {self._clean(str(error))}"), True, None
        self._heard = True
        if came.status == 200:
            reply = self._reply(came.body)
            self._understood = self._understood or not reply.unusable
            return reply, bool(reply.unusable), None
        failure = f"HTTP {came.status}: {self._beginning(came.body, 300)}"
        self._stop_on(came, failure)
        again = came.status >= 500 or came.status in _RETRIED
        wait = self._http.retry_after_seconds(came.retry_after, time.time()) if again else None
        if wait is not None and wait > _LONGEST_RETRY_AFTER:
            failure += f", and it asks to wait {wait:.3g} s"
        return Reply(failure=failure), again, wait

    def _stop_on(self, came: HttpReply, failure: str) -> None:
        """Stop the run where every other call would fare alike."""
        kept = "run the same command again; answered calls are kept."
        if came.status in (401, 403):
            key = (
                f"the key in {self._key_name}" if self._key_name else f"a request without a key ({KEYS[0]} is not set)"
            )
            raise UsageError(f"{self._base_url} does not accept {key}: {failure}.", f"Set {KEYS[0]} and {kept}")
        if came.status == 404:
            raise UsageError(f"{self._base_url}: {failure}.", "Check --base-url (it ends in /v1) and the model's name.")
        if 300 <= came.status < 400:
            raise UsageError(
                f"{self._base_url}: HTTP {came.status}, a redirect to {self._clean(came.location)[:200]!r}.",
                f"Redirects are not followed, since the key would go along. Give the final URL as --base-url and {kept}",
            )

    def _reply(self, body: bytes) -> Reply:
        """What a body of status 200 says."""
        try:
            value = json.loads(body.decode("utf-8-sig"))
            choice = value["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
            usage = value.get("usage")
            counts = usage if isinstance(usage, dict) else {}
            if not isinstance(text, str | None) or not isinstance(refusal, str | None):
                raise TypeError("content or refusal is no text")
            filtered = (
                "" if choice.get("finish_reason") != "content_filter" else "stopped by the server's content filter"
            )
            return Reply(
                text=None if text is None else self._clean(text),
                refusal=self._clean(refusal or filtered),
                complete=choice.get("finish_reason") != "length",
                prompt_tokens=token_count(counts.get("prompt_tokens")),
                completion_tokens=token_count(counts.get("completion_tokens")),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return Reply(unusable=f"the reply is no chat completion: {self._beginning(body, 200)}")

    def _beginning(self, body: bytes, characters: int) -> str:
        return repr(self._clean(body.decode("utf-8", "replace"))[:characters])[: characters + 2]

    def _clean(self, text: str) -> str:
        """Text without the key and without halves of surrogate pairs, which no file can hold."""
        whole = text.encode("utf-8", "replace").decode()
        return whole.replace(self._key, "[key]") if self._key else whole


def check_server(base_url: str, concurrency: int, timeout: float, max_retries: int) -> None:
    """Refuse what cannot work before anything is read or asked.

    Raises:
        UsageError: a value is out of range, or the URL is not valid.
    """
    if not base_url.startswith(("http://", "https://")):
        raise UsageError(f"--base-url {base_url}: not a valid URL.", "Give one such as http://localhost:8000/v1.")
    if "@" in base_url.partition("://")[2].partition("/")[0]:
        raise UsageError("--base-url holds a name or a password.", f"Put the key into the environment as {KEYS[0]}.")
    for name, value, low in (("concurrency", concurrency, 1), ("max-retries", max_retries, 0)):
        if value < low:
            raise UsageError(f"--{name} is {value}.", f"Give at least {low}.")
    if not 0 < timeout <= _LONGEST_TIMEOUT:
        raise UsageError(f"--timeout is {timeout:g}.", f"Give seconds, above 0 and at most {_LONGEST_TIMEOUT:g}.")


_LONGEST_TIMEOUT = 86400.0


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
    return float(min(_LONGEST_PAUSE, backoff * 2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def _one(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a user should see of those that stopped the run together."""
    flat = list(_flat(group))
    return next((error for error in flat if isinstance(error, TrajscoreError)), flat[0])


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _flat(error) if isinstance(error, BaseExceptionGroup) else (error,)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end on a thread of its own: a notebook has an event loop already, and a signal then never strikes inside one.

    An interruption cancels the work, which closes its connections, and is passed on once that is done.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def watched() -> None:
        started.set_result((asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())))
        await work

    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(asyncio.run, watched()).result()
    except BaseException:
        loop, task = started.result()
        with contextlib.suppress(RuntimeError):  # it has ended, with this very error
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        pool.shutdown()
