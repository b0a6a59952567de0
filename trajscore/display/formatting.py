"""Text of data sets made safe to show (`visible`), and numbers, sizes and shares as people read them."""

from __future__ import annotations

NONE = "-"
"""What stands where a value is undefined."""


def visible(text: str) -> str:
    """Text of a data set with control characters, which could move the cursor or turn the text around, as escapes.

    >>> visible("a\\x1b[2J\\u202eb")
    'a\\\\x1b[2J\\\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def visible_lines(text: str) -> str:
    """The same for a text of several lines, which stay lines.

    >>> visible_lines("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\nb'
    """
    return "\n".join(map(visible, text.split("\n")))


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits; a dash for None.

    >>> number(2.92512), number(12077.7), number(None)
    ('2.925', '12078', '-')
    """
    if value is None:
        return NONE
    size = abs(value)
    if (size >= 10**digits and size < 1e9) or isinstance(value, int):
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def share(value: float | None) -> str:
    """A share as percent; a dash for None.

    >>> share(0.855)
    '85.5%'
    """
    return NONE if value is None else f"{100 * value:.1f}%"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least 1.

    >>> size(123), size(439082), size(30e9)
    ('123 B', '429 KiB', '27.9 GiB')
    """
    unit = 0
    while count >= 1024 and unit < 4:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if not unit else f"{count:.3g} {('', 'K', 'M', 'G', 'T')[unit]}iB"
