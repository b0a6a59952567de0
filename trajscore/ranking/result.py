"""What a report holds: the numbers that terminal, page, JSON and CSV all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trajscore.estimates.planning import SamplePlan
from trajscore.metrics import METRICS, Metric
from trajscore.ranking.agreement import Correlation, Values
from trajscore.ranking.profiles import Distribution, MetricPair, PartValue
from trajscore.ranking.ranking import Ranking, RankingOptions
from trajscore.ranking.recommendation import Recommendation


@dataclass(frozen=True)
class StudentReport:
    """What one student says of the teachers.

    Attributes:
        student: its name; None where the scores name none.
        ranking: teachers, best first.
        recommendation: the ranking in words.
        distributions: every metric over each teacher's trajectories.
        positions: the metric that ranks and its parts over tenths of the trajectories.
        phases: the same over thinking and answer; empty where the scores hold no phases.
        pairs: which metrics rank alike.
        plan: how many trajectories settle the ranking; None unless asked for.
        provenance: settings, versions and totals of each score folder, and those of the report.
        notes: what a reader should know.
    """

    student: str | None
    ranking: Ranking
    recommendation: Recommendation
    distributions: tuple[Distribution, ...]
    positions: tuple[PartValue, ...]
    phases: tuple[PartValue, ...]
    pairs: tuple[MetricPair, ...]
    plan: SamplePlan | None
    provenance: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A ranking of teachers for each student, correlations with scores after training, or both.

    Attributes:
        metrics: names of the metrics, in the order shown.
        students: one ranking per student, with all that belongs to it; empty with `table`.
        values: dataset values by student, teacher and metric.
        correlations: one per student and metric, then means; empty without `performance`.
        performance: the scores after training that entered them, by student and teacher.
        options: how intervals were made.
        notes: what a reader should know.
        known: every metric that could be named, by name.
    """

    metrics: tuple[str, ...]
    students: tuple[StudentReport, ...]
    values: Values
    correlations: tuple[Correlation, ...]
    performance: dict[str, dict[str, float]]
    options: RankingOptions
    notes: tuple[str, ...]
    known: Mapping[str, Metric] = field(default_factory=lambda: METRICS, repr=False)

    @property
    def student(self) -> str | None:
        """The first student's name; None where the scores name none, or with `table`."""
        return self.students[0].student if self.students else None

    @property
    def ranking(self) -> Ranking | None:
        """The first student's ranking, best teacher first; None with `table`."""
        return self.students[0].ranking if self.students else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "metrics": {
                name: {"direction": known.direction, "unit": known.unit} if (known := self.known.get(name)) else None
                for name in self.metrics
            },
            "students": [asdict(each) for each in self.students],
            "values": {student: dict(teachers) for student, teachers in self.values.items()},
            "correlations": [{**asdict(line), "agreement": line.agreement} for line in self.correlations],
            "performance": self.performance,
            "options": asdict(self.options),
            "notes": list(self.notes),
        }
