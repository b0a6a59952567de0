"""All that the scores of one student say: its ranking, distributions, profiles and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from trajscore import __version__
from trajscore.errors import UsageError
from trajscore.estimates.comparison import Resampling
from trajscore.estimates.planning import SamplePlan, plan_sample
from trajscore.metrics import Metric, find, missing_columns
from trajscore.metrics.measure import boolean_correct, collect, measure
from trajscore.ranking import profiles
from trajscore.ranking.profiles import PartValue
from trajscore.ranking.ranking import Ranking, RankingOptions, rank_teachers, teacher_sums, with_teachers
from trajscore.ranking.recommendation import recommend
from trajscore.ranking.result import StudentReport
from trajscore.schema import OK
from trajscore.scores import read_manifest
from trajscore.scores.source import ScoreSource

IN_PARTS = ("rsr", "surprisal", "rank", "entropy")
"""Metrics that are followed along the trajectories, beside the one that ranks."""

_MANY = 20


def choose_metrics(
    sources: Sequence[ScoreSource], names: Sequence[str] | None, known: Mapping[str, Metric]
) -> list[Metric]:
    """The metrics of these names, or all that every source can give.

    Raises:
        UsageError: a name is unknown, or the rows hold no column that a metric reads.
    """
    if names:
        return find(names, known)
    chosen = [metric for metric in known.values() if not any(missing_columns(metric, s.columns) for s in sources)]
    if not chosen:
        raise UsageError("the rows hold no column that a metric reads.", "Give what `trajscore score` wrote.")
    return chosen


def report_student(
    source: ScoreSource, metrics: Sequence[Metric], options: RankingOptions, plan: bool
) -> StudentReport:
    """Everything that the scores of one student say of the teachers.

    Args:
        source: the scores.
        metrics: the metrics; one of them is `options.primary`.
        options: how the ranking is made.
        plan: also say how many trajectories settle it.

    Raises:
        UsageError: a metric's column is missing.
        DataError: a part is damaged.
    """
    table, doubts = _with_correct(measure(source, metrics))
    table = with_teachers(table)
    ranking = rank_teachers(table, metrics, options)
    teachers = [line.teacher for line in ranking.lines]
    followed = profiles.over_tokens(m for m in metrics if m.name in (options.primary, *IN_PARTS))
    values = {line.teacher: {name: each.value for name, each in line.metrics.items()} for line in ranking.lines}
    return StudentReport(
        student=source.student_name,
        ranking=ranking,
        recommendation=recommend(ranking, source.student_name),
        distributions=profiles.distributions(table, teachers, metrics),
        positions=_positions(source, teachers, followed),
        phases=_phases(source, teachers, followed),
        pairs=profiles.metric_pairs(table, values, metrics),
        plan=_plan(table, ranking, next(each for each in metrics if each.name == options.primary)) if plan else None,
        provenance=_provenance(source),
        notes=(*source.unfinished, *doubts, *ranking.notes),
    )


def _with_correct(table: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The table with `correct` as booleans, or without it and with the reason."""
    if "correct" not in table.columns:
        return table, []
    try:
        return table.with_columns(boolean_correct(table["correct"]).alias("correct")), []
    except UsageError as doubt:
        return table.drop("correct"), [f"{doubt.problem} {doubt.hint} The share of correct rows is not shown."]


def _positions(source: ScoreSource, teachers: Sequence[str], metrics: Sequence[Metric]) -> tuple[PartValue, ...]:
    found = []
    for part in range(profiles.POSITIONS if metrics else 0):
        table = _part(source, profiles.tenths(source.frame, metrics, part), metrics)
        found += profiles.part_values(table, teachers, metrics, str(part + 1))
    return tuple(found)


def _phases(source: ScoreSource, teachers: Sequence[str], metrics: Sequence[Metric]) -> tuple[PartValue, ...]:
    if profiles.PHASE not in source.columns or not metrics:
        return ()
    found = []
    for name, code in profiles.PHASES.items():
        table = _part(source, profiles.phase_of(source.frame, metrics, code), metrics)
        found += profiles.part_values(table, teachers, metrics, name)
    return tuple(found)


def _part(source: ScoreSource, frame: pl.LazyFrame, metrics: Sequence[Metric]) -> pl.DataFrame:
    if "teacher" not in source.columns:
        frame = frame.with_columns(teacher=pl.lit(None, pl.String))
    table = collect(profiles.part_query(frame, metrics))
    return with_teachers(table.with_columns(id=pl.lit(""), prompt_id=pl.lit("")))


def _plan(table: pl.DataFrame, ranking: Ranking, primary: Metric) -> SamplePlan:
    options = ranking.options
    scored = table.filter(pl.col("status") == OK).group_by("teacher").agg(pl.len() / pl.col("prompt_id").n_unique())
    return plan_sample(
        options.primary,
        ranking.comparison,
        teacher_sums(table, primary),
        dict(scored.iter_rows()),
        Resampling(options.confidence, options.replicates, options.seed),
    )


def _provenance(source: ScoreSource) -> dict[str, Any]:
    folders = []
    for folder, _ in source.folders:
        manifest = read_manifest(folder)
        settings = {**manifest.settings, "input": _shortened(manifest.settings.get("input"))}
        folders.append(
            {
                "folder": folder,
                "run": manifest.run,
                "complete": manifest.complete,
                "parts": len(manifest.parts),
                "totals": manifest.totals,
                "settings": settings,
                "environment": manifest.environment,
            }
        )
    return {"trajscore": __version__, "polars": pl.__version__, "folders": folders}


def _shortened(given: Any) -> Any:
    """The corpus as the manifest has it, with no more than a page of its files."""
    if not isinstance(given, dict) or not isinstance(given.get("sources"), list):
        return given
    sources = given["sources"]
    return {**given, "files": len(sources), "sources": sources[:_MANY]}
