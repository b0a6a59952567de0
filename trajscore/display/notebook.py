"""How results show themselves: a few lines in a Python prompt, a small table in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import polars as pl

from trajscore.display.formatting import number, visible
from trajscore.errors import UsageError, did_you_mean

_ROWS, _COLUMNS, _LETTERS = 20, 10, 60


class Shown:
    """A result that shows itself: give it `lines`, `pictures` and, where it has a table worth a look, `preview`."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The result in a few lines of text."""

    def preview(self) -> pl.DataFrame | None:
        """A table for notebooks, of which the first rows and columns are shown; None where there is none."""
        return None

    def pictures(self) -> Mapping[str, Callable[[], Any]]:
        """What `plot` can draw, by name, the first one by default; each gives None where there is nothing to draw."""
        return {}

    def plot(self, name: str | None = None) -> Any:
        """One of the result's pictures: an Altair chart, which notebooks show and whose `save` writes SVG, PDF, PNG or HTML.

        Args:
            name: which one; the first one by default.

        Raises:
            UsageError: there is no such picture, or nothing to draw.
        """
        known = self.pictures()
        name = picture_name(name, list(known))
        if (chart := known[name]()) is None:
            raise UsageError(f"there is nothing to draw for {name!r}.", "`frame` has what there is.")
        return chart

    def __repr__(self) -> str:
        return "\n".join(visible(line) for line in self.lines())

    def _repr_html_(self) -> str:
        """At most 20 kB, whatever the result holds."""
        head = "<br>".join(escape(visible(_short(line, 4 * _LETTERS))) for line in self.lines()[:12])
        table = self.preview()
        return f"<div>{head}</div>" + ("" if table is None else html_table(table))


def picture_name(name: str | None, known: Sequence[str]) -> str:
    """The picture that was asked for, the first one by default.

    Raises:
        UsageError: there is no such picture.
    """
    name = next(iter(known), "") if name is None else name
    if name not in known:
        raise UsageError(f"no plot {name!r}.", did_you_mean(name, known))
    return name


def html_table(table: pl.DataFrame) -> str:
    """The first rows and columns of a table as HTML; text is escaped and cut.

    >>> html_table(pl.DataFrame({"teacher": ["<b>"], "rsr": [2.5]}))
    '<table><tr><th>teacher</th><th>rsr</th></tr><tr><td>&lt;b&gt;</td><td>2.500</td></tr></table>'
    """
    shown = table[:_ROWS, :_COLUMNS]
    lines = ["".join(f"<th>{_cell(name)}</th>" for name in shown.columns)]
    lines += ["".join(f"<td>{_cell(value)}</td>" for value in row) for row in shown.iter_rows()]
    left = table.height - shown.height
    more = f"<div>... and {left:,} more rows</div>" if left else ""
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>" + more


def _cell(value: Any) -> str:
    text = number(value) if isinstance(value, float) else "" if value is None else str(value)
    return escape(_short(visible(text), _LETTERS))


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"
