"""What `inspect` prints: text coloured token by token, and tables of numbers.

Text of data sets is shown as it is: control characters, also those that turn the direction of writing, as escapes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trajscore.display.formatting import number, visible
from trajscore.display.terminal import plain
from trajscore.schema import OK
from trajscore.viewing.tokens import Statistic, TokenView

# From the terminal's own ground to a blue that stands out from it: the most surprising token is the brightest on a dark
# ground and the darkest on a light one. Text and ground are both set, so that they are readable together; the lowest level
# sets neither.
_DARK = ("", "#12263a", "#163452", "#1a446c", "#1f5688", "#2a6da9", "#4f95d3", "#9cccf7")
_LIGHT = ("", "#eaf2fc", "#d3e4f8", "#b8d4f4", "#98c0ee", "#76aae6", "#5596de", "#3f8ee0")
_CATEGORIES = {True: ("#1c2f42", "#2a6da9", "#8a4b12"), False: ("#eaf2fc", "#98c0ee", "#f6d8b8")}
_LIGHT_GROUNDS = ("7", "15")
_UNSCORED = "bright_black"
_TABLE = ("student_rank", "student_surprisal", "student_entropy", "sentence")


def token_parts(views: Sequence[TokenView], by: str, numbers: bool) -> Iterator[RenderableType]:
    """Every trajectory: who wrote it, its metrics, a legend, its text, and if asked a table of numbers."""
    for view in views:
        yield _heading(view)
        statistic = view.statistics.get(by)
        if statistic is not None:
            yield _legend(statistic)
        yield ""
        yield _text(view, by)
        yield ""
        if numbers:
            yield _numbers(view, by)


def _heading(view: TokenView) -> Text:
    facts = [
        f"teacher {view.teacher or '(unknown)'}",
        f"prompt {view.prompt_id}",
        f"{len(view.positions)} scored tokens",
    ]
    if view.correct is not None:
        facts.append("correct" if view.correct else "incorrect")
    if view.status != OK:
        facts.append(f"refused: {view.status}" + (f" ({view.detail})" if view.detail else ""))
    metrics = ", ".join(f"{name} {number(value)}" for name, value in view.metrics.items() if value is not None)
    heading = Text(plain(view.id).plain, style="bold")
    for line in (", ".join(facts), metrics):
        if line:
            heading.append("\n" + visible(line), style="not bold")
    return heading


def dark_ground() -> bool:
    """Whether the terminal has a dark ground, as `COLORFGBG` tells that many terminals set; without it, most are dark."""
    return os.environ.get("COLORFGBG", "15;0").rpartition(";")[2] not in _LIGHT_GROUNDS


def _style(statistic: Statistic, level: int | None) -> str:
    dark = dark_ground()
    colours = _CATEGORIES[dark] if statistic.categories else _DARK if dark else _LIGHT
    if level is None or not colours[level]:
        return ""
    bright = dark and not statistic.categories and level >= len(colours) - 2
    return f"{'#f2f5f8' if dark and not bright else '#1c2127'} on {colours[level]}"


def _legend(statistic: Statistic) -> Text:
    unit = f", {statistic.unit}" if statistic.unit else ""
    legend = Text(f"{statistic.name}{unit}: ")
    for level, label in enumerate(statistic.labels):
        legend.append(f" {label} ", style=_style(statistic, level))
    return legend.append("  unscored", style=_UNSCORED)


def _shown(text: str) -> str:
    """A token's text: line breaks as a sign and a break, other control characters as escapes."""
    return "\n".join(visible(line) for line in text.replace("\n", "↵\n").split("\n"))


def _text(view: TokenView, by: str) -> Text:
    statistic = view.statistics.get(by)
    text = Text()
    for piece, place, level in view.pieces(by):
        shown = _shown(piece) if place is not None else "\n".join(visible(line) for line in piece.split("\n"))
        style = _UNSCORED if place is None else "" if statistic is None else _style(statistic, level)
        text.append(shown, style=style)
    return text


def _numbers(view: TokenView, by: str) -> Table:
    """The numbers of every scored token: the statistic that colours them and the student's own, so that 80 columns do."""
    shown = [name for name in dict.fromkeys((by, *_TABLE)) if name in view.statistics]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("token", justify="right")
    table.add_column("text", overflow="fold")
    for name in shown:
        table.add_column(name.removeprefix("student_"), justify="right", overflow="fold")
    for place, position in enumerate(view.positions):
        values = (_value(view.statistics[name], view.statistics[name].values[place]) for name in shown)
        table.add_row(str(position), plain(view.texts[position]), *values)
    return table


def _value(statistic: Statistic, value: float | None) -> str:
    if value is not None and statistic.categories and statistic.name != "sentence":
        return statistic.categories[int(value)]
    return number(value, 3)
