"""Messages -> the text a chat template makes of them, and where in it the assistant's own words lie.

Places are characters here, not tokens. Three promises: a turn is the assistant's own text and nothing that the template adds,
text that the template drops is noticed, and nothing in a message can pose as a control token.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from trajscore.errors import UsageError
from trajscore.rendering.anchors import CALL, CONTENT, Marks, Piece, Span
from trajscore.rendering.chat import RESERVED, SCORING_DATE, Chat
from trajscore.rendering.frames import PROBE, Frame, learn, shared_start
from trajscore.rendering.limits import TemplateLimitError
from trajscore.rendering.literals import Escaped, alternation, hide, reveal
from trajscore.rendering.lost_text import lost_text, lost_tool, squeezed

# Tags that models write themselves; they stay control tokens even where a tokenizer calls them special.
WRITTEN_BY_MODELS = frozenset({"<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>"})

_Message = Mapping[str, Any]
_TOOL = {
    "type": "function",
    "function": {"name": PROBE, "description": PROBE, "parameters": {"type": "object", "properties": {}}},
}

_REPLY = "qzreply"
_PLAIN: tuple[_Message, ...] = ({"role": "user", "content": "a"}, {"role": "assistant", "content": _REPLY})

# The next is tried where the one before changes what a template writes: blank texts may count as none, words of the user may be
# looked at, or everything that is not plain letters be escaped.
_WAYS_TO_MARK = (
    (True, True, False),
    (False, True, False),
    (False, False, False),
    (False, True, True),
    (False, False, True),
)

ADDED, MARKER, AFTER = 0, 1, 2
"""What a stretch of scaffold is: written by the template before or among the words, the end-of-turn marker, what follows it."""


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


class Stretch(NamedTuple):
    """Characters of a turn that training sees and metrics must not: [start, end), and `ADDED`, `MARKER` or `AFTER`."""

    start: int
    end: int
    kind: int


class Turn(NamedTuple):
    """An uninterrupted stretch of the assistant's own text: [start, end), empty where it says nothing.

    Attributes:
        start: where the text begins: after the header, what the generation prompt opens, and what the template adds.
        end: where it ends: before the end-of-turn marker.
        header: where the turn's header begins; `start` where none is told apart, None where there is no conversation.
        scaffold: what training sees of the turn besides, in order; it may reach over the text itself.
        message: index of its message.
    """

    start: int
    end: int
    header: int | None = None
    scaffold: tuple[Stretch, ...] = ()
    message: int = 0


@dataclass(frozen=True)
class RenderedText:
    """A rendered conversation.

    Attributes:
        text: the text, in which each control token's name that came from the data is one placeholder character.
        turns: the assistant's turns in `text`, in order.
        literals: placeholder character -> the data's own text it stands for.
    """

    text: str
    turns: list[Turn]
    literals: dict[str, str]


class ChatTemplate:
    """A chat template with what is needed to find the assistant's text in its output.

    Args:
        source: the Jinja template.
        control_tokens: names of the tokenizer's special tokens.
        variables: what the template may refer to (`bos_token`, `enable_thinking`, ...).
        accept_lost_text: take rows of which the template drops text, as training on them would.
        origin: the file or model it comes from, for messages.
        now: the date that the template sees.

    Raises:
        UsageError: the template is not valid Jinja, or goes beyond all bounds with small conversations, or a variable bears a
            name that rendering itself uses.
    """

    def __init__(
        self,
        source: str,
        control_tokens: Sequence[str],
        variables: Mapping[str, Any] | None = None,
        accept_lost_text: bool = False,
        origin: str = "template",
        now: datetime.datetime = SCORING_DATE,
    ) -> None:
        _check_names(variables or {})
        self.source, self.origin = source, origin
        self._chat, self._variables = Chat(source, now), dict(variables or {})
        self._accept_lost_text = accept_lost_text
        self._controls = alternation(name for name in control_tokens if name not in WRITTEN_BY_MODELS)
        # A row may bring variables of its own; what the template does with them is learnt once for each.
        self._frames = lru_cache(maxsize=64)(self._learn)
        try:
            self._frame(self._variables, False)
        except RefusedRow as refusal:
            raise UsageError(
                f"{origin}: {refusal.detail} It was given a conversation of a few words.",
                "Give another --chat-template.",
            ) from refusal

    def render(
        self,
        messages: Sequence[_Message],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedText:
        """Render a conversation and find the assistant's text.

        Args:
            messages: the conversation.
            tools: definitions of tools; None and none at all may differ.
            variables: the row's own variables for the template, over the template's.

        Raises:
            RefusedRow: `template_error` (the template raises), `template_lost_text` (a message's text is not in the output),
                `no_assistant_turn`, `no_assistant_span` (the turns cannot be located), `control_token_text` (the template
                garbles the name of a control token in the data).
        """
        if not any(message.get("role") == "assistant" for message in messages):
            raise RefusedRow("no_assistant_turn", "the conversation has no message with role 'assistant'.")
        hidden, given = self._hidden(messages, tools), self._given(variables)
        try:
            hidden_messages, hidden_tools = hidden.value
            text, turns = self._render_hidden(hidden_messages, hidden_tools, given)
            for placeholder, name in hidden.literals.items():
                if any(form in text for form in (json.dumps(placeholder)[1:-1], repr(placeholder)[1:-1])):
                    raise RefusedRow(
                        "control_token_text", f"the chat template writes {name!r} in the data as an escape."
                    )
        except RefusedRow as refusal:
            raise RefusedRow(refusal.status, reveal(refusal.detail, hidden.literals)) from refusal
        return RenderedText(text, turns, hidden.literals)

    def prompt(
        self,
        messages: Sequence[_Message],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedText:
        """Render what a model reads before it writes its turn, the turn's header included.

        Raises:
            RefusedRow: `template_error`, or `control_token_text`.
        """
        hidden = self._hidden(messages, tools)
        hidden_messages, hidden_tools = hidden.value
        text, _ = self._render(hidden_messages, hidden_tools, self._given(variables), generation_prompt=True)
        return RenderedText(text, [], hidden.literals)

    def _hidden(self, messages: Sequence[_Message], tools: Sequence[Any] | None) -> Escaped:
        try:
            return hide((list(messages), None if tools is None else list(tools)), self._controls)
        except ValueError as error:
            raise RefusedRow("control_token_text", f"{error}.") from None

    def _given(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """The template's variables with the row's own over them."""
        try:
            _check_names(variables or {})
        except UsageError as error:
            raise RefusedRow("template_error", error.problem) from None
        return {**self._variables, **(variables or {})}

    @property
    def openers(self) -> tuple[str, ...]:
        """What opens the assistant's turns, with a control token in it: a text that holds one of them was rendered already."""
        return tuple(each for each in self._reading.openers if self._controls.search(each))

    def read(self, text: str, start: int = 0) -> RenderedText:
        """Find the assistant's turns in a text to which the template was applied already, by the template's own markers.

        Args:
            text: the rendered text; every control token's name in it is a control token.
            start: what stands before it is context.

        Raises:
            RefusedRow: `no_assistant_span`, as no turn of the assistant begins or goes on after `start`.
        """
        turns = list(self._reading.turns(text, start))
        if not turns:
            known = " or ".join(map(repr, self._reading.openers)) or "nothing that could be learnt"
            raise RefusedRow(
                "no_assistant_span",
                f"a template was applied to the text, and it holds no turn of the assistant; they begin with {known} here.",
            )
        return RenderedText(text, turns, {})

    @cached_property
    def _reading(self) -> TurnFinder:
        frame = self._frame(self._variables, False) or self._frame(self._variables, True)
        in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in _PLAIN]
        for messages in (_PLAIN, in_parts):
            with contextlib.suppress(RefusedRow):
                text, blocks = self._render(messages, None, self._variables)
                if _REPLY in text:
                    return TurnFinder(frame, self._controls, text, blocks)
        return TurnFinder(frame, self._controls, "", [])

    def _render_hidden(
        self, messages: list[_Message], tools: list[Any] | None, variables: Mapping[str, Any]
    ) -> tuple[str, list[Turn]]:
        text, blocks = self._render(messages, tools, variables)
        found = self._mark(text, messages, tools, variables)
        if found is None:
            raise RefusedRow(
                "no_assistant_span", "the chat template writes other text when the assistant's words are marked."
            )
        pieces, spans = found
        if not self._accept_lost_text:
            lost = lost_text(text, pieces, spans, messages) or (
                self._lost_tool(text, tools, variables) if tools else ""
            )
            if lost:
                raise RefusedRow("template_lost_text", lost)
        if not (frame := self._frame(variables, bool(tools))):
            raise RefusedRow(
                "no_assistant_span", "the chat template does not write out a plain reply of the assistant."
            )
        turns = list(_turns(text, spans, messages, frame, self._controls))
        return text, list(_as_marked(text, turns, blocks)) if blocks else turns

    def _lost_tool(self, text: str, tools: Sequence[Any], variables: Mapping[str, Any]) -> str:
        if self._drops_tools(variables):
            return "the chat template drops the definitions of tools."
        return lost_tool(text, tools)

    def _mark(
        self, text: str, messages: list[_Message], tools: list[Any] | None, variables: Mapping[str, Any]
    ) -> tuple[list[Piece], list[Span]] | None:
        """The messages' texts and where they stand; None when marks around them change what the template writes."""
        for blanks, others, words in _WAYS_TO_MARK:
            marks = Marks(messages, blanks=blanks, others=others, words=words)
            try:
                marked, _ = self._render(marks.messages, tools, variables)
            except RefusedRow:
                continue
            if marks.plain(marked) == text:
                return marks.pieces, marks.spans(marked)
        return None

    def _render(
        self,
        messages: Sequence[_Message],
        tools: Sequence[Any] | None,
        variables: Mapping[str, Any],
        generation_prompt: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateSyntaxError

        try:
            return self._chat.render(messages, tools, variables, generation_prompt=generation_prompt)
        except TemplateSyntaxError as error:
            raise UsageError(
                f"{self.origin}: the chat template is not valid Jinja ({error}, line {error.lineno}).",
                "Mend it, or give another: --chat-template FILE.jinja, or a model whose template you use.",
            ) from error
        except TemplateLimitError as error:
            raise RefusedRow("template_error", f"the chat template goes beyond its bounds: {error}") from error
        except Exception as error:  # whatever a stranger's template does with a stranger's row is the row's status
            raise RefusedRow("template_error", f"the chat template refuses it: {error}") from error

    def _frame(self, variables: Mapping[str, Any], tools: bool) -> Frame | None:
        return self._frames(json.dumps(variables, sort_keys=True, default=str), tools)

    def _learn(self, variables: str, tools: bool) -> Frame | None:
        given = json.loads(variables)

        def render(messages: Sequence[_Message], prompt: bool) -> str | None:
            try:
                return self._render(messages, [_TOOL] if tools else None, given, prompt)[0]
            except RefusedRow as refusal:
                if isinstance(refusal.__cause__, TemplateLimitError):
                    raise  # it would do so again and again
                return None

        return learn(render, self._controls)

    def _drops_tools(self, variables: Mapping[str, Any]) -> bool:
        """Whether the template ignores tool definitions, as far as small conversations show."""
        rendered = []
        for messages in (_PLAIN, [{"role": "system", "content": "a"}, *_PLAIN]):
            try:
                rendered.append(self._render(messages, [_TOOL], variables)[0])
            except RefusedRow:
                continue
        return bool(rendered) and not any(PROBE in text for text in rendered)


def _check_names(variables: Mapping[str, Any]) -> None:
    if taken := sorted(RESERVED & set(variables)):
        raise UsageError(f"the chat template's variable {taken[0]!r} is set by the rendering itself.", "Leave it out.")


def _turns(
    text: str, spans: Sequence[Span], messages: Sequence[_Message], frame: Frame, controls: Any
) -> Iterator[Turn]:
    """The assistant's turns as a template without generation marks has them: all that the model writes after its prompt."""
    reached = 0
    for index, message in enumerate(messages):
        others = [span for span in spans if span.piece.message != index]
        if message.get("role") != "assistant":
            reached = max([reached, *(span.end for span in spans if span.piece.message == index)])
            continue
        segments = list(_segments(index, spans))
        if not segments:
            stop = min(
                (span.start for span in others if span.start >= reached and span.piece.message > index),
                default=len(text),
            )
            if turn := _empty_turn(text, reached, stop, frame, controls):
                reached = _end(turn)
                yield turn._replace(message=index)
        for segment in segments:
            floor = max([reached, *(s.end for s in others if s.end <= segment[0].start)])
            floor = floor if floor <= segment[0].start else 0
            stop = min((s.start for s in others if s.start >= segment[-1].end), default=len(text))
            turn = _turn(text, segment, floor, stop, frame, controls)
            reached = _end(turn)
            yield turn._replace(message=index)


def _end(turn: Turn) -> int:
    return max([turn.end, *(stretch.end for stretch in turn.scaffold)])


def _segments(message: int, spans: Sequence[Span]) -> Iterator[list[Span]]:
    """A message's spans, apart where another message stands between them (some templates put tool results there)."""
    segment = list[Span]()
    for span in spans:
        if span.piece.message == message:
            segment.append(span)
        elif segment:
            yield segment
            segment = []
    if segment:
        yield segment


def _turn(text: str, segment: Sequence[Span], floor: int, stop: int, frame: Frame, controls: Any) -> Turn:
    first, last = segment[0], segment[-1]
    headed = frame.after_header(text, floor, first.start)
    begin = None if headed is None else frame.after_prefill(text, headed, first.start)
    start = _start(text, first, begin, frame)
    begin = start if begin is None else begin
    header = start if headed is None else headed - _length_before(text, headed, frame.opening)
    return _with_ending(text, start, begin, header, last, stop, frame, controls)


def _length_before(text: str, place: int, ending: str) -> int:
    return len(ending) if text.endswith(ending, 0, place) else 0


def _start(text: str, first: Span, begin: int | None, frame: Frame) -> int:
    """Where the turn's own text begins: tags around thoughts and calls are the turn's own, what the template adds is not."""
    lead = _length_before(text, first.start, first.piece.before[len(first.piece.before.rstrip()) :])
    if begin is None:
        return first.start - lead
    begin = frame.after_added(text, begin, first.start)
    between = squeezed(text[begin : first.start])
    if not between or first.piece.kind != CONTENT or squeezed(first.piece.before).endswith(between):
        return begin
    return first.start - lead


def _with_ending(
    text: str, start: int, begin: int, header: int, last: Span, stop: int, frame: Frame, controls: Any
) -> Turn:
    after = last.piece.after
    blank = after[: len(after) - len(after.lstrip())]
    kept = len(blank) if text.startswith(blank, last.end) else 0
    marker, marker_end = _ending(text, last.end, kept, stop, frame, controls)
    if last.piece.kind == CALL and marker_end == last.end:
        # Nothing that ends a turn is known of the template, and the call's arguments follow its name.
        marker = marker_end = _end_of_call(text, last.end, stop, controls)
    between = squeezed(text[last.end : marker])
    own = not between or last.piece.kind != CONTENT or squeezed(after).startswith(between)
    end = marker if own else last.end + kept
    scaffold = [Stretch(begin, start, ADDED), Stretch(end, marker, ADDED), Stretch(marker, marker_end, MARKER)]
    if marker_end > marker and frame.newline and text.startswith(frame.newline, marker_end):
        scaffold.append(Stretch(marker_end, marker_end + len(frame.newline), AFTER))
    return Turn(start, end, header, tuple(stretch for stretch in scaffold if stretch.end > stretch.start))


def _ending(text: str, place: int, kept: int, stop: int, frame: Frame, controls: Any) -> tuple[int, int]:
    """Where a text ends that reaches `place` at least, and where its end-of-turn marker does."""
    if controls.search(frame.opening) and (opened := text.find(frame.opening, place, stop)) >= 0:
        # Some templates open another turn after the last one, whatever is asked of them.
        stop = opened + len(frame.opening)
    for match in controls.finditer(text, place, stop):
        if match[0] in frame.markers:
            gap = frame.markers[match[0]]
            glued = bool(gap) and text.endswith(gap, place, match.start())
            return match.start() - (len(gap) if glued else 0), match.end()
        if match[0] in frame.bounds:
            return match.start(), match.start()
    if frame.footer:
        found = place + kept if text.startswith(frame.footer, place + kept) else text.find(frame.footer, place, stop)
        if found >= 0:
            return found, found + len(frame.footer)
    return place + kept, place + kept


def _end_of_call(text: str, place: int, stop: int, controls: Any) -> int:
    """Where a call ends whose name ends at `place`: before the next control token, or with the text."""
    match = controls.search(text, place, stop)
    end = match.start() if match else stop if stop == len(text) else place
    return max(place, len(text[:end].rstrip()))


def _empty_turn(text: str, floor: int, stop: int, frame: Frame, controls: Any) -> Turn | None:
    headed = frame.after_header(text, floor, stop, last=False)
    if headed is None:
        return None
    begin = frame.after_prefill(text, headed, stop)
    start = frame.after_added(text, begin, stop)
    end, marker_end = _ending(text, start, 0, stop, frame, controls)
    if marker_end == end:
        return None
    scaffold = [Stretch(begin, end, ADDED), Stretch(end, marker_end, MARKER)]
    if frame.newline and text.startswith(frame.newline, marker_end):
        scaffold.append(Stretch(marker_end, marker_end + len(frame.newline), AFTER))
    header = headed - _length_before(text, headed, frame.opening)
    return Turn(end, end, header, tuple(stretch for stretch in scaffold if stretch.end > stretch.start))


class TurnFinder:
    """How the assistant's turns are found in a text that a template rendered, whatever made the conversation.

    Args:
        frame: what the template puts around turns; None where that could not be learnt.
        controls: matches the names of control tokens.
        sample: a question and a reply of one letter as the template renders them.
        blocks: what of it the template's generation marks hold; none without marks.

    Attributes:
        openers: what a turn may begin with, the usual one first.
    """

    def __init__(self, frame: Frame | None, controls: Any, sample: str, blocks: Sequence[tuple[int, int]]) -> None:
        self._frame, self._controls = frame, controls
        self._usual = frame.opening if frame and re.search(r"\w", frame.opening) else ""
        self.openers = () if frame is None else tuple(_openers(frame, self._usual, controls))
        self._lead: int | None = None
        self._marker, self._tail = True, frame.newline if frame else ""
        opened = self._opened(sample, 0)
        said = -1 if opened is None else sample.find(_REPLY, opened[1])
        if frame and blocks and opened and said >= 0:
            # A trainer's mask holds what the template's own marks do.
            first, last = blocks[0][0], blocks[-1][1]
            end, marker_end = self._ending(sample, said + len(_REPLY), frame)
            self._lead = min(first, said) - opened[1]
            self._marker, self._tail = last > end, sample[marker_end:last]

    def turns(self, text: str, start: int) -> Iterator[Turn]:
        """The turns that end after `start`, each from what opens it to its end or that of the text."""
        frame, floor = self._frame, 0
        while frame is not None and (opened := self._opened(text, floor)) is not None:
            header, headed = opened
            begin = frame.after_prefill(text, headed, len(text))
            said = frame.after_added(text, begin, len(text))
            end, marker_end = self._ending(text, said, frame)
            if any(text[begin:end] == added.rstrip() for added in frame.added):
                said = end
            floor = max(marker_end, headed)
            unsaid = said == end and bool(self._usual) and not text.startswith(self._usual, header)
            if marker_end <= start or unsaid:
                continue
            # A response that goes on from what its prompt opened begins where the prompt ends.
            first = max(begin if self._lead is None else headed + self._lead, start)
            said, end = max(said, start), max(end, start)
            tail = len(shared_start([self._tail, text[marker_end : marker_end + len(self._tail)]]))
            scaffold = [Stretch(first, said, ADDED), Stretch(marker_end, marker_end + tail, AFTER)]
            if self._marker:
                scaffold.insert(1, Stretch(end, marker_end, MARKER))
            yield Turn(said, end, header, tuple(each for each in scaffold if each.end > each.start))

    def _opened(self, text: str, floor: int) -> tuple[int, int] | None:
        """Where what opens the next turn begins and ends."""
        found = [(place, -len(each)) for each in self.openers if (place := text.find(each, floor)) >= 0]
        return (min(found)[0], min(found)[0] - min(found)[1]) if found else None

    def _ending(self, text: str, place: int, frame: Frame) -> tuple[int, int]:
        """Where a turn's text ends and its end-of-turn marker does: both at the end of a text that was cut off."""
        if not frame.markers and not frame.footer:
            match = self._controls.search(text, place)
            return (match.start(), match.start()) if match else (len(text), len(text))
        end, marker_end = _ending(text, place, 0, len(text), frame, self._controls)
        if marker_end > place:
            return end, marker_end
        match = self._controls.match(text, place)
        return (place, place) if match and match[0] in frame.bounds else (len(text), len(text))


def _openers(frame: Frame, usual: str, controls: Any) -> Iterator[str]:
    """What opens a turn where no more is known of it: its header, or the control token that a tool's result ends with."""
    found = [usual] if usual else []
    for header in frame.headers:
        names = list(controls.finditer(header))
        if names and not (usual and header.endswith(usual)) and not all(name[0] in frame.markers for name in names):
            found.append(header[names[-1].start() :])
    yield from dict.fromkeys(found)


def _as_marked(text: str, turns: Sequence[Turn], blocks: Sequence[tuple[int, int]]) -> Iterator[Turn]:
    """The turns with exactly that scaffold which the template's generation marks hold; their own text is in it."""
    floor = 0
    for number, turn in enumerate(turns):
        stop = len(text) if number + 1 == len(turns) else _end(turn)
        inside = [(max(a, floor), min(b, stop)) for a, b in blocks if a < stop and b > floor]
        yield turn._replace(scaffold=tuple(part for a, b in inside for part in _parts(a, b, turn)))
        floor = stop


def _parts(start: int, end: int, turn: Turn) -> Iterator[Stretch]:
    """A stretch of text by kinds: what comes up to the end-of-turn marker, the marker, and what follows it."""
    marker = next(((s.start, s.end) for s in turn.scaffold if s.kind == MARKER), (_end(turn), _end(turn)))
    for kind, first, last in ((ADDED, start, marker[0]), (MARKER, *marker), (AFTER, marker[1], end)):
        if max(first, start) < min(last, end):
            yield Stretch(max(first, start), min(last, end), kind)
