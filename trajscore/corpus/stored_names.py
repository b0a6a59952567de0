"""Names for columns of a corpus that bear the name of one that scores write themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trajscore.schema import COLUMNS

_BEFORE = "input_"
_RESERVED = "trajscore."
"""What columns are called that exist while a selection or report is made."""


def stored_names(names: Sequence[str], meant: Collection[str] = ()) -> dict[str, str]:
    """Columns that cannot keep their name in scores -> the names they have there.

    Args:
        names: all columns of the corpus, in order.
        meant: those whose place the column of ours takes, because it says the same.

    >>> stored_names(["id", "status", "input_status", "text"], ["id"])
    {'status': 'input_input_status'}
    """
    found: dict[str, str] = {}
    taken = {*names, *COLUMNS}
    for name in names:
        if name in meant or not (name in COLUMNS or name.startswith(_RESERVED)):
            continue
        other = _BEFORE + name
        while other in taken:
            other = _BEFORE + other
        taken.add(other)
        found[name] = other
    return found
