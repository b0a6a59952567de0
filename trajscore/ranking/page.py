"""The report as one HTML page: what is drawn, in which order.

The page holds no script and loads nothing: its content security policy forbids both. Every chart is a table, or stands
beside one, so that nothing is shown in pictures alone. Text of data sets is escaped by jinja2 and by `charts`, and its control
characters are shown as such (`visible`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from markupsafe import Markup

from trajscore.display import charts
from trajscore.display.charts import Point, Scale
from trajscore.display.formatting import NONE, number, share, visible
from trajscore.display.pages import environment
from trajscore.metrics import METRICS, Metric
from trajscore.ranking.agreement import MEAN
from trajscore.ranking.profiles import PartValue
from trajscore.ranking.ranking import IntervalEstimate
from trajscore.ranking.result import Report, StudentReport

Known = Mapping[str, Metric]
"""Metrics by name."""


def render(report: Report) -> str:
    """The page.

    >>> from trajscore.ranking.report import report
    >>> import polars as pl
    >>> rows = pl.LazyFrame({"id": ["a"], "prompt_id": ["p"], "teacher": ["<b>"], "status": ["ok"], "n_tokens": [7]})
    >>> "<b>" in render(report(rows)), "&lt;b&gt;" in render(report(rows))
    (False, True)
    """
    template = environment().get_template("report.html.j2")
    return template.render(
        report=report,
        students=[_student_view(each, report, place) for place, each in enumerate(report.students)],
        matrix=_matrix(report),
        scatters=_scatters(report),
        means_first=sorted(report.correlations, key=lambda line: line.student != MEAN),
        headers={name: axis_label(name, report.known) for name in report.metrics},
        directions={name: report.known[name].direction for name in report.metrics if name in report.known},
        meanings={name: report.known[name].meaning for name in report.metrics if name in report.known},
    )


def axis_label(name: str, known: Known = METRICS) -> str:
    """A metric's name with its unit, as an axis bears it.

    >>> axis_label("rsr"), axis_label("rank"), axis_label("a column of yours")
    ('rsr (1/nats)', 'rank (no unit)', 'a column of yours (unit as in the table)')
    """
    if name not in known:
        return f"{visible(name)} (unit as in the table)"
    return f"{name} ({known[name].unit or 'no unit'})"


@dataclass(frozen=True)
class Row:
    """One row of a chart that is a table: whose, the drawing, and the number beside it."""

    name: str
    mark: Markup
    text: str


@dataclass(frozen=True)
class RowChart:
    """Rows of marks above one axis."""

    metric: str
    rows: list[Row]
    axis: Markup
    columns: tuple[str, ...] = ()


def _student_view(student: StudentReport, report: Report, place: int) -> dict[str, Any]:
    primary = student.ranking.options.primary
    return {
        "report": student,
        "primary": primary,
        "intervals": _intervals(student, primary, report.known),
        "parts": parts_chart(student) if primary == "rsr" and {"rank", "surprisal"} <= set(report.metrics) else None,
        "distributions": [chart for name in report.metrics if (chart := _distribution(student, name, report.known))],
        "positions": _positions(student, place, report.known),
        "phases": _phases(student, report.known),
        "has_phases": any(each.value is not None for each in student.phases),
        "pairs": _pair_matrices(student, report.metrics),
        "plan": _plan_chart(student),
        "provenance": [visible(line) for line in _json(student.provenance).split("\n")],
    }


def _json(value: dict[str, Any]) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _intervals(student: StudentReport, primary: str, known: Known) -> RowChart | None:
    lines = [(line.teacher, line.metrics[primary]) for line in student.ranking.lines]
    scale = charts.scale_of(
        (end for _, each in lines for end in (each.value, each.low, each.high)), axis_label(primary, known)
    )
    if scale is None:
        return None
    rows = [
        Row(name, charts.interval_mark(scale, each.value, each.low, each.high), _ends(each.value, each.low, each.high))
        for name, each in lines
    ]
    return RowChart(primary, rows, charts.axis(scale))


def _ends(value: float | None, low: float | None, high: float | None) -> str:
    return number(value, 3) + ("" if low is None else f" [{number(low, 3)}, {number(high, 3)}]")


def parts_chart(student: StudentReport) -> Markup | None:
    """Mean clipped rank against mean surprisal: RSR is the slope from the origin."""
    points, across, upwards = [], [], []
    for place, line in enumerate(student.ranking.lines, 1):
        x, y = line.metrics["surprisal"], line.metrics["rank"]
        if x.value and y.value:
            title = f"{visible(line.teacher)}: surprisal {number(x.value)}, rank {number(y.value)}"
            points.append(Point(str(place), title, x.value, y.value, _both_ends(x), _both_ends(y)))
            across += [x.value, *(_both_ends(x) or ())]
            upwards += [y.value, *(_both_ends(y) or ())]
    if not points or min(across + upwards) <= 0:
        return None
    ratios = sorted(point.y / point.x for point in points)
    return charts.scatter(
        points,
        _log_scale(across, axis_label("surprisal")),
        _log_scale(upwards, axis_label("rank")),
        "mean rank against mean surprisal of each teacher, on logarithmic axes; the numbers are in the table of teachers",
        rays=Scale(ratios[0] / 1.5, ratios[-1] * 1.5, "", log=True).ticks,
    )


def _both_ends(each: IntervalEstimate) -> tuple[float, float] | None:
    return None if each.low is None or each.high is None else (each.low, each.high)


def _log_scale(values: Sequence[float], label: str) -> Scale:
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.08, 1.05)
    return Scale(low / margin, high * margin, label, log=True)


def _distribution(student: StudentReport, metric: str, known: Known) -> RowChart | None:
    own = [each for each in student.distributions if each.metric == metric]
    scale = charts.scale_of((end for each in own for end in each.quantiles), axis_label(metric, known))
    if scale is None:
        return None
    rows = [
        Row(e.teacher, charts.box_mark(scale, e.quantiles), number(e.quantiles[2], 3) if e.rows else NONE) for e in own
    ]
    return RowChart(metric, rows, charts.axis(scale))


def _positions(student: StudentReport, place: int, known: Known) -> list[dict[str, Any]]:
    found = []
    for order, metric in enumerate(_metrics_of(student.positions)):
        own = [each for each in student.positions if each.metric == metric]
        scale = charts.scale_of((each.value for each in own), axis_label(metric, known), zero=True)
        if scale is None:
            continue
        lines = [
            (line.teacher, [each.value for each in own if each.teacher == line.teacher])
            for line in student.ranking.lines
        ]
        panels = charts.small_lines(f"lines-{place}-{order}", lines, scale)
        found.append(
            {"metric": metric, "label": axis_label(metric, known), "scale": scale, "panels": panels, "lines": lines}
        )
    return found


def _metrics_of(values: Iterable[PartValue]) -> list[str]:
    return list(dict.fromkeys(each.metric for each in values))


def _phases(student: StudentReport, known: Known) -> list[RowChart]:
    found = []
    for metric in _metrics_of(student.phases):
        by = {(each.teacher, each.part): each.value for each in student.phases if each.metric == metric}
        scale = charts.scale_of(by.values(), axis_label(metric, known))
        if scale is None or all(by[line.teacher, "thinking"] is None for line in student.ranking.lines):
            continue
        rows = []
        for line in student.ranking.lines:
            first, second = by[line.teacher, "thinking"], by[line.teacher, "answer"]
            rows.append(
                Row(line.teacher, charts.two_dots(scale, first, second), f"{number(first, 3)} / {number(second, 3)}")
            )
        found.append(RowChart(metric, rows, charts.axis(scale)))
    return found


def _pair_matrices(student: StudentReport, metrics: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for what in ("over_teachers", "over_trajectories"):
        values = {(p.left, p.right): getattr(p, what) for p in student.pairs}
        if any(value is not None for value in values.values()):
            rows = [(row, [_pair(values, row, column) for column in metrics]) for row in metrics]
            found.append({"title": what.replace("over_", ""), "rows": rows})
    return found


def _pair(values: dict[tuple[str, str], float | None], row: str, column: str) -> float | None:
    return None if row == column else values.get((row, column), values.get((column, row)))


def _plan_chart(student: StudentReport) -> Markup | None:
    """The share of simulated samples with the same leader, by size."""
    if student.plan is None or not student.plan.steps:
        return None
    steps = student.plan.steps
    x = _log_scale([step.prompts for step in steps], "prompts (number)")
    points = [Point("", f"{s.prompts} prompts: {share(s.same_leader)}", s.prompts, 100 * s.same_leader) for s in steps]
    title = "share of simulated samples with the same leader, by number of prompts; the numbers are in the table below"
    return charts.scatter(points, x, Scale(0, 105, "samples with the same leader (%)"), title, height=220)


def _matrix(report: Report) -> dict[str, Any] | None:
    """Teachers x students by the metric that ranks; shade: place among the student's teachers."""
    if len(report.values) < 2 or not report.metrics:
        return None
    primary = report.options.primary if report.options.primary in report.metrics else report.metrics[0]
    lower = primary not in report.known or report.known[primary].direction == "lower"
    teachers = list(dict.fromkeys(teacher for each in report.values.values() for teacher in each))
    places = {}
    for student, own in report.values.items():
        known = sorted((v if lower else -v, t) for t, row in own.items() if (v := row.get(primary)) is not None)
        places[student] = {teacher: place for place, (_, teacher) in enumerate(known, 1)}
    rows = []
    for teacher in teachers:
        cells = []
        for student, own in report.values.items():
            place = places[student].get(teacher)
            shade = 0 if place is None else 1 - (place - 1) / max(len(places[student]) - 1, 1)
            cells.append({"value": own.get(teacher, {}).get(primary), "place": place, "shade": round(shade, 2)})
        rows.append((teacher, cells))
    return {"metric": primary, "students": list(report.values), "rows": rows}


def _scatters(report: Report) -> list[dict[str, Any]]:
    """Per student: a metric's dataset values against the scores after training."""
    found = []
    for student, scores in report.performance.items():
        names = sorted(scores)
        drawings = []
        for metric in report.metrics:
            pairs = [(n, report.values[student][t].get(metric), scores[t], t) for n, t in enumerate(names, 1)]
            points = [
                Point(str(n), f"{visible(t)}: {metric} {number(x)}, score {number(y)}", x, y)
                for n, x, y, t in pairs
                if x is not None
            ]
            x_scale = charts.scale_of((p.x for p in points), axis_label(metric, report.known))
            y_scale = charts.scale_of((p.y for p in points), "score after training (unit of your file)")
            if len(points) > 1 and x_scale and y_scale:
                title = f"{metric} against the score after training; the numbers are in the table below"
                drawings.append((metric, charts.scatter(points, x_scale, y_scale, title, height=220)))
        rows = [
            (n, t, scores[t], [report.values[student][t].get(m) for m in report.metrics])
            for n, t in enumerate(names, 1)
        ]
        found.append({"student": student, "drawings": drawings, "rows": rows})
    return found
