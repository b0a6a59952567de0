"""Messages -> the text a chat template makes of them, and where in it the assistant's turns lie.

It works on characters and knows no token ids beyond the names of the tokenizer's control tokens. Three promises: a span covers
exactly what the model would have to write, text that the template drops is noticed, and nothing in a message can pose as a
control token.
"""

from __future__ import annotations

import datetime
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajscore.errors import UsageError

# Tags that models write themselves; they stay control tokens even where a tokenizer calls them special.
_WRITTEN_BY_MODELS = frozenset({"<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>"})

# Templates that print today's date would give other tokens tomorrow. This is the date such templates fall back to.
_TEMPLATE_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)

_PROBE = "trajscoreprobe"
_FIRST_PLACEHOLDER = 0xF0000
_Message = Mapping[str, Any]


class RefusedRow(Exception):  # noqa: N818 - not an error: the row gets a status and the run goes on
    """A row that cannot be rendered faithfully.

    Attributes:
        status: what goes into the `status` column.
        detail: a sentence with the value that caused it.
    """

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail


@dataclass(frozen=True)
class Turn:
    """Character span of one assistant turn: [start, end) is what the model writes, [end, marker_end) its end-of-turn marker."""

    start: int
    end: int
    marker_end: int


@dataclass(frozen=True)
class RenderedText:
    """A rendered conversation.

    Attributes:
        text: the text, in which each control token's name that came from the data is one placeholder character.
        turns: spans of all assistant turns in `text`, in order.
        literals: placeholder character -> the data's own text it stands for.
    """

    text: str
    turns: list[Turn]
    literals: dict[str, str]


class ChatTemplate:
    """A chat template with what is needed to find assistant turns in its output.

    Args:
        source: the Jinja template.
        control_tokens: names of the tokenizer's special tokens.
        variables: what the template may refer to (`bos_token`, `enable_thinking`, ...).
        accept_lost_text: take rows of which the template drops text, as training on them would.
    """

    def __init__(
        self,
        source: str,
        control_tokens: Sequence[str],
        variables: Mapping[str, Any] | None = None,
        accept_lost_text: bool = False,
    ) -> None:
        self.source = source
        self._variables = dict(variables or {})
        self._variables.setdefault("strftime_now", _TEMPLATE_DATE.strftime)
        self._accept_lost_text = accept_lost_text
        self._marked = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._controls = alternation(control_tokens)
        self._hidden = alternation([name for name in control_tokens if name not in _WRITTEN_BY_MODELS])
        self._footers = self._probe_footers()
        self._markers = self._probe_markers()

    def render(self, messages: Sequence[_Message], tools: Sequence[Any] | None = None) -> RenderedText:
        """Render a conversation and find its assistant turns.

        Raises:
            RefusedRow: `template_error` (the template raises), `template_lost_text` (a message's text is not in the output),
                `no_assistant_turn`, `no_assistant_span` (the turns cannot be located).
        """
        if not any(message.get("role") == "assistant" for message in messages):
            raise RefusedRow("no_assistant_turn", "the conversation has no message with role 'assistant'.")
        hidden, tools, literals = self._hide_controls(messages, tools)
        text, blocks = self._render(hidden, tools)
        if not self._accept_lost_text:
            refuse_lost_text(text, hidden, tools)
        wanted = [index for index, message in enumerate(hidden) if message.get("role") == "assistant"]
        if len(blocks) == len(wanted):
            turns = [self._trim_marker(text, start, end) for start, end in blocks]
        else:
            turns = [self._locate(text, hidden, tools, index) for index in wanted]
        return RenderedText(text, turns, literals)

    def _render(
        self, messages: Sequence[_Message], tools: Sequence[Any] | None, generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, blocks = render_jinja_template(
                conversations=[list(messages)],
                tools=None if tools is None else list(tools),
                chat_template=self.source,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=generation_prompt,
                **self._variables,
            )
        except Exception as error:  # whatever a stranger's template does with a stranger's row is the row's status
            raise RefusedRow("template_error", f"the chat template refuses it: {error}") from error
        return texts[0], [(start, end) for start, end in blocks[0]] if blocks else []

    def _hide_controls(
        self, messages: Sequence[_Message], tools: Sequence[Any] | None
    ) -> tuple[list[_Message], list[Any] | None, dict[str, str]]:
        """Put a private-use character in place of every control token's name in the data."""
        everything = {"messages": list(messages), "tools": None if tools is None else list(tools)}
        found = {name for string in _strings(everything) for name in self._hidden.findall(string)}
        if not found:
            return everything["messages"] or [], everything["tools"], {}
        taken = {
            character for string in _strings(everything) for character in string if ord(character) >= _FIRST_PLACEHOLDER
        }
        free = (chr(code) for code in range(_FIRST_PLACEHOLDER, 0x110000) if chr(code) not in taken)
        placeholders = dict(zip(sorted(found), free, strict=False))
        replaced = _map_strings(everything, lambda string: self._hidden.sub(lambda m: placeholders[m[0]], string))
        return replaced["messages"], replaced["tools"], {character: name for name, character in placeholders.items()}

    def _probe_footers(self) -> list[str]:
        """What may follow the assistant's text: the end-of-turn markers, found by rendering small conversations."""
        import jinja2

        call = {"type": "function", "function": {"name": _PROBE, "arguments": {}}}
        user, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": _PROBE}
        tool_reply = {"role": "assistant", "content": "", "tool_calls": [call]}
        footers = []
        chats: tuple[list[_Message], ...] = (
            [user, reply],
            [user, reply, user],
            [user, tool_reply],
            [user, tool_reply, user],
        )
        for messages in chats:
            try:
                text, _ = self._render(messages, None)
            except RefusedRow as refused:
                if isinstance(refused.__cause__, jinja2.TemplateSyntaxError):
                    raise UsageError(f"the chat template is not valid Jinja: {refused.__cause__}.") from refused
                continue
            if _PROBE in text:
                footers.append(text[text.rindex(_PROBE) + len(_PROBE) :])
        return footers

    def _probe_markers(self) -> dict[str, str]:
        """End-of-turn marker -> what the template puts between the assistant's text and it (mostly nothing)."""
        found = ((footer, self._controls.search(footer)) for footer in self._footers)
        return {match[0]: footer[: match.start()] for footer, match in reversed([*found]) if match}

    def _marker(self, text: str, start: int, stop: int | None = None) -> Turn | None:
        """The turn from `start` to the first end-of-turn marker; a name of one in the data is a placeholder by now."""
        for match in self._controls.finditer(text, start, len(text) if stop is None else stop):
            if match[0] in self._markers:
                between = self._markers[match[0]]
                glued = text.endswith(between, start, match.start())
                return Turn(start, match.start() - (len(between) if glued else 0), match.end())
        return None

    def _trim_marker(self, text: str, start: int, end: int) -> Turn:
        """A generation block without its end-of-turn marker, whether the template put that inside the block or after it."""
        after = next((len(marker) for marker in self._markers if text.startswith(marker, end)), 0)
        return self._marker(text, start, end) or Turn(start, end, end + after)

    def _locate(self, text: str, messages: list[_Message], tools: list[Any] | None, index: int) -> Turn:
        """Find a turn by rendering what precedes it with the generation prompt."""
        before, _ = self._render(messages[:index], tools, generation_prompt=True)
        # Prompts of reasoning models may open the thinking block; a turn rendered without one begins before it.
        start = next(
            (len(prefix) for prefix in (before, re.sub(r"<think>\s*$", "", before)) if text.startswith(prefix)), None
        )
        if start is not None:
            pieces = [alternatives for alternatives in _pieces(messages[index]) if any(alternatives)]
            for turn in self._ends(text, messages, tools, index, start):
                if self._accept_lost_text or _missing(squeezed(text[turn.start : turn.end]), [pieces]) is None:
                    return turn
        raise RefusedRow(
            "no_assistant_span",
            f"message {index} cannot be located: the template has no generation marks, and renders the conversation up to "
            "it otherwise than the whole.",
        )

    def _ends(
        self, text: str, messages: list[_Message], tools: list[Any] | None, index: int, start: int
    ) -> Iterator[Turn]:
        if turn := self._marker(text, start):
            yield turn
        through, _ = self._render(messages[: index + 1], tools)
        if text.startswith(through):
            footer = next((f for f in sorted(self._footers, key=len, reverse=True) if f and through.endswith(f)), "")
            yield Turn(start, max(start, len(through) - len(footer)), len(through))


def alternation(names: Sequence[str]) -> re.Pattern[str]:
    """A pattern that matches any of the names, the longest first; of no names, one that never matches."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=lambda n: (-len(n), n))) or r"(?!)")


def split_controls(text: str, control_tokens: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """Pieces of a text in order, each with whether it is a control token's name; empty pieces are left out."""
    position = 0
    for match in control_tokens.finditer(text):
        if match.start() > position:
            yield text[position : match.start()], False
        yield match[0], True
        position = match.end()
    if position < len(text):
        yield text[position:], False


class Restored:
    """A rendered text with the data's own words back in place of the placeholders.

    Attributes:
        text: the restored text.
    """

    def __init__(self, rendered: RenderedText) -> None:
        pattern = alternation(list(rendered.literals))
        self._places = [match.start() for match in pattern.finditer(rendered.text)]
        growth = 0
        self._growth = [0]
        for place in self._places:
            growth += len(rendered.literals[rendered.text[place]]) - 1
            self._growth.append(growth)
        self.text = pattern.sub(lambda match: rendered.literals[match[0]], rendered.text)

    def offset(self, offset: int) -> int:
        """Where an offset of the rendered text lies in the restored one."""
        return offset + self._growth[bisect_left(self._places, offset)]


def refuse_lost_text(text: str, messages: Sequence[_Message], tools: Sequence[Any] | None) -> None:
    """Check that every message's text stands in the rendered text, in order; white space does not count.

    Raises:
        RefusedRow: `template_lost_text`, with the first piece that is missing.
    """
    missing = _missing(squeezed(text), [list(_pieces(message)) for message in messages])
    if missing is not None:
        index, piece = missing
        raise RefusedRow(
            "template_lost_text",
            f"the chat template drops or changes text of message {index} ({messages[index].get('role')}): {piece[:80]!r}",
        )
    for tool in tools or []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name not in text:
            raise RefusedRow("template_lost_text", f"the chat template drops the definition of tool {name[:80]!r}.")


def squeezed(text: str) -> str:
    """The text without white space.

    >>> squeezed(" a b\\n")
    'ab'
    """
    return "".join(text.split())


def _missing(text: str, messages: Sequence[Sequence[Sequence[str]]]) -> tuple[int, str] | None:
    """Message number and text of the first piece not found at or after the messages before it, None when all are there."""
    position = 0
    for index, pieces in enumerate(messages):
        reached = position
        for alternatives in pieces:
            places = [(text.find(piece, position), len(piece)) for piece in alternatives]
            found = min(((place, length) for place, length in places if place >= 0), default=None)
            if found is None:
                return index, alternatives[0]
            reached = max(reached, sum(found))
        position = reached
    return None


def _pieces(message: _Message) -> Iterator[list[str]]:
    """The squeezed texts a message must leave in the output, each with the forms it may take there."""
    for key in ("reasoning_content", "reasoning", "thinking", "content"):
        value = message.get(key)
        if isinstance(value, str) and squeezed(value):
            yield [squeezed(value)]
    for call in message.get("tool_calls") or []:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        for string in _strings([function.get("name"), _parsed(function.get("arguments"))]):
            forms = (string, json.dumps(string, ensure_ascii=False)[1:-1], json.dumps(string)[1:-1])
            if squeezed(string):
                # Arguments given as JSON text may be escaped once more.
                yield list(dict.fromkeys(squeezed(f) for form in forms for f in (form, json.dumps(form)[1:-1])))


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _strings(value: Any) -> Iterator[str]:
    """Every string in a nested value, keys of mappings among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The nested value with every string in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value
