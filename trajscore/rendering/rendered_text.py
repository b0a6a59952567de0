"""Whether a chat template was applied to a text already: by how those of known families begin, and by one model's own names."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FAMILIES = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\uff5cbegin\u2581of\u2581sentence\uff5c>)?\s*"
    r"(<\|im_start\|>\w+|<\|start_header_id\|>\w+|<\|header_start\|>\w+|<start_of_turn>\w+|<\|turn>\w+|<\|start\|>\w+"
    r"|<\|(?:user|system|assistant)\|>|<\uff5c(?:User|Assistant)\uff5c>|\[INST\])"
)
"""How text begins to which a chat template was applied, whichever family's."""

_BEGINNING = 1000
"""Characters that are looked at for how a text begins: longer than any name of a token."""


@dataclass(frozen=True)
class RenderedMarks:
    """What shows that one model's template was applied to a text.

    Attributes:
        controls: control tokens with which no text begins that people write; those that only start, end or pad are not among
            them.
        openers: what opens the assistant's turns.
        start: the token that starts a text, if there is one.
    """

    controls: tuple[str, ...] = ()
    openers: tuple[str, ...] = ()
    start: tuple[str, ...] = ()

    def found(self, text: str) -> str:
        """What shows that a template was applied to a text; empty where nothing does.

        >>> RenderedMarks().found("<|im_start|>user\\na"), RenderedMarks().found("What does <|im_start|>user mean?")
        ('<|im_start|>user', '')
        >>> RenderedMarks(openers=("<|bot|>",)).found("Be brief.<|bot|>b")
        '<|bot|>'
        """
        return self.begins(text) or next((opener.strip() for opener in self.openers if opener in text), "")

    def begins(self, text: str) -> str:
        """The control token with which a text begins that a template made; empty where it does not."""
        if known := _FAMILIES.match(text):
            return known[1]
        begun = text[:_BEGINNING].lstrip()
        for name in self.start:
            begun = begun.removeprefix(name).lstrip()
        if begun.startswith(self.controls):
            return max(filter(begun.startswith, self.controls), key=len)
        return ""

    def prompt(self, text: str) -> str:
        """What stands before the assistant's first turn; all of it where none is found."""
        places = [place for opener in self.openers if (place := text.find(opener)) >= 0]
        return text[: min(places, default=len(text))]


NO_MARKS = RenderedMarks()
"""Of no model: known families are told by how their texts begin."""
