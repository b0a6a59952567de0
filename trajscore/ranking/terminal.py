"""What `report` and `list metrics` print.

Names come from data sets and are shown as they are: always `Text`, never markup, and control characters made visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trajscore.display.formatting import NONE, number, share
from trajscore.display.terminal import new_table, plain
from trajscore.estimates.sample_size import SamplePlan
from trajscore.metrics import Metric
from trajscore.ranking.agreement import MEAN, Correlation
from trajscore.ranking.diversity import ALL, Diversity
from trajscore.ranking.items import Items
from trajscore.ranking.ranking import IntervalEstimate, Ranking, TeacherLine
from trajscore.ranking.result import Report

_METRICS_PER_TABLE = 3
_TEACHERS = 20
_SUSPECTS = 10


def ranking_tables(ranking: Ranking, metrics: Sequence[str], every: bool = False) -> Iterator[RenderableType]:
    """The ranking as one table: teacher, best, the metric that ranks with its interval, correct, rows.

    Args:
        ranking: the ranking.
        metrics: the report's metrics.
        every: all metrics, too, in further tables of a few columns, so that each fits 80 columns.
    """
    options = ranking.options
    yield _teachers(ranking)
    if len(ranking.lines) > _TEACHERS:
        yield Text(f"... and {len(ranking.lines) - _TEACHERS:,} more: --csv or --out has all")
    for start in range(0, len(metrics) if every else 0, _METRICS_PER_TABLE):
        yield ""
        yield _values(ranking, metrics[start : start + _METRICS_PER_TABLE])
    found = ranking.comparison
    shared = f"{found.prompts:,} {'shared prompts' if found.basis == 'shared' else 'prompts'}"
    yield Text(
        f"{ranking.prompts:,} prompts, {ranking.shared_prompts:,} shared by all. [ ]: {100 * options.confidence:g}% interval, "
        f"{options.replicates:,} replicates over prompts, seed {options.seed}. best: probability to be the best, on "
        f"{'the prompts that its group shares' if len(ranking.groups) > 1 else shared}.",
        style="dim",
    )


def _teachers(ranking: Ranking) -> Table:
    primary = ranking.options.primary
    grouped = len(ranking.groups) > 1
    groups = {name: str(place) for place, names in enumerate(ranking.groups, 1) for name in names}
    headers = ["teacher", "best", primary, "interval", "correct", "rows", *(["group"] if grouped else [])]
    table = new_table(f"Teachers by {primary} ({ranking.better})", *headers, one_line=True)
    for line in ranking.lines[:_TEACHERS]:
        each = line.metrics[primary]
        ends = NONE if each.low is None else f"[{number(each.low, 3)}, {number(each.high, 3)}]"
        cells = [share(line.probability_best), number(each.value), ends, share(line.share_correct), str(line.rows)]
        table.add_row(_in_one_line(line.teacher), *cells, *([groups[line.teacher]] if grouped else []))
    return table


def _in_one_line(name: str) -> Text:
    """A name that may end in an ellipsis: the page and the CSV have all of it."""
    text = plain(name)
    text.no_wrap = True
    return text


def _values(ranking: Ranking, names: Sequence[str]) -> Table:
    table = new_table("", "teacher", *names)
    for line in ranking.lines:
        table.add_row(plain(line.teacher), *(_estimate(line, name) for name in names))
    return table


def _estimate(line: TeacherLine, name: str) -> str:
    each: IntervalEstimate = line.metrics[name]
    ends = "" if each.low is None else f"\n[{number(each.low)}, {number(each.high)}]"
    return number(each.value) + ends


def correlation_tables(correlations: Sequence[Correlation]) -> Iterator[RenderableType]:
    """Correlations with the score after training, one line per metric, the best first: of several students their mean."""
    means = [line for line in correlations if line.student == MEAN]
    lines = sorted(
        means or correlations, key=lambda line: -math.inf if line.agreement is None else line.agreement, reverse=True
    )
    over = f"{lines[0].teachers} students' mean" if means else f"{lines[0].teachers} teachers"
    title = f"Correlation with the score after training, {over}; agrees > 0: the metric predicts it"
    headers = ("metric", "Spearman", "interval", "Pearson", "Kendall", "agrees")
    table = new_table(title, *headers, one_line=True)
    for line in lines[:_TEACHERS]:
        ends = line.spearman_interval
        values = (
            _signed(line.spearman),
            NONE if ends is None else f"[{ends[0]:+.2f}, {ends[1]:+.2f}]",
            *(_signed(value) for value in (line.pearson, line.kendall, line.agreement)),
        )
        table.add_row(_in_one_line(line.metric), *values)
    yield table
    if len(lines) > _TEACHERS:
        yield Text(f"... and {len(lines) - _TEACHERS:,} more metrics: --out or --tidy has all")
    if means:
        yield Text("Each student by itself: --out, --tidy or --json.", style="dim")


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.3f}"


def refusals(ranking: Ranking) -> Iterator[Text]:
    """How many rows of which teachers were refused, and why: at most four lines."""
    refused = [line for line in ranking.lines if line.refused]
    for line in refused[:3]:
        reasons = ", ".join(f"{rows} {status}" for status, rows in line.refused.items())
        yield plain(f"{line.teacher}: refused {reasons}")
    if len(refused) > 3:
        yield Text(f"refused rows of {len(refused) - 3} more teachers: {sum(x.rows - x.scored for x in refused[3:])}")


def metric_list(metrics: Iterable[Metric]) -> Iterator[RenderableType]:
    """Metrics as paragraphs: a line of facts each, then its meaning, what it reads and its source."""
    for metric in metrics:
        facts = f"{metric.name}  ({metric.better}; {metric.unit or 'no unit'})"
        yield Text(facts, style="bold")
        parameters = (each.sentence for each in metric.parameters)
        for line in (metric.meaning, f"reads {', '.join(metric.columns)}", *parameters, f"source: {metric.source}"):
            yield Padding(Text(line), (0, 0, 0, 4))


def report_tables(report: Report, every: bool = False) -> Iterator[RenderableType]:
    """A whole report, top to bottom: what is to be read first stands last, where the prompt leaves it.

    Args:
        report: the report.
        every: all metrics, not only the one that ranks.
    """
    for each in report.students:
        if len(report.students) > 1:
            yield Text(f"Student {plain(each.student or '(unknown)').plain}", style="bold")
        yield from ranking_tables(each.ranking, report.metrics, every)
        yield from refusals(each.ranking)
        if each.plan is not None:
            yield ""
            yield from _plan(each.plan)
        if each.diversity:
            yield ""
            yield diversity_table([line for line in each.diversity if line.part == ALL])
        if each.items is not None:
            yield ""
            yield from item_tables(each.items)
        yield ""
    if report.correlations:
        yield from correlation_tables(report.correlations)
        if report.best_predictor:
            yield plain(report.best_predictor)
    for note in report.notes:
        yield plain(f"note: {note}")
    for each in report.students:
        for caution in each.recommendation.cautions:
            yield plain(f"caution: {caution}")
        yield Text(plain(each.recommendation.sentence).plain, style="bold")


def diversity_table(lines: Sequence[Diversity]) -> Table:
    """How much the samples of each teacher for one prompt differ, means over its prompts."""
    table = new_table(
        "Samples of one prompt", "teacher", "rows", "distinct 4-grams", "distinct answers", "near duplicates"
    )
    for line in lines:
        values = (line.distinct_ngrams, line.distinct_answers, line.near_duplicates)
        table.add_row(plain(line.teacher), str(line.rows), *(share(value) for value in values))
    return table


def item_tables(items: Items) -> Iterator[RenderableType]:
    """Abilities of the teachers, and the most suspect prompts."""
    if items.undefined:
        yield plain(f"Item response: undefined, {items.undefined}.")
        return
    table = new_table(
        "Item response: log-odds on a middling prompt",
        "teacher",
        "ability",
        "interval",
        "correct",
        "rows",
    )
    for line in items.abilities[:_TEACHERS]:
        ends = NONE if line.low is None else f"[{number(line.low, 3)}, {number(line.high, 3)}]"
        table.add_row(plain(line.teacher), number(line.ability, 3), ends, share(line.correct), str(line.rows))
    yield table
    suspect = [each for each in items.items if each.suspect]
    if suspect:
        prompts = new_table(
            f"{len(suspect)} of {len(items.items)} prompts rank the teachers in reverse: wrong labels?",
            *("prompt", "probability", "discrimination", "correct", "rows"),
        )
        for each in suspect[:_SUSPECTS]:
            values = (share(each.negative), number(each.discrimination, 3), share(each.correct), str(each.rows))
            prompts.add_row(plain(each.part), *values)
        yield prompts
        if len(suspect) > _SUSPECTS:
            yield Text(f"... and {len(suspect) - _SUSPECTS:,} more: --tidy or --json has all")
    else:
        yield plain(f"None of {len(items.items)} prompts ranks the teachers in reverse for sure.")
    for note in items.notes:
        yield plain(f"note: {note}.")


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
