"""Whether an SQL condition looks at one row at a time. It knows polars expressions as trees; no frame.

A condition such as `rsr < AVG(rsr)` would have another meaning for every set of folders that is read together, so it is
refused rather than guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

from trajscore.errors import UsageError

# What polars calls the nodes that see more than one row; what SQL can express was tried function by function.
_ACROSS_ROWS = frozenset(
    {"Agg", "CumSum", "Correlation", "Explode", "Implode", "Len", "Over", "Quantile", "Rank", "Shift", "SortBy"}
    | {"SubPlan", "Window"}
)


def check_per_row(where: str, condition: pl.Expr) -> None:
    """Check that the value of a condition in a row depends on that row alone.

    Raises:
        UsageError: it aggregates, ranks, looks at other rows or holds a subquery.

    >>> check_per_row("rsr < 3 AND teacher = 'AVG(x)'", pl.sql_expr("rsr < 3 AND teacher = 'AVG(x)'"))
    """
    try:
        tree = json.loads(condition.meta.serialize(format="json"))
    except pl.exceptions.PolarsError:
        # A subquery has no form as JSON.
        tree = "SubPlan"
    if _ACROSS_ROWS.intersection(_names(tree)):
        raise UsageError(
            f"--where {where!r}: looks at more than one row (an aggregate such as AVG, a window, or a subquery).",
            "Compare values of the row itself, for example rsr < 3; --fraction and --per-prompt compare rows.",
        )


def _names(tree: Any) -> Iterator[str]:
    """Names of nodes; those of columns and the text of literals are the user's and are left out."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name not in {"Column", "Literal"}:
                yield name
                yield from _names(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _names(value)
    elif isinstance(tree, str):
        yield tree
