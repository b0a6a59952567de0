"""Reads the CSV files that users bring to a report: scores after training, and metric values of their own."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from trajscore.errors import DataError, UsageError, did_you_mean
from trajscore.io.csv_cells import without_apostrophes

_KEYS = ("student", "teacher")


def read_performance(path: Path) -> dict[str, dict[str, float]]:
    """Scores after training: student -> teacher -> score. Lines with an empty score are left out.

    Args:
        path: CSV with the columns student, teacher, score.

    Raises:
        UsageError: a column is missing, a score is no number, or a student and teacher occur twice.
        DataError: the file cannot be read.
    """
    table = _read(path, ("score",))
    scores: dict[str, dict[str, float]] = {}
    for student, teacher, score in table.select(*_KEYS, _number(table, path, "score")).iter_rows():
        if score is not None:
            scores.setdefault(student, {})[teacher] = score
    if not scores:
        raise UsageError(f"{path}: holds no score.", "Write one line per student and teacher: student,teacher,score.")
    return scores


def read_values(path: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    """Metric values: student -> teacher -> metric -> value; empty cells are None.

    Args:
        path: CSV with the columns student, teacher and one per metric.

    Raises:
        UsageError: a column is missing, a value is no number, or a student and teacher occur twice.
        DataError: the file cannot be read.
    """
    table = _read(path, ())
    names = [name for name in table.columns if name not in _KEYS]
    if not names or table.is_empty():
        raise UsageError(f"{path}: holds no metric values.", "Write student,teacher and one column per metric.")
    values: dict[str, dict[str, dict[str, float | None]]] = {}
    for student, teacher, *row in table.select(*_KEYS, *(_number(table, path, name) for name in names)).iter_rows():
        values.setdefault(student, {})[teacher] = dict(zip(names, row, strict=True))
    return values


def _read(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    if not path.is_file():
        raise UsageError(f"{path}: no such file.", "Give the path of a CSV file.")
    try:
        # Everything as text: a teacher called 7 stays "7", and a wrong number can be shown as it stands.
        table = pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as CSV ({error}).", "Save it as UTF-8 text with commas.") from error
    stripped = [name.strip() for name in table.columns]
    if doubled := [name for name in stripped if stripped.count(name) > 1]:
        raise UsageError(f"{path}: has two columns named {doubled[0]!r}.", "Rename or drop one of them.")
    table = table.rename(dict(zip(table.columns, stripped, strict=True))).with_columns(
        without_apostrophes(pl.all().str.strip_chars())
    )
    for name in (*_KEYS, *columns):
        if name not in table.columns:
            raise UsageError(f"{path}: no column {name!r}.", did_you_mean(name, table.columns))
    for name in _KEYS:
        empty = table.with_row_index("line", 2).filter(pl.col(name).fill_null("") == "")
        if empty.height:
            raise UsageError(f"{path}, line {empty['line'][0]}: no {name}.", "Fill it in or delete the line.")
    twice = table.filter(pl.struct(_KEYS).is_duplicated())
    if twice.height:
        student, teacher = twice.select(_KEYS).row(0)
        raise UsageError(f"{path}: {student}, {teacher} occurs twice.", "Give one line: average several runs first.")
    return table


def _number(table: pl.DataFrame, path: Path, name: str) -> pl.Series:
    """A column of text as float64, empty cells null."""
    text = table[name].replace("", None)
    numbers = text.cast(pl.Float64, strict=False)
    wrong = text.is_not_null() & ~numbers.is_finite().fill_null(False)
    if wrong.any():
        line = wrong.arg_true()[0]
        raise UsageError(
            f"{path}, line {line + 2}: {name} is {text[line]!r}.", "Write a finite number, or leave it empty."
        )
    return numbers
