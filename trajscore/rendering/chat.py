"""One conversation through one Jinja template, to the letter as `apply_chat_template` of the installed transformers does it.

The only place that knows how transformers renders: what it does to messages first, how it finds generation marks, and which
clock a template sees. Everything else in this room works on what comes out of here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trajscore.rendering.limits import Limits
from trajscore.rendering.literals import strings

SCORING_DATE = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC)
"""The date that templates print: today's would give other tokens tomorrow. It is the one they fall back to themselves."""

RESERVED = frozenset(
    {"messages", "conversations", "tools", "documents", "chat_template", "add_generation_prompt"}
    | {"continue_final_message", "return_assistant_tokens_mask"}
)
"""Names that the rendering itself passes to templates, so that no variable may bear them."""


class Rendition(NamedTuple):
    """What a template made of a conversation.

    Attributes:
        text: the rendered text.
        blocks: character spans inside `{% generation %}` marks, in order; none without marks.
    """

    text: str
    blocks: list[tuple[int, int]]


class _Place(str):
    """A source that equals only itself, under which transformers keeps a compiled template.

    transformers compiles a source once per process, for everybody in it. This one gets an environment of its own, so that the
    clock and the limits set there are no one else's: a trainer in the same process keeps today's date. The template's own
    source is compiled there under these limits; that it has marks is said in a comment, or transformers would warn.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Chat:
    """A template, ready to render conversations.

    Args:
        source: the Jinja template.
        now: the date that the template sees.
    """

    def __init__(self, source: str, now: datetime.datetime = SCORING_DATE) -> None:
        self.source, self._own, self._now = source, _Place("{# {% generation %} #}"), now
        self._limits: Limits | None = None
        self._compiled: Any = None
        self._marked = re.search(r"\{%-?\s*generation\s*-?%\}", source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> Rendition:
        """Render a conversation.

        Args:
            messages: the conversation, as a trainer would pass it.
            tools: definitions of tools; None and none at all may differ.
            variables: what the template may refer to (`bos_token`, `enable_thinking`, ...).
            generation_prompt: end with what opens the assistant's next turn.

        Raises:
            jinja2.TemplateSyntaxError: the source is not valid Jinja.
            TemplateLimitError: it loops or writes without end.
            Exception: whatever else the template raises, as transformers passes it on.
        """
        from transformers.utils import chat_template_utils as transformers_chat

        # Since 5.24 messages lose their keys without a value before anything else; earlier releases leave them.
        normalise = getattr(transformers_chat, "_normalize_chat_messages", list)
        compiled = transformers_chat._compile_jinja_template(self._own)
        if self._limits is None or compiled is not self._compiled:
            # transformers keeps the last 128 templates only: past that it has compiled the bare place anew.
            self._limits, self._compiled = Limits(compiled, self.source), compiled
        self._limits.start(sum(map(len, strings([messages, tools, variables]))))
        compiled.environment.globals["strftime_now"] = self._now.strftime
        texts, blocks = transformers_chat.render_jinja_template(
            conversations=[normalise(messages)],
            tools=None if tools is None else list(tools),
            chat_template=self._own,
            return_assistant_tokens_mask=self._marked,
            add_generation_prompt=generation_prompt,
            **(variables or {}),
        )
        return Rendition(texts[0], list(blocks[0]) if blocks else [])
