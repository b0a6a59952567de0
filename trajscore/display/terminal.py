"""Text and tables that rich prints; writing them is `writer`'s.

Names come from data sets and are shown as they are: always `Text`, never markup, and control characters made visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from trajscore.display.formatting import visible


def plain(text: str) -> Text:
    """Text of a data set: no markup, and control characters (which could move the cursor) as escapes.

    >>> plain("[bold]a\\x1b[2J").plain
    '[bold]a\\\\x1b[2J'
    """
    return Text(visible(text))


def new_table(title: str, *columns: str, one_line: bool = False) -> Table:
    """An empty table: the first column to the left, the others, which hold numbers, to the right.

    Args:
        title: what it shows.
        columns: their headers.
        one_line: a row takes one line: where the terminal is narrow only the first column gives way, and ends in an ellipsis.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if position else "left",
            no_wrap=one_line and position > 0,
            overflow="ellipsis" if one_line else "fold",
        )
    return table


def written(*files: str | Path | None) -> Iterator[Text]:
    """A line for each file that a command wrote."""
    for file in files:
        if file is not None:
            yield plain(f"written: {file}")


def plain_lines(text: str) -> Text:
    """Several lines of text of a data set: as `plain`, with line breaks kept."""
    return Text("\n").join(plain(line) for line in text.split("\n"))
