"""What a dry run found, as lines for a terminal: each part of the plan with its names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from trajscore.corpus import described
from trajscore.display.formatting import size, visible
from trajscore.progress import duration

_COUNT = "{:,.0f}".format
_SHOWN = {"rows": _COUNT, "tokens": _COUNT, "disk": size, "memory": size, "time": duration}


def plan_lines(plan: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Rows, columns, tokens, disk, memory and time.

    Args:
        plan: what `ScorePlan.to_dict` gives.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, shown in _SHOWN.items():
        table.add_row(name, _said(plan[name], shown) if plan[name] else "not measured")
        for each in plan["columns"] if name == "rows" else ():
            table.add_row("columns", visible(described(each)))
    yield table
    yield "dry run: nothing was written"


def _said(part: Mapping[str, Any], shown: Callable[[float], str]) -> str:
    """Names and numbers; those that are 0 or not the case are left out."""
    said, lines = [], []
    for name, value in part.items():
        label, form = name.replace("_", " "), _COUNT if name == "tokens_per_second" else shown
        if isinstance(value, list):
            lines = [_said(each, shown) for each in value]
        elif isinstance(value, dict) and "value" not in value:
            said += [f"{label} {', '.join(f'{_range(each, form)} {key}' for key, each in value.items()) or 'none'}"]
        elif value is True:
            said += [label]
        elif value is None or (value["high"] if isinstance(value, dict) else value):
            said += [f"{label} {visible(value) if isinstance(value, str) else _range(value, form)}"]
    return "\n".join([", ".join(said), *lines])


def _range(found: Mapping[str, float] | float | None, shown: Callable[[float], str]) -> str:
    """A value with its range, unless it was counted."""
    if found is None or isinstance(found, int | float):
        return "unknown" if found is None else shown(found)
    value, low, high = (shown(found[name]) for name in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"
