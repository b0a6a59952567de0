"""How values that are no plain text or number are read from a command line: JSON objects, KEY=VALUE pairs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from trajscore.errors import UsageError


def json_object(flag: str, value: Any) -> dict[str, Any]:
    """A JSON object from its text; a mapping stays.

    Raises:
        UsageError: it is no JSON object.

    >>> json_object("--request", '{"top_p": 0.9}')
    {'top_p': 0.9}
    """
    if isinstance(value, Mapping):
        return dict(value)
    hint = f"Example: {flag} '{{\"name\": true}}'."
    try:
        found = orjson.loads(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{flag} {value}: not JSON ({error}).", hint) from error
    if not isinstance(found, dict):
        raise UsageError(f"{flag} {value}: a JSON object is needed.", hint)
    return found


def key_values(flag: str, value: Any) -> dict[str, Any]:
    """A mapping from texts KEY=VALUE; values are JSON where they can be read as such, else text. A mapping stays.

    Raises:
        UsageError: one is not of that form.

    >>> key_values("--engine-arg", ["block_size=32", "kv-cache-dtype=fp8"])
    {'block_size': 32, 'kv_cache_dtype': 'fp8'}
    """
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, Iterable):
        raise UsageError(f"{flag} {value}: not of the form KEY=VALUE.")
    found: dict[str, Any] = {}
    for pair in [value] if isinstance(value, str) else value:
        key, equals, text = str(pair).partition("=")
        if not equals or not key:
            raise UsageError(f"{flag} {pair}: not of the form KEY=VALUE.", f"For example {flag} block_size=32.")
        found[key.replace("-", "_")] = text
        with contextlib.suppress(orjson.JSONDecodeError):
            found[key.replace("-", "_")] = orjson.loads(text)
    return found
