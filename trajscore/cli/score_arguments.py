"""How `trajscore score` is told what is no plain value: choices, pairs, JSON, and an option that may stand alone."""

from __future__ import annotations

import contextlib
import enum
import re
from typing import Any

import orjson
from typer.core import TyperCommand

from trajscore.errors import UsageError

_RAY_ADDRESS = re.compile(r"auto|local|ray://.+|[^/\\]+:\d+")
_KWARGS_EXAMPLE = "Example: '{\"enable_thinking\": true}'."


class Dtype(enum.StrEnum):
    """Precision of the backbone."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Turns(enum.StrEnum):
    """Assistant turns that are scored."""

    all = "all"
    last = "last"


class Storage(enum.StrEnum):
    """Precision of the statistics in the files."""

    float32 = "float32"
    float16 = "float16"


class OnOverlong(enum.StrEnum):
    """What becomes of rows over the maximum length."""

    refuse = "refuse"
    truncate = "truncate"


class OnLostText(enum.StrEnum):
    """What becomes of rows of which the chat template drops text."""

    refuse = "refuse"
    accept = "accept"


class ScoreCommand(TyperCommand):
    """Lets --ray stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        filled = list(args)
        for place in [number for number, text in enumerate(args) if text == "--ray"][::-1]:
            following = args[place + 1] if place + 1 < len(args) else ""
            if not _RAY_ADDRESS.fullmatch(following):
                filled.insert(place + 1, "auto")
        return super().parse_args(ctx, filled)


def engine_args(pairs: list[str]) -> dict[str, Any]:
    """Parse --engine-arg; values are JSON where they can be read as such, else text.

    Raises:
        UsageError: not of the form key=value.

    >>> engine_args(["block_size=32", "kv-cache-dtype=fp8"])
    {'block_size': 32, 'kv_cache_dtype': 'fp8'}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--engine-arg {pair}: not of the form KEY=VALUE.", "For example --engine-arg block_size=32."
            )
        value: Any = text
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(text)
        found[key.replace("-", "_")] = value
    return found


def json_object(text: str | None) -> dict[str, Any]:
    """Parse --chat-template-kwargs.

    Raises:
        UsageError: not a JSON object.
    """
    if not text:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"--chat-template-kwargs {text}: not JSON ({error}).", _KWARGS_EXAMPLE) from error
    if not isinstance(value, dict):
        raise UsageError(f"--chat-template-kwargs {text}: a JSON object is needed.", _KWARGS_EXAMPLE)
    return value
