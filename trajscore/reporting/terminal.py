"""Reports and summaries as tables for a terminal of 80 columns. It knows rich and the numbers it is given; no scores.

Names come from data sets and are shown as they are: always `Text`, never markup, and control characters made visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trajscore.metrics import Metric
from trajscore.reporting.agreement import Correlation
from trajscore.reporting.ranking import Estimate, Ranking, TeacherLine

_NONE = "-"
_METRICS_PER_TABLE = 3


def plain(text: str) -> Text:
    """Text of a data set: no markup, and control characters (which could move the cursor) as escapes.

    >>> plain("[bold]a\\x1b[2J").plain
    '[bold]a\\\\x1b[2J'
    """
    return Text("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text))


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits; a dash for None.

    >>> number(2.92512), number(12077.7), number(None)
    ('2.925', '12078', '-')
    """
    if value is None:
        return _NONE
    size = abs(value)
    if size >= 10**digits and size < 1e9:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def share(value: float | None) -> str:
    """A share as percent; a dash for None.

    >>> share(0.855)
    '85.5%'
    """
    return _NONE if value is None else f"{100 * value:.1f}%"


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
        f"{100 * options.confidence:g}% percentile interval, {options.replicates} bootstrap replicates over prompts, "
        f"seed {options.seed}. best: share of replicates in which the teacher is the best by {options.primary}."
    )


def new_table(title: str, *columns: str) -> Table:
    """An empty table: the first column to the left, the others, which hold numbers, to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    return table


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
    each: Estimate = line.metrics[name]
    ends = "" if each.low is None else f"\n[{number(each.low)}, {number(each.high)}]"
    return number(each.value) + ends


def correlation_table(correlations: Sequence[Correlation]) -> Table:
    """Correlations with the score after training, one line per student and metric."""
    headers = ("student", "metric", "n", "Spearman", "Pearson", "agreement")
    table = new_table("Correlation with the score after training (agreement > 0: the metric predicts it)", *headers)
    for line in correlations:
        table.add_row(
            plain(line.student),
            plain(line.metric),
            str(line.teachers),
            _signed(line.spearman),
            _signed(line.pearson),
            _signed(line.agreement),
        )
    return table


def _signed(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.3f}"


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


def report_tables(
    ranking: Ranking | None, metrics: Sequence[str], correlations: Sequence[Correlation], notes: Sequence[str]
) -> Iterator[RenderableType]:
    """A whole report, top to bottom."""
    if ranking is not None:
        yield from ranking_tables(ranking, metrics)
        yield from refusals(ranking)
    if correlations:
        yield ""
        yield correlation_table(correlations)
    for note in notes:
        yield plain(f"note: {note}")


def plain_lines(text: str) -> Text:
    """Several lines of text of a data set: as `plain`, with line breaks kept."""
    return Text("\n").join(plain(line) for line in text.split("\n"))
