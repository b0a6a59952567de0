"""What a dry run found, as lines for a terminal: rows, tokens, longest row, disk, memory and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from trajscore.corpus import described
from trajscore.display.formatting import size, visible
from trajscore.progress import duration


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
        ("tokens", f"{_count(plan['tokens'])} scored; {_count(plan['read_tokens'])} read by the student"),
        ("longest", _longest(plan)),
        ("disk", _disk(plan["disk"], plan["out"])),
        ("memory", _memory(plan["memory"])),
        ("time", _time(plan["time"])),
    ):
        table.add_row(name, text)
    yield table
    yield "dry run: nothing was written"


def _rows(plan: Mapping[str, Any]) -> str:
    total = "unknown (streamed)" if plan["rows"] is None else f"{plan['rows']:,}"
    reasons = ", ".join(f"{_count(each)} {name}" for name, each in plan["refused"].items())
    counted = "every row was rendered" if plan["exact"] else f"{plan['counted']:,} rows were rendered"
    done = f"; {plan['done']:,} rows are scored already" if plan["done"] else ""
    return f"{total}, to score: {_count(plan['scored'])}, refused: {reasons or 'none'} ({counted}){done}"


def _longest(plan: Mapping[str, Any]) -> str:
    if plan["longest_row"] is None:
        return "no row can be scored"
    row, name = plan["longest_row"]
    return f"{plan['longest']:,} tokens{'' if plan['exact'] else ' or more'} (row {row}, id {visible(name)})"


def _disk(disk: Mapping[str, Any], out: str) -> str:
    waiting = f", and up to {size(disk['hidden_states'])} of hidden states meanwhile" if disk["hidden_states"] else ""
    each = disk["topk_per_token"]
    kept = "" if each is None else f", {each:.0f} bytes of it for each scored token by --keep-topk"
    free = "" if disk["free"] is None else f"; {size(disk['free'])} are free"
    copies = (
        f"; {size(disk['merged_copies'])} of models with their adapters merged in, for the time of the run, in the folder for "
        f"temporary files, where {size(disk['merged_copies_free'])} are free"
    )
    return (
        f"{_range(disk['parts'], size)} in {visible(out)}{kept}{waiting}{free}{copies if disk['merged_copies'] else ''}"
    )


def _memory(memory: Mapping[str, Any]) -> str:
    needed, free = _range(memory["needed"], size), size(memory["available"])
    models = (
        f"{each['role']} {visible(each['name'])}: weights {size(each['weights'])}, running {size(each['running'])}"
        for each in memory["models"]
    )
    for_what = f"for trajectories of {memory['longest']:,} tokens ({memory['engine']}); {free} are free"
    several = len(memory["models"]) > 1
    between = "asleep in the host's memory in between" if memory["asleep"] else "loaded anew for every group of rows"
    how = "all models side by side" if memory["together"] else f"models in turn, {between}"
    return "\n".join([f"about {needed} {for_what}{f'; {how}' if several else ''}", *models])


def _time(time: Mapping[str, Any] | None) -> str:
    if time is None:
        return "not measured"
    swapping = f", loading models in turn {duration(time['swapping'])}" if time["swapping"] else ""
    scoring = f", scoring {duration(time['scoring']['value'])}" if time["scoring"] else ""
    return (
        f"about {_range(time['total'], duration)}: reading the corpus once {duration(time['survey'])}, starting "
        f"{duration(time['startup'])}{swapping}{scoring} at {time['tokens_per_second']:,.0f} tokens/s (timed for "
        f"{time['measured']:.1f} s)"
    )


def _count(found: Mapping[str, float] | None) -> str:
    return _range(found, lambda value: f"{value:,.0f}")


def _range(found: Mapping[str, float] | None, shown: Callable[[float], str]) -> str:
    """A value with its range, unless it was counted."""
    if found is None:
        return "unknown"
    value, low, high = (shown(found[name]) for name in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"
