"""Reads the file of `select` for `mask --selected`: which rows it names, in its order, with their weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson
import polars as pl

from trajscore.errors import DataError, UsageError
from trajscore.io.outputs import ROW_SUFFIXES, check_suffix
from trajscore.scores.source import UNREADABLE

_SCHEMA = {"id": pl.String, "sample_weight": pl.Float64}
_DECISIONS = {"row", "kept", "step", "overall_rank"}


def read_selected(path: str | Path) -> pl.DataFrame:
    """Ids and weights of a selection.

    Args:
        path: a `.parquet` or `.jsonl` file with a column `id`, and `sample_weight` if rows are weighted.

    Returns:
        `id`, `sample_weight` (only if the file has one) and `order`, its 0-based line, in the file's order.

    Raises:
        UsageError: the file is missing, or is not of a kind or with columns that `select` writes.
        DataError: it cannot be read, or an id or weight in it makes no sense.
    """
    path = check_suffix(path, ROW_SUFFIXES, "--selected")
    if not path.is_file():
        raise UsageError(f"--selected {path}: no such file.", "Give what `trajscore select --out` wrote.")
    table = _parquet(path) if path.suffix == ".parquet" else _jsonl(path)
    _check(path, table)
    return table.with_columns(order=pl.int_range(pl.len(), dtype=pl.Int64))


def _parquet(path: Path) -> pl.DataFrame:
    try:
        frame = pl.scan_parquet(path, glob=False)
        _check_rows_not_decisions(path, frame.collect_schema())
        present = [name for name in _SCHEMA if name in frame.collect_schema()]
        table = frame.select(present).collect()
    except UNREADABLE as error:
        raise DataError(f"--selected {path}: not readable ({error}).", "Run `trajscore select` again.") from error
    if "id" in present and table["id"].dtype != pl.String:
        raise UsageError(f"--selected {path}: 'id' is {table['id'].dtype}, not text.", "Give what `select` wrote.")
    return table


def _jsonl(path: Path) -> pl.DataFrame:
    ids, weights = [], []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            row = _object(path, number, line)
            ids.append(row["id"])
            weights.append(row.get("sample_weight"))
    try:
        table = pl.DataFrame({"id": ids, "sample_weight": weights}, schema=_SCHEMA)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise DataError(f"--selected {path}: 'id' must be text and 'sample_weight' a number ({error}).") from error
    return table.drop("sample_weight") if table["sample_weight"].is_null().all() else table


def _object(path: Path, number: int, line: bytes) -> dict[str, object]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"--selected {path}, line {number}: not JSON ({error}).", "Give what `select` wrote."
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise UsageError(f"--selected {path}, line {number}: has no text 'id'.", "Give what `select` wrote.")
    _check_rows_not_decisions(path, row)
    return row


def _check_rows_not_decisions(path: Path, names: Iterable[str]) -> None:
    """Decisions name the dropped rows too."""
    if set(names) >= _DECISIONS:
        raise UsageError(
            f"--selected {path}: is what `select --decisions` wrote, which names dropped rows too.",
            "Give what `trajscore select --out` wrote.",
        )


def _check(path: Path, table: pl.DataFrame) -> None:
    if "id" not in table.columns:
        raise UsageError(f"--selected {path}: has no column 'id'.", "Give what `trajscore select --out` wrote.")
    if table["id"].has_nulls():
        raise DataError(f"--selected {path}: a row has no id.", "Give what `trajscore select --out` wrote.")
    twice = table.filter(pl.col("id").is_duplicated())["id"]
    if not twice.is_empty():
        raise DataError(f"--selected {path}: the id {twice[0]!r} occurs more than once.", "Name each row once.")
    if "sample_weight" in table.columns:
        kind = table["sample_weight"].dtype
        if not (kind.is_numeric() or kind == pl.Null):
            raise DataError(
                f"--selected {path}: 'sample_weight' is {kind}.", "Give what `trajscore select --out` wrote."
            )
        weight = pl.col("sample_weight").cast(pl.Float64)
        wrong = table.filter(~(weight.is_finite() & (weight >= 0)).fill_null(False))
        if wrong.height:
            name, value = wrong.row(0)[:2]
            raise DataError(
                f"--selected {path}: the row {name!r} has the weight {value}.",
                "Weights are finite numbers of at least 0, one for every row.",
            )
