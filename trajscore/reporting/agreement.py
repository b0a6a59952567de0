"""Whether metrics predict the score after training: correlations over teachers, per student. Two tables in, numbers out.

Correlations are signed and computed on the values as they are; `agreement` turns Spearman's by the metric's direction, so
that positive means that the metric ranks teachers as training did. The mean over students is that of signed correlations,
as in arXiv 2601.14249, Table 4 (which then prints its absolute value).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trajscore.metrics import METRICS, Metric
from trajscore.reporting.correlation import pairs, pearson, spearman

MEAN = "(mean)"
"""In place of a student's name: the mean over students."""

Values = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""student -> teacher -> metric -> dataset value."""


@dataclass(frozen=True)
class Correlation:
    """One metric against the score after training.

    Attributes:
        student: the student's name, or `(mean)`.
        metric: the metric's name, or a column of the user's own table.
        teachers: pairs that it rests on; for the mean, the number of students.
        spearman: signed rank correlation; None with fewer than three pairs or a constant side.
        pearson: signed linear correlation; None in the same cases.
        direction: `lower` or `higher` is better; None for a column that is no metric.
    """

    student: str
    metric: str
    teachers: int
    spearman: float | None
    pearson: float | None
    direction: str | None

    @property
    def agreement(self) -> float | None:
        """Spearman's correlation, positive where the metric's better end goes with the better score."""
        if self.spearman is None or self.direction is None:
            return None
        return -self.spearman if self.direction == "lower" else self.spearman


def correlate(
    values: Values, performance: Mapping[str, Mapping[str, float]], known: Mapping[str, Metric] = METRICS
) -> tuple[Correlation, ...]:
    """Correlate each metric with the score after training, over the teachers that both tables name.

    Args:
        values: dataset values by student, teacher and metric.
        performance: score after training by student and teacher.
        known: the metrics whose direction is known.

    Returns:
        One line per student and metric, in the order of `values`, then with several students one mean per metric over the
        students whose correlation is defined.

    >>> values = {"S": {"A": {"rsr": 3.0}, "B": {"rsr": 2.0}, "C": {"rsr": 1.0}}}
    >>> round(correlate(values, {"S": {"A": 10.0, "B": 20.0, "C": 30.0}})[0].agreement or 0, 12)
    1.0
    """
    lines = []
    for student, teachers in values.items():
        scores = performance.get(student, {})
        shared = [teacher for teacher in teachers if teacher in scores]
        for metric in dict.fromkeys(name for each in teachers.values() for name in each):
            left = [teachers[teacher].get(metric) for teacher in shared]
            right = [scores[teacher] for teacher in shared]
            lines.append(
                Correlation(
                    student=student,
                    metric=metric,
                    teachers=pairs(left, right).shape[1],
                    spearman=spearman(left, right),
                    pearson=pearson(left, right),
                    direction=known[metric].direction if metric in known else None,
                )
            )
    return (*lines, *_means(lines)) if len(values) > 1 else tuple(lines)


def _means(lines: Sequence[Correlation]) -> list[Correlation]:
    means = []
    for metric in dict.fromkeys(line.metric for line in lines):
        own = [line for line in lines if line.metric == metric]
        means.append(
            Correlation(
                student=MEAN,
                metric=metric,
                teachers=sum(line.spearman is not None for line in own),
                spearman=_mean([line.spearman for line in own]),
                pearson=_mean([line.pearson for line in own]),
                direction=own[0].direction,
            )
        )
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
