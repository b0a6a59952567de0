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
    table.add_row("rows", _rows(plan))
    for each in plan["columns"]:
        table.add_row("columns", visible(described(each)))
    table.add_row("tokens", f"{_range(plan['tokens'])} scored; {_range(plan['read_tokens'])} read by the student")
    row, name = plan["longest_row"] or (0, "")
    found = f"{plan['longest']:,} tokens{'' if plan['exact'] else ' or more'} (row {row}, id {visible(name)})"
    table.add_row("longest", found if plan["longest_row"] else "no row can be scored")
    table.add_row("disk", f"{_range(plan['disk']['parts'], size)} in {visible(plan['out'])}{_disk(plan['disk'])}")
    table.add_row("memory", _memory(plan["memory"]))
    table.add_row("time", _time(plan["time"]) if plan["time"] else "not measured")
    yield table
    yield "dry run: nothing was written"


def _rows(plan: Mapping[str, Any]) -> str:
    total = "unknown (streamed)" if plan["rows"] is None else f"{plan['rows']:,}"
    reasons = ", ".join(f"{_range(each)} {name}" for name, each in plan["refused"].items())
    counted = "every row was rendered" if plan["exact"] else f"{plan['counted']:,} rows were rendered"
    done = f"; {plan['done']:,} rows are scored already" if plan["done"] else ""
    return f"{total}, to score: {_range(plan['scored'])}, refused: {reasons or 'none'} ({counted}){done}"


def _disk(disk: Mapping[str, Any]) -> str:
    said = ""
    if disk["topk_per_token"] is not None:
        said += f", {disk['topk_per_token']:.0f} bytes of it for each scored token by --keep-topk"
    if disk["hidden_states"]:
        said += f", and up to {size(disk['hidden_states'])} of hidden states meanwhile"
    if disk["free"] is not None:
        said += f"; {size(disk['free'])} are free"
    if disk["merged_copies"]:
        said += (
            f"; {size(disk['merged_copies'])} of models with their adapters merged in, for the time of the run, in the folder "
            f"for temporary files, where {size(disk['merged_copies_free'])} are free"
        )
    return said


def _memory(memory: Mapping[str, Any]) -> str:
    between = "asleep in the host's memory in between" if memory["asleep"] else "loaded anew for every group of rows"
    how = "all models side by side" if memory["together"] else f"models in turn, {between}"
    first = (
        f"about {_range(memory['needed'], size)} for trajectories of {memory['longest']:,} tokens ({memory['engine']}); "
        f"{size(memory['available'])} are free{f'; {how}' if len(memory['models']) > 1 else ''}"
    )
    models = (
        f"{each['role']} {visible(each['name'])}: weights {size(each['weights'])}, running {size(each['running'])}"
        for each in memory["models"]
    )
    return "\n".join([first, *models])


def _time(time: Mapping[str, Any]) -> str:
    swapping = f", loading models in turn {duration(time['swapping'])}" if time["swapping"] else ""
    scoring = f", scoring {duration(time['scoring']['value'])}" if time["scoring"] else ""
    return (
        f"about {_range(time['total'], duration)}: reading the corpus once {duration(time['survey'])}, starting "
        f"{duration(time['startup'])}{swapping}{scoring} at {time['tokens_per_second']:,.0f} tokens/s (timed for "
        f"{time['measured']:.1f} s)"
    )


def _range(found: Mapping[str, float] | None, shown: Callable[[float], str] = "{:,.0f}".format) -> str:
    """A value with its range, unless it was counted."""
    if found is None:
        return "unknown"
    value, low, high = (shown(found[name]) for name in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"
