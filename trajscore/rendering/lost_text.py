"""The texts that a message must leave in a rendered conversation, and whether they are there.

It knows messages and strings; no template and no tokenizer. White space does not count: templates trim and indent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trajscore.rendering.literals import strings


def holds(turn: str, message: Mapping[str, Any], whole: str) -> bool:
    """Whether a turn holds all of a message's text that is in the squeezed output at all."""
    squeezed_turn = squeezed(turn)
    return all(
        end_of(squeezed_turn, piece, 0) is not None or end_of(whole, piece, 0) is None for piece in pieces(message)
    )


def squeezed(text: str) -> str:
    """The text without white space.

    >>> squeezed(" a b\\n")
    'ab'
    """
    return "".join(text.split())


def pieces(message: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    """The texts a message must leave in the output, in order; each as the ways it may be there: all strings of a way."""
    reasoning = [message.get(key) for key in ("reasoning_content", "reasoning", "thinking")]
    # Some data give the same thoughts under two names.
    for value in dict.fromkeys(value for value in [*reasoning, message.get("content")] if isinstance(value, str)):
        yield [[value]]
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else []:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        if isinstance(function, Mapping):
            arguments = function.get("arguments")
            ways = [[arguments]] if isinstance(arguments, str) else []
            yield [[*strings(function.get("name")), *way] for way in (*ways, list(strings(_parsed(arguments))))]


def end_of(whole: str, piece: list[list[str]], position: int) -> int | None:
    """End of a piece's first occurrence in a squeezed text; its strings may follow one another in any order."""
    for way in piece:
        ends = [_find_end(whole, string, position) for string in way]
        if None not in ends:
            return max((end for end in ends if end is not None), default=position)
    return None


def _find_end(whole: str, string: str, position: int) -> int | None:
    """End of a string's first occurrence in a squeezed text, in any of its forms."""
    plain = squeezed(string)
    place = whole.find(plain, position)
    found = place + len(plain) if place >= 0 else None
    if found is not None and place - position < len(plain):
        return found  # no room for an escaped form, which is longer, before it
    for form in map(squeezed, forms(string)):
        place = whole.find(form, position, found)
        if place >= 0:
            found = place + len(form)
    return found


def forms(string: str) -> list[str]:
    """How a template may write a string: as it is, or as JSON."""
    return list(dict.fromkeys((string, json.dumps(string, ensure_ascii=False)[1:-1], json.dumps(string)[1:-1])))


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
