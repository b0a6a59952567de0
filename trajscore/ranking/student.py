"""All that the scores of one student say: its ranking, distributions, profiles and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from trajscore import __version__
from trajscore.errors import UsageError
from trajscore.estimates.comparison import Resampling
from trajscore.estimates.sample_size import SamplePlan, plan_sample
from trajscore.metrics import Metric, coefficients_of, find, missing_columns
from trajscore.metrics.measure import Followed, boolean_correct, measure_following
from trajscore.ranking import profiles
from trajscore.ranking.diversity import Diversity, diversity
from trajscore.ranking.items import Items, item_response
from trajscore.ranking.options import ReportOptions
from trajscore.ranking.profiles import Distribution, MetricPair, PartValue
from trajscore.ranking.ranking import (
    Ranking,
    RankingOptions,
    rank_teachers,
    teacher_names,
    teacher_sums,
    with_teachers,
)
from trajscore.ranking.recommendation import Recommendation, recommend
from trajscore.schema import OK
from trajscore.scores import read_manifest
from trajscore.scores.source import ScoreSource

IN_PARTS = ("rsr", "surprisal", "rank", "entropy")
"""Metrics that are followed along the trajectories, beside the one that ranks."""

PROFILED = 200
"""Trajectories of each teacher that are followed: as many as arXiv 2601.14249 selects teachers by. All would double a
report's time."""

_MANY = 20


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
        diversity: how much the samples of a teacher for one prompt differ; empty unless asked for.
        items: item response over teachers and prompts; None unless asked for.
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
    diversity: tuple[Diversity, ...]
    items: Items | None
    provenance: dict[str, Any]
    notes: tuple[str, ...]


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
    source: ScoreSource, metrics: Sequence[Metric], options: RankingOptions, asked: ReportOptions
) -> StudentReport:
    """Everything that the scores of one student say of the teachers.

    Args:
        source: the scores.
        metrics: the metrics; one of them is `options.primary`.
        options: how the ranking is made.
        asked: what else is to be said: `plan`, `diversity`, `items`.

    Raises:
        UsageError: a metric's column is missing.
        DataError: a part is damaged.
    """
    along = profiles.over_tokens(m for m in metrics if m.name in (options.primary, *IN_PARTS))
    parts: list[pl.DataFrame] = []
    measured, metrics = measure_following(source, metrics, _followed(source, along, parts))
    table, doubts = _with_correct(measured)
    if asked.plan and next(each for each in metrics if each.name == options.primary).direction is None:
        raise UsageError(f"--plan: {options.primary} has no direction, so nothing is ranked.", "Name another --metric.")
    table = with_teachers(table)
    ranking = rank_teachers(table, metrics, options)
    teachers = [line.teacher for line in ranking.lines]
    profile = profiles.part_values(pl.concat(parts), teachers, along) if parts else []
    values = {line.teacher: {name: each.value for name, each in line.metrics.items()} for line in ranking.lines}
    return StudentReport(
        student=source.student_name,
        ranking=ranking,
        recommendation=recommend(ranking, source.student_name),
        distributions=profiles.distributions(table, teachers, metrics),
        positions=tuple(each for each in profile if each.part not in profiles.PHASES),
        phases=tuple(each for each in profile if each.part in profiles.PHASES),
        pairs=profiles.metric_pairs(table, values, metrics),
        plan=_plan(table, ranking, next(each for each in metrics if each.name == options.primary))
        if asked.plan
        else None,
        diversity=diversity(source, table) if asked.diversity else (),
        items=item_response(table, options.confidence) if asked.items else None,
        provenance={**_provenance(source), "coefficients": coefficients_of(metrics)},
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


def _followed(source: ScoreSource, metrics: Sequence[Metric], found: list[pl.DataFrame]) -> Followed | None:
    """At most `PROFILED` trajectories of each teacher; what the metrics are over their tenths and phases goes to `found`."""
    if not metrics:
        return None
    wanted = {name for metric in metrics for name in metric.columns}
    wanted |= {profiles.PHASE} & set(source.columns)

    def choose(table: pl.DataFrame) -> pl.Series:
        # Drawn by a hash of the id: the order of the rows does not matter, and ids that sort by topic do no harm.
        named = table.with_columns(teacher_names(table))
        scored = named.filter(pl.col("status") == OK).sort(pl.col("id").hash(0), "id")
        return table["row"].is_in(scored.group_by("teacher").head(PROFILED)["row"].implode())

    def see(rows: pl.DataFrame) -> None:
        found.append(profiles.parts_of(rows.with_columns(teacher_names(rows)), metrics))

    return Followed(sorted(wanted), choose, see)


def _plan(table: pl.DataFrame, ranking: Ranking, primary: Metric) -> SamplePlan:
    options, compared = ranking.options, ranking.comparison.values
    scored = table.filter(pl.col("status") == OK).group_by("teacher").agg(pl.len() / pl.col("prompt_id").n_unique())
    return plan_sample(
        options.primary,
        ranking.comparison,
        {name: sums for name, sums in teacher_sums(table, primary).items() if name in compared},
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
