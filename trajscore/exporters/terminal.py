"""What `export` and `list exporters` print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from trajscore.display.terminal import plain, plain_lines
from trajscore.exporters.base import Exporter


def exporter_list(exporters: Iterable[Exporter]) -> Iterator[RenderableType]:
    """The table of exporters as paragraphs: a name, what is written, which weights it takes."""
    for each in exporters:
        yield Text(f"{each.name}  ({each.trainer})", style="bold")
        rows = " and ".join(each.sample_weights) or "no"
        for line in (each.meaning, f"token weights: {each.weights_said}; sample weights: {rows}"):
            yield Padding(Text(line), (0, 0, 0, 4))


def export_lines(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """An export's counts, its files, what to type next, and what the check found.

    Args:
        summary: what `Exported.to_dict` gives.
    """
    left_out: Mapping[str, int] = summary["left_out"]
    reasons = "".join(f"\n  {reason}: {rows}" for reason, rows in left_out.items())
    yield plain_lines(
        f"{summary['rows_in']} rows in = {summary['rows_exported']} exported + {sum(left_out.values())} left out{reasons}"
    )
    if summary["rows_written"] != summary["rows_exported"]:
        yield plain(f"{summary['rows_written']} rows written: some were drawn several times")
    longest = "longest row" if summary["exact"] else "no row is longer than (give --student for the exact number)"
    yield plain(f"{longest}: {summary['longest']} tokens; maximum length in the configuration: {summary['max_length']}")
    yield plain(f"{summary['out']}: {', '.join(summary['files'])}")
    # Broken as a shell allows, so that it can be copied from a narrow terminal.
    command = " \\\n    ".join(textwrap.wrap(summary["command"], 72, break_long_words=False, break_on_hyphens=False))
    yield plain_lines(f"next, in that folder:\n  {command}")
    if summary["check"] is not None:
        yield from _check_lines(summary["check"])


def _check_lines(check: Mapping[str, Any]) -> Iterator[RenderableType]:
    if check["note"]:
        yield plain(f"check: {check['note']}")
    yield plain(f"check: read by {check['reader']}: {check['agreeing']} of {check['rows']} rows agree")
    for difference in check["differences"]:
        yield plain(f"  {difference}")
