"""Accounts of `trajscore skills`, its profile, and what `grade` found, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from trajscore.display.formatting import number, share
from trajscore.display.terminal import plain, plain_lines

_BAR = 24
_SHOWN = 10


def outcome_lines(summary: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Rows, calls and details of one step.

    Args:
        summary: what `Outcome.to_dict` gives.
    """
    left_out = "".join(f"\n  {reason}: {count}" for reason, count in summary["left_out"].items())
    yield plain_lines(f"{summary['rows']} rows, {summary['items']} questions{left_out}")
    if summary["dry_run"]:
        yield plain("dry run: nothing was asked or written")
    else:
        yield plain("became: " + _pairs(summary["statuses"]))
    yield plain("calls: " + _pairs(summary["calls"]))
    for name, value in summary["details"].items():
        yield plain(f"{name}: {_pairs(value) if isinstance(value, dict) else _shown(value)}")


def _pairs(values: Mapping[str, Any]) -> str:
    parts = [
        f"{name} {_pairs(value)}" if isinstance(value, dict) else f"{name} {_shown(value)}"
        for name, value in values.items()
    ]
    return ", ".join(parts) or "none"


def _shown(value: Any) -> str:
    return number(value, 3) if isinstance(value, float) or value is None else str(value)


def profile_tables(profile: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The profile as a bar chart of text, its account and its notes.

    Args:
        profile: what `SkillProfile.to_dict` gives.
    """
    yield plain(
        f"{profile['rows']} questions: {_pairs(profile['statuses'])}. Missing skills of {profile['diagnosed']} diagnosed ones; "
        f"[low, high]: {100 * profile['confidence']:g}% bootstrap interval over questions."
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("skill", overflow="fold")
    for column in ("questions", "share", "interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    most = max((line["questions"] for line in profile["skills"]), default=1)
    for line in profile["skills"]:
        ends = "-" if line["low"] is None else f"[{number(line['low'], 3)}, {number(line['high'], 3)}]"
        bar = "\u2588" * max(1, round(_BAR * line["questions"] / most))
        table.add_row(plain(line["skill"]), str(line["questions"]), share(line["share"]), ends, bar)
    yield table
    if profile["agreement"] is not None:
        yield plain(f"agreement of the votes: {number(profile['agreement'], 3)}")
    for note in profile["notes"]:
        yield plain(f"note: {note}")


def grading_lines(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Counts, undecided rows and the agreement with labels that were there.

    Args:
        found: what `Grading.to_dict` gives.
    """
    undecided = sum(found["undecided"].values())
    why = f" ({_pairs(found['undecided'])})" if undecided else ""
    yield plain(f"{found['rows']} rows: {found['right']} right, {found['wrong']} wrong, {undecided} undecided{why}")
    for each in found["undecided_rows"][:_SHOWN]:
        yield plain(f"  row {each['row']}, id {each['id']}: {each['reason']}")
    if undecided > _SHOWN:
        yield plain(f"  and {undecided - _SHOWN} more; the file's column grade says why")
    if found["agreement"] is None:
        yield plain("no row had a label to compare with")
        return
    yield plain(
        f"labels that were there: {found['agreeing']} of {found['labelled']} agree ({share(found['agreement'])})"
    )
    for each in found["disagreeing_rows"][:_SHOWN]:
        yield plain(f"  row {each['row']}, id {each['id']}: the label says {'right' if each['label'] else 'wrong'}")
