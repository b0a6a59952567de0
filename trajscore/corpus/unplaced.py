"""Columns whose place nobody knows, and that may hold what should be scored, or a part of it: the user is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping

from trajscore.corpus import layouts
from trajscore.corpus.identity import FieldNames
from trajscore.corpus.kinds import ENTRIES, JSON, LIST, OBJECT, OPEN, OTHER, TEXT, TURNS, Kind
from trajscore.corpus.recognition import REFERENCE, RESPONSE, Reading
from trajscore.errors import UsageError

_REPLIES = frozenset(
    ["chosen", "rejected", "preferred", "candidate", "candidates", "choices", "response", "completion", "output"]
)
"""Words in names of columns that may hold the last turn of a conversation."""


def refuse_unplaced(found: Mapping[Kind, Reading], fields: FieldNames) -> None:
    """Raises UsageError where a kind of row has such a column, and what would be scored without it."""
    for kind, reading in found.items():
        _refuse(kind, reading, fields)


def _refuse(kind: Kind, reading: Reading, fields: FieldNames) -> None:
    if reading.tokens or reading.covered:
        return
    types = {name: what for name, what in kind if what != OTHER}
    left = [name for name in reading.unread if name in types]
    thoughts = [name for name in left if layouts.may_be_thought(name.lower())]
    written = [name for name in left if name not in thoughts and _may_be_written(name, types[name])]
    if reading.rank == REFERENCE and (found := written or thoughts):
        reference = reading.response[0]
        flag = "--response-field" if written else "--reasoning-field"
        raise UsageError(
            f"The column {found[0]!r} may hold what a model wrote, and beside it the reference {reference!r} would be scored.",
            f"To read it: {flag} {found[0]}. To leave it out on purpose: --ignore-columns {','.join(found)}; then "
            f"{reference!r} is scored.",
        )
    is_open = reading.messages is not None and not reading.branches and types.get(reading.messages) == OPEN
    ends = [name for name in written if not _REPLIES.isdisjoint(re.split(r"[\W_]+", name.lower()))]
    if is_open and ends:
        raise UsageError(
            f"Conversations in {reading.messages!r} end before the assistant's reply, and {ends[0]!r} may hold it.",
            f"To read it: --prompt-field {reading.messages} --response-field {ends[0]}. To leave it out on purpose: "
            f"--ignore-columns {','.join(ends)}.",
        )
    if reading.rank == RESPONSE and thoughts and not reading.thoughts and not fields.reasoning and not reading.calls:
        raise UsageError(
            f"The column {thoughts[0]!r} may hold thoughts that go before the response {reading.response[0]!r}.",
            f"To read it: --reasoning-field {thoughts[0]}. To leave it out on purpose: --ignore-columns {','.join(thoughts)}.",
        )


def _may_be_written(name: str, what: str) -> bool:
    lower = name.lower()
    if lower in layouts.BESIDE_PROMPT:
        return False
    if what.startswith(ENTRIES):
        return True
    is_response = layouts.numbered(lower)[0] in layouts.RESPONSES
    return what in (TEXT, JSON, LIST, TURNS, OPEN, OBJECT) and (is_response or layouts.may_be_generated(lower))
