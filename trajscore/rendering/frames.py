"""What a chat template puts around the assistant's texts, learnt by looking at what it does to small conversations.

Nothing is listed by name: headers, what the generation prompt opens (`<think>`, `<|channel>thought`, prose), blocks that the
template adds, and what ends a turn are all found by comparing renderings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trajscore.rendering.anchors import Marks, Span

_Message = Mapping[str, Any]
Render = Callable[[Sequence[_Message], bool], str | None]
"""Renders a conversation, with the generation prompt or without; None where the template refuses it."""

PROBE = "trajscoreprobe"
"""A word that no template writes by itself."""

_CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
_SYSTEM: _Message = {"role": "system", "content": "s"}
_USER: _Message = {"role": "user", "content": "u"}
_REPLY: _Message = {"role": "assistant", "content": PROBE}
_CALLING: _Message = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT: _Message = {"role": "tool", "tool_call_id": "call00000", "name": "f", "content": "r"}

# What an assistant's turn may follow. The first that renders is the usual one.
_CONTEXTS: tuple[tuple[_Message, ...], ...] = (
    (_USER,),
    (_SYSTEM, _USER),
    (_SYSTEM,),
    (),
    (_USER, _REPLY),
    (_USER, _CALLING, _RESULT),
    (_SYSTEM, _USER, _CALLING, _RESULT),
)
# What it may say, and what may follow.
_REPLIES: tuple[tuple[_Message, ...], ...] = (
    (_REPLY,),
    (_REPLY, _USER),
    (_REPLY, _REPLY),
    ({**_REPLY, "reasoning_content": "t", "thinking": "t"},),
    ({**_REPLY, "content": f"<think>\nt\n</think>\n\n{PROBE}"},),
    (_CALLING,),
    (_CALLING, _RESULT),
)


class Frame(NamedTuple):
    """What a template puts around the assistant's texts.

    Attributes:
        opening: the header of a turn that follows a question.
        headers: all that ends where a turn begins, longest first.
        prefills: what generation prompts hold besides the header, longest first.
        added: what the template writes before a reply that nobody asked for, longest first.
        markers: control token that ends a turn -> what stands between the text and it (mostly nothing).
        bounds: control tokens that only show that a turn is over: they belong to the next one.
        footer: what ends a turn where no control token does.
        newline: white space that follows the end of a turn.
    """

    opening: str
    headers: tuple[str, ...]
    prefills: tuple[str, ...]
    added: tuple[str, ...]
    markers: dict[str, str]
    bounds: frozenset[str]
    footer: str
    newline: str

    def after_header(self, text: str, floor: int, stop: int, *, last: bool = True) -> int | None:
        """Where a header that begins at `floor` or later ends, the last one up to `stop`, or the first; None without one."""
        find = text.rfind if last else text.find
        ends = [place + len(header) for header in self.headers if (place := find(header, floor, stop)) >= 0]
        return None if not ends else max(ends) if last else min(ends)

    def after_prefill(self, text: str, place: int, stop: int) -> int:
        """Where the model begins to write: after what the generation prompt holds, where the text holds it too."""
        for prefill in self.prefills:
            for form in (prefill, prefill.rstrip()):
                if form and text.startswith(form, place) and place + len(form) <= stop:
                    return place + len(form)
        return place

    def after_added(self, text: str, place: int, stop: int) -> int:
        """Where what the template added ends; `place` where it added nothing."""
        ends = (place + len(added) for added in self.added if text.startswith(added, place))
        return next((end for end in ends if end <= stop), place)


class _Look(NamedTuple):
    """A reply in a small conversation: what stands before it and after it, and what it is.

    Attributes:
        before: what stands between the message before and its first text.
        after: what stands between its last text and the message after.
        bare: whether it is a text without thoughts or calls.
        calls: whether it is a call.
        ends: whether it ends the conversation.
    """

    before: str
    after: str
    bare: bool
    calls: bool
    ends: bool


def learn(render: Render, controls: re.Pattern[str]) -> Frame | None:
    """Look at what a template does with texts, or with lists of parts where it takes no texts.

    Args:
        render: renders a conversation.
        controls: matches the names of control tokens.

    Returns:
        None when the template writes out no reply in any conversation.
    """

    def in_parts(messages: Sequence[_Message], prompt: bool) -> str | None:
        return render(_in_parts(messages), prompt)

    return _learn(render, controls) or _learn(render, controls, words=True) or _learn(in_parts, controls)


def shared_start(texts: Sequence[str]) -> str:
    """What texts begin with in common.

    >>> shared_start(["abc", "abd"]), shared_start([])
    ('ab', '')
    """
    first, last = min(texts, default=""), max(texts, default="")  # of all texts these two differ the earliest
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))]


def _in_parts(messages: Sequence[_Message]) -> list[_Message]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _learn(render: Render, controls: re.Pattern[str], *, words: bool = False) -> Frame | None:
    opening, leads, prefills = "", list[str](), set[str]()
    replies = list[tuple[str, _Look]]()
    for context in _CONTEXTS:
        looks = [look for reply in _REPLIES if (look := _look(render, context, reply, words))]
        if not looks:
            continue
        prompt = _prompt(render, context, words)
        regions = [look.before for look in looks]
        shared = shared_start(regions)
        if opening and opening in shared:
            lead = shared[: shared.rindex(opening) + len(opening)]
        else:
            regions += [prompt.held] if prompt else []
            lead = _whole_tags(shared_start(regions), regions)
        if prompt and not opening:
            opening = lead[len(prompt.bare) :] if lead.startswith(prompt.bare) else lead
        if prompt and prompt.held.startswith(lead) and lead.endswith(opening):
            prefills.add(prompt.held[len(lead) :])
        leads.append(lead)
        replies += [(lead, look) for look in looks]
    if not replies:
        return None
    opening = _shared_ending(opening or leads[0], leads)
    bare = Frame("", (), _longest_first(prefills - {""}), (), {}, frozenset(), "", "")
    added = {
        look.before[bare.after_prefill(look.before, len(lead), len(look.before)) :]
        for lead, look in replies
        if look.bare and lead.endswith(opening)
    }
    markers, bounds, footer, newline = _endings([look for _, look in replies], controls)
    return Frame(
        opening,
        _longest_first({header for header in (opening, *leads) if header.strip()}),
        bare.prefills,
        _longest_first({block for block in added if block.strip()}),
        markers,
        bounds,
        footer,
        newline,
    )


def _shared_ending(opening: str, leads: Sequence[str]) -> str:
    """The header itself: what stands before replies of every kind, where that is more than white space."""
    for lead in leads:
        shared = shared_start([opening[::-1], lead[::-1]])[::-1]
        begin = min((place for sign in "<[" if (place := shared.find(sign)) >= 0), default=0)
        opening = shared[begin:] if shared.strip() and shared != opening and begin < len(shared) else opening
    return opening


def _longest_first(texts: set[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


def _marked(
    render: Render, messages: Sequence[_Message], words: bool, prompt: bool = False
) -> tuple[str, list[Span]] | None:
    marks = Marks(messages, words=words)
    text = render(marks.messages, prompt)
    return None if text is None else (marks.plain(text), marks.spans(text))


def _look(render: Render, context: Sequence[_Message], reply: Sequence[_Message], words: bool) -> _Look | None:
    found = _marked(render, [*context, *reply], words)
    if found is None:
        return None
    text, spans = found
    index = len(context)
    own = [span for span in spans if span.piece.message == index]
    plain = not reply[0].get("tool_calls")
    if not own or (plain and own[-1].piece.text != PROBE):
        return None
    floor = max((span.end for span in spans if span.piece.message < index and span.end <= own[0].start), default=0)
    stop = min(
        (span.start for span in spans if span.start >= own[-1].end and span.piece.message > index), default=len(text)
    )
    bare = plain and len(own) == 1
    return _Look(text[floor : own[0].start], text[own[-1].end : stop], bare, not plain, len(reply) == 1)


class _Prompt(NamedTuple):
    """What ends a conversation without and with the generation prompt."""

    bare: str
    held: str


def _prompt(render: Render, context: Sequence[_Message], words: bool) -> _Prompt | None:
    """The end of a conversation; None where the template writes no generation prompt."""
    without, held = _marked(render, context, words), _marked(render, context, words, True)
    if held is None:
        return None
    tails = [text[max((span.end for span in spans), default=0) :] for text, spans in (without or ("", []), held)]
    return _Prompt(*tails) if tails[0] != tails[1] else None


def _whole_tags(shared: str, regions: Sequence[str]) -> str:
    """What texts begin with in common, without the beginning of a tag in which they differ.

    >>> _whole_tags("a<t", ["a<think>", "a<tool>"]), _whole_tags("a<t>", ["a<t>b", "a<t>"])
    ('a', 'a<t>')
    """
    if shared in regions and not any(region.startswith(shared + ">") for region in regions):
        return shared
    cut = max(shared.rfind("<"), shared.rfind("["))
    return shared[:cut] if cut >= 0 and not re.search(r"[>\]]", shared[cut:]) else shared


def _endings(looks: Sequence[_Look], controls: re.Pattern[str]) -> tuple[dict[str, str], frozenset[str], str, str]:
    markers, bounds = dict[str, str](), set[str]()
    newline, footers = "", list[str]()
    for look in looks:
        found = list(controls.finditer(look.after))
        if look.calls:
            # Calls may have control tokens of their own before the one that ends the turn.
            if look.ends and found:
                markers.setdefault(found[-1][0], "")
        elif found and (look.ends or any(other.ends and controls.search(other.after) for other in _plain(looks))):
            markers[found[0][0]] = look.after[: found[0].start()]
            rest = look.after[found[0].end() :]
            if look.ends and not rest.strip():
                newline = rest
        elif found:
            bounds.add(found[0][0])
        if not look.calls:
            footers.append(look.after)
    footer = _whole_tags(shared_start(footers), footers) if footers else ""
    return markers, frozenset(bounds - markers.keys()), "" if controls.search(footer) else footer, newline


def _plain(looks: Sequence[_Look]) -> Iterator[_Look]:
    return (look for look in looks if not look.calls)
