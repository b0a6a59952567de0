"""What `report` and `list metrics` print.

Names come from data sets and are shown as they are: always `Text`, never markup, and control characters made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trajscore.display.formatting import NONE, number, share
from trajscore.display.terminal import new_table, plain
from trajscore.estimates.planning import SamplePlan
from trajscore.metrics import Metric
from trajscore.ranking.agreement import Correlation
from trajscore.ranking.ranking import IntervalEstimate, Ranking, TeacherLine
from trajscore.ranking.result import Report, StudentReport

_METRICS_PER_TABLE = 3


def ranking_tables(ranking: Ranking, metrics: Sequence[str]) -> Iterator[RenderableType]:
    """The ranking: one table of teachers, then their metrics a few at a time, so that each fits 80 columns."""
    options = ranking.options
    yield _teachers(ranking)
    for start in range(0, len(metrics), _METRICS_PER_TABLE):
        yield ""
        yield _values(ranking, metrics[start : start + _METRICS_PER_TABLE])
    yield ""
    yield Text(
        f"{ranking.prompts} prompts, {ranking.shared_prompts} shared by all teachers. [low, high]: "
        f"{100 * options.confidence:g}% interval, {options.replicates} bootstrap replicates over prompts, seed "
        f"{options.seed}. best: probability that the teacher is the best by {options.primary}, paired over "
        f"{ranking.comparison.prompts} {'shared prompts' if ranking.comparison.basis == 'shared' else 'prompts'}."
    )


def _teachers(ranking: Ranking) -> Table:
    primary = ranking.options.primary
    headers = ("teacher", "rows", "refused", "prompts", "tokens", "correct", primary, "best")
    table = new_table(f"Teachers by {primary} ({ranking.better})", *headers)
    for line in ranking.lines:
        table.add_row(
            plain(line.teacher),
            str(line.rows),
            str(line.rows - line.scored),
            str(line.prompts),
            number(line.mean_length),
            share(line.share_correct),
            number(line.metrics[primary].value),
            share(line.probability_best),
        )
    return table


def _values(ranking: Ranking, names: Sequence[str]) -> Table:
    table = new_table("", "teacher", *names)
    for line in ranking.lines:
        table.add_row(plain(line.teacher), *(_estimate(line, name) for name in names))
    return table


def _estimate(line: TeacherLine, name: str) -> str:
    each: IntervalEstimate = line.metrics[name]
    ends = "" if each.low is None else f"\n[{number(each.low)}, {number(each.high)}]"
    return number(each.value) + ends


def correlation_table(correlations: Sequence[Correlation]) -> Table:
    """Correlations with the score after training, one line per student and metric."""
    headers = ("student", "metric", "n", "Spearman", "Pearson", "Kendall", "agreement")
    table = new_table("Correlation with the score after training (agreement > 0: the metric predicts it)", *headers)
    for line in correlations:
        table.add_row(
            plain(line.student),
            plain(line.metric),
            str(line.teachers),
            _with_ends(line.spearman, line.spearman_interval),
            _with_ends(line.pearson, line.pearson_interval),
            _with_ends(line.kendall, line.kendall_interval),
            _signed(line.agreement),
        )
    return table


def _with_ends(value: float | None, ends: tuple[float, float] | None) -> str:
    return _signed(value) + ("" if ends is None else f"\n[{ends[0]:+.2f}, {ends[1]:+.2f}]")


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.3f}"


def refusals(ranking: Ranking) -> list[Text]:
    """One line per teacher with refused rows: how many, and why."""
    return [
        plain(f"{line.teacher}: refused " + ", ".join(f"{rows} {status}" for status, rows in line.refused.items()))
        for line in ranking.lines
        if line.refused
    ]


def metric_list(metrics: Iterable[Metric]) -> Iterator[RenderableType]:
    """Metrics as paragraphs: a line of facts each, then its meaning, what it reads and its source."""
    for metric in metrics:
        facts = f"{metric.name}  ({metric.direction} is better; {metric.unit or 'no unit'})"
        yield Text(facts, style="bold")
        for line in (metric.meaning, f"reads {', '.join(metric.columns)}", f"source: {metric.source}"):
            yield Padding(Text(line), (0, 0, 0, 4))


def report_tables(report: Report) -> Iterator[RenderableType]:
    """A whole report, top to bottom."""
    for each in report.students:
        if len(report.students) > 1:
            yield Text(f"Student {plain(each.student or '(unknown)').plain}", style="bold")
        yield from _recommendation(each)
        yield from ranking_tables(each.ranking, report.metrics)
        yield from refusals(each.ranking)
        if each.plan is not None:
            yield ""
            yield from _plan(each.plan)
        yield ""
    if report.correlations:
        yield correlation_table(report.correlations)
    for note in report.notes:
        yield plain(f"note: {note}")


def _recommendation(student: StudentReport) -> Iterator[RenderableType]:
    yield plain(student.recommendation.sentence)
    for caution in student.recommendation.cautions:
        yield plain(f"caution: {caution}")
    yield ""


def _plan(plan: SamplePlan) -> Iterator[RenderableType]:
    yield plain(plan.sentence)
    if plan.separations:
        headers = ("teacher", "leader ahead", "prompts needed", "trajectories", "at worst")
        table = new_table(f"To separate each teacher from {plain(plan.leader or '').plain}", *headers)
        for each in plan.separations:
            needed = (each.prompts, each.trajectories, each.prompts_at_worst)
            table.add_row(plain(each.teacher), share(each.leader_ahead), *(number(value, 12) for value in needed))
        yield table
    if plan.steps:
        steps = new_table("Samples of other sizes, drawn from this one", "prompts", "same leader", "Kendall")
        for step in plan.steps:
            steps.add_row(str(step.prompts), share(step.same_leader), _signed(step.rank_agreement))
        yield steps
