"""Distributions of metrics over trajectories, and metrics over parts of them (tenths, thinking, answer).

A metric over a part of the trajectories (their first tenth, their answers) is the metric itself over rows whose token lists are
cut to that part, so it has one definition only. A row that has no token there has no value there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from trajscore.estimates.correlation import average_ranks, pearson, spearman
from trajscore.metrics import Metric, dataset_values
from trajscore.metrics.base import select_shared
from trajscore.schema import COLUMNS

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

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
    lists = {name: rows[name].rechunk().to_arrow() for name in names}
    tenths = {name: _cut(values, _tenths(_lengths(values))) for name, values in lists.items()}
    found = [_terms(tenths, rows["teacher"], [str(number + 1) for number in range(POSITIONS)], metrics)]
    if PHASE in rows.columns:
        codes = rows[PHASE].rechunk().to_arrow()
        same = np.all([_lengths(values) == _lengths(codes) for values in lists.values()], axis=0)
        of_row = np.repeat(np.arange(len(same)), _lengths(codes))
        # A code that is none of ours belongs to no phase: one more part, which is left out below.
        code = pl.Series(pl.from_arrow(codes.flatten())).cast(pl.Int64).fill_null(_PHASE_PARTS - 1).to_numpy()
        key = of_row * _PHASE_PARTS + np.clip(code, 0, _PHASE_PARTS - 1)
        sizes = np.bincount(key, minlength=len(same) * _PHASE_PARTS).reshape(-1, _PHASE_PARTS)
        order = None if (np.diff(key) >= 0).all() else np.argsort(key, kind="stable")
        cut = {name: _cut(values, sizes * same[:, None], order, same) for name, values in lists.items()}
        parts = [next((name for name, each in PHASES.items() if each == code), "") for code in range(_PHASE_PARTS)]
        phases = _terms(cut, rows["teacher"], parts, metrics)
        found.append(phases.filter(pl.col("part") != ""))
    return pl.concat(found)


_PHASE_PARTS = 4


def _lengths(lists: pa.Array) -> Ints:
    # By polars: pyarrow's way to numpy imports pandas, which takes a second where it is installed.
    return pl.Series(pl.from_arrow(lists)).list.len().fill_null(0).cast(pl.Int64).to_numpy()


def _tenths(lengths_R: Ints) -> Ints:
    """Tokens of each tenth of each row: [R] -> [R, 10]."""
    starts = -(-(lengths_R[:, None] * np.arange(POSITIONS + 1)) // POSITIONS)
    tokens: Ints = np.diff(starts, axis=1)
    return tokens


def _cut(lists: pa.Array, sizes_RP: Ints, order: Ints | None = None, kept_R: Bools | None = None) -> pa.Array:
    """Lists cut into parts of these sizes: R lists -> R x P lists, over the same values, in another order if one is given."""
    values = lists.flatten()
    if kept_R is not None and not kept_R.all():
        # A row that is left out keeps its tokens out, too: sizes are 0 there.
        of_row = np.repeat(kept_R, _lengths(lists))
        if order is not None and len(order) == len(values):
            values, of_row, order = values.take(pa.array(order)), of_row[order], None
        values = values.filter(pa.array(of_row))
        order = None
    if order is not None:
        values = values.take(pa.array(order))
    offsets = np.concatenate([[0], np.cumsum(sizes_RP.ravel())])
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _terms(
    lists: Mapping[str, pa.Array], teachers: pl.Series, parts: Sequence[str], metrics: Sequence[Metric]
) -> pl.DataFrame:
    """The terms of every metric over cut lists, beside the teacher and the part of each."""
    frame = pl.DataFrame({name: pl.Series(name, pl.from_arrow(values)) for name, values in lists.items()})
    repeated = pl.Series("teacher", teachers).gather(np.repeat(np.arange(len(teachers)), len(parts)))
    named = pl.Series("part", list(parts), dtype=pl.String).gather(np.tile(np.arange(len(parts)), len(teachers)))

    def terms() -> list[pl.Expr]:
        return [
            expression.cast(pl.Float64).alias(f"{metric.name}:{term}")
            for metric in metrics
            for term, expression in metric.terms().items()
        ]

    return select_shared(frame, terms).with_columns(teacher=repeated, part=named)


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
