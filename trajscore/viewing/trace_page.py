"""The page of `trace --out FILE.html`: totals, profile along the response, and text coloured by class.

Texts and names come from data sets: every one is escaped, control characters are made visible, and marks that turn the
direction of writing end with their sentence. The page loads nothing, and says so to the browser.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import polars as pl
from markupsafe import Markup

from trajscore.display import charts
from trajscore.display.pages import environment
from trajscore.metrics.sentence_classes import MEANINGS

COLOURS = {
    **dict.fromkeys(("common", "shared"), charts.GREY),
    **{"teacher": charts.BLUE, "student": charts.ORANGE, "boosted": charts.PURPLE},
}
"""The colour of each class."""

POSITIONS = 100
"""Sentence indices that the page's profile shows."""

_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"} | {
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
}


def pictured(text: str | None) -> str:
    """Text with control characters as pictures of themselves; line breaks and tabs stay.

    >>> pictured("a\\x1b[2J\\n")
    'a␛[2J\\n'
    """
    return "" if text is None else text.replace("\r\n", "\n").translate(_CONTROLS)


def trace_page(summary: Mapping[str, Any], sentences: pl.DataFrame) -> str:
    """The page.

    Args:
        summary: what `Tracing.to_dict` gives.
        sentences: lines of `Tracing.frame` of the trajectories to show, with `text`.
    """
    templates = environment()
    # Line breaks stay: whole texts are shown, not names.
    templates.filters["pictured"] = pictured
    lines = sentences.to_dicts()
    profile = [line for line in summary["profile"] if line["sentence"] < POSITIONS]
    groups = [(group, list(rows)) for group, rows in groupby(profile, key=itemgetter("group"))]
    return templates.get_template("trace.html.j2").render(
        summary=summary,
        classes=[name for name in summary["classes"] if name != "undefined"],
        meanings=MEANINGS,
        groups=[(group, rows, _profile(rows)) for group, rows in groups],
        positions=POSITIONS,
        longest=max((line["sentence"] + 1 for line in summary["profile"]), default=0),
        trajectories=[(first, list(rows)) for first, rows in groupby(lines, key=itemgetter("id"))],
    )


def _profile(lines: list[dict[str, Any]]) -> Markup | None:
    """The picture in both widths; None for fewer than two places."""
    wide = profile_chart(lines)
    return None if wide is None else charts.both_widths(wide, profile_chart(lines, charts.NARROW))


def profile_chart(lines: list[dict[str, Any]], width: int = charts.WIDE) -> Any:
    """The share of each class over the places of a response, as areas; None for fewer than two places.

    Args:
        lines: lines of `Tracing.profile` of one group.
        width: of the whole chart, in pixels.
    """
    classes = [name for name in COLOURS if f"share_{name}" in lines[0]]
    rows = [
        {"series": name, "x": line["sentence"] + 1, "y": line[f"share_{name}"]}
        for line in lines[:POSITIONS]
        for name in classes
        if line[f"share_{name}"] is not None
    ]
    places = {row["x"] for row in rows}
    if len(places) < 2:
        return None
    x = charts.Axis(min(places), max(places), "place of the sentence in the response", whole=True)
    title = "share of each class by the sentence's place; the numbers are in the table below"
    colours = {name: COLOURS[name] for name in classes}
    return charts.stacked_area(rows, colours, x, charts.Axis(0, 1, "share of the sentences"), title, width)
