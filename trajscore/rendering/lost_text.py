"""Whether a rendered conversation holds all that its messages say, in order.

White space does not count, as templates trim and indent, nor do the tags around thoughts: a template that writes other
tags, or none around nothing, loses no text. `templates` refuses the row (`template_lost_text`), and notices by itself where
all tools are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trajscore.rendering.anchors import Piece, Span
from trajscore.rendering.literals import strings

# Templates may put their text anywhere: at the top, or into a question.
_MOVED = ("system", "developer")
_FURTHER = ("functions", "function_call", "tool_responses", "documents", "citations")


def lost_text(text: str, pieces: Sequence[Piece], spans: Sequence[Span], messages: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about the first text of a message that the rendering lacks or has out of order; empty where there is none.

    Args:
        text: the rendered conversation.
        pieces: the messages' texts.
        spans: where those that are there stand in it.
        messages: the conversation.
    """
    # The same thoughts under two names are there when one of them is.
    there = {
        (s.piece.message, s.piece.kind, s.piece.text) for s in spans if _is_form(text[s.start : s.end], s.piece.text)
    }
    for piece in pieces:
        if piece.text.strip() and (piece.message, piece.kind, piece.text) not in there:
            return _sentence(piece.message, messages, piece.text)
    reached = -1
    for index, message in enumerate(messages):
        own = [span for span in spans if span.piece.message == index]
        if not own or message.get("role") in _MOVED:
            continue
        if own[0].start < reached:
            return _sentence(index, messages, own[0].piece.text)
        reached = own[0].start
    for index, message in enumerate(messages):
        for arguments in _arguments(message):
            starts = [span.start for span in spans if span.piece.message == index]
            said = squeezed(text[min(starts, default=0) :])
            if not any(all(_holds(said, string) for string in way) for way in arguments):
                return _sentence(index, messages, " ".join(arguments[0]))
        for string in _further(message):
            if not _holds(squeezed(text), string):
                return _sentence(index, messages, string)
    return ""


def lost_tool(text: str, tools: Sequence[Any] | None) -> str:
    """A sentence about the first tool whose name the rendering lacks; empty where there is none."""
    for tool in tools or []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and not any(form in text for form in forms(name)):
            return f"the chat template drops the definition of tool {name[:80]!r}."
    return ""


def squeezed(text: str) -> str:
    """The text without white space.

    >>> squeezed(" a b\\n")
    'ab'
    """
    return "".join(text.split())


def forms(string: str) -> list[str]:
    """How a template may write a string: as it is, or as JSON."""
    return list(dict.fromkeys((string, json.dumps(string, ensure_ascii=False)[1:-1], json.dumps(string)[1:-1])))


def _sentence(index: int, messages: Sequence[Mapping[str, Any]], text: str) -> str:
    role = messages[index].get("role")
    return f"the chat template drops or changes text of message {index} ({role}): {text[:80]!r}"


def _is_form(said: str, text: str) -> bool:
    return said == text or squeezed(said) in map(squeezed, forms(text))


def _holds(said: str, string: str) -> bool:
    return any(squeezed(form) in said for form in forms(string))


def _arguments(message: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    """The arguments of each call, as the ways they may be there: all strings of a way."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else []:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        if isinstance(function, Mapping) and function.get("arguments") is not None:
            arguments = function["arguments"]
            yield [*([[arguments]] if isinstance(arguments, str) else []), list(strings(_parsed(arguments)))]


def _further(message: Mapping[str, Any]) -> Iterator[str]:
    """Texts under keys that some templates read and others pass over."""
    for key in _FURTHER:
        value = message.get(key)
        whole = value if isinstance(value, str) else None
        yield from [whole] if whole else strings(list(_values(value)))


def _values(value: Any) -> Iterator[Any]:
    """What a nested value holds, without the keys."""
    for each in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]:
        yield from _values(each) if isinstance(each, Mapping | list | tuple) else [each]


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
