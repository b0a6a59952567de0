"""The inline SVG of the report page: marks, axes, scatter plots and small lines.

Horizontal places are in percent of the drawing and text is never scaled, so that one drawing fits a phone and a laptop.
Colours are classes of the page's style sheet. Text goes through `escape`: labels come from data sets. Charts draw the
values that they are given and nothing else; a value that is undefined is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from trajscore.display.formatting import number

_ROW = 24
_LOG_FROM = 20.0
_TICKS = 5


@dataclass(frozen=True)
class Scale:
    """An axis: the range of values that it shows.

    Attributes:
        low: the value at its start.
        high: the value at its end, larger than `low`.
        label: what it shows, with the unit.
        log: whether equal distances are equal factors.
    """

    low: float
    high: float
    label: str
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, in percent.

        >>> Scale(1, 100, "rank", log=True).place(10), Scale(0, 4, "nats").place(1)
        (50.0, 25.0)
        """
        low, high, each = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return round(100 * (each - low) / (high - low), 2)

    @property
    def ticks(self) -> list[float]:
        """A few round values inside the range, at least one.

        >>> Scale(0.2, 9.1, "nats").ticks, Scale(0.9, 120, "rank", log=True).ticks
        ([2.0, 4.0, 6.0, 8.0], [1.0, 3.0, 10.0, 30.0, 100.0])
        """
        found = _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)
        return found or [self.low]


def scale_of(values: Iterable[float | None], label: str, zero: bool = False) -> Scale | None:
    """A scale that holds all values with a margin; logarithmic where they span more than a factor of 20; None without any.

    Args:
        values: the values; None is left out.
        label: what they are, with the unit.
        zero: start at 0 where all values are positive and the axis is not logarithmic.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    if low > 0 and high / low > _LOG_FROM:
        margin = (high / low) ** 0.05
        return Scale(low / margin, high * margin, label, log=True)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(0.0 if zero and low >= 0 else low - margin, high + margin, label)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough)
    return [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [round(step * 10.0**power, 12) for power in powers for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) <= _TICKS:
            return found
    return found[:: math.ceil(len(found) / _TICKS)]


def _svg(inner: str, height: int, title: str, css: str) -> Markup:
    # The text is complete and escaped by its makers below.
    return Markup('<svg class="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        css,
        height,
        title,
        Markup(inner),  # noqa: S704
    )


def _line(x1: float, y1: str, x2: float, y2: str, css: str) -> str:
    return f'<line class="{css}" x1="{x1}%" y1="{y1}" x2="{x2}%" y2="{y2}"/>'


def _grid(scale: Scale, height: int) -> str:
    return "".join(_line(scale.place(tick), "0", scale.place(tick), str(height), "grid") for tick in scale.ticks)


def interval_mark(scale: Scale, value: float | None, low: float | None, high: float | None) -> Markup:
    """A dot with its interval, for one row of a table."""
    inner = _grid(scale, _ROW)
    if low is not None and high is not None:
        inner += _line(scale.place(low), "50%", scale.place(high), "50%", "whisker")
    if value is not None:
        inner += f'<circle class="dot" cx="{scale.place(value)}%" cy="50%" r="4.5"/>'
    ends = f", interval {number(low)} to {number(high)}" if low is not None else ""
    return _svg(inner, _ROW, f"{number(value)}{ends}", "row")


def box_mark(scale: Scale, quantiles: Sequence[float]) -> Markup:
    """Five quantiles: a line from the first to the last, a box from the second to the fourth, a bar at the middle one."""
    inner, title = _grid(scale, _ROW), "no value"
    if quantiles:
        first, second, middle, fourth, last = (scale.place(each) for each in quantiles)
        inner += _line(first, "50%", last, "50%", "whisker")
        inner += f'<rect class="box" x="{second}%" y="6" width="{round(fourth - second, 2)}%" height="{_ROW - 12}"/>'
        inner += _line(middle, "4", middle, str(_ROW - 4), "middle")
        title = "quantiles " + ", ".join(number(each) for each in quantiles)
    return _svg(inner, _ROW, title, "row")


def two_dots(scale: Scale, first: float | None, second: float | None) -> Markup:
    """Two values of one row: the first hollow, the second filled, a line between them."""
    inner = _grid(scale, _ROW)
    if first is not None and second is not None:
        inner += _line(scale.place(first), "50%", scale.place(second), "50%", "whisker")
    for value, css in ((first, "dot hollow"), (second, "dot")):
        if value is not None:
            inner += f'<circle class="{css}" cx="{scale.place(value)}%" cy="50%" r="4.5"/>'
    return _svg(inner, _ROW, f"{number(first)} and {number(second)}", "row")


def axis(scale: Scale) -> Markup:
    """Tick labels and the axis' name, below rows of marks."""
    inner = "".join(
        f'<text class="tick" x="{scale.place(tick)}%" y="14" text-anchor="{_anchor(scale.place(tick))}">{_tick(tick)}</text>'
        for tick in scale.ticks
    )
    inner += f'<text class="name" x="50%" y="32" text-anchor="middle">{escape(_axis_name(scale))}</text>'
    return _svg(inner, 38, f"axis: {_axis_name(scale)}", "row axis")


def _axis_name(scale: Scale) -> str:
    return f"{scale.label}, log scale" if scale.log else scale.label


def _anchor(place: float) -> str:
    return "start" if place < 4 else "end" if place > 96 else "middle"


def _tick(value: float) -> str:
    return f"{value:,.10g}"


@dataclass(frozen=True)
class Point:
    """A labelled point of a scatter plot, with intervals where they are known."""

    label: str
    title: str
    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None


def scatter(
    points: Sequence[Point], x: Scale, y: Scale, title: str, rays: Sequence[float] = (), height: int = 320
) -> Markup:
    """Points with labels inside.

    Args:
        points: what is drawn.
        x: the horizontal axis.
        y: the vertical axis.
        title: what the chart shows, for who cannot see it.
        rays: guides y = ray * x, drawn where both axes have the same kind of scale.
        height: height of the plot in pixels, without its axis.
    """
    inner = _grid(x, height)
    for tick in y.ticks:
        up = 100 - y.place(tick)
        inner += _line(0, f"{up}%", 100, f"{up}%", "grid")
        inner += f'<text class="tick" x="-8" y="{up}%" dy="4" text-anchor="end">{_tick(tick)}</text>'
    inner += "".join(_ray(each, x, y) for each in rays)
    for point in points:
        inner += _whiskers(point, x, y)
    for point in points:
        left, up, size = x.place(point.x), 100 - y.place(point.y), 10 if point.label else 5
        inner += (
            f'<g><title>{escape(point.title)}</title><circle class="mark" cx="{left}%" cy="{up}%" r="{size}"/>'
            f'<text class="in" x="{left}%" y="{up}%" dy="4" text-anchor="middle">{escape(point.label)}</text></g>'
        )
    name = escape(_axis_name(y))
    plot = _svg(inner, height, title, "plot")
    return Markup('<div class="scatter"><div class="yname">{}</div>{}{}</div>').format(name, plot, axis(x))


def _whiskers(point: Point, x: Scale, y: Scale) -> str:
    left, up = x.place(point.x), 100 - y.place(point.y)
    drawn = ""
    if point.x_ends is not None:
        start, stop = (x.place(end) for end in point.x_ends)
        drawn += _line(start, f"{up}%", stop, f"{up}%", "whisker")
    if point.y_ends is not None:
        start, stop = (100 - y.place(end) for end in point.y_ends)
        drawn += _line(left, f"{start}%", left, f"{stop}%", "whisker")
    return drawn


def _ray(slope: float, x: Scale, y: Scale) -> str:
    """The part of y = slope * x that lies inside the plot, with its slope at the end; nothing if it passes outside."""
    low, high = max(x.low, y.low / slope), min(x.high, y.high / slope)
    if low >= high or x.log != y.log:
        return ""
    ends = [(x.place(each), 100 - y.place(slope * each)) for each in (low, high)]
    (x1, y1), (x2, y2) = ends
    label = f'<text class="guide" x="{x2}%" y="{y2}%" dx="-4" dy="12" text-anchor="end">{_tick(slope)}</text>'
    return _line(x1, f"{y1}%", x2, f"{y2}%", "ray") + label


def small_lines(
    name: str, lines: Sequence[tuple[str, Sequence[float | None]]], scale: Scale
) -> list[tuple[str, Markup]]:
    """One small drawing per line: itself, with all the others in grey behind it.

    Args:
        name: an id for the grey lines, unique in the page and of letters only.
        lines: label and equally spaced values.
        scale: the vertical axis of all.

    Returns:
        Label and drawing, in order.
    """
    shapes = [_polylines(values, scale) for _, values in lines]
    behind = "".join(f'<polyline class="behind" points="{run}"/>' for runs in shapes for run in runs)
    drawings = []
    for number_, ((label, values), runs) in enumerate(zip(lines, shapes, strict=True)):
        others = f'<g id="{name}">{behind}</g>' if number_ == 0 else f'<use href="#{name}"/>'
        own = "".join(f'<polyline class="own" points="{run}"/>' for run in runs)
        title = "values " + ", ".join(number(value) for value in values)
        opening = (
            '<svg class="small" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        )
        drawings.append((label, Markup(opening).format(title, Markup(others + own))))  # noqa: S704
    return drawings


def _polylines(values: Sequence[float | None], scale: Scale) -> list[str]:
    """Runs of defined values as the points of polylines; a single value is a short dash."""
    step = 100 / max(len(values) - 1, 1)
    runs: list[list[str]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{round(index * step, 1)},{round(100 - scale.place(value), 1)}")
    return [" ".join(run if len(run) > 1 else [run[0], run[0]]) for run in runs if run]
