"""Distributions of metrics over trajectories, and metrics over parts of them (tenths, thinking, answer).

A metric over a part of the trajectories (their first tenth, their answers) is the metric itself over rows whose token lists are
cut to that part, so it has one definition only. A row that has no token there has no value there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from trajscore.estimates.correlation import average_ranks, pearson, spearman
from trajscore.metrics import Metric, dataset_value
from trajscore.metrics.base import ratio
from trajscore.schema import COLUMNS, OK

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
POSITIONS = 10
"""Parts of equal length into which a trajectory is cut."""

PHASE = "phase"
PHASES: Mapping[str, int] = {"thinking": 0, "answer": 2}
"""Phases by name and their code in the column `phase`; the markers between them (code 1) belong to neither."""


@dataclass(frozen=True)
class Distribution:
    """How a metric is spread over one teacher's trajectories.

    Attributes:
        teacher: the teacher.
        metric: the metric.
        rows: trajectories where it is defined.
        quantiles: its 5, 25, 50, 75 and 95 % quantiles; empty without such a trajectory.
    """

    teacher: str
    metric: str
    rows: int
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class PartValue:
    """A dataset value over one part of each trajectory.

    Attributes:
        teacher: the teacher.
        metric: the metric.
        part: `1` to `10` for tenths of the trajectory, or a phase.
        rows: trajectories where it is defined.
        value: the dataset value; None without such a trajectory.
    """

    teacher: str
    metric: str
    part: str
    rows: int
    value: float | None


@dataclass(frozen=True)
class MetricPair:
    """Whether two metrics rank alike, better end against better end: Spearman's correlation.

    Attributes:
        left: one metric.
        right: another.
        over_teachers: over the teachers' dataset values; None with fewer than three, or a constant side.
        over_trajectories: over all trajectories where both are defined; None in the same cases.
    """

    left: str
    right: str
    over_teachers: float | None
    over_trajectories: float | None


def distributions(table: pl.DataFrame, teachers: Sequence[str], metrics: Sequence[Metric]) -> tuple[Distribution, ...]:
    """The quantiles of every metric over every teacher's trajectories.

    >>> from trajscore.metrics import find
    >>> table = pl.DataFrame({"teacher": ["T"] * 5, "rsr": [1.0, 2.0, 3.0, 4.0, 5.0]})
    >>> distributions(table, ["T"], find(["rsr"]))[0].quantiles
    (1.2, 2.0, 3.0, 4.0, 4.8)
    """
    found = []
    for metric in metrics:
        column = pl.col(metric.name)
        quantiles = [column.quantile(share, "linear").round(12).alias(str(share)) for share in QUANTILES]
        grouped = table.group_by("teacher").agg(column.count().alias("rows"), *quantiles)
        by_teacher = {teacher: (rows, each) for teacher, rows, *each in grouped.iter_rows()}
        for teacher in teachers:
            rows, each = by_teacher.get(teacher, (0, []))
            found.append(Distribution(teacher, metric.name, rows, tuple(each) if rows else ()))
    return tuple(found)


def over_tokens(metrics: Iterable[Metric]) -> list[Metric]:
    """The metrics that can be taken over a part of a trajectory: those that read nothing but token columns.

    >>> from trajscore.metrics import find
    >>> [metric.name for metric in over_tokens(find(["rsr", "length"]))]
    ['rsr']
    """
    return [
        metric
        for metric in metrics
        if PHASE not in metric.columns
        and all(name in COLUMNS and COLUMNS[name].axis == "scored token" for name in metric.columns)
    ]


def _token_columns(metrics: Iterable[Metric]) -> list[str]:
    return sorted({name for metric in metrics for name in metric.columns})


def tenths(frame: pl.LazyFrame, metrics: Sequence[Metric], part: int) -> pl.LazyFrame:
    """Rows whose token lists are cut to one of ten equal parts: token i of T lies in part floor(10 i / T).

    >>> frame = pl.LazyFrame({"student_rank": [[1, 2, 3], list(range(20))]})
    >>> from trajscore.metrics import find
    >>> tenths(frame, find(["rank"]), 3).collect().to_series().to_list()
    [[2], [6, 7]]
    """
    cut = []
    for name in _token_columns(metrics):
        length = pl.col(name).list.len().cast(pl.Int64)
        start, stop = (-((-length * number) // POSITIONS) for number in (part, part + 1))
        cut.append(pl.col(name).list.slice(start, stop - start))
    return frame.with_columns(cut)


def phase_of(frame: pl.LazyFrame, metrics: Sequence[Metric], code: int) -> pl.LazyFrame:
    """Rows whose token lists are cut to the tokens of one phase; null where the row has no phases.

    >>> frame = pl.LazyFrame({"student_rank": [[7, 8, 9]], "phase": [[0, 1, 2]]})
    >>> from trajscore.metrics import find
    >>> phase_of(frame, find(["rank"]), 2).collect()["student_rank"].to_list()
    [[9]]
    """
    places = pl.col(PHASE).list.eval((pl.element() == code).arg_true())
    same_length = pl.col(PHASE).list.len()
    return frame.with_columns(
        pl.when(pl.col(name).list.len() == same_length).then(pl.col(name).list.gather(places, null_on_oob=True))
        for name in _token_columns(metrics)
    )


def part_query(frame: pl.LazyFrame, metrics: Sequence[Metric]) -> pl.LazyFrame:
    """Numerator and denominator of each metric per scored row, null where it is undefined; with `id` and `teacher`."""
    terms = [
        expression.alias(f"{metric.name}:{term}")
        for metric in metrics
        for term, expression in (("numerator", metric.numerator()), ("denominator", metric.denominator()))
    ]
    return frame.filter(pl.col("status") == OK).select("teacher", *terms)


def part_values(table: pl.DataFrame, teachers: Sequence[str], metrics: Sequence[Metric], part: str) -> list[PartValue]:
    """The dataset values of one part, from what `part_query` gives with the teachers' names filled in."""
    by_teacher = table.partition_by("teacher", as_dict=True)
    found = []
    for metric in metrics:
        numerator, denominator = f"{metric.name}:numerator", f"{metric.name}:denominator"
        for teacher in teachers:
            rows = by_teacher.get((teacher,), table.clear())
            defined = rows.filter(ratio(pl.col(numerator), pl.col(denominator)).is_not_null())
            value = dataset_value(defined[numerator], defined[denominator])
            found.append(PartValue(teacher, metric.name, part, defined.height, value))
    return found


def metric_pairs(
    table: pl.DataFrame, values: Mapping[str, Mapping[str, float | None]], metrics: Sequence[Metric]
) -> tuple[MetricPair, ...]:
    """Whether metrics rank alike, every two of them once.

    Args:
        table: one line per row, a column per metric.
        values: dataset values by teacher and metric.
        metrics: the metrics.
    """
    sign = {metric.name: -1.0 if metric.direction == "lower" else 1.0 for metric in metrics}
    columns = {metric.name: _Ranked(table[metric.name]) for metric in metrics}
    found = []
    for number, left in enumerate(metrics):
        for right in metrics[number + 1 :]:
            turn = sign[left.name] * sign[right.name]
            teachers = spearman(*([each[m.name] for each in values.values()] for m in (left, right)))
            rows = columns[left.name].spearman(columns[right.name])
            found.append(MetricPair(left.name, right.name, _times(turn, teachers), _times(turn, rows)))
    return tuple(found)


class _Ranked:
    """A metric's values and their ranks, which are made once: two metrics defined on the same rows share them."""

    def __init__(self, values: pl.Series) -> None:
        self.values = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        self.defined = np.isfinite(self.values)
        self.ranks = average_ranks(self.values[self.defined])

    def spearman(self, other: _Ranked) -> float | None:
        if np.array_equal(self.defined, other.defined):
            return pearson(self.ranks, other.ranks)
        return spearman(self.values, other.values)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value
