"""Many requests to one server that need not be honest: how many at a time, what is tried again, and when to give up.

How one request is bounded in time and bytes is in `io.http`; what is asked, and what a reply says, is up to who asks. The key
comes from the environment and is cut out of whatever the server sends back, so that no log or file can hold it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import urlsplit

from trajscore.errors import EngineError, MissingExtraError, TrajscoreError, UsageError

if TYPE_CHECKING:
    from trajscore.io.http import HttpReply, JsonServer

KEYS = ("TRAJSCORE_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first one that is set is used."""

_RETRIED = (408, 409, 425, 429)
_UNUSABLE_RETRIES = 2
_MANY_FAILURES = 10
_LONGEST_PAUSE = 60.0
_LONGEST_RETRY_AFTER = 300.0
_LONGEST_TIMEOUT = 86400.0
_log = logging.getLogger("trajscore")

Request = TypeVar("Request")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Answered(Generic[Value]):
    """What came of a request.

    Attributes:
        value: what the reply says; None when there is none that can be used.
        failure: why there is no reply at all; empty when there is one.
        unusable: what is wrong with a reply of status 200; empty when it can be used.
    """

    value: Value | None = None
    failure: str = ""
    unusable: str = ""


class Asker:
    """Asks one server, several requests at a time.

    Args:
        base_url: the URL up to which paths are appended, such as `http://localhost:8000/v1`.
        expected: what a reply has to be, for messages.
        most_bytes: a longer reply of status 200 cannot be used.
        concurrency: requests at a time.
        timeout: seconds for one whole request, from the connection to the last byte of the reply.
        max_retries: repetitions after 429, 5xx, a lost connection or a timeout; two at most after a reply of status 200 that
            cannot be used. There is none where the server seems silent: after one timeout if nothing was ever heard of it, else
            after as many in a row as requests run at a time, and at least two.
        backoff: seconds before the first repetition, doubled each time, with jitter; a server's Retry-After counts more.
        tolerant: whether some requests may come to nothing; else the first that does stops all, and every outcome has a value.

    Raises:
        UsageError: a value is out of range, the URL is not valid, or the key is none.
        MissingExtraError: openai is not installed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        expected: str,
        most_bytes: int,
        concurrency: int = 8,
        timeout: float = 600.0,
        max_retries: int = 6,
        backoff: float = 1.0,
        tolerant: bool = True,
    ) -> None:
        check_server(base_url, concurrency, timeout, max_retries)
        try:
            from trajscore.io import http
        except ImportError as error:
            raise MissingExtraError("openai", "skills") from error
        self._http = http
        self._base_url, self._expected, self._most_bytes = base_url, expected, most_bytes
        self._concurrency, self._timeout = concurrency, timeout
        self._max_retries, self._backoff, self._tolerant = max_retries, backoff, tolerant
        self._key_name = next((name for name in KEYS if os.environ.get(name)), None)
        self._key = _key(self._key_name) if self._key_name else ""
        self._escaped_key = re.compile(
            "".join(rf"(?:\\?{re.escape(letter)}|\\u(?i:{ord(letter):04x}))" for letter in self._key)
        )
        self._failures_in_a_row = self._timeouts_in_a_row = 0
        self._unusable = 0
        self._heard = self._understood = False

    def ask(
        self,
        path: str,
        requests: Iterable[Request],
        body: Callable[[Request], Mapping[str, Any] | None],
        read: Callable[[Request, bytes], Value],
    ) -> Iterator[tuple[Request, Answered[Value]]]:
        """Ask all, at most `concurrency` at a time, and yield each outcome as soon as it is there.

        In the place of a request the next is asked when its outcome was taken and more is wanted. So whatever ends the process,
        no more than `concurrency` answers are lost. Leaving the iteration early closes the connections.

        Args:
            path: behind the base URL.
            requests: taken one by one, in another thread.
            body: the JSON of a request; None for a GET.
            read: what the body of a reply of status 200 says; errors of the kinds that malformed JSON causes make it unusable,
                `io.http.UnusableReplyError` with its text as the detail.

        Raises:
            UsageError: the server rejects the key (401, 403), knows no such model or address (404), redirects, or has no
                certificate that is trusted.
            EngineError: nothing was ever heard of the server, or request after request fails.
        """
        came: queue.SimpleQueue[tuple[Request, Answered[Value], asyncio.Event] | BaseException | None]
        came = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._answer(path, iter(requests), body, read, came))

        def work() -> None:
            # A thread of its own: a notebook has an event loop already, and a signal then never strikes inside one.
            try:
                loop.run_until_complete(task)
                came.put(None)
            except BaseException as error:
                came.put(error)
            finally:
                loop.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (found := came.get()) is not None:
                if isinstance(found, BaseException):
                    raise found
                request, outcome, taken = found
                yield request, outcome
                _call(loop, taken.set)
        finally:
            _call(loop, task.cancel)
            thread.join()

    async def _answer(
        self,
        path: str,
        waiting: Iterator[Request],
        body: Callable[[Request], Mapping[str, Any] | None],
        read: Callable[[Request, bytes], Value],
        came: queue.SimpleQueue[Any],
    ) -> None:
        async with self._http.JsonServer(
            self._base_url, self._key, self._timeout, self._most_bytes, self._concurrency
        ) as server:

            async def work() -> None:
                for request in waiting:
                    outcome = await self._one(server, path, request, body, read)
                    if self._tolerant or outcome.value is not None:
                        taken = asyncio.Event()
                        came.put((request, outcome, taken))
                        await taken.wait()
                    self._give_up_on(outcome)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._concurrency):
                        group.create_task(work())
            except BaseExceptionGroup as group:
                raise _foremost(group) from None

    def _give_up_on(self, outcome: Answered[Any]) -> None:
        """Stop where other requests would fare alike."""
        self._failures_in_a_row = self._failures_in_a_row + 1 if outcome.failure else 0
        hint = "See to the server and run the same command again; what it answered is kept."
        if outcome.failure and not self._heard:
            raise EngineError(f"{self._base_url}: no reply at all; {outcome.failure}.", hint)
        if not self._tolerant and (outcome.failure or outcome.unusable):
            raise EngineError(f"{self._base_url}: {outcome.failure or outcome.unusable}.", hint)
        if self._failures_in_a_row >= _MANY_FAILURES:
            raise EngineError(
                f"{self._base_url}: {_MANY_FAILURES} calls in a row failed; the last one: {outcome.failure}.", hint
            )

    async def _one(
        self,
        server: JsonServer,
        path: str,
        request: Request,
        body: Callable[[Request], Mapping[str, Any] | None],
        read: Callable[[Request, bytes], Value],
    ) -> Answered[Value]:
        """What comes of a request, after as many repetitions as it takes and is allowed."""
        content = body(request)
        for attempt in itertools.count():
            outcome, again, wait = await self._once(server, path, content, lambda data: read(request, data))
            self._give_up_on_silence(outcome)
            pause = _pause(attempt, self._backoff) if wait is None else wait
            if not again or attempt == self._max_retries or pause > _LONGEST_RETRY_AFTER:
                break
            if outcome.unusable and (attempt >= _UNUSABLE_RETRIES or not self._hopeful()):
                break
            await asyncio.sleep(pause)
        if outcome.unusable:
            self._unusable += 1
            if self._unusable == 1:
                _log.warning("%s: %s", self._base_url, outcome.unusable)
        return outcome

    def _give_up_on_silence(self, outcome: Answered[Any]) -> None:
        """Stop where every other request would wait for its time limit, too: seven such waits for each take hours."""
        if self._timeouts_in_a_row >= (max(2, self._concurrency) if self._heard else 1):
            many = f", {self._timeouts_in_a_row} times in a row" if self._timeouts_in_a_row > 1 else ""
            raise EngineError(
                f"{self._base_url}: {'' if self._heard else 'no reply at all; '}{outcome.failure}{many}.",
                "See to the server, or give a longer --timeout, and run the same command again; what it answered is kept.",
            )

    def _hopeful(self) -> bool:
        """Whether a reply that cannot be used may be an accident: not where nothing else ever came."""
        return self._understood or self._unusable < _MANY_FAILURES

    async def _once(
        self, server: JsonServer, path: str, body: Mapping[str, Any] | None, read: Callable[[bytes], Value]
    ) -> tuple[Answered[Value], bool, float | None]:
        """One request: its outcome, whether another try may help, and the seconds that the server asks to wait before it."""
        try:
            came = await (server.get(path) if body is None else server.post(path, body))
        except self._http.NoReplyError as error:
            if isinstance(error, self._http.TimeLimitError):
                self._timeouts_in_a_row += 1
            return Answered(failure=self.clean(str(error))), True, None
        except self._http.UnusableReplyError as error:
            self._heard, self._timeouts_in_a_row = True, 0
            return self._unusable_as(self.clean(str(error))), True, None
        self._heard, self._timeouts_in_a_row = True, 0
        if came.status == 200:
            outcome = self._read(came.body, read)
            self._understood = self._understood or not outcome.unusable
            return outcome, bool(outcome.unusable), None
        failure = f"HTTP {came.status}: {self._beginning(came.body, 300)}"
        self._stop_on(came, failure)
        again = came.status >= 500 or came.status in _RETRIED
        wait = self._http.retry_after_seconds(came.retry_after, time.time()) if again else None
        if wait is not None and wait > _LONGEST_RETRY_AFTER:
            failure += f", and it asks to wait {wait:.3g} s"
        return Answered(failure=failure), again, wait

    def _read(self, body: bytes, read: Callable[[bytes], Value]) -> Answered[Value]:
        try:
            return Answered(read(body))
        except self._http.UnusableReplyError as error:
            return self._unusable_as(self.clean(str(error)))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError):
            return self._unusable_as(self._beginning(body, 200))

    def _unusable_as(self, detail: str) -> Answered[Any]:
        return Answered(unusable=f"the reply is no {self._expected}: {detail}")

    def _stop_on(self, came: HttpReply, failure: str) -> None:
        """Stop the run where every other request would fare alike."""
        kept = "run the same command again; what it answered is kept."
        if came.status in (401, 403):
            key = (
                f"the key in {self._key_name}" if self._key_name else f"a request without a key ({KEYS[0]} is not set)"
            )
            raise UsageError(f"{self._base_url} does not accept {key}: {failure}.", f"Set {KEYS[0]} and {kept}")
        if came.status == 404:
            raise UsageError(f"{self._base_url}: {failure}.", "Check --base-url (it ends in /v1) and the model's name.")
        if 300 <= came.status < 400:
            raise UsageError(
                f"{self._base_url}: HTTP {came.status}, a redirect to {self.clean(came.location)[:200]!r}.",
                f"Redirects are not followed, since the key would go along. Give the final URL as --base-url and {kept}",
            )

    def _beginning(self, body: bytes, characters: int) -> str:
        # As much more as a key takes that stands across the end.
        shown = body[: 4 * (characters + len(self._key))].decode("utf-8", "replace")
        return repr(self.clean(shown)[:characters])[: characters + 2]

    def clean(self, text: str) -> str:
        """Text without the key, however JSON may spell it, and without halves of surrogate pairs, which no file can hold."""
        whole = text.encode("utf-8", "replace").decode()
        if not self._key:
            return whole
        shown = whole.replace(self._key, "[key]")
        return self._escaped_key.sub("[key]", shown) if "\\" in shown else shown


def check_server(base_url: str, concurrency: int, timeout: float, max_retries: int) -> None:
    """Refuse what cannot work before anything is read or asked.

    Raises:
        UsageError: a value is out of range, or the URL is not valid.
    """
    if "@" in base_url.partition("://")[2].partition("/")[0]:
        raise UsageError("--base-url holds a name or a password.", f"Put the key into the environment as {KEYS[0]}.")
    if "?" in base_url or "#" in base_url:  # paths are appended; and a query may hold a key, which is not shown
        raise UsageError(
            "--base-url holds a query or a fragment (? or #).",
            f"Give the URL up to /v1, and the key in the environment as {KEYS[0]}.",
        )
    if not base_url.startswith(("http://", "https://")) or not _has_host(base_url):
        raise UsageError(f"--base-url {base_url}: not a valid URL.", "Give one such as http://localhost:8000/v1.")
    for name, value, low in (("concurrency", concurrency, 1), ("max-retries", max_retries, 0)):
        if value < low:
            raise UsageError(f"--{name} is {value}.", f"Give at least {low}.")
    if not 0 < timeout <= _LONGEST_TIMEOUT:
        raise UsageError(f"--timeout is {timeout:g}.", f"Give seconds, above 0 and at most {_LONGEST_TIMEOUT:g}.")


def _has_host(url: str) -> bool:
    """Whether a URL names a host, and a port if any that can be one.

    >>> [_has_host(f"http://{rest}") for rest in ("h:8000/v1", "[::1]/v1", "", ":80/v1", "h:99999/v1", "a b/v1")]
    [True, True, False, False, False, False]
    """
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and not any(map(str.isspace, url))
    except ValueError:
        return False


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


def _pause(attempt: int, backoff: float) -> float:
    return float(min(_LONGEST_PAUSE, backoff * 2**attempt)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
    """Have the loop of another thread do something, unless it has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(what)


def _foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a user should see of those that stopped the run together."""
    flat = list(_flat(group))
    return next((error for error in flat if isinstance(error, TrajscoreError)), flat[0])


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        yield from _flat(error) if isinstance(error, BaseExceptionGroup) else (error,)
