"""`trajscore report`: teachers ranked by dataset values, with intervals, and correlations with scores after training.

It joins the small table of metrics, the ranking and the user's CSV files; formulas and statistics live in those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from trajscore.errors import UsageError, did_you_mean
from trajscore.metrics import Metric, find, known_metrics, missing_columns
from trajscore.reporting.agreement import Correlation, Values, correlate
from trajscore.reporting.ranking import Ranking, RankingOptions, rank_teachers
from trajscore.workflows.csv_tables import read_performance, read_values
from trajscore.workflows.metric_table import Scores, Source, boolean_correct, measure, open_scores

UNKNOWN_STUDENT = "(unknown)"


@dataclass(frozen=True)
class Report:
    """A ranking of teachers, correlations with scores after training, or both.

    Attributes:
        student: the student's name; None where the scores name none, or with `table`.
        metrics: names of the metrics, in the order shown.
        ranking: teachers, best first; None with `table`.
        correlations: one per student and metric, then means; empty without `performance`.
        notes: what a reader should know.
        known: every metric that could be named, by name.
    """

    student: str | None
    metrics: tuple[str, ...]
    ranking: Ranking | None
    correlations: tuple[Correlation, ...]
    notes: tuple[str, ...]
    known: Mapping[str, Metric] = field(default_factory=known_metrics, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        ranking = None if self.ranking is None else asdict(self.ranking)
        lines = [{**asdict(line), "agreement": line.agreement} for line in self.correlations]
        return {
            "student": self.student,
            "metrics": {
                name: {"direction": known.direction, "unit": known.unit} if (known := self.known.get(name)) else None
                for name in self.metrics
            },
            "ranking": ranking,
            "correlations": lines,
            "notes": list(self.notes),
        }


def report(
    scores: Scores | None = None,
    *,
    metrics: str | Sequence[str] | None = None,
    confidence: float = 0.9,
    replicates: int = 1000,
    seed: int = 0,
    performance: str | Path | None = None,
    table: str | Path | None = None,
    metrics_file: str | Path | None = None,
) -> Report:
    """Rank teachers by a student's scores of what they wrote.

    Args:
        scores: folders that `trajscore score` wrote, or a LazyFrame over such rows; None with `table`.
        metrics: names; None takes all whose columns are there. `rsr` ranks if it is among them, else the first.
        confidence: share of the bootstrap replicates inside an interval, in (0, 1).
        replicates: bootstrap replicates over prompts.
        seed: seed of the resampling; the same seed gives the same numbers.
        performance: CSV with the columns student, teacher, score (after training); adds correlations.
        table: CSV with the columns student, teacher and one per metric; stands in for scores.
        metrics_file: Python file that defines more metrics in `METRICS`; it is run.

    Raises:
        UsageError: both or neither of `scores` and `table`, a wrong setting, metric or column, or no student in common.
        DataError: a file cannot be read.

    Source: arXiv 2601.14249, Eq. 8-9 and Table 4.

    >>> import polars as pl
    >>> rows = pl.LazyFrame({"id": ["a", "b"], "prompt_id": ["p", "q"], "teacher": ["T", "T"], "status": ["ok", "ok"],
    ...                      "n_tokens": [7, 9]})
    >>> report(rows).ranking.lines[0].metrics["length"].value
    8.0
    """
    if (scores is None) == (table is None):
        raise UsageError("give either scores or --table, and not both.", "Name score folders, or a CSV with --table.")
    names = [metrics] if isinstance(metrics, str) else metrics
    known = known_metrics(metrics_file)
    if scores is None:
        return _table_report(Path(str(table)), names, performance, known)
    # Checked before a corpus is read: a wrong option should not cost minutes.
    RankingOptions(confidence, replicates, seed)
    measured = None if performance is None else read_performance(Path(performance))
    source = open_scores(scores)
    chosen = _choose(source, names, known)
    primary = next((metric.name for metric in chosen if metric.name == "rsr"), chosen[0].name)
    options = RankingOptions(confidence, replicates, seed, primary)
    rows, doubts = _with_correct(measure(source, chosen))
    ranking = rank_teachers(rows, chosen, options)
    values = {source.student_name or UNKNOWN_STUDENT: _dataset_values(ranking)}
    correlations, notes = _correlations(values, measured, known)
    return Report(
        student=source.student_name,
        metrics=tuple(metric.name for metric in chosen),
        ranking=ranking,
        correlations=correlations,
        notes=(*source.unfinished, *doubts, *ranking.notes, *notes),
        known=known,
    )


def _with_correct(table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The table with `correct` as booleans, or without it and with the reason."""
    if "correct" not in table.columns:
        return table, []
    try:
        return table.with_columns(boolean_correct(table["correct"]).alias("correct")), []
    except UsageError as doubt:
        return table.drop("correct"), [f"{doubt.problem} {doubt.hint} The share of correct rows is not shown."]


def _choose(source: Source, names: Sequence[str] | None, known: Mapping[str, Metric]) -> list[Metric]:
    if names:
        return find(names, known)
    chosen = [metric for metric in known.values() if not missing_columns(metric, source.columns)]
    if not chosen:
        raise UsageError("the rows hold no column that a metric reads.", "Give what `trajscore score` wrote.")
    return chosen


def _dataset_values(ranking: Ranking) -> dict[str, dict[str, float | None]]:
    return {line.teacher: {name: each.value for name, each in line.metrics.items()} for line in ranking.lines}


def _table_report(
    path: Path, names: Sequence[str] | None, performance: str | Path | None, known_table: Mapping[str, Metric]
) -> Report:
    if performance is None:
        raise UsageError("--table alone has nothing to report.", "Add --performance CSV (student, teacher, score).")
    values = read_values(path)
    known = list(dict.fromkeys(name for teachers in values.values() for row in teachers.values() for name in row))
    for name in names or []:
        if name not in known:
            raise UsageError(f"{path}: no column {name!r}.", did_you_mean(name, known))
    chosen = tuple(dict.fromkeys(names)) if names else tuple(known)
    values = {
        student: {teacher: {name: row[name] for name in chosen} for teacher, row in teachers.items()}
        for student, teachers in values.items()
    }
    correlations, notes = _correlations(values, read_performance(Path(performance)), known_table)
    return Report(
        student=None, metrics=chosen, ranking=None, correlations=correlations, notes=tuple(notes), known=known_table
    )


def _correlations(
    values: Values, performance: dict[str, dict[str, float]] | None, known: Mapping[str, Metric]
) -> tuple[tuple[Correlation, ...], list[str]]:
    """Correlations of the students that both sides name, and notes on what was left out."""
    if performance is None:
        return (), []
    performance, notes = _matched(values, performance)
    shared = {student: teachers for student, teachers in values.items() if student in performance}
    if not shared:
        raise UsageError(
            f"--performance has no score for the student {next(iter(values))!r}; it names {', '.join(performance)}.",
            "Write the student's name in the CSV as the scores have it.",
        )
    notes += [
        f"--performance: no scores after training of the student {name}." for name in values if name not in shared
    ]
    for student, teachers in shared.items():
        for lacking, left_out in (
            ("--performance", sorted(set(teachers) - set(performance[student]))),
            ("the scores", sorted(set(performance[student]) - set(teachers))),
        ):
            if left_out:
                notes.append(f"{student}: not in {lacking} and left out: {', '.join(left_out)}.")
    return correlate(shared, performance, known), notes


def _matched(values: Values, performance: dict[str, dict[str, float]]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """With one student on each side there is nothing to confuse, however the two are spelt."""
    if len(values) == len(performance) == 1 and set(values) != set(performance):
        (ours,), (theirs,) = values, performance
        note = f"--performance calls the student {theirs!r}, the scores {ours!r}: taken as the same."
        return {ours: performance[theirs]}, [note]
    return performance, []
