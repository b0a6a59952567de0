"""An annotator behind an OpenAI-compatible server: what a call becomes on the wire, and what a chat completion says.

How many requests run at a time and what is tried again is in `trajscore.io.asking`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trajscore.io.asking import Asker
from trajscore.skills.calls import Call, Done, Reply, token_count

MOST_BYTES = 8 << 20
"""A longer reply is no chat completion."""


class ChatServer:
    """An `Annotator` that is asked over HTTP.

    Args:
        base_url: the URL up to `/v1`.
        concurrency: requests at a time.
        timeout: seconds for one whole request, from the connection to the last byte of the reply.
        max_retries: see `io.asking.Asker`.
        backoff: likewise.
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
        self._asker = Asker(
            base_url,
            expected="chat completion",
            most_bytes=MOST_BYTES,
            concurrency=concurrency,
            timeout=timeout,
            max_retries=max_retries,
            backoff=backoff,
        )
        self._request = request or {}

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        """Ask all, at most `concurrency` at a time.

        Raises:
            UsageError, EngineError: see `io.asking.Asker.ask`.
        """
        outcomes = self._asker.ask(
            "/chat/completions",
            calls,
            lambda call: request_body(call, self._request),
            lambda _, body: self._reply(body),
        )
        for call, outcome in outcomes:
            done(call, outcome.value or Reply(failure=outcome.failure, unusable=outcome.unusable))

    def _reply(self, body: bytes) -> Reply:
        """What a body of status 200 says."""
        value = json.loads(body.decode("utf-8-sig"))
        choice = value["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        usage = value.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        if not isinstance(text, str | None) or not isinstance(refusal, str | None):
            raise TypeError("content or refusal is no text")
        filtered = "" if choice.get("finish_reason") != "content_filter" else "stopped by the server's content filter"
        return Reply(
            text=None if text is None else self._asker.clean(text),
            refusal=self._asker.clean(refusal or filtered),
            complete=choice.get("finish_reason") != "length",
            prompt_tokens=token_count(counts.get("prompt_tokens")),
            completion_tokens=token_count(counts.get("completion_tokens")),
        )


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
