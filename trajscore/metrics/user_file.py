"""`--metrics-file`: runs a user's Python file, as `python FILE` would, and checks the metrics that it defines.

Nothing is registered anywhere: whoever names metrics gets the table handed on. What the expressions make of the scores' own
columns is checked where those are known.
"""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args

import polars as pl

from trajscore.errors import UsageError
from trajscore.metrics.base import Direction, Metric

_EXAMPLE = (
    'Example: METRICS = [Metric(name="worst", numerator=lambda: pl.col("student_surprisal").list.max(), unit="nats", '
    'direction="lower", columns=("student_surprisal",), source="own", meaning="largest surprisal")]'
)
_TEXTS = ("name", "unit", "source", "meaning")
# Columns of the tables in which metrics stand beside rows.
_TAKEN = frozenset(
    {
        "row",
        "id",
        "prompt_id",
        "teacher",
        "status",
        "status_detail",
        "n_tokens",
        "correct",
        "truncated",
        "folder",
        "where",
    }
    | {"kept", "step", "prompt_rank", "overall_rank", "combined", "sample_weight", "prompt"}
)


def read_metrics_file(path: str | Path, known: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics that a Python file defines in `METRICS`, by name, in its order.

    Args:
        path: the file; it is run.
        known: metrics that exist already.

    Raises:
        UsageError: the file is not there, fails when run, has no list `METRICS` of `Metric`, or one of them is not sound: a
            field of the wrong type, a name that is taken or is no Python identifier, an expression that cannot be built or
            reads a column that `columns` does not name.
    """
    file = Path(path)
    defined = _run(file).get("METRICS")
    if not isinstance(defined, list | tuple):
        what = "defines no METRICS" if defined is None else f"METRICS is {type(defined).__name__}, not a list"
        raise UsageError(f"--metrics-file {file}: {what}.", _EXAMPLE)
    metrics: dict[str, Metric] = {}
    for number, metric in enumerate(defined):
        where = f"--metrics-file {file}: METRICS[{number}]"
        if not isinstance(metric, Metric):
            raise UsageError(f"{where} is {type(metric).__name__}, not trajscore.metrics.Metric.", _EXAMPLE)
        _check_fields(where, metric)
        if metric.name in known or metric.name in metrics or metric.name in _TAKEN:
            what = "is there already" if metric.name not in _TAKEN else "is the name of a column beside metrics"
            raise UsageError(f"{where}: {metric.name!r} {what}.", "Choose another name.")
        _check_expressions(f"{where} ({metric.name})", metric)
        metrics[metric.name] = metric
    return metrics


def _run(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UsageError(f"--metrics-file {file}: no such file.", "Give a Python file that defines METRICS.")
    try:
        return runpy.run_path(str(file))
    except SyntaxError as error:
        raise UsageError(f"--metrics-file {file}, line {error.lineno}: not valid Python ({error.msg}).") from error
    except (Exception, SystemExit) as error:  # whatever a user's file does when it is run is the user's to mend
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        at = f", line {lines[-1]}" if lines else ""
        raise UsageError(f"--metrics-file {file}{at}: {type(error).__name__}: {error}") from error


def _check_fields(where: str, metric: Metric) -> None:
    def refuse(field: str, allowed: str) -> NoReturn:
        raise UsageError(f"{where}: {field} is {getattr(metric, field)!r}.", f"It must be {allowed}.")

    for field in _TEXTS:
        if not isinstance(getattr(metric, field), str):
            refuse(field, "a string")
    if not metric.name.isidentifier():
        refuse("name", "letters, digits and underscores, not beginning with a digit")
    if metric.direction is not None and metric.direction not in get_args(Direction):
        refuse("direction", "'lower', 'higher' or None")
    columns: Any = metric.columns
    if not isinstance(columns, list | tuple) or not columns or not all(isinstance(each, str) for each in columns):
        refuse("columns", "a tuple of the names of the columns that are read")
    for field in ("numerator", "denominator"):
        if not callable(getattr(metric, field)):
            refuse(field, "a function without arguments that returns a polars expression")
    if metric.within is not None and not callable(metric.within):
        refuse("within", "a function of numerator, denominator and prompt that returns a polars expression")
    if (metric.fit is None) != (metric.features is None):
        refuse("features", "given with `fit`, which fits coefficients to them, and with nothing else")


def _check_expressions(where: str, metric: Metric) -> None:
    for field, expression in _expressions(where, metric):
        if not isinstance(expression, pl.Expr):
            raise UsageError(f"{where}: {field} gives {type(expression).__name__}, not a polars expression.", _EXAMPLE)
        unnamed = [name for name in expression.meta.root_names() if name not in metric.columns]
        if unnamed:
            raise UsageError(
                f"{where}: {field} reads the column {unnamed[0]!r}, which `columns` does not name.",
                "Name every column that the metric reads, so that missing ones are noticed.",
            )


def _expressions(where: str, metric: Metric) -> Iterator[tuple[str, Any]]:
    terms = (pl.lit(1.0), pl.lit(1.0), pl.lit(""))
    builders = {
        "numerator": lambda: metric.terms()["numerator"],
        "denominator": metric.denominator,
    }
    if metric.within is not None:
        within = metric.within
        builders["within"] = lambda: within(*terms)
    for field, build in builders.items():
        try:
            yield field, build()
        except Exception as error:  # the user's function, as above
            raise UsageError(f"{where}: {field} fails: {type(error).__name__}: {error}") from error
