"""From score folders to one small line per row: who wrote it, its status, its metrics. No policy is applied here.

`select` and `report` both start from this table. Token lists are read part by part and never leave this module; what
remains is a few numbers and names per row. Columns of our own are called `trajscore.*` until they stand alone, so that
no column of a corpus can be taken for one of them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from trajscore import metrics as metric_table
from trajscore.errors import DataError, UsageError, did_you_mean
from trajscore.metrics import Metric
from trajscore.schema import COLUMNS, OK
from trajscore.shards import Manifest, differences, read_manifest, scan
from trajscore.workflows.conditions import check_per_row

Scores = str | Path | Sequence[str | Path] | pl.LazyFrame
"""Score folders, or a LazyFrame over such rows."""

_P = "trajscore."
_log = logging.getLogger("trajscore")

_BASE = ("id", "prompt_id", "teacher", "status", "status_detail", "n_tokens", "truncated", "correct")
_NEEDED = ("id", "prompt_id", "status")
_IDENTITY = frozenset({"id", "prompt_id", "teacher"})


@dataclass(frozen=True)
class Source:
    """Scores, opened but not read.

    Attributes:
        frame: the rows, lazily, in input order.
        columns: types by name.
        paths: the Parquet parts in order; empty for a LazyFrame, whose files are unknown.
        folders: name and number of rows of each folder, in order; empty for a LazyFrame.
        input_columns: the corpus's own columns, in order.
        student: the manifests' `settings["student"]`; None where there is none.
        unfinished: a line for each folder whose scoring has not come to its end.
    """

    frame: pl.LazyFrame
    columns: pl.Schema
    paths: list[Path]
    folders: list[tuple[str, int]]
    input_columns: list[str]
    student: Any
    unfinished: tuple[str, ...] = ()

    @property
    def student_name(self) -> str | None:
        """The student's name, None where it is unknown."""
        if isinstance(self.student, dict):
            name = self.student.get("name")
            return None if name is None else str(name)
        return self.student if isinstance(self.student, str) else None

    @property
    def output_columns(self) -> list[str]:
        """What a file of selected rows holds beside metrics: the corpus's columns, then `id` and `prompt_id`."""
        return list(dict.fromkeys([*self.input_columns, "id", "prompt_id"]))

    def metric_column(self, metric: str) -> str:
        """What a metric is called beside the corpus: its name, or `trajscore_NAME` where a column has that name.

        Token columns that scoring wrote do not count: the metric is their mean, and they are not written out.
        """
        token_column = metric in COLUMNS and COLUMNS[metric].axis != "row" and metric not in self.input_columns
        return f"trajscore_{metric}" if metric in self.columns and not token_column else metric


def open_scores(scores: Scores) -> Source:
    """Open scores and check that they belong together.

    Args:
        scores: folders written by `trajscore score`, or a LazyFrame over such rows. In a LazyFrame every column that
            scoring does not write counts as the corpus's own, and so do `id`, `prompt_id` and `teacher`.

    Raises:
        UsageError: a folder holds no scores, folders hold the scores of different students, or the frame is no scores.
        DataError: a part is missing or unreadable.
    """
    if isinstance(scores, pl.LazyFrame):
        columns = _schema(scores)
        own = [name for name in columns if name not in COLUMNS or name in _IDENTITY]
        return Source(scores, columns, [], [], own, None)
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    if not folders:
        raise UsageError("no scores were given.", "Name one or more folders that `trajscore score` wrote.")
    manifests = [read_manifest(folder) for folder in folders]
    _check_students(folders, manifests)
    unfinished = [
        _unfinished(str(folder), each) for folder, each in zip(folders, manifests, strict=True) if not each.complete
    ]
    for line in unfinished:
        _log.warning(line)
    frame = scan(folders)
    pairs = list(zip(folders, manifests, strict=True))
    return Source(
        frame=frame,
        columns=_schema(frame),
        paths=[Path(folder) / part.file for folder, each in pairs for part in each.parts],
        folders=[(str(folder), each.rows) for folder, each in pairs],
        input_columns=list(dict.fromkeys(name for each in manifests for name in each.input_columns)),
        student=manifests[0].settings.get("student"),
        unfinished=tuple(unfinished),
    )


def open_by_student(scores: Scores) -> list[Source]:
    """Open scores of one or several students: one source each, in the order in which the students first appear.

    Raises:
        UsageError: as `open_scores`, and two students bear the same name but are not the same model.
    """
    if isinstance(scores, pl.LazyFrame):
        return [open_scores(scores)]
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    by_name: dict[str, list[str | Path]] = {}
    for folder in folders:
        student = read_manifest(folder).settings.get("student")
        name = student.get("name") if isinstance(student, dict) else student
        by_name.setdefault(str(name), []).append(folder)
    return [open_scores(each) for each in by_name.values()] if folders else [open_scores(folders)]


def _unfinished(folder: str, manifest: Manifest) -> str:
    of = "" if manifest.rows_in is None else f" of {manifest.rows_in}"
    return (
        f"{folder}: scoring has not finished, {manifest.rows} rows{of} are there; repeat the `trajscore score` command"
    )


def _check_students(folders: Sequence[str | Path], manifests: Sequence[Manifest]) -> None:
    first = manifests[0].settings.get("student")
    for folder, manifest in zip(folders, manifests, strict=True):
        student = manifest.settings.get("student")
        if student != first:
            lines = differences({"student": first}, {"student": student})
            raise UsageError(
                f"{folders[0]} and {folder} were not scored by the same student:\n  " + "\n  ".join(lines),
                "Such scores do not compare: give folders of one student.",
            )


def _schema(frame: pl.LazyFrame) -> pl.Schema:
    try:
        columns = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"the scores cannot be read together ({error}).", "Check the parts, or give the folders one by one."
        ) from error
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise UsageError(f"the rows have no column {missing[0]!r}.", "Give what `trajscore score` wrote.")
    ours = [name for name in columns if name.startswith(_P)]
    if ours:
        raise UsageError(
            f"the rows have a column {ours[0]!r}: names that begin with {_P!r} are ours while metrics are computed.",
            "Rename it in the corpus and score again, or pass a LazyFrame in which it is renamed.",
        )
    return columns


def measure(
    source: Source,
    metrics: Sequence[Metric],
    where: str | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    known: Mapping[str, Metric] = metric_table.METRICS,
) -> pl.DataFrame:
    """The small table: one line per row of the scores.

    Args:
        source: opened scores.
        metrics: what to compute.
        where: SQL expression over columns and all metrics, evaluated row by row.
        columns: further columns of the scores to carry along, each by the name that it gets.
        known: the metrics that `where` may name.

    Returns:
        `row` (0-based), `id`, `prompt_id`, `teacher`, `status`, `status_detail`, `n_tokens` and `correct` (each where
        present), `folder` (its number), `where` (bool, if asked for), those of `columns`, and for each metric its value
        under its name with `NAME:numerator` and `NAME:denominator`, float64, all three null where it is undefined.

    Raises:
        UsageError: a metric's column is missing or does not suit it, `where` cannot be read, or an id occurs twice.
        DataError: a part is damaged, or a row that was scored has no id or prompt_id.
    """
    metric_table.require(metrics, source.columns)
    condition, mentioned, plain = (None, [], []) if where is None else _parse(where, source, known)
    wanted = list({metric.name: metric for metric in (*metrics, *mentioned)}.values())
    metric_table.check_values(wanted, source.columns)
    carried = {f"{_P}carried:{name}": name for name in columns or {}}
    query = _with_metrics(source, wanted, [*plain, *(pl.col((columns or {})[n]).alias(c) for c, n in carried.items())])
    if condition is not None:
        query = query.with_columns(condition.alias(f"{_P}where"))
        _check_condition(str(where), query)
    outputs = {f"{_P}{name}": name for name in ("row", *_base(source))} | carried
    if condition is not None:
        outputs[f"{_P}where"] = "where"
    for metric in metrics:
        outputs[source.metric_column(metric.name)] = metric.name
        outputs |= {f"{_P}{metric.name}:{term}": f"{metric.name}:{term}" for term in ("numerator", "denominator")}
    query = query.select(pl.col(column).alias(name) for column, name in outputs.items())
    table = _with_folder(collect(query, where), source)
    _check_ids(table, source)
    return table


def boolean_correct(values: pl.Series) -> pl.Series:
    """The column `correct` as booleans.

    Raises:
        UsageError: it holds something else than true, false, 0, 1 and null, so that its meaning would be a guess.

    >>> boolean_correct(pl.Series("correct", [1, 0, None])).to_list()
    [True, False, None]
    """
    if values.dtype in (pl.Boolean, pl.Null):
        return values.cast(pl.Boolean)
    odd = values.drop_nulls().unique()
    if values.dtype.is_numeric():
        odd = odd.filter((odd != 0) & (odd != 1))
        if odd.is_empty():
            return values.cast(pl.Boolean)
    shown = repr(odd[0]) if len(odd) else str(values.dtype)
    raise UsageError(
        f"the column 'correct' holds {shown}.", "It must be boolean, or 0 and 1; null where it is unknown."
    )


def _base(source: Source) -> list[str]:
    return [name for name in _BASE if name in source.columns]


def _with_metrics(source: Source, metrics: Sequence[Metric], raw: Sequence[str | pl.Expr]) -> pl.LazyFrame:
    """Row number, names and metrics of each row, plus the raw columns that somebody asks for."""
    terms = [
        expression.cast(pl.Float64).alias(f"{_P}{metric.name}:{term}")
        for metric in metrics
        for term, expression in (("numerator", metric.numerator()), ("denominator", metric.denominator()))
    ]
    query = source.frame.with_row_index(f"{_P}row").select(
        f"{_P}row",
        *(pl.col(name).alias(f"{_P}{name}") for name in _base(source)),
        *raw,
        *terms,
    )
    return query.with_columns(*(_value(source, metric) for metric in metrics)).with_columns(
        _dataset_term(source, metric, term) for metric in metrics for term in ("numerator", "denominator")
    )


def _value(source: Source, metric: Metric) -> pl.Expr:
    numerator, denominator = (pl.col(f"{_P}{metric.name}:{term}") for term in ("numerator", "denominator"))
    value = metric.of_terms(numerator, denominator, pl.col(f"{_P}prompt_id"))
    return value.alias(source.metric_column(metric.name))


def _dataset_term(source: Source, metric: Metric, term: str) -> pl.Expr:
    """What a row adds to a dataset value's numerator or denominator; null where the metric is undefined."""
    value = pl.col(source.metric_column(metric.name))
    adds = pl.col(f"{_P}{metric.name}:{term}")
    if metric.within is not None:
        adds = value if term == "numerator" else pl.lit(1.0)
    return pl.when(value.is_not_null()).then(adds).alias(f"{_P}{metric.name}:{term}")


def _parse(where: str, source: Source, metrics: Mapping[str, Metric]) -> tuple[pl.Expr, list[Metric], list[str]]:
    """The condition, the metrics and the plain columns that it mentions."""
    try:
        condition = pl.sql_expr(where)
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"--where {where!r}: {error}.", "Write an SQL condition, for example \"rsr < 3 AND teacher = 'QwQ-32B'\"."
        ) from error
    check_per_row(where, condition)
    by_column = {source.metric_column(name): metric for name, metric in metrics.items()}
    known = [*source.columns, *by_column]
    roots = list(dict.fromkeys(condition.meta.root_names()))
    for name in roots:
        if name not in known:
            raise UsageError(f"--where {where!r}: no column or metric {name!r}.", did_you_mean(name, known))
    mentioned = [by_column[name] for name in roots if name in by_column]
    metric_table.require(mentioned, source.columns)
    return condition, mentioned, [name for name in roots if name not in by_column]


def _check_condition(where: str, query: pl.LazyFrame) -> None:
    try:
        # On no rows: types that do not compare show before any part is read, and are not mistaken for damage.
        kind = query.collect_schema()[f"{_P}where"]
        pl.DataFrame(schema=query.collect_schema()).select(pl.sql_expr(where))
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"--where {where!r}: {error}.", "Compare columns with values of their own type.") from error
    if kind != pl.Boolean:
        raise UsageError(f"--where {where!r}: gives {kind}, not true or false.", "Write a condition, such as rsr < 3.")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turns what polars says about scores that it cannot read into a message.

    Raises:
        DataError: in place of any error of polars or the operating system.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"the scores cannot be read ({error}).",
            "`trajscore verify` names a damaged part; delete it and run the same `trajscore score` command again.",
        ) from error


def collect(query: pl.LazyFrame, where: str | None = None) -> pl.DataFrame:
    """Run a query over scores in batches.

    Args:
        query: the query.
        where: the user's condition in it, for the message.

    Raises:
        UsageError: the condition fails on a value.
        DataError: a part is damaged.
    """
    with reading():
        try:
            return query.collect(engine="streaming")
        except pl.exceptions.InvalidOperationError as error:
            if where is None:
                raise
            # A cast that fails on a value.
            raise UsageError(
                f"--where {where!r}: {error}.", "Use TRY_CAST, or compare columns with values of their type."
            ) from error


def _with_folder(table: pl.DataFrame, source: Source) -> pl.DataFrame:
    """Number the folders, which also proves that every row that the manifests count was read."""
    if not source.folders:
        return table.with_columns(folder=pl.lit(0, pl.UInt32))
    expected = sum(rows for _, rows in source.folders)
    if table.height != expected:
        raise DataError(
            f"{table.height} rows were read, the manifests count {expected}.", "Run the same `trajscore score` again."
        )
    numbers = [pl.repeat(number, rows, dtype=pl.UInt32, eager=True) for number, (_, rows) in enumerate(source.folders)]
    return table.with_columns(pl.concat(numbers).alias("folder"))


def _check_ids(table: pl.DataFrame, source: Source) -> None:
    """Every trajectory once. A refused row may repeat an id of its own folder: that can be why it was refused."""
    scored = table.filter(pl.col("status") == OK)
    for name in ("id", "prompt_id"):
        nameless = scored.filter(pl.col(name).is_null())
        if nameless.height:
            raise DataError(f"row {nameless['row'][0]} was scored but has no {name}.", "Score the corpus again.")
    twice = scored.filter(pl.col("id").is_duplicated())["id"]
    if twice.is_empty() and len(source.folders) > 1:
        folders = table.group_by("id").agg(pl.col("folder").n_unique()).filter(pl.col("folder") > 1)
        twice = folders["id"].drop_nulls().sort()
    if not twice.is_empty():
        where = ", ".join(name for name, _ in source.folders) or "the frame"
        raise UsageError(
            f"the id {twice[0]!r} occurs more than once in {where}.",
            "Give each trajectory once: leave out folders that hold the same rows.",
        )
