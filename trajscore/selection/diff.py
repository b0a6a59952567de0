"""The command `diff`: what two selections have in common, and how their rows differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow.parquet as pq

from trajscore.display.notebook import Shown
from trajscore.errors import DataError, UsageError
from trajscore.io.outputs import ROW_SUFFIXES, check_suffix
from trajscore.metrics import METRICS
from trajscore.metrics.measure import boolean_correct
from trajscore.options import keywords_of
from trajscore.scores.source import UNREADABLE
from trajscore.selection.options import DiffOptions
from trajscore.selection.summary import UNKNOWN_TEACHER, draw_shares

_TOKENS = ("n_tokens", "length")
_OWN = ("id", "teacher", "correct", "n_tokens")


@dataclass(frozen=True, repr=False)
class SelectionDiff(Shown):
    """Two selections side by side.

    Attributes:
        a: the first file.
        b: the second file.
        rows: rows of each, `a` and `b`; `both`: rows with the same id; `only_a` and `only_b`: the others.
        overlap: rows in both over rows in either (Jaccard), None where both are empty.
        tokens: scored tokens of each; None where a file has no `n_tokens` and no metric `length`.
        correct: share of correct rows among those that say so; None where none does.
        teachers: rows and share by teacher in each.
        metrics: the mean of each metric that both files hold, over the rows where it is defined.
    """

    a: str
    b: str
    rows: dict[str, int]
    overlap: float | None
    tokens: dict[str, int | None]
    correct: dict[str, float | None]
    teachers: dict[str, dict[str, dict[str, Any]]]
    metrics: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def lines(self) -> list[str]:
        """Rows of each and in common."""
        rows = self.rows
        return [f"SelectionDiff: {rows['a']:,} rows against {rows['b']:,}, {rows['both']:,} in both"]

    def preview(self) -> pl.DataFrame:
        """Every quantity of both."""
        return self.frame

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """`teachers`: each one's share of the rows of both."""
        a, b = ({name: each[side]["share"] for name, each in self.teachers.items()} for side in ("a", "b"))
        return {"teachers": lambda: draw_shares(a, b, ("a", "b"), "Each teacher's share of the rows of two selections")}

    @property
    def frame(self) -> pl.DataFrame:
        """One line per quantity: `quantity`, `name` (teacher or metric, else null), `a`, `b`."""
        lines: list[tuple[str, str | None, Any, Any]] = [
            ("rows", None, self.rows["a"], self.rows["b"]),
            ("rows in both", None, self.rows["both"], self.rows["both"]),
            ("tokens", None, self.tokens["a"], self.tokens["b"]),
            ("share correct", None, self.correct["a"], self.correct["b"]),
        ]
        lines += [("share of rows", name, e["a"]["share"], e["b"]["share"]) for name, e in self.teachers.items()]
        lines += [("mean", name, each["a"], each["b"]) for name, each in self.metrics.items()]
        schema = {"quantity": pl.String, "name": pl.String, "a": pl.Float64, "b": pl.Float64}
        return pl.DataFrame(lines, schema, orient="row", strict=False)


@keywords_of(DiffOptions)
def diff(options: DiffOptions) -> SelectionDiff:
    """Compare two files that `select` wrote, row by row by their `id`.

    Raises:
        UsageError: a file is missing or is not what `select --out` writes.
        DataError: a file cannot be read.
    """
    a, b = options.a, options.b
    first, second = (_read(Path(path)) for path in (a, b))
    left, right = set(first["id"]), set(second["id"])
    either = left | right
    both = {"a": first, "b": second}
    shared = [name for name in first.columns if name in second.columns and name not in _OWN]
    names = sorted({*_teachers(first), *_teachers(second)})
    return SelectionDiff(
        a=str(a),
        b=str(b),
        rows={
            **{side: rows.height for side, rows in both.items()},
            **{"both": len(left & right), "only_a": len(left - right), "only_b": len(right - left)},
        },
        overlap=len(left & right) / len(either) if either else None,
        tokens={side: _tokens(rows) for side, rows in both.items()},
        correct={side: _correct(rows) for side, rows in both.items()},
        teachers={name: {side: _teachers(rows).get(name, _NONE) for side, rows in both.items()} for name in names},
        metrics={name: {side: _mean(rows[name]) for side, rows in both.items()} for name in shared},
    )


_NONE = {"rows": 0, "share": 0.0}


def _teachers(rows: pl.DataFrame) -> Mapping[str, dict[str, Any]]:
    counts = rows["teacher"].fill_null(UNKNOWN_TEACHER).value_counts() if "teacher" in rows.columns else None
    if counts is None:
        return {}
    return {name: {"rows": count, "share": count / rows.height} for name, count in counts.iter_rows()}


def _tokens(rows: pl.DataFrame) -> int | None:
    for name in _TOKENS:
        if name in rows.columns and not rows[name].has_nulls():
            return int(rows[name].sum())
    return None


def _correct(rows: pl.DataFrame) -> float | None:
    if "correct" not in rows.columns:
        return None
    try:
        return _mean(boolean_correct(rows["correct"]).cast(pl.Float64))
    except UsageError:
        return None


def _mean(values: pl.Series) -> float | None:
    defined = [value for value in values.to_list() if value is not None and math.isfinite(value)]
    return math.fsum(defined) / len(defined) if defined else None


def _read(path: Path) -> pl.DataFrame:
    """`id`, the metrics as float64, and `teacher`, `correct` and `n_tokens` where the file has them."""
    check_suffix(path, ROW_SUFFIXES, "diff")
    if not path.is_file():
        raise UsageError(f"{path}: no such file.", "Give two files that `trajscore select --out` wrote.")
    try:
        table = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: not readable ({error}).", "Run `trajscore select` again.") from error
    if "id" not in table.columns or table["id"].dtype != pl.String:
        raise UsageError(f"{path}: has no text column 'id'.", "Give what `trajscore select --out` wrote.")
    if {"kept", "step"} <= set(table.columns):
        raise UsageError(f"{path}: holds decisions, dropped rows too.", "Give what `trajscore select --out` wrote.")
    return table.drop("kept", "step", strict=False)


def _parquet(path: Path) -> pl.DataFrame:
    schema = pq.read_schema(path)
    metrics = [field.name for field in schema if b"direction" in (field.metadata or {})]
    wanted = [name for name in (*_OWN, "kept", "step", *metrics) if name in schema.names]
    return pl.read_parquet(path, columns=list(dict.fromkeys(wanted)), glob=False)


def _jsonl(path: Path) -> pl.DataFrame:
    rows = []
    names = {*_OWN, "kept", "step", *METRICS, *(f"trajscore_{name}" for name in METRICS)}
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: not JSON ({error}).", "Run `trajscore select` again."
                ) from error
            known = row if isinstance(row, dict) else {}
            # A metric with parameters of its own is named with them: rsr[r_max=500].
            rows.append({name: value for name, value in known.items() if name.partition("[")[0] in names})
    table = pl.DataFrame(rows, infer_schema_length=None, strict=False)
    numbers = [name for name in table.columns if name not in (*_OWN, "kept", "step")]
    return table.with_columns(pl.col(name).cast(pl.Float64, strict=False) for name in numbers)
