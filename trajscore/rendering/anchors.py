"""Invisible marks around the texts of messages, so that a template's output tells where each of them went.

A rendering of the marked messages that differs from the plain one in nothing but the marks is proof of where every text stands:
no search, and no guess at what the template does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from trajscore.rendering.literals import alternation, strings
from trajscore.rendering.phases import MARKERS

CONTENT, REASONING, CALL = "content", "reasoning", "call"
"""What a text of a message is."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where messages keep thoughts apart from their content."""

_SPOKEN_CALLS = ("tool_plan", "function_calls")
"""Where messages keep calls that are plain text, and what is said before calls."""

# Templates look for thinking tags in content and cut there, so that marks stand between the tags and never around one.
_TAGS = re.compile("|".join(sorted(map(re.escape, {m for pair in MARKERS for m in pair}), key=len, reverse=True)))
# What users' messages begin and end with is looked at too (`<tool_response>`).
_OUTER_TAGS = re.compile(r"\A(?:\s*<[^<>\s]{1,40}>)*\s*|\s*(?:<[^<>\s]{1,40}>\s*)*\Z")
# CJK extension B: letters that next to no text holds, and that Python's repr leaves alone as it does no private-use character.
_MARKS = range(0x2A6DF, 0x20000, -1)


class Piece(NamedTuple):
    """A text of a message that is marked.

    Attributes:
        message: index of its message.
        kind: `CONTENT`, `REASONING` or `CALL`.
        text: what stands between the marks, without white space at the edges.
        before: what the same field holds before it: tags, white space, other pieces.
        after: what the same field holds after it.
    """

    message: int
    kind: str
    text: str
    before: str
    after: str


class Span(NamedTuple):
    """Where a piece stands in the rendered text."""

    start: int
    end: int
    piece: Piece


class Marks:
    """Marks for the texts of a conversation.

    Args:
        messages: the conversation.
        blanks: mark texts of nothing but white space too.
        others: mark the texts of other messages than the assistant's too.
        words: mark with words of plain letters, which survive a template that escapes all other characters.

    Attributes:
        messages: the conversation with marks in it.
        pieces: what is marked, in order.
    """

    def __init__(
        self, messages: Sequence[Mapping[str, Any]], *, blanks: bool = True, others: bool = True, words: bool = False
    ) -> None:
        self._blanks, self.pieces = blanks, list[Piece]()
        self._free = _unused_words(messages) if words else _unused_letters(messages)
        self._opening: dict[str, int] = {}
        self._closing: dict[str, int] = {}
        self.messages = [
            self._message(index, message) if others or message.get("role") == "assistant" else message
            for index, message in enumerate(messages)
        ]
        self._any = alternation((*self._opening, *self._closing))

    def plain(self, text: str) -> str:
        """A text without marks."""
        return self._any.sub("", text)

    def spans(self, text: str) -> list[Span]:
        """Where each piece stands, in a text without marks, by the text with marks; its first place where it has several.

        A piece that the template drops, or of which it keeps a part, has none.
        """
        found = dict[int, tuple[int, int]]()
        open_at = dict[int, int]()
        marked = 0
        for mark in self._any.finditer(text):
            place = mark.start() - marked
            marked += len(mark[0])
            if (number := self._opening.get(mark[0])) is not None:
                open_at[number] = place
            else:
                number = self._closing[mark[0]]
                if number in open_at and number not in found:
                    found[number] = open_at[number], place
        return sorted(Span(*place, self.pieces[number]) for number, place in found.items())

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        marked = dict(message)
        assistant = message.get("role") == "assistant"
        for key in REASONING_KEYS:
            if assistant and isinstance(message.get(key), str):
                marked[key] = self._text(index, REASONING, message[key])
        marked["content"] = self._content(index, message.get("content"), assistant)
        if "content" not in message:
            del marked["content"]
        for key in _SPOKEN_CALLS:
            if assistant and isinstance(message.get(key), str) and message[key].strip():
                marked[key] = self._mark(index, CALL, message[key], "", "")
        if isinstance(calls := message.get("tool_calls"), list | tuple):
            marked["tool_calls"] = [self._call(index, call) for call in calls]
        return marked

    def _content(self, index: int, content: Any, assistant: bool) -> Any:
        if isinstance(content, str):
            return self._text(index, CONTENT, content) if assistant else self._outer(index, content)
        if isinstance(content, list | tuple):
            return [self._part(index, part, assistant) for part in content]
        return content

    def _part(self, index: int, part: Any, assistant: bool) -> Any:
        if isinstance(part, str):
            return self._content(index, part, assistant)
        if not isinstance(part, Mapping):
            return part
        marked = dict(part)
        if isinstance(part.get("text"), str):
            marked["text"] = self._content(index, part["text"], assistant)
        if assistant and isinstance(part.get("thinking"), str):
            marked["thinking"] = self._text(index, REASONING, part["thinking"])
        return marked

    def _call(self, index: int, call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(function := call.get("function"), Mapping):
            return {**call, "function": self._call(index, function)}
        name = call.get("name")
        return {**call, "name": self._mark(index, CALL, name, "", "")} if isinstance(name, str) and name else call

    def _outer(self, index: int, text: str) -> str:
        start = _OUTER_TAGS.match(text)
        begin = start.end() if start else 0
        end = next(match.start() for match in _OUTER_TAGS.finditer(text, begin) if match.end() == len(text))
        inner = text[begin:end]
        return (
            text[:begin] + self._mark(index, CONTENT, inner, text[:begin], text[end:]) + text[end:] if inner else text
        )

    def _text(self, index: int, kind: str, text: str) -> str:
        if not text.strip():
            return self._mark(index, kind, text, "", "") if text and self._blanks else text
        marked, place = "", 0
        for start, end in _between_tags(text):
            inner = text[start:end]
            core = inner.strip()
            if not core:
                continue
            begin = start + inner.index(core)
            marked += text[place:begin] + self._mark(index, kind, core, text[:begin], text[begin + len(core) :])
            place = begin + len(core)
        return marked + text[place:]

    def _mark(self, index: int, kind: str, text: str, before: str, after: str) -> str:
        try:
            first, last = next(self._free), next(self._free)
        except StopIteration:
            return text
        self._opening[first] = self._closing[last] = len(self.pieces)
        self.pieces.append(Piece(index, kind, text, before, after))
        return f"{first}{text}{last}"


def thinking_tags(text: str) -> list[str]:
    """The thinking tags in a text, in order.

    >>> thinking_tags("<think>a</think>b")
    ['<think>', '</think>']
    """
    return _TAGS.findall(text)


def untagged(text: str) -> list[str]:
    """What stands between the thinking tags of a text; blank stretches are left out.

    >>> untagged("<think>a</think> b"), untagged("<think></think>")
    (['a', ' b'], [])
    """
    return [text[start:end] for start, end in _between_tags(text) if text[start:end].strip()]


def _between_tags(text: str) -> Iterator[tuple[int, int]]:
    place = 0
    for tag in _TAGS.finditer(text):
        yield place, tag.start()
        place = tag.end()
    yield place, len(text)


def _unused_letters(value: Any) -> Iterator[str]:
    """Letters for marks that a value does not use."""
    taken = {character for string in strings(value) for character in string if ord(character) in _MARKS}
    return (chr(code) for code in _MARKS if chr(code) not in taken)


def _unused_words(value: Any) -> Iterator[str]:
    """Words for marks that a value does not use."""
    said = list(strings(value))
    stem = next(word for word in ("qz" * n for n in count(3)) if not any(word in string for string in said))
    return (f"{stem}{number}y" for number in count())
