"""The command `report`: ranks the teachers of each student, adds correlations with scores after training, writes files.

It joins the small table of metrics, the ranking and the user's CSV files; formulas and statistics live in those, and how a
report looks in `page`, `terminal` and `tidy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from trajscore.errors import UsageError, did_you_mean
from trajscore.estimates.comparison import Resampling
from trajscore.io.atomic import new_folder, replacing
from trajscore.io.frames import write_frames
from trajscore.io.outputs import check_suffix, spare_inputs_of, writing
from trajscore.io.paths import local_path
from trajscore.io.recorded_folder import RecordedFolder
from trajscore.metrics import Metric, known_metrics
from trajscore.options import keywords_of
from trajscore.ranking.agreement import Correlation, Values, correlate
from trajscore.ranking.csv_tables import read_performance, read_values
from trajscore.ranking.options import ReportOptions
from trajscore.ranking.ranking import RankingOptions
from trajscore.ranking.result import Report
from trajscore.ranking.student import choose_metrics, report_student
from trajscore.scores.source import Scores, open_by_student

PICTURES = "figures.json"
"""The record of the pictures in a folder of --figures."""

UNKNOWN_STUDENT = "(unknown)"


@keywords_of(ReportOptions)
def report(options: ReportOptions) -> Report:
    """Rank teachers by a student's scores of what they wrote.

    Returns:
        The rankings, their statistics, and correlations where there are scores after training.

    Raises:
        UsageError: both or neither of `scores` and `table`, a wrong setting, metric, column or suffix, or no student in
            common.
        DataError: a file cannot be read.
        TrajscoreError: a file cannot be written.

    Source: arXiv 2601.14249, Eq. 8-9 and Table 4.

    >>> import polars as pl
    >>> rows = pl.LazyFrame({"id": ["a", "b"], "prompt_id": ["p", "q"], "teacher": ["T", "T"], "status": ["ok", "ok"],
    ...                      "n_tokens": [7, 9]})
    >>> report(rows).ranking.lines[0].metrics["length"].value
    8.0
    """
    # Checked before a corpus is read: a wrong option should not cost minutes.
    spare_inputs_of(options)
    ranking = RankingOptions(options.confidence, options.replicates, options.seed)
    page = None if options.out is None else check_suffix(options.out, (".html", ".htm"), "--out")
    tables = {
        name: None if path is None else check_suffix(path, (".csv",), f"--{name}")
        for name, path in (("csv", options.csv), ("tidy", options.tidy))
    }
    pictures = None
    if options.figures is not None:
        pictures = RecordedFolder(
            local_path(options.figures, "--figures"), PICTURES, "trajscore report", "--figures", options.keep_foreign
        )
    known = known_metrics(options.metrics_file)
    if options.scores is None:
        made = _table_report(Path(str(options.table)), options.metrics, options.performance, ranking, known)
    else:
        made = _scores_report(options, ranking, known)
    _write(made, page, tables["csv"], tables["tidy"])
    if pictures is not None:
        from trajscore.ranking.figures import save_figures

        with writing(pictures.folder), new_folder(pictures.folder) as temporary:
            save_figures(made, temporary)
            pictures.put(temporary, {})
    return made


def _scores_report(given: ReportOptions, options: RankingOptions, known: Mapping[str, Metric]) -> Report:
    measured = None if given.performance is None else read_performance(Path(given.performance))
    sources = open_by_student(cast("Scores", given.scores))
    chosen = choose_metrics(sources, given.metrics, known)
    known = {**known, **{metric.name: metric for metric in chosen}}
    primary = _ranks(chosen).name
    options = RankingOptions(options.confidence, options.replicates, options.seed, primary)
    students = tuple(report_student(source, chosen, options, given) for source in sources)
    values = {
        each.student or UNKNOWN_STUDENT: {
            line.teacher: {name: estimate.value for name, estimate in line.metrics.items()}
            for line in each.ranking.lines
        }
        for each in students
    }
    correlations, entered, notes = _correlations(values, measured, options, known)
    several = len(students) > 1
    own = [f"{each.student}: {note}" if several else note for each in students for note in each.notes]
    return Report(
        metrics=tuple(metric.name for metric in chosen),
        students=students,
        values=values,
        correlations=correlations,
        performance=entered,
        options=options,
        notes=(*own, *notes),
        known=known,
    )


def _ranks(metrics: Sequence[Metric]) -> Metric:
    """The metric that ranks: rsr, else the first that has a direction, else the first."""
    return next(
        (each for each in metrics if each.name == "rsr"),
        next((each for each in metrics if each.direction is not None), metrics[0]),
    )


def _table_report(
    path: Path,
    names: Sequence[str] | None,
    performance: str | Path | None,
    options: RankingOptions,
    known_table: Mapping[str, Metric],
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
    correlations, entered, notes = _correlations(values, read_performance(Path(performance)), options, known_table)
    return Report(
        metrics=chosen,
        students=(),
        values=values,
        correlations=correlations,
        performance=entered,
        options=options,
        notes=tuple(notes),
        known=known_table,
    )


def _correlations(
    values: Values,
    performance: dict[str, dict[str, float]] | None,
    options: RankingOptions,
    known: Mapping[str, Metric],
) -> tuple[tuple[Correlation, ...], dict[str, dict[str, float]], list[str]]:
    """Correlations of the students that both sides name, the scores that entered, and notes on what was left out."""
    if performance is None:
        return (), {}, []
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
    how = Resampling(options.confidence, options.replicates, options.seed)
    entered = {student: {t: s for t, s in performance[student].items() if t in shared[student]} for student in shared}
    return correlate(shared, performance, how, known), entered, notes


def _matched(values: Values, performance: dict[str, dict[str, float]]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """With one student on each side there is nothing to confuse, however the two are spelt."""
    if len(values) == len(performance) == 1 and set(values) != set(performance):
        (ours,), (theirs,) = values, performance
        note = f"--performance calls the student {theirs!r}, the scores {ours!r}: taken as the same."
        return {ours: performance[theirs]}, [note]
    return performance, []


def _write(made: Report, page: Path | None, teachers: Path | None, numbers: Path | None) -> None:
    if page is not None:
        from trajscore.ranking.page import render

        with replacing(page) as temporary:
            temporary.write_text(render(made), "utf-8")
    if teachers is not None:
        write_frames([made.frame], made.frame.to_arrow().schema, teachers)
    if numbers is not None:
        from trajscore.ranking.tidy import write_tidy

        write_tidy(made.to_dict(), numbers)
