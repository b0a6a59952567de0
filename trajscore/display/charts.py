"""Charts of everything that is shown as a picture, drawn by Altair: rows with intervals, boxes, scatter plots, lines, areas.

Every function takes plain rows (mappings with names and numbers) and gives an Altair chart, which notebooks show and whose
`save` writes SVG, PDF, PNG or HTML. `to_svg` turns one into the static SVG of a page: no script, text in the page's colour,
and each mark bears its values as a title, which browsers show on hover. Colours are those of Okabe and Ito, which people who
confuse red and green can tell apart, on light and dark grounds alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from trajscore.display.formatting import visible

if TYPE_CHECKING:
    import altair as alt

Rows = Sequence[Mapping[str, Any]]

WIDE, NARROW = 680, 340
"""Widths in pixels of a page's two drawings of each chart: for a laptop and for a phone."""

MOST_ROWS = 40
"""Rows that a chart shows; more would be a grey wall. Tables show all."""

MOST_PANELS = 12
"""Panels of small lines."""

BLUE, ORANGE, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#8a8f98"

_LOG_FROM = 20.0
_TICKS = 6
_ROW = 24
_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Axis:
    """What an axis shows: a range of values, what they are, and round values at which it has ticks.

    Attributes:
        low: the value at its start.
        high: the value at its end, larger than `low`.
        label: what it shows, with the unit.
        log: whether equal distances are equal factors.
        whole: whether its values are whole numbers, and so its ticks.
    """

    low: float
    high: float
    label: str
    log: bool = False
    whole: bool = False

    @property
    def ticks(self) -> list[float]:
        """At least three round values inside the range, as far as whole numbers allow.

        >>> Axis(0.2, 9.1, "nats").ticks, Axis(2.6, 4, "rsr", log=True).ticks, Axis(0.9, 120, "rank", log=True).ticks
        ([2.0, 4.0, 6.0, 8.0], [2.75, 3.0, 3.25, 3.5, 3.75, 4.0], [1.0, 3.0, 10.0, 30.0, 100.0])
        """
        found = _log_ticks(self.low, self.high) if self.log else []
        # A log axis over less than a decade has too few powers: there it is nearly linear, and linear ticks are rounder.
        found = found if len(found) > 2 else _linear_ticks(self.low, self.high)
        return [tick for tick in found if tick.is_integer()] if self.whole else found

    @property
    def title(self) -> str:
        """The label, and that the axis is logarithmic."""
        return f"{self.label}, log scale" if self.log else self.label


def axis_of(values: Iterable[float | None], label: str, zero: bool = False, log: bool | None = None) -> Axis | None:
    """An axis that holds all values with a margin; None without any.

    Args:
        values: the values; None and what is not finite are left out.
        label: what they are, with the unit.
        zero: start at 0 where no value is negative and the axis is not logarithmic.
        log: whether it is logarithmic, as far as all values are positive; None: where they span more than a factor of 20.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    if low > 0 and (high / low > _LOG_FROM if log is None else log):
        margin = max((high / low) ** 0.05, 1.02)
        return Axis(low / margin, high * margin, label, log=True)
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(0.0 if zero and low >= 0 else low - margin, high + margin, label)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough)
    return [float(f"{index * step:.9g}") for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [float(f"{step * 10.0**power:.9g}") for power in powers for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) <= _TICKS:
            return found
    return found[:: math.ceil(len(found) / _TICKS)]


def _encoded(axis: Axis) -> dict[str, Any]:
    """Scale, axis and title of a channel, as mappings: Altair's own objects have dozens of unset fields that it copies again
    and again.
    """
    # A linear scale gets a type, too: a default one may start at zero.
    scale = {"type": "log" if axis.log else "linear", "domain": [axis.low, axis.high], "nice": False, "zero": False}
    return {"scale": scale, "axis": {"values": axis.ticks, "format": ".6~g", "grid": True}, "title": axis.title}


def _names(rows: Rows, width: int) -> Any:
    import altair as alt

    limit, letters = (200, 30) if width > NARROW else (150, 22)
    # Each name has a row of its own: whether names overlap need not be found out, letter by letter.
    shown = {
        "labelLimit": limit,
        "labelExpr": _without_middle(letters),
        "labelOverlap": False,
        "ticks": False,
        "domain": False,
        "grid": False,
    }
    return alt.Y("name:N", sort=[row["name"] for row in rows], title=None, axis=shown)


def _without_middle(letters: int) -> str:
    """The expression of a label that loses its middle where it does not fit: names often differ at their end."""
    start, end = f"slice(datum.label, 0, {letters // 3})", f"slice(datum.label, {letters // 3 + 1 - letters})"
    return f"length(datum.label) > {letters} ? {start} + '…' + {end} : datum.label"


def _tooltip(fields: Mapping[str, str]) -> list[Any]:
    import altair as alt

    return [
        alt.Tooltip(f"{field}:{'N' if field in ('name', 'series') else 'Q'}", title=title)
        for field, title in fields.items()
    ]


def _chart(rows: Rows) -> Any:
    """A chart of these rows, without marks yet."""
    import altair as alt

    # As text: Altair copies lists and mappings, value by value, whenever charts are put together.
    return alt.Chart(alt.InlineData(values=json.dumps(list(rows)), format=alt.JsonDataFormat(type="json")))


def _shown(name: object) -> str:
    """A name with control characters as escapes and, where it is very long, without its middle: the renderer measures every
    letter of a name again and again until it fits.
    """
    text = visible(str(name))
    return text if len(text) <= 80 else f"{text[:60]}…{text[-19:]}"


def _cut(rows: Rows) -> list[dict[str, Any]]:
    """The rows that fit, with names that do."""
    return [{**row, "name": _shown(row["name"])} for row in rows[:MOST_ROWS]]


def _finished(chart: Any, title: str, longest: int = 0, guided: bool = False) -> alt.Chart:
    """The chart with the look of all charts; `longest` is the number of letters of the longest name beside it, and `guided`
    says that values of guides stand right of the plot and above it.
    """
    quiet = {"labelColor": "currentColor", "titleColor": "currentColor", "gridColor": GREY, "gridOpacity": 0.3}
    finished: alt.Chart = chart.properties(description=title).configure(
        background="transparent",
        font="sans-serif",
        padding=_padding(longest, guided),
        view={"stroke": None},
        axis={"titleFontWeight": "normal", **quiet, "labelFontSize": 12, "titleFontSize": 12, "domainColor": GREY},
        legend={
            "labelColor": "currentColor",
            "titleColor": "currentColor",
            "labelFontSize": 12,
            "orient": "top",
            "title": None,
        },
        title={"color": "currentColor", "fontSize": 12, "fontWeight": "normal", "anchor": "start", "limit": 170},
        text={"color": "currentColor", "fontSize": 11},
    )
    # Copies that Altair makes keep the class. Its own way of setting attributes would take the class for one of the chart's.
    kind: Any = type(finished)
    object.__setattr__(finished, "__class__", _offline(kind))
    return finished


@cache
def _offline(kind: Any) -> Any:
    """The class of a chart whose `save` puts everything into an HTML file; Altair's own names scripts of another server."""

    def save(chart: Any, fp: Any, format: str | None = None, **settings: Any) -> None:
        html = format == "html" or (format is None and str(fp).endswith(".html"))
        kind.save(chart, fp, format, **({"inline": True} if html else {}) | settings)

    return type(kind.__name__, (kind,), {"save": save, "__doc__": kind.__doc__})


def _padding(longest: int, guided: bool) -> dict[str, int]:
    # The renderer measures names with a font of its own, which is narrower than that of many browsers.
    return {"left": 2 + min(2 * longest, 40), "right": 36 if guided else 8, "top": 18 if guided else 4, "bottom": 2}


def _longest(rows: Rows) -> int:
    return max((len(str(row["name"])) for row in rows), default=0)


def _fit(chart: Any, width: int, height: int) -> Any:
    import altair as alt

    return chart.properties(width=width, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))


def _height(rows: Rows) -> int:
    return _ROW * len(rows) + 46


def intervals(rows: Rows, axis: Axis, title: str, width: int = WIDE) -> alt.Chart:
    """A dot with its interval for each row.

    Args:
        rows: `name`, `value`, `low`, `high`; numbers may be None.
        axis: of the values.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    rows = _cut(rows)
    tooltip = _tooltip({"name": "name", "value": axis.label, "low": "from", "high": "to"})
    base = _chart(rows).encode(y=_names(rows, width), tooltip=tooltip)
    line = base.mark_rule(color=BLUE, strokeWidth=2, opacity=0.7).encode(
        x=alt.X("low:Q", **_encoded(axis)), x2="high:Q"
    )
    dot = base.mark_point(color=BLUE, filled=True, size=70, opacity=1).encode(x=alt.X("value:Q", **_encoded(axis)))
    return _finished(_fit(alt.layer(line, dot), width, _height(rows)), title, _longest(rows))


def boxes(rows: Rows, axis: Axis, title: str, width: int = WIDE) -> alt.Chart:
    """Five quantiles of each row: a line from the first to the last, a box from the second to the fourth, a bar in the middle.

    Args:
        rows: `name` and `q5`, `q25`, `q50`, `q75`, `q95`.
        axis: of the values.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    rows = _cut(rows)
    tooltip = _tooltip({"name": "name", "q5": "5 %", "q25": "25 %", "q50": "median", "q75": "75 %", "q95": "95 %"})
    base = _chart(rows).encode(y=_names(rows, width), tooltip=tooltip)
    whisker = base.mark_rule(color=BLUE, strokeWidth=2, opacity=0.7).encode(
        x=alt.X("q5:Q", **_encoded(axis)), x2="q95:Q"
    )
    box = base.mark_bar(color=BLUE, opacity=0.45, size=12).encode(x=alt.X("q25:Q", **_encoded(axis)), x2="q75:Q")
    middle = base.mark_tick(color="currentColor", thickness=2, size=16).encode(x=alt.X("q50:Q", **_encoded(axis)))
    return _finished(_fit(alt.layer(whisker, box, middle), width, _height(rows)), title, _longest(rows))


def two_dots(rows: Rows, series: tuple[str, str], axis: Axis, title: str, width: int = WIDE) -> alt.Chart:
    """Two values of each row, with a line between them.

    Args:
        rows: `name` and one number per name in `series`; numbers may be None.
        series: names of the two values.
        axis: of the values.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    rows = _cut(rows)
    spread = [{"name": row["name"], "series": each, "value": row[each]} for row in rows for each in series]
    ends = [{"name": row["name"], "first": row[series[0]], "second": row[series[1]]} for row in rows]
    y = _names(rows, width)
    line = _chart(ends).mark_rule(color=GREY).encode(y=y, x=alt.X("first:Q", **_encoded(axis)), x2="second:Q")
    dots = (
        _chart(spread)
        .mark_point(filled=True, size=70, opacity=1)
        .encode(
            y=y,
            x=alt.X("value:Q", **_encoded(axis)),
            color=alt.Color("series:N", scale=alt.Scale(domain=list(series), range=[BLUE, ORANGE])),
            shape=alt.Shape("series:N", scale=alt.Scale(domain=list(series), range=["circle", "diamond"])),
            tooltip=_tooltip({"name": "name", "series": "part", "value": axis.label}),
        )
    )
    return _finished(_fit(alt.layer(line, dots), width, _height(rows) + 24), title, _longest(rows))


def scatter(
    rows: Rows, x: Axis, y: Axis, title: str, rays: Sequence[float] = (), width: int = WIDE, height: int = 380
) -> alt.Chart:
    """Points with a number inside each.

    Args:
        rows: `name`, `label` (the text inside, may be empty), `x`, `y`; and `x_low`, `x_high`, `y_low`, `y_high`, all of which
            may be None.
        x: the horizontal axis.
        y: the vertical axis.
        title: what the chart shows, for who cannot see it.
        rays: guides y = ray * x, on axes of the same kind, with their slope at the end.
        width: of the whole chart, in pixels.
        height: of the whole chart, in pixels.
    """
    import altair as alt

    rows = _cut(rows)
    encode_x, encode_y = _encoded(x), _encoded(y)
    tooltip = _tooltip({"name": "name", "x": x.label, "y": y.label})
    base = _chart(rows).encode(tooltip=tooltip)
    layers = []
    guides = [guide for ray in rays if (guide := _guide(ray, x, y))]
    if guides:
        ends = [{"ray": f"{ray:g}", "x": px, "y": py} for ray, pair in guides for px, py in pair]
        lines = _chart(ends).encode(x=alt.X("x:Q", **encode_x), y=alt.Y("y:Q", **encode_y))
        layers.append(lines.mark_line(strokeDash=[3, 4], color=GREY, strokeWidth=1).encode(detail="ray:N"))
        # Outside the plot, where no point hides them: beside a guide that ends at the right, above one that ends at the top.
        beside, above = {"align": "left", "dx": 4}, {"align": "center", "dy": -8}
        for at_top, place in ((False, beside), (True, above)):
            chosen = [(ray, pair[1]) for ray, pair in guides if (pair[1][0] < x.high * (1 - 1e-9)) == at_top]
            values = [{"ray": f"{ray:g}", "x": px, "y": py} for ray, (px, py) in chosen]
            text = _chart(values).mark_text(baseline="middle", opacity=0.8, **place)
            layers.append(text.encode(x=alt.X("x:Q", **encode_x), y=alt.Y("y:Q", **encode_y), text="ray:N"))
    across = base.mark_rule(color=BLUE, opacity=0.6, strokeWidth=2)
    if any(row.get("x_low") is not None for row in rows):
        layers.append(across.encode(x=alt.X("x_low:Q", **encode_x), x2="x_high:Q", y=alt.Y("y:Q", **encode_y)))
    if any(row.get("y_low") is not None for row in rows):
        layers.append(across.encode(x=alt.X("x:Q", **encode_x), y=alt.Y("y_low:Q", **encode_y), y2="y_high:Q"))
    placed = base.encode(x=alt.X("x:Q", **encode_x), y=alt.Y("y:Q", **encode_y))
    labelled = any(row.get("label") for row in rows)
    layers.append(placed.mark_point(filled=True, color=BLUE, size=330 if labelled else 60, opacity=1))
    if labelled:
        layers.append(placed.mark_text(color="white", fontWeight="bold").encode(text="label:N"))
    return _finished(_fit(alt.layer(*layers), width, height), title, guided=bool(guides))


def _guide(slope: float, x: Axis, y: Axis) -> tuple[float, list[tuple[float, float]]] | None:
    """The ends of the part of y = slope * x that lies inside the plot; None if it passes outside."""
    low, high = max(x.low, y.low / slope), min(x.high, y.high / slope)
    if low >= high or x.log != y.log:
        return None
    return slope, [(low, slope * low), (high, slope * high)]


def small_lines(rows: Rows, x: Axis, y: Axis, title: str, width: int = WIDE) -> alt.Chart:
    """One small panel per name: its own line in colour, before all the others in grey.

    Args:
        rows: `name`, `x`, `y` (may be None), in the order of the panels.
        x: the horizontal axis.
        y: the vertical axis, the same in every panel.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    names = list(dict.fromkeys(row["name"] for row in rows))[:MOST_PANELS]
    kept = [{**row, "name": _shown(row["name"])} for row in rows if row["name"] in names]
    columns = 4 if width > NARROW else 2
    inner = (width - 46) // columns - 34
    encode_x, encode_y = _encoded(x), _encoded(y)
    for each in (encode_x, encode_y):
        each["title"] = None
        each["axis"] |= {"labelFontSize": 10, "labelOverlap": False}
    shared = {"x": alt.X("x:Q", **encode_x), "y": alt.Y("y:Q", **encode_y)}
    every = _chart(kept)
    # A layer with data of its own is the same in every panel: all lines, told apart by a field that does not make the panels.
    grey = every.transform_calculate(other="datum.name").mark_line(color=GREY, opacity=0.35, strokeWidth=1)
    tooltip = _tooltip({"name": "name", "x": x.label, "y": y.label})
    line = alt.Chart().mark_line(color=BLUE, strokeWidth=2.5).encode(**shared)
    dots = alt.Chart().mark_point(color=BLUE, filled=True, size=14, opacity=1).encode(**shared, tooltip=tooltip)
    layered = alt.layer(grey.encode(**shared, detail="other:N"), line, dots).properties(width=inner, height=84)
    header: dict[str, Any] = {
        "labelColor": "currentColor",
        "labelFontSize": 12,
        "labelAnchor": "start",
        "labelLimit": 170,
    }
    header["labelExpr"] = _without_middle(24 if width > NARROW else 20)
    panel = alt.Facet("name:N", sort=list(map(_shown, names)), title=None, header={**header, "labelPadding": 4})
    panels = layered.facet(facet=panel, data=every.data, columns=columns)
    panels = panels.resolve_axis(x="independent", y="independent").properties(spacing=14)
    return _finished(panels, title)


def stacked_area(rows: Rows, colours: Mapping[str, str], x: Axis, y: Axis, title: str, width: int = WIDE) -> alt.Chart:
    """Shares that add up to one, as areas over a horizontal axis.

    Args:
        rows: `series`, `x`, `y`.
        colours: the series with their colours, the lowest area first.
        x: the horizontal axis.
        y: the vertical axis.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    order = {name: place for place, name in enumerate(colours)}
    data = [{**row, "order": order[row["series"]]} for row in rows]
    chart = (
        _chart(data)
        .mark_area(opacity=0.8, interpolate="linear")
        .encode(
            x=alt.X("x:Q", **_encoded(x)),
            y=alt.Y("y:Q", stack="zero", **_encoded(y)),
            color=alt.Color("series:N", scale=alt.Scale(domain=list(colours), range=list(colours.values()))),
            order="order:Q",
            tooltip=_tooltip({"series": "class", "x": x.label, "y": y.label}),
        )
    )
    return _finished(_fit(chart, width, 220), title)


def bars(rows: Rows, axis: Axis, title: str, width: int = WIDE) -> alt.Chart:
    """Horizontal bars from zero, with intervals where they are known.

    Args:
        rows: `name`, `value`, `low`, `high`; the last two may be None.
        axis: of the values; begins at 0.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    rows = _cut(rows)
    tooltip = _tooltip({"name": "name", "value": axis.label, "low": "from", "high": "to"})
    base = _chart(rows).encode(y=_names(rows, width), tooltip=tooltip)
    bar = base.mark_bar(color=BLUE, size=14).encode(x=alt.X("value:Q", **_encoded(axis)))
    line = base.mark_rule(color="currentColor", strokeWidth=1.5).encode(x=alt.X("low:Q", **_encoded(axis)), x2="high:Q")
    return _finished(_fit(alt.layer(bar, line), width, _height(rows)), title, _longest(rows))


def heat(rows: Rows, columns: Sequence[str], title: str, width: int = WIDE) -> alt.Chart:
    """A table of numbers with a shade behind each.

    Args:
        rows: `name`, `series` (the column), `text`, `shade` (0 to 1, or None).
        columns: the columns in order.
        title: what the chart shows, for who cannot see it.
        width: of the whole chart, in pixels.
    """
    import altair as alt

    names = list(dict.fromkeys(_shown(row["name"]) for row in rows))
    data = [{**row, "name": _shown(row["name"]), "series": _shown(row["series"])} for row in rows]
    order = [{"name": name} for name in names]
    across = alt.Axis(
        orient="top", labelAngle=-30 if len(columns) > 4 else 0, domain=False, ticks=False, labelLimit=160
    )
    base = _chart(data).encode(
        y=_names(order, width), x=alt.X("series:N", sort=list(map(_shown, columns)), title=None, axis=across)
    )
    shade = alt.Scale(domain=[0, 1], range=[0, 0.55])
    box = base.mark_rect(color=BLUE).encode(opacity=alt.Opacity("shade:Q", scale=shade, legend=None))
    return _finished(
        _fit(alt.layer(box, base.mark_text().encode(text="text:N")), width, _ROW * len(names) + 70),
        title,
        _longest(order),
    )


_DROPPED = ("role", "aria-roledescription", "aria-hidden", "aria-label", "pointer-events")


def to_svg(chart: alt.Chart, css: str = "figure") -> Markup:
    """The chart as static SVG for a page: as wide as its place, in the colours of the page's text, values as titles.

    Args:
        chart: a chart of this file.
        css: its classes.

    >>> drawn = to_svg(intervals([{"name": "<b>", "value": 3.0, "low": 2.8, "high": 3.2}], Axis(2.6, 4, "rsr"), "rsr"))
    >>> "&lt;b&gt;" in drawn, "<b>" in drawn, "<title>" in drawn
    (True, False, True)
    """
    import vl_convert

    spec = chart.to_dict(validate=False)
    drawn = vl_convert.vegalite_to_svg(spec)
    root = ElementTree.fromstring(drawn)  # noqa: S314 - what vl-convert just made
    title = str(spec.get("description", ""))
    for element in root.iter():
        label = element.get("aria-label")
        is_mark = element.get("role") == "graphics-symbol" and element.get("aria-roledescription") != "axis"
        for name in _DROPPED:
            element.attrib.pop(name, None)
        if label and is_mark and element.tag != f"{{{_SVG}}}g":
            ElementTree.SubElement(element, f"{{{_SVG}}}title").text = visible(label)
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    root.attrib.update({"class": css, "role": "img", "aria-label": title, "preserveAspectRatio": "xMinYMin meet"})
    root.set("style", f"max-width: {root.get('width')}px")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - made of escaped text by ElementTree


def svg_file(chart: alt.Chart) -> str:
    """The chart as the text of an SVG file of its own."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def both_widths(wide: alt.Chart, narrow: alt.Chart) -> Markup:
    """A chart for laptops and for phones; the page's style sheet shows one of them."""
    return Markup("{}{}").format(to_svg(wide, "figure wide"), to_svg(narrow, "figure narrow"))
