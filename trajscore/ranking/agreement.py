"""Do metrics predict the score after training? Correlations over teachers, for each student.

Correlations are signed and computed on the values as they are; `agreement` turns Spearman's by the metric's direction, so
that positive means that the metric ranks teachers as training did. The mean over students is that of signed correlations,
as in arXiv 2601.14249, Table 4 (which then prints its absolute value).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trajscore.estimates.bootstrap import Interval, interval
from trajscore.estimates.comparison import Resampling
from trajscore.estimates.correlation import Replicates, kendall, pairs, pearson, resample, spearman
from trajscore.metrics import METRICS, Metric

MEAN = "(mean)"
"""In place of a student's name: the mean over students."""

MIN_DISTINCT = 4
"""Distinct values that each side needs: with three, teachers rank alike by chance too often."""

MIN_TEACHERS = 5
"""Teachers from which resampling them says anything about a correlation."""

Values = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""student -> teacher -> metric -> dataset value."""


@dataclass(frozen=True)
class Correlation:
    """One metric against the score after training.

    Attributes:
        student: the student's name, or `(mean)`.
        metric: the metric's name, or a column of the user's own table.
        teachers: pairs that it rests on; for the mean, the number of students.
        spearman: signed rank correlation; None with fewer than four distinct values on a side.
        pearson: signed linear correlation; None in the same cases.
        kendall: signed tau-b; None in the same cases.
        spearman_interval: percentile interval over resampled teachers; None with fewer than five of them.
        pearson_interval: the same for Pearson's.
        kendall_interval: the same for Kendall's.
        direction: `lower` or `higher` is better; None for a column that is no metric.
    """

    student: str
    metric: str
    teachers: int
    spearman: float | None
    pearson: float | None
    kendall: float | None
    spearman_interval: Interval | None
    pearson_interval: Interval | None
    kendall_interval: Interval | None
    direction: str | None

    @property
    def agreement(self) -> float | None:
        """Spearman's correlation, positive where the metric's better end goes with the better score."""
        if self.spearman is None or self.direction is None:
            return None
        return -self.spearman if self.direction == "lower" else self.spearman


def correlate(
    values: Values,
    performance: Mapping[str, Mapping[str, float]],
    how: Resampling,
    known: Mapping[str, Metric] = METRICS,
) -> tuple[Correlation, ...]:
    """Correlate each metric with the score after training, over the teachers that both tables name.

    Args:
        values: dataset values by student, teacher and metric.
        performance: score after training by student and teacher.
        how: confidence, replicates and seed of the intervals. Teachers are resampled; students with the same teachers get
            the same draws, so that the interval of the mean over students knows that they are not independent.
        known: the metrics whose direction is known.

    Returns:
        One line per student and metric, in the order of `values`, then with several students one mean per metric over the
        students whose correlation is defined.

    >>> values = {"S": {name: {"rsr": float(number)} for number, name in enumerate("ABCD")}}
    >>> found = correlate(values, {"S": {"A": 40.0, "B": 30.0, "C": 20.0, "D": 10.0}}, Resampling(0.9, 100, 0))
    >>> round(found[0].agreement or 0, 12), found[0].spearman_interval
    (1.0, None)
    """
    lines, drawn = [], {}
    for student, teachers in values.items():
        scores = performance.get(student, {})
        shared = sorted(teacher for teacher in teachers if teacher in scores)
        for metric in dict.fromkeys(name for each in teachers.values() for name in each):
            left: list[float | None] = [teachers[teacher].get(metric) for teacher in shared]
            right: list[float | None] = [scores[teacher] for teacher in shared]
            both = pairs(left, right)
            count = both.shape[1]
            if min(np.unique(side).size for side in both) < MIN_DISTINCT:
                left, right = [], []
            elif count >= MIN_TEACHERS:
                drawn[student, metric] = resample(left, right, how.replicates, how.seed)
            lines.append(
                Correlation(
                    student=student,
                    metric=metric,
                    teachers=count,
                    spearman=spearman(left, right),
                    pearson=pearson(left, right),
                    kendall=kendall(left, right),
                    **_intervals(drawn.get((student, metric)), how, count),
                    direction=known[metric].direction if metric in known else None,
                )
            )
    return (*lines, *_means(lines, drawn, how, known)) if len(values) > 1 else tuple(lines)


def _intervals(drawn: Replicates | None, how: Resampling, count: int) -> dict[str, Interval | None]:
    names = ("spearman", "pearson", "kendall")
    if drawn is None:
        return {f"{name}_interval": None for name in names}
    return {f"{name}_interval": interval(getattr(drawn, name), how.confidence, count) for name in names}


def _means(
    lines: Sequence[Correlation],
    drawn: Mapping[tuple[str, str], Replicates],
    how: Resampling,
    known: Mapping[str, Metric],
) -> list[Correlation]:
    means = []
    for metric in dict.fromkeys(line.metric for line in lines):
        own = [line for line in lines if line.metric == metric and line.spearman is not None]
        replicates = [drawn[line.student, metric] for line in own if (line.student, metric) in drawn]
        whole = replicates and len(replicates) == len(own)
        means.append(
            Correlation(
                student=MEAN,
                metric=metric,
                teachers=len(own),
                spearman=_mean([line.spearman for line in own]),
                pearson=_mean([line.pearson for line in own]),
                kendall=_mean([line.kendall for line in own]),
                **_intervals(_mean_of(replicates) if whole else None, how, min((x.teachers for x in own), default=0)),
                direction=known[metric].direction if metric in known else None,
            )
        )
    return means


def _mean_of(replicates: Sequence[Replicates]) -> Replicates:
    return Replicates(
        *(np.mean([getattr(each, name) for each in replicates], axis=0) for name in ("spearman", "pearson", "kendall"))
    )


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def best_predictor(lines: Sequence[Correlation]) -> str | None:
    """Which metric agrees best with the scores after training, in a sentence; None where no agreement is positive.

    >>> line = Correlation("S", "rsr", 11, -0.85, -0.8, -0.7, None, None, None, "lower")
    >>> best_predictor([line])
    'rsr predicts best here: agreement 0.85 over 11 teachers of one student.'
    """
    several = any(line.student == MEAN for line in lines)
    known = [line for line in lines if (line.student == MEAN) == several and (line.agreement or 0.0) > 0]
    if not known:
        return None
    # The first of equals: metrics come in the order in which they are shown.
    best = max(known, key=lambda line: round(line.agreement or 0.0, 9))
    if several:
        return f"{best.metric} predicts best here: mean {best.agreement:.2f} over {best.teachers} students."
    return f"{best.metric} predicts best here: agreement {best.agreement:.2f} over {best.teachers} teachers of one student."
