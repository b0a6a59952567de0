"""An SQL condition as an expression over one row: that it looks at no other, and what of it the stored columns decide. It
knows polars expressions as trees; no frame.

A condition such as `rsr < AVG(rsr)` would have another meaning for every set of folders that is read together, so it is
refused rather than guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
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


def parse_condition(where: str) -> pl.Expr:
    """An SQL condition as an expression.

    Raises:
        UsageError: it cannot be read, or its value in a row depends on other rows.
    """
    try:
        condition = pl.sql_expr(where)
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"--where {where!r}: {error}.", "Write an SQL condition, for example \"rsr < 3 AND teacher = 'QwQ-32B'\"."
        ) from error
    check_per_row(where, condition)
    return condition


def decided_by(condition: pl.Expr, columns: Collection[str]) -> pl.Expr | None:
    """What of a condition the given columns decide: those of its terms joined by AND that read nothing else.

    A row for which it is not true does not meet the condition, whatever the other terms say.

    Args:
        condition: what `parse_condition` gives.
        columns: names of columns.

    Returns:
        The terms, joined by AND; None where every term reads another column or none at all.

    >>> print(decided_by(pl.sql_expr("rsr < 3 AND teacher = 'A' AND (correct OR rsr < 2)"), {"teacher", "correct"}))
    [(col("teacher")) == ("A")]
    """
    terms = [term for term in _terms(condition) if _reads_only(term, columns)]
    return pl.all_horizontal(terms) if len(terms) > 1 else next(iter(terms), None)


def _reads_only(term: pl.Expr, columns: Collection[str]) -> bool:
    names = term.meta.root_names()
    return bool(names) and all(name in columns for name in names)


def _terms(condition: pl.Expr) -> Iterator[pl.Expr]:
    """The terms that AND joins, the last one first."""
    tree = json.loads(condition.meta.serialize(format="json"))
    if isinstance(tree, dict) and tree.get("BinaryExpr", {}).get("op") == "And":
        for term in condition.meta.pop():
            yield from _terms(term)
    else:
        yield condition


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
