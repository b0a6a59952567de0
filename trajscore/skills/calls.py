"""Calls of the teacher LLM: what is asked, what came back, and the file that keeps every answer so that none is paid for
twice. It knows keys, statuses and JSON schemas; no server and no skill.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import orjson
from filelock import FileLock, Timeout

from trajscore.errors import DataError, TrajscoreError, UsageError

OK = "ok"
REFUSED = "refused"
INVALID = "invalid"
FAILED = "failed"
CHARACTERS_PER_TOKEN = 4
"""Rough, for English; only `--dry-run` uses it."""


@dataclass(frozen=True)
class Call:
    """One request to the teacher.

    Attributes:
        task: name of the prompt.
        version: version of the prompt.
        content: the prompt, filled.
        schema: JSON schema that the answer must satisfy.
        sample: number of the repetition; answers of different samples are drawn independently.
        settings: model and everything else that can change the answer.
    """

    task: str
    version: str
    content: str
    schema: Mapping[str, Any]
    sample: int
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name of the call in the cache: a hash of all of it."""
        return hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What a server or an engine gave.

    Attributes:
        text: the message; None when there is none.
        refusal: what the model or a filter said instead of answering; empty when it did not refuse.
        complete: False when the text was cut at the token limit.
        failure: why there is no reply at all; empty when there is one. Failures are not kept: a later run asks again.
        prompt_tokens: as the server counted them, None when it did not.
        completion_tokens: the same.
    """

    text: str | None = None
    refusal: str = ""
    complete: bool = True
    failure: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """A reply, judged.

    Attributes:
        status: `ok`, `refused`, `invalid` (not what the schema asks for) or `failed` (no reply).
        value: the parsed answer; None unless ok.
        detail: why not ok.
        prompt_tokens: None when not counted.
        completion_tokens: None when not counted.
    """

    status: str
    value: Any = None
    detail: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


Done = Callable[[Call, Reply], None]


class Teacher(Protocol):
    """Something that answers calls."""

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        """Answer each call once, in any order, and hand every reply to `done` as soon as it is there."""


def judge(call: Call, reply: Reply) -> Answer:
    """A reply as an answer: parsed and checked against the schema, never repaired."""
    status, value, detail = _judged(call, reply)
    return Answer(status, value, detail, reply.prompt_tokens, reply.completion_tokens)


def _judged(call: Call, reply: Reply) -> tuple[str, Any, str]:
    if reply.failure:
        return FAILED, None, reply.failure
    if reply.refusal:
        return REFUSED, None, reply.refusal
    if reply.text is None:
        return INVALID, None, "the reply has no text"
    if not reply.complete:
        return INVALID, None, f"cut at the token limit: {reply.text[:200]!r}"
    try:
        value = orjson.loads(reply.text)
    except ValueError:
        return INVALID, None, f"not JSON: {reply.text[:200]!r}"
    problem = violation(value, call.schema)
    return (INVALID, None, problem) if problem else (OK, value, "")


_KINDS: dict[str, type] = {"object": dict, "array": list, "string": str}


def violation(value: Any, schema: Mapping[str, Any], where: str = "the answer") -> str:
    """What a value does that its schema forbids, empty if nothing; knows the keywords that the tasks use.

    >>> violation({"skills": ["a", "x"]}, {"type": "object", "required": ["skills"], "properties": {
    ...     "skills": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}}})
    "the answer.skills[1] is 'x', which is not in the list"
    """
    if not isinstance(value, _KINDS[schema["type"]]):
        return f"{where} is no {schema['type']}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value!r}, which is not in the list"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            return f"{where} has {len(value)} items"
        return _first(violation(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        if set(value) != set(schema["required"]):
            return f"{where} has the fields {sorted(value)}, not {sorted(schema['required'])}"
        return _first(violation(value[name], part, f"{where}.{name}") for name, part in schema["properties"].items())
    return ""


def _first(problems: Iterable[str]) -> str:
    return next((problem for problem in problems if problem), "")


class CallCache:
    """A file of answered calls, one JSON line each, only ever appended to.

    A line is written as soon as its answer is there; half a line at the end, left by a kill, is cut off when the file is
    opened again. Two runs cannot use one file at a time.

    Args:
        path: the file; None keeps answers in memory only.

    Raises:
        UsageError: another run uses the file.
        DataError: the file is no cache of calls.
        TrajscoreError: it cannot be written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._records: dict[str, dict[str, Any]] = {}
        self._file = -1

    def __enter__(self) -> CallCache:
        if self._path is None:
            return self
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._path.with_name(f".{self._path.name}.lock"), timeout=0)
            self._lock.acquire()
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._read(self._path.read_bytes())
        except Timeout as error:
            raise UsageError(
                f"{self._path}: another run is using it.", "Wait for it, or give another --cache."
            ) from error
        except OSError as error:
            raise TrajscoreError(f"{self._path}: cannot be written ({error.strerror or error}).") from error
        return self

    def _read(self, data: bytes) -> None:
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = orjson.loads(line)
                self._records[record["key"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self._path}, line {number}: not an answered call ({error}).",
                    "Move the file away or give another --cache.",
                ) from error
        os.ftruncate(self._file, len(whole))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._lock.release()

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def get(self, key: str) -> dict[str, Any]:
        """The record of a key.

        Raises:
            KeyError: there is none.
        """
        return self._records[key]

    def add(self, records: Sequence[Mapping[str, Any]], keep: bool = True) -> None:
        """Remember records; with `keep` they are on disk when this returns, in one write."""
        for record in records:
            self._records[record["key"]] = dict(record)
        if self._file >= 0 and keep:
            data = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError as error:
                raise TrajscoreError(
                    f"{self._path}: cannot be written ({error.strerror or error}).",
                    "Free some space and run the same command again; answered calls are kept.",
                ) from error


@dataclass(frozen=True)
class CallCount:
    """What a run asks of the teacher.

    Attributes:
        calls: different calls.
        cached: of these, answered by an earlier run.
        prompt_tokens: of the calls to make; an estimate at four characters per token.
        completion_tokens: of the calls to make, at most.
    """

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int


def count_calls(calls: Sequence[Call], cache: CallCache) -> CallCount:
    """Count calls without making any."""
    unique = {call.key: call for call in calls}
    open_calls = [call for key, call in unique.items() if key not in cache]
    return CallCount(
        calls=len(unique),
        cached=len(unique) - len(open_calls),
        prompt_tokens=sum(-(-len(call.content) // CHARACTERS_PER_TOKEN) for call in open_calls),
        completion_tokens=sum(int(call.settings["max_tokens"]) for call in open_calls),
    )


def ask(calls: Sequence[Call], teacher: Teacher, cache: CallCache) -> list[Answer]:
    """The answers to calls, in order; only what the cache lacks is asked, equal calls once.

    Raises:
        TrajscoreError: the teacher cannot be used at all. Answers that were there stay in the cache.
    """
    pending = {call.key: call for call in calls if call.key not in cache}

    def done(call: Call, reply: Reply) -> None:
        answer = judge(call, reply)
        cache.add([{"key": call.key, "task": call.task, **asdict(answer)}], keep=answer.status != FAILED)

    teacher.answer(list(pending.values()), done)
    return [_answer(cache.get(call.key)) for call in calls]


def _answer(record: Mapping[str, Any]) -> Answer:
    return Answer(
        **{name: record[name] for name in ("status", "value", "detail", "prompt_tokens", "completion_tokens")}
    )
