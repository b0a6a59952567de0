"""What a dry run found, as lines for a terminal. It knows rich and the numbers it is given; no corpus and no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from trajscore.corpus import described
from trajscore.display.formatting import size, visible
from trajscore.progress import duration

_UNKNOWN = "unknown: the data set is streamed"


def plan_lines(plan: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Rows, tokens, longest, disk, memory and time, a line or two each.

    Args:
        plan: what `ScorePlan.to_dict` gives.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in (
        ("rows", _rows(plan)),
        *(("columns", visible(described(each))) for each in plan["columns"]),
        ("tokens", _tokens(plan)),
        ("longest", _longest(plan)),
        ("disk", _disk(plan["disk"], plan["out"])),
        ("memory", _memory(plan["memory"])),
        ("time", _time(plan["time"])),
    ):
        table.add_row(name, text)
    yield table
    yield "dry run: nothing was written"


def _rows(plan: Mapping[str, Any]) -> str:
    if plan["rows"] is None:
        return f"{_UNKNOWN}; the first {plan['counted']:,} were rendered"
    reasons = ", ".join(f"{_count(each)} {name}" for name, each in plan["refused"].items())
    refused = f"refused: {reasons}" if reasons else "none refused"
    counted = "every row was rendered" if plan["exact"] else f"{plan['counted']:,} rows were rendered"
    done = f"; {plan['done']:,} rows are scored already" if plan["done"] else ""
    return f"{plan['rows']:,}, to score: {_count(plan['scored'])}, {refused} ({counted}){done}"


def _tokens(plan: Mapping[str, Any]) -> str:
    if plan["tokens"] is None:
        return _UNKNOWN
    return f"{_count(plan['tokens'])} scored; {_count(plan['read_tokens'])} read by the student"


def _longest(plan: Mapping[str, Any]) -> str:
    if plan["longest_row"] is None:
        return "no row can be scored"
    row, name = plan["longest_row"]
    least = "" if plan["exact"] else "at least "
    return f"{least}{plan['longest']:,} tokens (row {row}, id {visible(name)})"


def _disk(disk: Mapping[str, Any], out: str) -> str:
    parts = "unknown" if disk["parts"] is None else _interval(disk["parts"], size)
    waiting = f", and up to {size(disk['hidden_states'])} of hidden states meanwhile" if disk["hidden_states"] else ""
    free = "" if disk["free"] is None else f"; {size(disk['free'])} are free"
    return f"{parts} in {out}{waiting}{free}"


def _memory(memory: Mapping[str, Any]) -> str:
    free = "" if memory["available"] is None else f"; {size(memory['available'])} are free"
    lines = [
        f"about {size(memory['needed'])} for trajectories of {memory['longest']:,} tokens ({memory['engine']}){free}"
    ]
    for each in memory["models"]:
        parts = ", ".join(f"{name} {size(each[name])}" for name in ("weights", "cache", "activations", "head"))
        lines.append(f"{each['role']} {each['name']}: {parts}")
    if memory["measured"] is not None:
        lines.append(
            f"used while timing: {size(memory['measured'])}, libraries included; expected "
            f"{size(memory['measured_needed'])} for its longest row of {memory['measured_longest']:,} tokens"
        )
    return "\n".join(lines)


def _time(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return "not measured"
    speed = f"{time['tokens_per_second']:,.0f} tokens/s"
    measured = f"timed: {time['rounds']} x {time['rows_per_round']} rows in {time['measured']:.1f} s"
    if time["total"] is None:
        return f"{_UNKNOWN}; {speed} ({measured})"
    hours = f" ({time['total']['value'] / 3600:.2g} h)" if time["total"]["value"] >= 360 else ""
    swapping = f", loading models in turn {duration(time['swapping'])}" if time["swapping"] else ""
    return (
        f"about {_interval(time['total'], duration)}{hours}: reading the corpus once {duration(time['survey'])}, starting "
        f"{duration(time['startup'])}{swapping}, scoring {duration(time['scoring']['value'])} at {speed} ({measured})"
    )


def _count(estimate: Mapping[str, float]) -> str:
    return _interval(estimate, lambda value: f"{value:,.0f}")


def _interval(estimate: Mapping[str, float], shown: Any) -> str:
    """A value with its interval, unless it was counted."""
    value, low, high = (shown(estimate[name]) for name in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"
