"""Every picture of a report, by name: which numbers it shows, on which axes. The page, `--figures` and `plot` draw these.

| name | shows |
|---|---|
| `ranking` | the metric that ranks with its interval, teacher by teacher |
| `why` | mean clipped rank against mean surprisal: RSR is the slope from the origin |
| `distribution` | quantiles of a metric over each teacher's trajectories |
| `position` | a metric over tenths of the trajectories |
| `phase` | a metric over thinking and answer |
| `plan` | how often simulated samples have the same leader |
| `students` | the metric that ranks, teachers by students |
| `training` | a metric against the score after training |
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from trajscore.display import charts
from trajscore.display.charts import Axis, axis_of
from trajscore.display.formatting import number, visible
from trajscore.display.notebook import picture_name
from trajscore.errors import UsageError, did_you_mean
from trajscore.io.atomic import replacing
from trajscore.metrics import METRICS, Metric
from trajscore.ranking.agreement import Values
from trajscore.ranking.ranking import IntervalEstimate, RankingOptions
from trajscore.ranking.student import StudentReport

Known = Mapping[str, Metric]
"""Metrics by name."""

NAMES = ("ranking", "why", "distribution", "position", "phase", "plan", "students", "training")


SPREAD = ("surprisal", "rank", "length")
"""Metrics whose distribution is drawn, beside the one that ranks."""

POINTS = 20
"""Teachers that the picture of rank and surprisal shows, best first: more would hide one another."""

FORMATS = ("svg", "pdf", "png")


class Numbers(Protocol):
    """What of a `Report` the pictures show."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""

    @property
    def students(self) -> tuple[StudentReport, ...]:
        """One ranking per student."""

    @property
    def values(self) -> Values:
        """Dataset values by student, teacher and metric."""

    @property
    def performance(self) -> dict[str, dict[str, float]]:
        """Scores after training by student and teacher."""

    @property
    def options(self) -> RankingOptions:
        """How the ranking is made."""

    @property
    def known(self) -> Known:
        """Every metric that could be named."""


class Figure(NamedTuple):
    """One picture that a report can draw: its name, and whose and which metric's it is (empty where it has none)."""

    name: str
    student: str
    metric: str


def axis_label(name: str, known: Known = METRICS) -> str:
    """A metric's name with its unit, as an axis bears it.

    >>> axis_label("rsr"), axis_label("rank"), axis_label("a column of yours")
    ('rsr (1/nats)', 'rank (no unit)', 'a column of yours (unit as in the table)')
    """
    if name not in known:
        return f"{visible(name)} (unit as in the table)"
    return f"{name} ({known[name].unit or 'no unit'})"


def figures(report: Numbers) -> Iterator[Figure]:
    """Every picture that this report has numbers for."""
    for each in report.students:
        whose, primary = each.student or "", each.ranking.options.primary
        followed = list(dict.fromkeys(part.metric for part in each.positions))
        drawn = [name for name in dict.fromkeys((primary, *SPREAD)) if name in report.metrics]
        wanted = [("ranking", primary), ("why", ""), *(("distribution", name) for name in drawn)]
        wanted += [(name, metric) for name in ("position", "phase") for metric in followed] + [("plan", "")]
        for name, metric in wanted:
            if draw(report, name, each, metric) is not None:
                yield Figure(name, whose, metric)
    if draw(report, "students", None, "") is not None:
        yield Figure("students", "", "")
    for student in report.performance:
        for metric in report.metrics:
            if _training(report, student, metric, charts.WIDE) is not None:
                yield Figure("training", student, metric)


def plot(
    report: Numbers, name: str | None, student: str | None = None, metric: str | None = None, width: int = charts.WIDE
) -> Any:
    """A picture of a report: an Altair chart, which notebooks show and whose `save` writes SVG, PDF, PNG or HTML.

    Args:
        report: the report.
        name: a name in `NAMES`; None for the first.
        student: whose, with several students; the first one's unless given.
        metric: of `distribution`, `position`, `phase` and `training`; the one that ranks unless given.
        width: in pixels.

    Raises:
        UsageError: there is no such picture, student or metric, or the report has no numbers for it.
    """
    name = picture_name(name, NAMES)
    if metric is not None and metric not in report.metrics:
        raise UsageError(f"the report has no metric {metric!r}.", did_you_mean(metric, report.metrics))
    known = list(report.values)
    if student is not None and student not in known:
        raise UsageError(f"the report has no student {student!r}.", did_you_mean(student, known))
    primary = report.options.primary if report.options.primary in report.metrics else report.metrics[0]
    if name == "training":
        drawn = _training(report, student or next(iter(report.performance), ""), metric or primary, width)
    else:
        own = [each for each in report.students if student in (None, each.student)]
        drawn = draw(report, name, own[0] if own else None, metric or primary, width)
    if drawn is None:
        raise UsageError(f"the report has no numbers for the plot {name!r}.", f"It has {', '.join(available(report))}.")
    return drawn


def available(report: Numbers) -> list[str]:
    """Names of the pictures that this report has numbers for."""
    return list(dict.fromkeys(each.name for each in figures(report)))


def draw(report: Numbers, name: str, student: StudentReport | None, metric: str, width: int = charts.WIDE) -> Any:
    """The picture, None where there is nothing to draw."""
    if name == "students":
        return _students(report, width)
    if student is None:
        return None
    if name == "why":
        return _why(student, report, width)
    if name == "plan":
        return _plan(student, width)
    return {"ranking": _ranking, "distribution": _distribution, "position": _position, "phase": _phase}[name](
        student, metric, report.known, width
    )


def _ranking(student: StudentReport, metric: str, known: Known, width: int) -> Any:
    # Those that are drawn, so that the axis is theirs.
    lines = student.ranking.lines[: charts.MOST_ROWS]
    rows: list[dict[str, Any]] = [{"name": line.teacher, **_ends(line.metrics[metric])} for line in lines]
    axis = axis_of((row[end] for row in rows for end in ("value", "low", "high")), axis_label(metric, known))
    title = f"{metric} of each teacher with its interval; the numbers are in the table of teachers"
    return None if axis is None else charts.intervals(rows, axis, title, width)


def _ends(each: IntervalEstimate) -> dict[str, float | None]:
    return {"value": each.value, "low": each.low, "high": each.high}


def _why(student: StudentReport, report: Numbers, width: int) -> Any:
    if not {"rank", "surprisal"} <= set(report.metrics):
        return None
    rows: list[dict[str, Any]] = []
    for place, line in enumerate(student.ranking.lines[:POINTS], 1):
        x, y = line.metrics["surprisal"], line.metrics["rank"]
        if x.value and y.value:
            row = {"name": line.teacher, "label": str(place), "x": x.value, "y": y.value}
            rows.append(row | {"x_low": x.low, "x_high": x.high, "y_low": y.low, "y_high": y.high})
    across = axis_of(_all(rows, "x"), axis_label("surprisal"), log=True)
    upwards = axis_of(_all(rows, "y"), axis_label("rank"), log=True)
    if across is None or upwards is None or not (across.log and upwards.log):
        return None
    ratios = sorted(row["y"] / row["x"] for row in rows)
    rays = Axis(ratios[0] / 1.05, ratios[-1] * 1.05, "", log=True).ticks
    title = "mean rank against mean surprisal of each teacher, on logarithmic axes; the numbers are in the table of teachers"
    return charts.scatter(rows, across, upwards, title, rays, width)


def _all(rows: Sequence[Mapping[str, Any]], side: str) -> list[float]:
    return [row[name] for row in rows for name in (side, f"{side}_low", f"{side}_high") if row[name] is not None]


def _distribution(student: StudentReport, metric: str, known: Known, width: int) -> Any:
    names = ("q5", "q25", "q50", "q75", "q95")
    own = [each for each in student.distributions if each.metric == metric and each.quantiles][: charts.MOST_ROWS]
    rows: list[dict[str, Any]] = [
        {"name": each.teacher, **dict(zip(names, each.quantiles, strict=True))} for each in own
    ]
    axis = axis_of((row[name] for row in rows for name in names), axis_label(metric, known))
    title = f"{metric} over each teacher's trajectories: 5, 25, 50, 75 and 95 % quantiles"
    return None if axis is None else charts.boxes(rows, axis, title, width)


def _position(student: StudentReport, metric: str, known: Known, width: int) -> Any:
    order = {line.teacher: place for place, line in enumerate(student.ranking.lines)}
    first = {line.teacher for line in student.ranking.lines[: charts.MOST_PANELS]}
    followed = (each for each in student.positions if each.metric == metric and each.teacher in first)
    own = sorted(followed, key=lambda each: order[each.teacher])
    rows: list[dict[str, Any]] = [{"name": each.teacher, "x": int(each.part), "y": each.value} for each in own]
    axis = axis_of((row["y"] for row in rows), axis_label(metric, known))
    if axis is None:
        return None
    title = f"{metric} over ten parts of each trajectory; the numbers are in the table below"
    return charts.small_lines(
        rows, Axis(1, 10, "position in the trajectory (tenths of its tokens)", whole=True), axis, title, width
    )


def _phase(student: StudentReport, metric: str, known: Known, width: int) -> Any:
    by = {(each.teacher, each.part): each.value for each in student.phases if each.metric == metric}
    teachers = [line.teacher for line in student.ranking.lines if (line.teacher, "answer") in by][: charts.MOST_ROWS]
    rows: list[dict[str, Any]] = [
        {"name": name, **{part: by[name, part] for part in ("thinking", "answer")}} for name in teachers
    ]
    axis = axis_of((row[part] for row in rows for part in ("thinking", "answer")), axis_label(metric, known))
    if axis is None or all(row["thinking"] is None for row in rows):
        return None
    title = f"{metric} over the tokens of the thinking and of the answer, teacher by teacher"
    return charts.two_dots(rows, ("thinking", "answer"), axis, title, width)


def _plan(student: StudentReport, width: int) -> Any:
    """The share of simulated samples with the same leader, by size."""
    if student.plan is None or not student.plan.steps:
        return None
    rows: list[dict[str, Any]] = [
        {"name": f"{step.prompts} prompts", "label": "", "x": step.prompts, "y": 100 * step.same_leader}
        for step in student.plan.steps
    ]
    x = axis_of((row["x"] for row in rows), "prompts (number)", log=True)
    title = "share of simulated samples with the same leader, by number of prompts; the numbers are in the table below"
    y = Axis(0, 105, "samples with the same leader (%)")
    return None if x is None else charts.scatter(rows, x, y, title, (), width, 240)


def _students(report: Numbers, width: int) -> Any:
    found = matrix(report)
    if found is None:
        return None
    rows: list[dict[str, Any]] = [
        {"name": teacher, "series": student, "text": number(cell["value"], 3), "shade": cell["shade"]}
        for teacher, cells in found["rows"][: charts.MOST_ROWS]
        for student, cell in zip(found["students"], cells, strict=True)
    ]
    title = f"{found['metric']} of each teacher for each student; darker is better"
    return charts.heat(rows, found["students"], title, width)


def matrix(report: Numbers) -> dict[str, Any] | None:
    """Teachers x students by the metric that ranks; `shade`: place among the student's teachers, 1 the best.

    None where that metric has no direction.
    """
    if len(report.values) < 2 or not report.metrics:
        return None
    primary = report.options.primary if report.options.primary in report.metrics else report.metrics[0]
    if primary in report.known and report.known[primary].direction is None:
        return None
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


def _training(report: Numbers, student: str, metric: str, width: int) -> Any:
    scores = report.performance.get(student, {})
    rows: list[dict[str, Any]] = [
        {"name": teacher, "label": str(place), "x": x, "y": scores[teacher]}
        for place, teacher in enumerate(sorted(scores), 1)
        if (x := report.values[student][teacher].get(metric)) is not None
    ]
    x_axis = axis_of((row["x"] for row in rows), axis_label(metric, report.known))
    y_axis = axis_of((row["y"] for row in rows), "score after training (unit of your file)")
    if len(rows) < 2 or x_axis is None or y_axis is None:
        return None
    title = f"{metric} against the score after training; the numbers are in the table below"
    return charts.scatter(rows, x_axis, y_axis, title, (), width, 260)


def save_figures(report: Numbers, folder: Path) -> list[Path]:
    """Write every picture of a report, named after what it shows, as SVG, PDF and PNG.

    Raises:
        TrajscoreError: a file cannot be written.
    """
    written = []
    several = len(report.values) > 1
    for name, student, metric in figures(report):
        parts = [name, *([metric] if metric else []), *([student] if several and student else [])]
        stem = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts)
        chart = plot(report, name, student or None, metric or None)
        for suffix in FORMATS:
            path = folder / f"{stem}.{suffix}"
            with replacing(path) as temporary:
                chart.save(temporary, format=suffix)
            written.append(path)
    return written
