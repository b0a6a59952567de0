"""What a report holds: the numbers that terminal, page, JSON and CSV all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from trajscore.display.notebook import Shown
from trajscore.metrics import METRICS, Metric
from trajscore.ranking.agreement import Correlation, Values, best_predictor
from trajscore.ranking.figures import plot
from trajscore.ranking.items import Ability
from trajscore.ranking.ranking import IntervalEstimate, Ranking, RankingOptions
from trajscore.ranking.student import StudentReport


@dataclass(frozen=True, repr=False)
class Report(Shown):
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

    @property
    def frame(self) -> pl.DataFrame:
        """One row per student and teacher, best first: `student`, `teacher`, `probability_best`, every metric with
        `METRIC_low` and `METRIC_high`, `correct` (share), `rows`, `scored`, `refused`, `truncated`, `prompts`, `tokens`
        (mean) and `group` (teachers of one group share prompts); with `items` also `ability`, `ability_low` and
        `ability_high`. With `table`: student, teacher and the metrics.
        """
        lines: list[dict[str, Any]] = []
        for each in self.students:
            able = {line.teacher: line for line in each.items.abilities} if each.items else {}
            groups = {name: place for place, names in enumerate(each.ranking.groups, 1) for name in names}
            for line in each.ranking.lines:
                lines.append(
                    {
                        **{"student": each.student, "teacher": line.teacher, "probability_best": line.probability_best},
                        **_ends(line.metrics),
                        **{"correct": line.share_correct, "rows": line.rows, "scored": line.scored},
                        **{"refused": line.rows - line.scored, "truncated": line.truncated, "prompts": line.prompts},
                        **{"tokens": line.mean_length, "group": groups.get(line.teacher)},
                        **(_ability(able[line.teacher]) if able else {}),
                    }
                )
        if not self.students:
            lines = [
                {"student": student, "teacher": teacher, **row}
                for student, teachers in self.values.items()
                for teacher, row in teachers.items()
            ]
        return pl.DataFrame(lines, infer_schema_length=None)

    def plot(self, name: str | None = None, student: str | None = None, metric: str | None = None) -> Any:
        """A picture of the report, see `trajscore.ranking.figures`: an Altair chart, which notebooks show and whose `save`
        writes SVG, PDF, PNG or HTML.

        Args:
            name: `ranking`, which is the default, `why`, `distribution`, `position`, `phase`, `plan`, `students` or `training`.
            student: whose, with several students; the first one's unless given.
            metric: of pictures that show one; the metric that ranks unless given.

        Raises:
            UsageError: there is no such picture, or the report has no numbers for it.
        """
        return plot(self, name, student, metric)

    def lines(self) -> list[str]:
        """The recommendation of each student, and the best predictor."""
        said = [each.recommendation.sentence for each in self.students]
        said += [self.best_predictor] if self.best_predictor else []
        count = len(self.values)
        return [f"Report on {count} {'student' if count == 1 else 'students'}, {', '.join(self.metrics[:4])}", *said]

    def preview(self) -> pl.DataFrame:
        """The teachers: best, the metric that ranks, correct, rows."""
        table = self.frame
        wanted = ("student", "teacher", "probability_best", self.options.primary, "correct", "rows", "group")
        names = [name for name in wanted if name in table.columns]
        return table.select(names if self.students else table.columns)

    @property
    def best_predictor(self) -> str | None:
        """Which metric agrees best with the scores after training, in a sentence; None without such scores."""
        return best_predictor(self.correlations)

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
            "best_predictor": self.best_predictor,
            "performance": self.performance,
            "options": asdict(self.options),
            "notes": list(self.notes),
        }


def _ability(each: Ability) -> dict[str, float | None]:
    return {"ability": each.ability, "ability_low": each.low, "ability_high": each.high}


def _ends(metrics: Mapping[str, IntervalEstimate]) -> dict[str, float | None]:
    ends: dict[str, float | None] = {}
    for name, each in metrics.items():
        ends |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
    return ends
