"""Messages -> the text a chat template makes of them, and where in it the assistant's turns lie.

It works on characters and knows no token ids beyond the names of the tokenizer's control tokens. Three promises: a span covers
exactly what the model would have to write, text that the template drops is noticed, and nothing in a message can pose as a
control token.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from trajscore.errors import UsageError
from trajscore.rendering.literals import alternation, hide, reveal
from trajscore.rendering.lost_text import end_of, forms, holds, pieces, squeezed

# Tags that models write themselves; they stay control tokens even where a tokenizer calls them special.
_WRITTEN_BY_MODELS = frozenset({"<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>"})

# Templates that print today's date would give other tokens tomorrow. This is the date such templates fall back to.
_TEMPLATE_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)

# Generation prompts of reasoning models open the thinking block, or open and close it at once.
_OPENED_THINKING = re.compile(r"(?:<think>\s*(?:</think>\s*)?|\[THINK\]\s*)\Z")

# What the rendering itself passes to templates.
_RESERVED = frozenset(
    {"messages", "conversations", "tools", "chat_template", "add_generation_prompt", "continue_final_message"}
    | {"return_assistant_tokens_mask"}
)

_Message = Mapping[str, Any]
_Block = tuple[int, int]

_PROBE = "trajscoreprobe"
_USER: _Message = {"role": "user", "content": "a"}
_REPLY: _Message = {"role": "assistant", "content": _PROBE}
_CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"a": _PROBE}}}
_CALLING: _Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
# Some templates refuse a conversation without a system message, others one with it.
_OPENINGS: tuple[list[_Message], ...] = ([_USER], [{"role": "system", "content": "a"}, _USER])


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
    """Character span of one assistant turn: [start, end) is what the model writes, [end, marker_end) its end-of-turn marker.

    What the generation prompt already holds (the header, a `<think>` that it opens) is not what the model writes: it is
    [header, start), empty where the template has no header. `header` is None where there is no conversation.
    """

    start: int
    end: int
    marker_end: int
    header: int | None = None


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


@dataclass(frozen=True)
class _Surroundings:
    """What a template puts around an assistant's text, learnt from small conversations.

    Attributes:
        header: the turn's header, where the generation prompt lacks it.
        prompt_header: the turn's header, all of it.
        block_header: the header, or its end, that the template's generation marks wrongly include.
        footer: all that follows the text of a last turn.
        markers: control token that ends a turn -> what stands between the assistant's text and it (mostly nothing).
    """

    header: str
    prompt_header: str
    block_header: str
    footer: str
    markers: dict[str, str]


class ChatTemplate:
    """A chat template with what is needed to find assistant turns in its output.

    Args:
        source: the Jinja template.
        control_tokens: names of the tokenizer's special tokens.
        variables: what the template may refer to (`bos_token`, `enable_thinking`, ...).
        accept_lost_text: take rows of which the template drops text, as training on them would.
        origin: the file or model it comes from, for messages.

    Raises:
        UsageError: the template is not valid Jinja, or a variable bears a name that rendering itself uses.
    """

    def __init__(
        self,
        source: str,
        control_tokens: Sequence[str],
        variables: Mapping[str, Any] | None = None,
        accept_lost_text: bool = False,
        origin: str = "template",
    ) -> None:
        if taken := sorted(_RESERVED & set(variables or {})):
            raise UsageError(
                f"the chat template's variable {taken[0]!r} is set by the rendering itself.", "Leave it out."
            )
        self.source, self.origin = source, origin
        self._variables = {"strftime_now": _TEMPLATE_DATE.strftime, **(variables or {})}
        self._accept_lost_text = accept_lost_text
        self._marked = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None
        self._controls = alternation(name for name in control_tokens if name not in _WRITTEN_BY_MODELS)
        self._around = self._probe()
        self._drops_tools = self._probe_tools()

    def render(self, messages: Sequence[_Message], tools: Sequence[Any] | None = None) -> RenderedText:
        """Render a conversation and find its assistant turns.

        Raises:
            RefusedRow: `template_error` (the template raises), `template_lost_text` (a message's text is not in the output),
                `no_assistant_turn`, `no_assistant_span` (the turns cannot be located), `control_token_text` (the template
                garbles the name of a control token in the data).
        """
        if not any(message.get("role") == "assistant" for message in messages):
            raise RefusedRow("no_assistant_turn", "the conversation has no message with role 'assistant'.")
        try:
            hidden = hide((list(messages), None if tools is None else list(tools)), self._controls)
        except ValueError as error:
            raise RefusedRow("control_token_text", f"{error}.") from None
        try:
            text, turns = self._render_hidden(*hidden.value)
            if any(turn.marker_end > following.start for turn, following in pairwise(turns)):
                raise RefusedRow("no_assistant_span", "the assistant's turns overlap in the rendered text.")
            for placeholder, name in hidden.literals.items():
                if json.dumps(placeholder)[1:-1] in text:
                    raise RefusedRow(
                        "control_token_text", f"the chat template writes {name!r} in the data as an escape."
                    )
        except RefusedRow as refusal:
            raise RefusedRow(refusal.status, reveal(refusal.detail, hidden.literals)) from refusal
        turns = [replace(turn, header=self._header(text, turn.start)) for turn in turns]
        return RenderedText(text, turns, hidden.literals)

    def _render_hidden(self, messages: list[_Message], tools: list[Any] | None) -> tuple[str, list[Turn]]:
        text, blocks = self._render(messages, tools)
        whole = squeezed(text)
        if not self._accept_lost_text:
            _refuse_lost_text(whole, messages)
            self._refuse_lost_tools(text, tools)
        wanted = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        if len(blocks) == len(wanted):
            turns = [self._in_block(text, start, end) for start, end in blocks]
            if all(holds(text[t.start : t.end], messages[i], whole) for t, i in zip(turns, wanted, strict=True)):
                return text, turns
        return text, [self._locate(text, whole, messages, tools, index) for index in wanted]

    def _render(
        self, messages: Sequence[_Message], tools: Sequence[Any] | None, generation_prompt: bool = False
    ) -> tuple[str, list[_Block]]:
        from jinja2 import TemplateSyntaxError
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
        except TemplateSyntaxError as error:
            raise UsageError(
                f"{self.origin}: the chat template is not valid Jinja ({error}, line {error.lineno}).",
                "Mend it, or give another: --chat-template FILE.jinja, or a model whose template you use.",
            ) from error
        except Exception as error:  # whatever a stranger's template does with a stranger's row is the row's status
            raise RefusedRow("template_error", f"the chat template refuses it: {error}") from error
        return texts[0], list(blocks[0]) if blocks else []

    def _attempt(
        self, messages: Sequence[_Message], tools: Sequence[Any] | None = None, generation_prompt: bool = False
    ) -> tuple[str, list[_Block]]:
        try:
            return self._render(messages, tools, generation_prompt)
        except RefusedRow:
            return "", []

    def _probe(self) -> _Surroundings | None:
        """What the template puts around an assistant's text; None when it does not even render a plain reply."""
        for opening in _OPENINGS:
            text, blocks = self._attempt([*opening, _REPLY])
            if _PROBE in text:
                break
        else:
            return None
        place = text.rindex(_PROBE)
        prompt, _ = self._attempt(opening, generation_prompt=True)
        start = _after_prompt(text, prompt)
        header = ""
        bare = self._attempt(opening)[0]
        if start is not None and prompt == bare:
            header = _OPENED_THINKING.sub("", text[start:place])
            header = header if header.strip() else ""
        begin = place if start is None else start + len(header)
        block_header = text[blocks[0][0] : begin] if blocks else ""
        footer = text[place + len(_PROBE) :]
        added = prompt.removeprefix(bare) if prompt.startswith(bare) else ""
        return _Surroundings(header, added + header, block_header, footer, self._probe_markers(opening, footer))

    def _probe_markers(self, opening: list[_Message], footer: str) -> dict[str, str]:
        markers: dict[str, str] = {}
        for after in (footer, self._attempt([*opening, _REPLY, _USER])[0].rpartition(_PROBE)[2]):
            if match := self._controls.search(after):
                markers.setdefault(match[0], after[: match.start()])
        # Calls may have control tokens of their own before the one that ends the turn.
        for name in self._controls.findall(self._attempt([*opening, _CALLING])[0].rpartition(_PROBE)[2])[-1:]:
            markers.setdefault(name, "")
        return markers

    def _probe_tools(self) -> bool:
        """Whether the template ignores tool definitions, as far as a small conversation shows."""
        tool = {"type": "function", "function": {"name": _PROBE, "description": _PROBE, "parameters": {}}}
        texts = [self._attempt([*opening, {**_REPLY, "content": "b"}], [tool])[0] for opening in _OPENINGS]
        return any(texts) and not any(_PROBE in text for text in texts)

    def _refuse_lost_tools(self, text: str, tools: Sequence[Any] | None) -> None:
        for tool in tools or []:
            function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
            name = function.get("name") if isinstance(function, Mapping) else None
            if self._drops_tools or (isinstance(name, str) and not any(form in text for form in forms(name))):
                raise RefusedRow(
                    "template_lost_text", f"the chat template drops the definition of tool {str(name)[:80]!r}."
                )

    def _header(self, text: str, start: int) -> int:
        """Where the header before a turn begins; `start` where none is told apart."""
        whole = self._around.prompt_header if self._around else ""
        headers = (whole, _OPENED_THINKING.sub("", whole))
        return start - next((len(header) for header in headers if text.endswith(header, 0, start)), 0)

    def _in_block(self, text: str, start: int, end: int) -> Turn:
        """A generation block without header and end-of-turn marker, whether the template put that inside or after it."""
        if not (around := self._around):
            raise _unknown_surroundings()
        if around.block_header and text.startswith(around.block_header, start, end):
            start += len(around.block_header)
        if turn := self._to_marker(text, start, end):
            return turn
        after = next((len(gap + name) for name, gap in around.markers.items() if text.startswith(gap + name, end)), 0)
        glued = not around.markers and text.endswith(around.footer, start, end)
        return Turn(start, end - len(around.footer), end) if glued else Turn(start, end, end + after)

    def _to_marker(self, text: str, start: int, stop: int | None = None) -> Turn | None:
        """The turn from `start` to the first end-of-turn marker; a name of one in the data is a placeholder by now."""
        markers = self._around.markers if self._around else {}
        for match in self._controls.finditer(text, start, len(text) if stop is None else stop):
            if match[0] in markers:
                between = markers[match[0]]
                glued = text.endswith(between, start, match.start())
                return Turn(start, match.start() - (len(between) if glued else 0), match.end())
        return None

    def _locate(self, text: str, whole: str, messages: list[_Message], tools: list[Any] | None, index: int) -> Turn:
        """Find a turn by rendering what precedes it with the generation prompt."""
        if not (around := self._around):
            raise _unknown_surroundings()
        prompt, _ = self._render(messages[:index], tools, generation_prompt=True)
        start = _after_prompt(text, prompt)
        if start is not None and text.startswith(around.header, start):
            start += len(around.header)
            # The data's own <think> may be the one that the prompt opens.
            opened = _OPENED_THINKING.search(text, 0, start)
            for turn in self._ends(text, messages, tools, index, start):
                if holds(text[opened.start() if opened else start : turn.end], messages[index], whole):
                    return turn
        raise RefusedRow(
            "no_assistant_span",
            f"message {index} cannot be located: the template has no correct generation marks, and renders the "
            "conversation up to it otherwise than the whole.",
        )

    def _ends(
        self, text: str, messages: list[_Message], tools: list[Any] | None, index: int, start: int
    ) -> Iterator[Turn]:
        if turn := self._to_marker(text, start):
            yield turn
        through, _ = self._render(messages[: index + 1], tools)
        if text.startswith(through):
            footer = self._around.footer if self._around else ""
            length = len(footer) if through.endswith(footer) else 0
            yield Turn(start, max(start, len(through) - length), len(through))


def _unknown_surroundings() -> RefusedRow:
    return RefusedRow("no_assistant_span", "the chat template does not write out a plain reply of the assistant.")


def _after_prompt(text: str, prompt: str) -> int | None:
    """Where the model begins to write: after the prompt, or before a thinking block that only the prompt has."""
    bare = _OPENED_THINKING.sub("", prompt)
    return next((len(prefix) for prefix in (prompt, bare) if text.startswith(prefix)), None)


def _refuse_lost_text(whole: str, messages: Sequence[_Message]) -> None:
    """Check that every message's text stands in the squeezed output, in order. System messages may be moved anywhere."""
    position = 0
    for index, message in enumerate(messages):
        is_system = message.get("role") in ("system", "developer")
        reached = 0 if is_system else position
        for piece in pieces(message):
            end = end_of(whole, piece, reached)
            if end is None:
                raise RefusedRow(
                    "template_lost_text",
                    f"the chat template drops or changes text of message {index} ({message.get('role')}): "
                    f"{' '.join(piece[0])[:80]!r}",
                )
            reached = end
        position = position if is_system else reached
