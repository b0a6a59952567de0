"""What a row is called: id, teacher, and the hashes that stand in for a missing id.

A hash must not depend on how the row was stored. Parquet gives every row the keys of all rows (null where it had
none) and turns the 1 of a column that also holds 0.5 into 1.0; canonical JSON therefore has sorted keys, no
null-valued keys, and whole numbers without a fraction.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from trajscore.errors import DataError

MAX_DEPTH = 100
"""Deepest nesting of a row. Far above any real row, far below the depth at which Python's own recursion gives up."""

EXACT_INT = 2**53
"""Whole numbers up to here are exact as float64."""


@dataclass(frozen=True)
class FieldNames:
    """Columns that stand in for the usual ones; None keeps the usual one. A dot in a name leads into an object.

    Attributes:
        id: in place of `id` (`--id-field`).
        prompt: in place of `prompt_id`, or the prompt's text in rows that have no other (`--prompt-field`).
        teacher: in place of `teacher` (`--teacher-field`).
        messages: in place of `messages` (`--messages-field`).
        response: the response (`--response-field`).
        reasoning: the thoughts before it (`--reasoning-field`).
        system: the system prompt (`--system-field`).
        correct: in place of `correct` (`--correct-field`).
        ids: the token ids of prompt and response (`--ids-field`).
        mask: which of the ids are trained on (`--mask-field`).
        teacher_messages: the prompt that the teacher reads (`--teacher-messages-field`).
        ignored: columns that are not read, on purpose (`--ignore-columns`).
        prompt_by: `all`, or `user` for prompts told apart by the user's text alone (`--prompt-by`).
    """

    COLUMNS: ClassVar = (
        "id",
        "prompt",
        "teacher",
        "messages",
        "response",
        "reasoning",
        "system",
        "correct",
        "ids",
        "mask",
        "teacher_messages",
    )
    """Attributes that name one column each."""

    id: str | None = None
    prompt: str | None = None
    teacher: str | None = None
    messages: str | None = None
    response: str | None = None
    reasoning: str | None = None
    system: str | None = None
    correct: str | None = None
    ids: str | None = None
    mask: str | None = None
    teacher_messages: str | None = None
    ignored: tuple[str, ...] = ()
    prompt_by: str = "all"

    def given(self) -> dict[str, str]:
        """The flags that were used and the columns they name.

        >>> FieldNames(id="uid").given()
        {'--id-field': 'uid'}
        """
        values = {name: getattr(self, name) for name in self.COLUMNS}
        return {f"--{name.replace('_', '-')}-field": value for name, value in values.items() if value is not None}

    def paths(self) -> set[str]:
        """Columns that may hold text, by the flags that name them."""
        return {
            name for name in (self.prompt, self.messages, self.response, self.reasoning, self.system, self.ids) if name
        }


USUAL_NAMES = FieldNames()
"""No column is remapped."""


def without_nulls(value: Any, free_form: Collection[str] = ()) -> Any:
    """The value without null-valued keys, at every depth; nulls inside lists stay, tuples become lists.

    Args:
        value: any JSON value.
        free_form: keys whose values stay as they are.

    >>> without_nulls({"a": None, "b": [{"c": None}, None], "d": {"e": None}}, free_form=["d"])
    {'b': [{}, None], 'd': {'e': None}}
    """
    if isinstance(value, Mapping):
        return {
            key: item if key in free_form else without_nulls(item, free_form)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list | tuple):
        return [without_nulls(item, free_form) for item in value]
    return value


def canonical_json(value: Any) -> str:
    """JSON text that is equal for values that mean the same (see the module's docstring).

    Values that JSON has not (dates, bytes, decimals of a Parquet file) are written as text.

    Raises:
        DataError: if the value is nested too deeply to be walked.

    >>> canonical_json({"b": 1.0, "a": None})
    '{"b":1}'
    """
    try:
        return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), default=str)
    except RecursionError:
        raise DataError(
            "A row is nested too deeply to be read.", f"Flatten it to {MAX_DEPTH} levels or fewer, or drop that column."
        ) from None


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INT:
        return int(value)
    return value


def digest(value: Any) -> str:
    """BLAKE2b of the value's canonical JSON: 16 bytes, written as 32 hexadecimal digits.

    >>> digest({"a": 1}) == digest({"a": 1.0, "b": None})
    True
    """
    return blake2b(canonical_json(value).encode("ascii"), digest_size=16).hexdigest()


def name_text(value: Any) -> str:
    """An id, prompt id or teacher as a string: text as it is, anything else as JSON text.

    >>> name_text("a"), name_text(12), name_text(1.5), name_text(True)
    ('a', '12', '1.5', 'true')
    """
    return value if isinstance(value, str) else canonical_json(value)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of what a dotted path leads to inside it, JSON text included; None where there is none.

    >>> value_at({"a": {"b": 1}, "a.b": 2, "c": '{"d": 3}'}, "a.b"), value_at({"c": '{"d": 3}'}, "c.d")
    (2, 3)
    """
    if path in row or "." not in path:
        return row.get(path)
    value: Any = row
    for key in path.split("."):
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def id_hash(name: str) -> int:
    """64 bits of BLAKE2b of an id: what is remembered of each row to find duplicates in memory that stays small."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
