"""From score folders to the small table, one line per row: who wrote it, its status, its metrics.

`select`, `report` and others start from this table. Token lists are read part by part and never leave this module; what
remains is a few numbers and names per row. Columns of our own are called `trajscore.*` until they stand alone, so that
no column of a corpus can be taken for one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from trajscore import metrics as metric_table
from trajscore.errors import DataError, UsageError, did_you_mean, first_line
from trajscore.metrics import Metric
from trajscore.metrics.base import select_shared
from trajscore.metrics.conditions import decided_by, parse_condition
from trajscore.metrics.repetition import LOOP_LIMITS
from trajscore.schema import COLUMNS, OK
from trajscore.scores.source import OURS, ScoreSource, reading

_P = OURS

_BASE = (
    *("id", "prompt_id", "teacher", "status", "status_detail", "n_tokens", "truncated", "correct"),
    *LOOP_LIMITS,
)
_SEEN = 32_000_000
"""Bytes of rows that are followed which are gathered before they are looked at: whatever looks has costs of its own."""

_CHANGED, _START_AGAIN = "the scores changed while they were read.", "Start again when nothing writes them."


class Followed(NamedTuple):
    """Rows whose lists somebody looks at while the table is made, so that each column is read once.

    Attributes:
        columns: what is looked at.
        choose: which rows, as booleans, of the table without metrics.
        see: is given these rows of that table with `columns`, in order, in batches of a bounded size.
    """

    columns: Sequence[str]
    choose: Callable[[pl.DataFrame], pl.Series]
    see: Callable[[pl.DataFrame], None]


def measure(
    source: ScoreSource,
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
        where: SQL expression over columns and all metrics, evaluated row by row; a metric with parameters of its own as
            `"rsr[r_max=500]"`.
        columns: further columns of the scores to carry along, each by the name that it gets.
        known: the metrics that `where` may name.

    Returns:
        `row` (0-based), the columns of `_BASE` that are there, `folder` (its number), `where` (bool, if asked for), those of
        `columns`, and for each metric its value under its name with `NAME:numerator` and `NAME:denominator`, float64, all
        three null where it is undefined. Where columns with one value per row rule the condition out, no token is read: the
        metrics are null and `excluded` (bool, there only if `where` reads such columns) is true. Metrics that compare the
        rows of a prompt need all rows: with one of them nothing is excluded.

    Raises:
        UsageError: a metric's column is missing or does not suit it, `where` cannot be read, or an id occurs twice.
        DataError: a part is damaged, or a row that was scored has no id or prompt_id.
    """
    metric_table.require(metrics, source.columns)
    condition, mentioned, plain = (None, [], []) if where is None else _parse(where, source, known)
    wanted = list({metric.name: metric for metric in (*metrics, *mentioned)}.values())
    metric_table.check_values(wanted, source.columns)
    wanted = on_all_rows(wanted, source)
    carried = {f"{_P}carried:{name}": name for name in columns or {}}
    raw: list[str | pl.Expr] = [
        *plain,
        *(pl.col((columns or {})[name]).alias(column) for column, name in carried.items()),
    ]
    names = {f"{_P}{name}": name for name in ("row", *_base(source))} | carried
    values = _value_names(source, metrics)
    query = _with_metrics(source, _named(source, source.frame, raw, wanted), wanted)
    stored = None
    if condition is not None:
        query = query.with_columns(condition.alias(f"{_P}where"))
        _check_condition(str(where), query)
        values[f"{_P}where"] = "where"
        stored = decided_by(condition, _row_columns(source))
    if condition is None or stored is None or any(metric.within for metric in wanted):
        table = collect(_renamed(query, names | values), where)
    else:
        rows = _named(source, source.frame, raw).with_columns(stored.alias(f"{_P}stored"))
        table = collect(_renamed(rows, names | {f"{_P}stored": "stored"}), where)
        admitted = _named(source, _admitted(source, table["stored"]).filter(stored), raw, wanted)
        query = _with_metrics(source, admitted, wanted).with_columns(condition.alias(f"{_P}where"))
        table = _with_values(table, collect(_renamed(query, {f"{_P}id": "id"} | values), where))
    table = _with_folder(table, source)
    _check_ids(table, source)
    return table


def measure_following(
    source: ScoreSource, metrics: Sequence[Metric], followed: Followed | None
) -> tuple[pl.DataFrame, list[Metric]]:
    """The small table as `measure` makes it, and the metrics, those of the whole corpus with their coefficients.

    Columns with one value per row are read first, which settles what is followed; then every token column once, for all
    metrics, for the features to which coefficients are fitted, and for what is followed. A LazyFrame may give its rows in
    another order each time, so there the columns with one value per row are read again with the others.

    Raises:
        UsageError: a metric's column is missing or does not suit it, or an id occurs twice.
        DataError: a part is damaged, or a row that was scored has no id or prompt_id.
    """
    metric_table.require(metrics, source.columns)
    metric_table.check_values(metrics, source.columns)
    stored = set(_row_columns(source))
    of_rows = [metric for metric in metrics if source.paths and stored.issuperset(metric.columns)]
    first = collect(_named(source, source.frame, [], of_rows))
    found = _collect_following(source, [metric for metric in metrics if metric not in of_rows], followed, first)
    terms = pl.concat([first, found], how="horizontal") if source.paths else found
    table = _with_folder(_base_of(source, terms), source)
    _check_ids(table, source)
    fitted = []
    for metric in metrics:
        columns = _feature_columns(metric)
        own = metric.fitted_to(
            terms.filter(table["status"] == OK).select(pl.col(column).alias(key) for key, column in columns.items())
        )
        if columns:
            made = own.terms({key: pl.col(column) for key, column in columns.items()})
            terms = terms.with_columns(_term(own, term, expression) for term, expression in made.items())
        fitted.append(own)
    values = collect(_renamed(_with_metrics(source, terms.lazy(), fitted), _value_names(source, metrics)))
    return pl.concat([table, values], how="horizontal"), fitted


def _base_of(source: ScoreSource, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.col(f"{_P}{name}").alias(name) for name in ("row", *_base(source)))


def _collect_following(
    source: ScoreSource, metrics: Sequence[Metric], followed: Followed | None, first: pl.DataFrame
) -> pl.DataFrame:
    """Terms of each row, from one pass over the scores in batches, in which the lists of rows that are followed are shown.

    Beside the terms stands what `first` has of each row, where the rows of this pass need not be in the same order.
    """
    wanted = followed.columns if followed else ()
    lists = {f"{_P}followed:{name}": name for name in wanted}
    if source.paths and not lists and not metrics:
        return pl.DataFrame(height=first.height)
    chosen = followed.choose(_base_of(source, first)) if followed else pl.repeat(False, first.height, eager=True)
    copies = [pl.col(name).alias(column) for column, name in lists.items()]
    if source.paths:
        query = select_shared(source.frame, lambda: [*_terms(metrics), *copies])
    else:
        query = _named(source, source.frame, copies, metrics)
    own = [name for name in query.collect_schema().names() if name not in lists]
    kept, rows = [], 0
    gathered: list[pl.DataFrame] = []
    known = first.filter(chosen)

    def see() -> None:
        nonlocal known
        if followed and gathered:
            shown = pl.concat(gathered)
            base, known = known.head(shown.height), known.slice(shown.height)
            seen = shown.select(pl.col(column).alias(name) for column, name in lists.items())
            followed.see(pl.concat([_base_of(source, base if source.paths else shown), seen], how="horizontal"))
            gathered.clear()

    with reading():
        for batch in query.collect_batches(maintain_order=True, engine="streaming"):
            here = chosen.slice(rows, batch.height)
            if len(here) < batch.height:
                raise DataError(_CHANGED, _START_AGAIN)
            if here.any():
                gathered.append(batch.filter(here))
                if sum(each.estimated_size() for each in gathered) > _SEEN:
                    see()
            kept.append(batch[own])
            rows += batch.height
        see()
        found = pl.concat(kept) if kept else pl.DataFrame(schema=query.collect_schema())[own]
    if found.height != first.height:
        raise DataError(_CHANGED, _START_AGAIN)
    return found


def on_all_rows(metrics: Sequence[Metric], source: ScoreSource) -> list[Metric]:
    """The metrics, those of the whole corpus with their coefficients, fitted on all scored rows.

    Raises:
        UsageError: a column that one of these reads is missing.
        DataError: a part is damaged.
    """
    metric_table.require([metric for metric in metrics if metric.kind == "corpus"], source.columns)
    with reading():
        scored = source.frame.filter(pl.col("status") == OK)
        return [metric.on(scored) for metric in metrics]


def named_in(where: str, source: ScoreSource, known: Mapping[str, Metric]) -> list[Metric]:
    """The metrics that a condition mentions.

    Raises:
        UsageError: it cannot be read, or names what is not there.
    """
    return _parse(where, source, known)[1]


def _value_names(source: ScoreSource, metrics: Sequence[Metric]) -> dict[str, str]:
    """Columns of metrics and their terms in a query -> their names in the small table."""
    names = {}
    for metric in metrics:
        names[source.metric_column(metric.name)] = metric.name
        names |= {f"{_P}{metric.name}:{term}": f"{metric.name}:{term}" for term in ("numerator", "denominator")}
    return names


def _renamed(query: pl.LazyFrame, names: Mapping[str, str]) -> pl.LazyFrame:
    return query.select(pl.col(column).alias(name) for column, name in names.items())


def _row_columns(source: ScoreSource) -> list[str]:
    """Columns that hold one value per row and are read at little cost."""
    return [
        name
        for name in source.columns
        if name in source.input_columns or name not in COLUMNS or COLUMNS[name].axis == "row"
    ]


def _admitted(source: ScoreSource, stored: pl.Series) -> pl.LazyFrame:
    """The parts with a row for which the stored columns do not rule the condition out; a LazyFrame whole."""
    if not source.paths:
        return source.frame
    if len(stored) != sum(source.part_rows):
        raise DataError(_CHANGED, _START_AGAIN)
    before = np.concatenate([[0], np.cumsum(stored.fill_null(False).to_numpy())])
    admitted = np.diff(before[np.cumsum([0, *source.part_rows])])
    return source.rows_of([path for path, rows in zip(source.paths, admitted, strict=True) if rows])


def _with_values(table: pl.DataFrame, measured: pl.DataFrame) -> pl.DataFrame:
    """The values of the rows that the stored columns admit, beside all rows; null for the others, which are `excluded`."""
    admitted = table.filter("stored")
    if not admitted["id"].equals(measured["id"], null_equal=True):
        raise DataError(_CHANGED, _START_AGAIN)
    measured = measured.drop("id").with_columns(admitted["row"])
    return (
        table.join(measured, on="row", how="left", maintain_order="left")
        .with_columns(pl.when("stored").then("where").otherwise("stored").alias("where"))
        .with_columns(excluded=~pl.col("stored").fill_null(False))
        .drop("stored")
    )


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


def _base(source: ScoreSource) -> list[str]:
    return [name for name in _BASE if name in source.columns]


def _named(
    source: ScoreSource, frame: pl.LazyFrame, raw: Sequence[str | pl.Expr], metrics: Sequence[Metric] = ()
) -> pl.LazyFrame:
    """Row number, names, raw columns that somebody asks for, and the terms of metrics, of each row."""
    base = [pl.col(name).alias(f"{_P}{name}") for name in _base(source)]
    own = [pl.col(each) if isinstance(each, str) else each for each in raw]
    return select_shared(frame.with_row_index(f"{_P}row"), lambda: [pl.col(f"{_P}row"), *base, *own, *_terms(metrics)])


def _terms(metrics: Sequence[Metric]) -> list[pl.Expr]:
    """The terms of each row; of a metric whose coefficients are not known yet its features."""
    found: list[pl.Expr] = []
    for metric in metrics:
        columns = _feature_columns(metric)
        if metric.features is not None and columns:
            found += [value.alias(columns[key]) for key, value in metric.features().items()]
        else:
            found += [_term(metric, term, expression) for term, expression in metric.terms().items()]
    return found


def _feature_columns(metric: Metric) -> dict[str, str]:
    """The columns of features of a metric whose coefficients are not known yet, by the features' names."""
    if metric.features is None or metric.fitted is not None:
        return {}
    return {key: f"{_P}{metric.name}:feature:{key}" for key in metric.features()}


def _term(metric: Metric, term: str, expression: pl.Expr) -> pl.Expr:
    return expression.cast(pl.Float64).alias(f"{_P}{metric.name}:{term}")


def _with_metrics(source: ScoreSource, query: pl.LazyFrame, metrics: Sequence[Metric]) -> pl.LazyFrame:
    """The values of metrics, beside their terms, which become null where the metric is undefined."""
    return query.with_columns(*(_value(source, metric) for metric in metrics)).with_columns(
        _dataset_term(source, metric, term) for metric in metrics for term in ("numerator", "denominator")
    )


def _value(source: ScoreSource, metric: Metric) -> pl.Expr:
    numerator, denominator = (pl.col(f"{_P}{metric.name}:{term}") for term in ("numerator", "denominator"))
    value = metric.of_terms(numerator, denominator, pl.col(f"{_P}prompt_id"))
    return value.alias(source.metric_column(metric.name))


def _dataset_term(source: ScoreSource, metric: Metric, term: str) -> pl.Expr:
    """What a row adds to a dataset value's numerator or denominator; null where the metric is undefined."""
    value = pl.col(source.metric_column(metric.name))
    adds = pl.col(f"{_P}{metric.name}:{term}")
    if metric.within is not None:
        adds = value if term == "numerator" else pl.lit(1.0)
    return pl.when(value.is_not_null()).then(adds).alias(f"{_P}{metric.name}:{term}")


def _parse(where: str, source: ScoreSource, metrics: Mapping[str, Metric]) -> tuple[pl.Expr, list[Metric], list[str]]:
    """The condition, the metrics and the plain columns that it mentions."""
    condition = parse_condition(where)
    by_column = {source.metric_column(name): metric for name, metric in metrics.items()}
    known = [*source.columns, *by_column]
    roots = list(dict.fromkeys(condition.meta.root_names()))
    for name in roots:
        if name not in known and name.endswith("]"):
            (metric,) = metric_table.find([name], metrics)
            by_column[metric.name] = metric
            known.append(metric.name)
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
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UsageError(
            f"--where {where!r}: {first_line(error)}.", "Compare columns with values of their own type."
        ) from error
    if kind != pl.Boolean:
        raise UsageError(f"--where {where!r}: gives {kind}, not true or false.", "Write a condition, such as rsr < 3.")


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
        except _FAILS_ON_A_VALUE as error:
            if where is None or "parquet" in str(error).lower():
                raise
            raise UsageError(
                f"--where {where!r}: {first_line(error)}.",
                "Use TRY_CAST, or compare columns with values of their type.",
            ) from error


# A cast, a pattern or a date that is none; and what polars has no error for.
_FAILS_ON_A_VALUE = (
    pl.exceptions.InvalidOperationError,
    pl.exceptions.ComputeError,
    pl.exceptions.PanicException,
)


def _with_folder(table: pl.DataFrame, source: ScoreSource) -> pl.DataFrame:
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


def _check_ids(table: pl.DataFrame, source: ScoreSource) -> None:
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
