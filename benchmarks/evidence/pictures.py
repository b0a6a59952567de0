"""The pictures of the experiment, drawn from stored records: teachers by RSR, what was learnt, whether RSR tells it."""

from __future__ import annotations

import itertools
from typing import Any

import altair as alt

from benchmarks.evidence import design
from benchmarks.evidence.tables import (
    RANDOM,
    Stored,
    mean_accuracy,
    pool_teachers,
    pool_value,
    share_correct,
    share_solved,
)
from trajscore.display.charts import BLUE, GREY, ORANGE, WIDE

RIGHT = 0.9
"""Teachers with a smaller share of right answers are marked."""

REPEATED = 0.1
"""Teachers whose mean share of repeated n-grams is larger are marked."""


def teachers(found: Stored) -> Any:
    """RSR of every teacher in the pool of the lowest seed, with its interval; wrong and repeating ones are marked."""
    if not found.pools:
        return None
    rows = []
    for name, teacher in found.pools[min(found.pools)]["teachers"].items():
        value, low, high = teacher["metrics"]["rsr"]
        right, repeated = teacher["share_correct"], teacher["metrics"]["repeated_ngram_ratio"][0]
        said = f"{right:.0%} right" if right < RIGHT else "repeats itself" if repeated > REPEATED else ""
        rows.append({"teacher": name, "rsr": value, "low": low, "high": high, "said": said})
    rows.sort(key=lambda row: row["rsr"])
    colour = alt.condition("datum.said == ''", alt.value(BLUE), alt.value(ORANGE))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("teacher:N", sort=[row["teacher"] for row in rows], title=None), color=colour
    )
    axis = alt.Axis(title="RSR, 1/nats (lower is said to be better); orange: often wrong, or repeating")
    line = base.mark_rule(strokeWidth=2, opacity=0.7).encode(
        x=alt.X("low:Q", axis=axis, scale=alt.Scale(zero=False)), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=70, opacity=1).encode(x="rsr:Q")
    words = base.mark_text(align="left", dx=8).encode(x="high:Q", text="said:N")
    return alt.layer(line, dot, words).properties(width=WIDE - 180, height=24 * len(rows))


def learnt(found: Stored) -> Any:
    """Solved problems against tokens: random's curve, and beside it every policy at its tokens; bars are 95 % intervals."""
    rows: list[dict[str, Any]] = []
    for arm in design.CORE:
        by_seed = found.runs.get(arm.name, {})
        if not by_seed or arm.budget is None:
            continue
        mean = share_solved(by_seed)
        kind = "random" if arm.name in RANDOM else arm.name
        ends = (
            {"low": None, "high": None} if mean.low is None else {"low": 100 * mean.low, "high": 100 * (mean.high or 0)}
        )
        # Policies have the same tokens: a step aside each, or they would hide one another.
        aside = 1.0 if kind == "random" else 1.04 ** (1 + len({row["policy"] for row in rows} - {"random"}))
        rows.append({"policy": kind, "tokens": arm.budget * aside, "solved": 100 * mean.value, **ends})
    if not rows:
        return None
    x = alt.X(
        "tokens:Q",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(title="tokens chosen", values=list(design.RANDOM_BUDGETS)),
    )
    y = alt.Y("solved:Q", axis=alt.Axis(title="held-out problems solved, %"))
    is_random, chart = "datum.policy == 'random'", alt.Chart(alt.InlineData(values=rows))
    curve = (
        chart.transform_filter(is_random)
        .mark_line(color=GREY, point=alt.OverlayMarkDef(color=GREY, size=60))
        .encode(x=x, y=y)
    )
    others = [row["policy"] for row in rows if row["policy"] != "random"]
    dots = chart.transform_filter(f"!({is_random})").mark_point(filled=True, size=80, opacity=1).encode(
        x=x, y=y, color=alt.Color("policy:N", sort=others, title=None)
    )  # fmt: skip
    bars = (
        chart.transform_filter(f"{is_random} && datum.low != null")
        .mark_rule(color=GREY)
        .encode(x=x, y="low:Q", y2="high:Q")
    )
    return alt.layer(bars, curve, dots).properties(width=WIDE - 200, height=280)


def predicted(found: Stored) -> Any:
    """What training on each teacher alone gave, against its RSR before; those that are often wrong are marked."""
    rows: list[dict[str, Any]] = [
        {
            "teacher": name,
            "rsr": pool_value(found, name, "rsr"),
            "solved": 100 * mean_accuracy(found.runs[f"teacher-{name}"]),
            "wrong": share_correct(found, name) < RIGHT,
        }
        for name in pool_teachers(found)
        if found.runs.get(f"teacher-{name}")
    ]
    if not rows:
        return None
    for row, following in itertools.pairwise(rows):  # a name that would lie on its neighbour's stands on the other side
        row["left"] = abs(row["solved"] - following["solved"]) < 3 and following["rsr"] < 1.1 * row["rsr"]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "rsr:Q",
            scale=alt.Scale(type="log", nice=False, padding=40),
            axis=alt.Axis(
                title="RSR before training, 1/nats (lower is said to be better)", values=[2, 2.5, 3, 4, 5, 6, 8]
            ),
        ),
        y=alt.Y("solved:Q", axis=alt.Axis(title="solved after training on it alone, %")),
        color=alt.condition("datum.wrong", alt.value(ORANGE), alt.value(BLUE)),
    )
    names = base.encode(text="teacher:N")
    before = names.transform_filter("datum.left").mark_text(align="right", dx=-8)
    after = names.transform_filter("!datum.left").mark_text(align="left", dx=8)
    dots = base.mark_point(filled=True, size=70, opacity=1)
    return alt.layer(dots, before, after).properties(width=WIDE - 120, height=320)


def wrong_leaders(found: Stored) -> list[str]:
    """Teachers that are often wrong and have a lower RSR than some teacher that never is."""
    pool = found.pools[min(found.pools)]["teachers"]
    right = [teacher["metrics"]["rsr"][0] for name, teacher in pool.items() if share_correct(found, name) == 1]
    return [
        name
        for name, teacher in pool.items()
        if teacher["share_correct"] < RIGHT and teacher["metrics"]["rsr"][0] < max(right)
    ]
