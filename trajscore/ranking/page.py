"""The report as one HTML page: what is shown, in which order.

The page loads nothing. Its one script, which its content security policy allows by hash, sorts and filters tables; without it
everything is there all the same. Every chart is a picture of a table beside it, so that nothing is shown in pictures alone.
Text of data sets is escaped by jinja2 and by `charts`, and its control characters are shown as such (`visible`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from markupsafe import Markup, escape

from trajscore.display import charts
from trajscore.display.formatting import visible
from trajscore.display.pages import environment, script
from trajscore.estimates.comparison import MIN_PROMPTS
from trajscore.ranking.agreement import MEAN
from trajscore.ranking.figures import POINTS, SPREAD, axis_label, draw, matrix, plot
from trajscore.ranking.profiles import PartValue
from trajscore.ranking.result import Report
from trajscore.ranking.student import PROFILED, StudentReport

LISTED = 100
"""Teachers in the tables below the first, which has all: a page of thousands would be tens of megabytes."""

_PANELS = 3
"""Scatter plots against the score after training that a student gets on the page: the metrics that agree best."""


def render(report: Report) -> str:
    """The page.

    >>> from trajscore.ranking.report import report
    >>> import polars as pl
    >>> rows = pl.LazyFrame({"id": ["a"], "prompt_id": ["p"], "teacher": ["<b>"], "status": ["ok"], "n_tokens": [7]})
    >>> "<b>" in render(report(rows)), "&lt;b&gt;" in render(report(rows))
    (False, True)
    """
    code, digest = script("table.js")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            students=[_student_view(each, report) for each in report.students],
            matrix=matrix(report),
            scatters=_scatters(report),
            means_first=sorted(report.correlations, key=lambda line: line.student != MEAN),
            headers={name: axis_label(name, report.known) for name in report.metrics},
            better={name: report.known[name].better for name in report.metrics if name in report.known},
            meanings={name: report.known[name].meaning for name in report.metrics if name in report.known},
            script=code,
            digest=digest,
            profiled=PROFILED,
            min_prompts=MIN_PROMPTS,
            panels=charts.MOST_PANELS,
            MEAN=MEAN,
            letters=max(len(visible(name)) for name in (*report.metrics, *_teachers(report))),
        )
    )


def _teachers(report: Report) -> set[str]:
    """Every teacher that a table names."""
    return {name for values in report.values.values() for name in values}


def _student_view(student: StudentReport, report: Report) -> dict[str, Any]:
    primary = student.ranking.options.primary
    followed = _metrics_of(student.positions)
    along: dict[tuple[str, str], list[float | None]] = {}
    for each in student.positions:
        along.setdefault((each.teacher, each.metric), []).append(each.value)
    valued = {name for name in report.metrics if any(x.metrics[name].value is not None for x in student.ranking.lines)}
    return {
        "report": student,
        "sentence": _sentence(student),
        "primary": primary,
        "others": [name for name in report.metrics if name != primary and name in valued],
        "empty": [name for name in report.metrics if name not in valued],
        "has_intervals": any(line.metrics[primary].low is not None for line in student.ranking.lines),
        "has_best": any(line.probability_best is not None for line in student.ranking.lines),
        "intervals": _drawn(report, "ranking", student, primary),
        "parts": _drawn(report, "why", student, "") if primary == "rsr" else None,
        "distribution": _drawn(report, "distribution", student, primary),
        "distributions": [
            (name, charts.to_svg(small))
            for name in SPREAD
            if name in report.metrics and name != primary
            if (small := draw(report, "distribution", student, name, charts.NARROW))
        ],
        "spread": _spread(student, sorted(valued, key=report.metrics.index)),
        "positions": [
            {
                "metric": metric,
                "drawing": _drawn(report, "position", student, metric) if metric == followed[0] else None,
                "lines": [(line.teacher, along[line.teacher, metric]) for line in student.ranking.lines[:LISTED]],
            }
            for metric in followed
        ],
        "phases": next(([(m, drawn)] for m in followed if (drawn := _drawn(report, "phase", student, m))), []),
        "phase_values": _phase_values(student),
        "has_phases": any(each.value is not None for each in student.phases),
        "pairs": _pair_matrices(student, report.metrics),
        "plan": _drawn(report, "plan", student, ""),
        "suspects": [each for each in student.items.items if each.suspect] if student.items else [],
        "provenance": [visible(line) for line in _json(student.provenance).split("\n")],
        "shown": charts.MOST_ROWS,
        "points": POINTS,
        "listed": LISTED,
    }


def _drawn(report: Report, name: str, student: StudentReport, metric: str) -> Markup | None:
    """The picture in both widths, None where there is nothing to draw."""
    wide = draw(report, name, student, metric)
    return None if wide is None else charts.both_widths(wide, draw(report, name, student, metric, charts.NARROW))


def _sentence(student: StudentReport) -> Markup:
    """The recommendation, with the student's name as code where the sentence has it between backticks."""
    name = visible(student.student or "")
    before, found, after = visible(student.recommendation.sentence).partition(f"(`{name}`)")
    return Markup("{}(<code>{}</code>){}").format(before, name, after) if found else escape(before)


def _spread(student: StudentReport, metrics: Sequence[str]) -> list[tuple[str, list[tuple[str, tuple[float, ...]]]]]:
    """Quantiles by metric and teacher."""
    return [
        (name, [(each.teacher, each.quantiles) for each in student.distributions if each.metric == name][:LISTED])
        for name in metrics
    ]


def _phase_values(student: StudentReport) -> list[tuple[str, list[tuple[str, float | None, float | None]]]]:
    by = {(each.metric, each.teacher, each.part): each.value for each in student.phases}
    return [
        (
            m,
            [
                (t, by.get((m, t, "thinking")), by.get((m, t, "answer")))
                for t in (x.teacher for x in student.ranking.lines[:LISTED])
            ],
        )
        for m in _metrics_of(student.phases)
    ]


def _json(value: dict[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _metrics_of(values: Iterable[PartValue]) -> list[str]:
    return list(dict.fromkeys(each.metric for each in values))


def _pair_matrices(student: StudentReport, metrics: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for what in ("over_teachers", "over_trajectories"):
        values = {(p.left, p.right): getattr(p, what) for p in student.pairs}
        shown = [x for x in metrics if any(_pair(values, x, other) is not None for other in metrics)]
        if shown:
            rows = [(row, [_pair(values, row, column) for column in shown]) for row in shown]
            without = [name for name in metrics if name not in shown]
            found.append({"title": what.replace("over_", ""), "rows": rows, "without": without})
    return found


def _pair(values: dict[tuple[str, str], float | None], row: str, column: str) -> float | None:
    return None if row == column else values.get((row, column), values.get((column, row)))


def _scatters(report: Report) -> list[dict[str, Any]]:
    """Per student: the metrics that agree best, drawn against the scores after training, and all values."""
    found = []
    for student, scores in report.performance.items():
        names = sorted(scores)
        agreement = {line.metric: abs(line.spearman or 0.0) for line in report.correlations if line.student == student}
        best = sorted(report.metrics, key=lambda metric: -agreement.get(metric, 0.0))[:_PANELS]
        drawings = []
        for metric in best:
            if sum(report.values[student][name].get(metric) is not None for name in names) > 1:
                chart = plot(report, "training", student, metric, charts.NARROW)
                drawings.append((metric, charts.to_svg(chart)))
        rows = [
            (n, t, scores[t], [report.values[student][t].get(m) for m in report.metrics])
            for n, t in enumerate(names, 1)
        ]
        found.append({"student": student, "drawings": drawings, "rows": rows})
    return found
