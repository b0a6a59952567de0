"""What `trace` prints: counts, and the first places of the profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trajscore.display.formatting import share
from trajscore.display.terminal import plain_lines
from trajscore.metrics.sentence_classes import UNDEFINED

_POSITIONS = 5
"""Places of each profile: three profiles then fit a screen of 40 lines."""


def tracing_tables(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Rows in = traced + dropped by reason, sentences by class, and the first places of the profile.

    Args:
        summary: what `Tracing.to_dict` gives.
    """
    reasons = "".join(f"\n  {reason}: {rows:,}" for reason, rows in summary["dropped"].items())
    yield plain_lines(
        f"{summary['rows_in']:,} rows in = {summary['rows_traced']:,} traced + {summary['rows_dropped']:,} dropped{reasons}"
    )
    yield ""
    table = _table("Sentences by provenance", "class", "sentences", "share", "tokens")
    for name, each in summary["classes"].items():
        table.add_row(name, f"{each['sentences']:,}", share(each["share"]), f"{each['tokens']:,}")
    yield table
    for group, lines in groupby(summary["profile"], key=itemgetter("group")):
        yield ""
        yield from _profile(group, list(lines), summary)
    for note in summary["notes"]:
        yield plain_lines(f"note: {note}")


def _profile(group: str, lines: list[dict[str, Any]], summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    names = [name for name in summary["classes"] if name != UNDEFINED]
    table = _table(f"Share by place in the response: {group}", "place", "sentences", *names)
    for line in lines[:_POSITIONS]:
        table.add_row(
            str(line["sentence"] + 1), f"{line['sentences']:,}", *(share(line[f"share_{name}"]) for name in names)
        )
    yield table
    if len(lines) > _POSITIONS:
        yield Text(f"and {len(lines) - _POSITIONS} more places: see --json or --out FILE.html")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    return table
