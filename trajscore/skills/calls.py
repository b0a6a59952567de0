"""Calls of the annotator, the LLM that labels: what is asked, what came back, and what is kept so that none is paid for twice.

What comes back may be anything: it is judged against a JSON schema, never repaired.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol, overload

import orjson

from trajscore.io.call_cache import CallCache

OK = "ok"
REFUSED = "refused"
INVALID = "invalid"
FAILED = "failed"
CHARACTERS_PER_TOKEN = 4
"""Rough, for English; only `--dry-run` uses it."""
MOST_CHARACTERS_PER_TOKEN = 16
"""A longer text for the tokens that were asked for is no answer. It bounds what a run holds in memory."""
_LONGEST_DETAIL = 2000


@dataclass(frozen=True)
class Call:
    """One request to the annotator.

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
        unusable: what is wrong with a reply that holds no message at all; empty when it does. Not kept either.
        prompt_tokens: as the server counted them, None when it did not.
        completion_tokens: the same.
    """

    text: str | None = None
    refusal: str = ""
    complete: bool = True
    failure: str = ""
    unusable: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """A reply, judged.

    Attributes:
        status: `ok`, `refused`, `invalid` (not a chat completion, or not what the schema asks for) or `failed` (no reply).
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


class Annotator(Protocol):
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
        return REFUSED, None, reply.refusal[:_LONGEST_DETAIL]
    if reply.unusable:
        return INVALID, None, reply.unusable
    if reply.text is None:
        return INVALID, None, "the reply has no text"
    if not reply.complete:
        return INVALID, None, f"cut at the token limit: {reply.text[:200]!r}"
    tokens = max(value for value in (call.settings["max_tokens"], *_asked(call)) if isinstance(value, int))
    if len(reply.text) > MOST_CHARACTERS_PER_TOKEN * tokens:
        return (
            INVALID,
            None,
            f"{len(reply.text):,} characters, more than {tokens:,} tokens can be: {reply.text[:200]!r}",
        )
    try:
        value = orjson.loads(reply.text)
    except ValueError:
        return INVALID, None, f"not JSON: {reply.text[:200]!r}"
    problem = violation(value, call.schema)
    return (INVALID, None, problem) if problem else (OK, value, "")


def _asked(call: Call) -> Iterable[Any]:
    """What a request's own fields say of the longest answer, under whatever name."""
    return (value for name, value in call.settings.get("request", {}).items() if name.endswith("tokens"))


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
        return f"{where} is {str(value)[:200]!r}, which is not in the list"
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            return f"{where} has {len(value)} items"
        return _first(violation(item, schema["items"], f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, dict):
        if set(value) != set(schema["required"]):
            found = sorted(str(name)[:40] for name in islice(value, 20))
            return f"{where} has the fields {found}, not {sorted(schema['required'])}"
        return _first(violation(value[name], part, f"{where}.{name}") for name, part in schema["properties"].items())
    return ""


def _first(problems: Iterable[str]) -> str:
    return next((problem for problem in problems if problem), "")


def answer_problem(record: Mapping[str, Any]) -> str:
    """What keeps a record of the cache from being a kept answer; empty if nothing.

    >>> answer_problem({"key": "k", "status": "ok", "value": {}, "detail": ""})
    'prompt_tokens is missing'
    >>> answer_problem({"key": "k", "status": "done", "value": {}, "detail": "", "prompt_tokens": 1, "completion_tokens": 1})
    "status is 'done'"
    """
    for name in _KEPT_FIELDS:
        if name not in record:
            return f"{name} is missing"
    if record["status"] not in (OK, REFUSED, INVALID):
        return f"status is {str(record['status'])[:40]!r}"
    if not isinstance(record["detail"], str):
        return "detail is no text"
    for name in ("prompt_tokens", "completion_tokens"):
        if record[name] is not None and token_count(record[name]) is None:
            return f"{name} is {str(record[name])[:40]}"
    return ""


_KEPT_FIELDS = ("status", "value", "detail", "prompt_tokens", "completion_tokens")
_MOST_TOKENS = 1 << 40


def token_count(value: Any) -> int | None:
    """A number of tokens as a server gave it; None where that is no count: no whole number, negative, or beyond 2^40.

    >>> token_count(7), token_count(True), token_count(2**70), token_count("7")
    (7, None, None, None)
    """
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None


def open_calls(calls: Iterable[Call], cache: CallCache) -> dict[str, Call]:
    """Different calls, by key, whose answer the cache lacks or holds against the call's schema."""
    found = {}
    for call in calls:
        if call.key in cache:
            record = cache.get(call.key)
            problem = violation(record["value"], call.schema) if record["status"] == OK else ""
            if not problem:
                continue
            cache.drop(call.key, problem)
        found[call.key] = call
    return found


def count_calls(calls: Sequence[Call], cache: CallCache) -> dict[str, int]:
    """What `ask` would do; nothing is asked. Tokens are of the calls to make: an estimate at four characters per token, and a
    bound.
    """
    different = len({call.key for call in calls})
    pending = open_calls(calls, cache).values()
    return {
        "calls": different,
        "cached": different - len(pending),
        "to_make": len(pending),
        "prompt_tokens_estimate": sum(-(-len(call.content) // CHARACTERS_PER_TOKEN) for call in pending),
        "completion_tokens_at_most": sum(int(call.settings["max_tokens"]) for call in pending),
    }


class Answers(Sequence[Answer]):
    """Answers in order, each read from the cache when it is looked at.

    Args:
        cache: open as long as they are looked at.
        keys: of their calls.
    """

    def __init__(self, cache: CallCache, keys: Sequence[str]) -> None:
        self._cache, self._keys = cache, keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, place: int) -> Answer: ...
    @overload
    def __getitem__(self, place: slice) -> Answers: ...
    def __getitem__(self, place: int | slice) -> Answer | Answers:
        if isinstance(place, slice):
            return Answers(self._cache, self._keys[place])
        record = self._cache.get(self._keys[place])
        return Answer(**{name: record[name] for name in _KEPT_FIELDS})


def ask(calls: Sequence[Call], annotator: Annotator, cache: CallCache) -> Answers:
    """The answers to calls, in order; only what the cache lacks is asked, equal calls once.

    Raises:
        TrajscoreError: the annotator cannot be used at all. Answers that were there stay in the cache.
    """

    def done(call: Call, reply: Reply) -> None:
        answer = judge(call, reply)
        record = {"key": call.key, "task": call.task, **asdict(answer)}
        cache.add([record], keep=not (reply.failure or reply.unusable))

    annotator.answer(list(open_calls(calls, cache).values()), done)
    return Answers(cache, [call.key for call in calls])
