"""Distributions of metrics over trajectories, and metrics over parts of them (tenths, thinking, answer).

A metric over a part of the trajectories (their first tenth, their answers) is the metric itself over rows whose token lists are
cut to that part, so it has one definition only. A row that has no token there has no value there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from trajscore.estimates.correlation import spearmans
from trajscore.metrics import Metric, dataset_values
from trajscore.metrics.base import select_shared
from trajscore.ranking.agreement import MIN_DISTINCT
from trajscore.schema import COLUMNS

Ints = npt.NDArray[np.int64]

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
        over_teachers: over the teachers' dataset values; None with fewer than `MIN_DISTINCT` distinct values on a side.
        over_trajectories: over all trajectories where both are defined; None with fewer than three, or a constant side.
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


def parts_of(rows: pl.DataFrame, metrics: Sequence[Metric]) -> pl.DataFrame:
    """Numerator and denominator of each metric over each part of each row, null where it is undefined.

    A row's lists are cut by new offsets over the same values, so that each token is looked at once for the tenths and once for
    the phases. Token i of T lies in tenth floor(10 i / T).

    Args:
        rows: scored rows: `teacher`, the metrics' token columns, and `phase` where there is one.
        metrics: metrics that `over_tokens` gave.

    Returns:
        `teacher`, `part` (`1` to `10`, and the names in `PHASES` with a column `phase`), and `NAME:numerator`,
        `NAME:denominator` of each metric.

    >>> from trajscore.metrics import find
    >>> rows = pl.DataFrame({"teacher": ["T"], "student_rank": [[7, 8, 9]], "phase": [[0, 1, 2]]})
    >>> found = parts_of(rows, find(["rank"]))
    >>> found.filter(pl.col("rank:numerator").is_not_null()).select("part", "rank:numerator").rows()
    [('1', 7.0), ('4', 8.0), ('7', 9.0), ('thinking', 7.0), ('answer', 9.0)]
    """
    names = sorted({name for metric in metrics for name in metric.columns})
    tenths = [_cut(rows[name], _tenths(_lengths(rows[name]))) for name in names]
    found = [_terms(tenths, rows["teacher"], [str(number + 1) for number in range(POSITIONS)], metrics)]
    if PHASE in rows.columns:
        # A row whose phases do not match its tokens has none.
        match = pl.all_horizontal(pl.col(name).list.len() == pl.col(PHASE).list.len() for name in names)
        matched = rows.select(pl.when(match).then(pl.col(name)).alias(name) for name in (*names, PHASE))
        # A code that is none of ours belongs to no phase: one more part, which is left out below.
        codes = _values(matched[PHASE]).cast(pl.Int64).fill_null(_PHASE_PARTS - 1).clip(0, _PHASE_PARTS - 1).to_numpy()
        key = np.repeat(np.arange(rows.height) * _PHASE_PARTS, _lengths(matched[PHASE])) + codes
        sizes = np.bincount(key, minlength=rows.height * _PHASE_PARTS)
        order = None if (np.diff(key) >= 0).all() else np.argsort(key, kind="stable")
        parts = [next((name for name, each in PHASES.items() if each == code), "") for code in range(_PHASE_PARTS)]
        phases = _terms([_cut(matched[name], sizes, order) for name in names], rows["teacher"], parts, metrics)
        found.append(phases.filter(pl.col("part") != ""))
    return pl.concat(found)


_PHASE_PARTS = 4


def _lengths(lists: pl.Series) -> Ints:
    return lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def _values(lists: pl.Series) -> pl.Series:
    """All values of all lists, one after the other."""
    return lists.explode(empty_as_null=False, keep_nulls=False)


def _tenths(lengths_R: Ints) -> Ints:
    """Tokens of each tenth of each row: [R] -> [10 R]."""
    starts = -(-(lengths_R[:, None] * np.arange(POSITIONS + 1)) // POSITIONS)
    tokens: Ints = np.diff(starts, axis=1).ravel()
    return tokens


def _cut(lists: pl.Series, sizes: Ints, order: Ints | None = None) -> pl.Series:
    """The values of lists as lists of these sizes, in another order if one is given: R lists -> one for each size."""
    values = _values(lists) if order is None else _values(lists).gather(order)
    # Arrow makes lists of offsets; to it by polars, for pyarrow's way from numpy imports pandas, which takes a second.
    offsets = pl.Series(np.concatenate([[0], np.cumsum(sizes)])).to_arrow()
    return pl.Series(lists.name, pl.from_arrow(pa.LargeListArray.from_arrays(offsets, values.to_arrow())))


def _terms(
    lists: Sequence[pl.Series], teachers: pl.Series, parts: Sequence[str], metrics: Sequence[Metric]
) -> pl.DataFrame:
    """The terms of every metric over cut lists, beside the teacher and the part of each."""
    repeated = teachers.gather(np.repeat(np.arange(len(teachers)), len(parts)))
    named = pl.Series("part", list(parts), dtype=pl.String).gather(np.tile(np.arange(len(parts)), len(teachers)))

    def terms() -> list[pl.Expr]:
        return [
            expression.cast(pl.Float64).alias(f"{metric.name}:{term}")
            for metric in metrics
            for term, expression in metric.terms().items()
        ]

    return select_shared(pl.DataFrame(lists), terms).with_columns(teacher=repeated, part=named)


def part_values(table: pl.DataFrame, teachers: Sequence[str], metrics: Sequence[Metric]) -> list[PartValue]:
    """The dataset values of every part, from what `parts_of` gives with the teachers' names filled in."""
    parts = [*(str(number + 1) for number in range(POSITIONS)), *PHASES]
    present = set(table["part"].unique()) | set(parts[:POSITIONS])
    values = {
        metric.name: dataset_values(
            table, ["part", "teacher"], f"{metric.name}:numerator", f"{metric.name}:denominator"
        )
        for metric in metrics
    }
    found = []
    for part in (each for each in parts if each in present):
        for metric in metrics:
            for teacher in teachers:
                value, rows = values[metric.name].get((part, teacher), (None, 0))
                found.append(PartValue(teacher, metric.name, part, rows, value))
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
    by_teacher = np.array([[each[m.name] for each in values.values()] for m in metrics], np.float64)
    over_teachers = spearmans(by_teacher)
    few = [np.unique(own[np.isfinite(own)]).size < MIN_DISTINCT for own in by_teacher]
    over_teachers[few, :] = over_teachers[:, few] = math.nan
    by_row = [table[m.name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for m in metrics]
    over_trajectories = spearmans(np.array(by_row))
    turned = np.array([-1.0 if metric.direction == "lower" else 1.0 for metric in metrics])
    found = []
    for left, right in combinations(range(len(metrics)), 2):
        turn = turned[left] * turned[right]
        alike = (_defined(turn * each[left, right]) for each in (over_teachers, over_trajectories))
        found.append(MetricPair(metrics[left].name, metrics[right].name, *alike))
    return tuple(found)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
