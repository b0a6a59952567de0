"""The picture of how far metrics agree over rows: the world below the diagonal, the real student above it."""

from __future__ import annotations

import json
import re
from typing import Any

import altair as alt

from benchmarks.which_metric.tables import compared, over_rows, stored
from trajscore.display.charts import BLUE, ORANGE, svg_file

CELL = 12
STEPS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Agreements, either way, from which on a cell is darker; below the first it is empty."""

_GROUND = (
    "<style>svg { color: #1b2430 } .ground { fill: #ffffff } "
    "@media (prefers-color-scheme: dark) { svg { color: #e6ebf2 } .ground { fill: #1b2430 } }</style>"
    '<rect class="ground" width="100%" height="100%"/>'
)


def agreement() -> str:
    """An SVG that loads nothing: a row and a column for each metric, a mark where two agree."""
    world, real = stored("world"), stored("real")
    names = compared(world, real)
    cells = []
    for down, one in enumerate(names):
        for across, other in enumerate(names):
            value = None if down == across else over_rows(world if down > across else real, one, other)
            if value is not None and abs(value) >= STEPS[0]:
                shade = sum(abs(value) >= least for least in STEPS) / len(STEPS)
                cells.append({"one": one, "other": other, "shade": round(shade**1.5, 2), "same": value > 0})
    axis: dict[str, Any] = {"labelLimit": 200, "labelFontSize": 10, "ticks": False, "domain": False, "grid": False}
    places = alt.Scale(domain=names)
    chart: Any = (
        alt.Chart(alt.InlineData(values=json.dumps(cells), format=alt.JsonDataFormat(type="json")))
        .mark_rect()
        .encode(
            y=alt.Y("one:N", scale=places, title=None, axis=alt.Axis(**axis)),
            x=alt.X("other:N", scale=places, title=None, axis=alt.Axis(orient="top", labelAngle=-90, **axis)),
            color=alt.condition("datum.same", alt.value(BLUE), alt.value(ORANGE)),
            opacity=alt.Opacity("shade:Q", scale=None, legend=None),
        )
    )
    chart = chart.properties(
        width=CELL * len(names),
        height=CELL * len(names),
        description="Spearman's correlation of every two metrics over rows: the shipped world below the diagonal, the real "
        "student above it; blue the same way, orange the other way, the darker the closer",
    ).configure(
        background="transparent",
        font="sans-serif",
        view={"stroke": None},
        axis={"labelColor": "currentColor"},
    )
    return _small(svg_file(chart))


def _small(drawn: str) -> str:
    """Without a label on each of a thousand cells, which the table beside the picture has; on a ground of either kind."""
    drawn = re.sub(r' aria-label="[^"]*" role="graphics-symbol" aria-roledescription="rect mark"', "", drawn)
    return re.sub(r"(<svg[^>]*>)", rf"\1{_GROUND}", drawn, count=1)
