"""What the page "Which metric should I use?" shows: all metrics on scores, how far they agree, and the published correlations.

Agreement is Spearman's, the better end against the better end; of a metric without a direction the higher end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from trajscore.estimates.correlation import spearman
from trajscore.metrics import METRICS, dataset_value, missing_columns
from trajscore.metrics.measure import boolean_correct, measure, on_all_rows
from trajscore.ranking.ranking import with_teachers
from trajscore.schema import OK, flags_for
from trajscore.scores.source import open_scores

ROOT = Path(__file__).parents[2]
STORED = Path(__file__).with_name("stored")
BESIDE = ("rsr", "surprisal", "length")
"""Metrics that every other one is compared with."""

HEADS = (
    *("metric", "over all rows", "best teacher", "its right rows, %", "with being right, rows"),
    *(f"with {name}, {what}" for name in BESIDE for what in ("rows", "teachers")),
)


def measured(folder: str | Path) -> dict[str, Any]:
    """The record of a folder of scores: by metric its values over all rows and by teacher, and what it agrees with."""
    source = open_scores(folder)
    metrics = on_all_rows([each for each in METRICS.values() if not missing_columns(each, source.columns)], source)
    table = with_teachers(measure(source, metrics)).filter(pl.col("status") == OK)
    table = table.with_columns(boolean_correct(table["correct"]).cast(pl.Float64).alias("correct"))
    teachers = table["teacher"].unique().sort().to_list()
    right = {name: fmean(table.filter(teacher=name)["correct"].drop_nulls().to_list()) for name in teachers}
    rows: dict[str, pl.Series] = {}
    by_teacher: dict[str, dict[str, float | None]] = {}
    found: dict[str, Any] = {}
    for each in metrics:
        sign = -1.0 if each.direction == "lower" else 1.0
        terms = (f"{each.name}:numerator", f"{each.name}:denominator")
        rows[each.name] = sign * table[each.name]
        values = {
            name: dataset_value(*(own[term] for term in terms))
            for name in teachers
            for own in (table.filter(teacher=name),)
        }
        by_teacher[each.name] = {name: None if value is None else sign * value for name, value in values.items()}
        found[each.name] = {
            "direction": each.direction,
            "value": dataset_value(*(table[term] for term in terms)),
            "teachers": values,
        }
    for name, record in found.items():
        record["with_correct"] = spearman(rows[name].to_list(), table["correct"].to_list())
        record["over_rows"] = {other: spearman(rows[name].to_list(), rows[other].to_list()) for other in BESIDE}
        record["over_teachers"] = {
            other: spearman([*by_teacher[name].values()], [*by_teacher[other].values()]) for other in BESIDE
        }
    return {"rows": table.height, "correct": right, "metrics": _rounded(found)}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def stored(name: str) -> dict[str, Any]:
    """A record, `world` or `real`."""
    record: dict[str, Any] = json.loads((STORED / f"{name}.json").read_text("utf-8"))
    return record


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per metric that has a value, in the order of the table of metrics."""
    return [_row(name, record) for name in METRICS if record["metrics"].get(name, {}).get("value") is not None]


def without(record: Mapping[str, Any]) -> str:
    """The metrics that have no value there, by name, in a sentence."""
    lacking = ", ".join(f"`{name}`" for name in METRICS if record["metrics"].get(name, {}).get("value") is None)
    return (
        f"Without a value here, because these rows or scores lack what they read: {lacking}."
        if lacking
        else "Every metric has a value here."
    )


def _row(name: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    own = record["metrics"][name]
    best = _best(own)
    agreed = [_signed(own[what][other]) for other in BESIDE for what in ("over_rows", "over_teachers")]
    share = "" if best is None else f"{100 * record['correct'][best]:.0f}"
    value = 0.0 if abs(own["value"]) < 1e-9 else own["value"]  # of z-scores nothing but rounding is left
    named = best or ("no direction" if own["direction"] is None else "several")
    return (f"`{name}`", f"{value:.4g}", named, share, _signed(own["with_correct"]), *agreed)


def _best(own: Mapping[str, Any]) -> str | None:
    """The teacher with the best value, None without a direction, or where several have it."""
    if own["direction"] is None:
        return None
    sign = 1 if own["direction"] == "lower" else -1
    values = {str(name): sign * value for name, value in own["teachers"].items() if value is not None}
    least = [name for name, value in values.items() if value == min(values.values())]
    return least[0] if len(least) == 1 else None


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def by_cost() -> dict[tuple[str, ...], list[str]]:
    """Metrics by what they need, those that need nothing first."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, each in METRICS.items():
        flags = [re.sub(r"(--teacher MODEL --extra) .*", r"\1 NAME", flag) for flag in flags_for(each.columns)]
        found.setdefault(tuple(dict.fromkeys(flags)), []).append(name)
    return dict(sorted(found.items(), key=lambda each: len(each[0])))


def passes(flags: Sequence[str]) -> str:
    """Which models read each text how often."""
    text = " ".join(flags)
    others = [
        (flag, model)
        for flag, model in (("--teacher", "teacher"), ("--align", "teacher"), ("--distilled", "distilled model"))
        if flag in text
    ]
    read = ["student", *(model for _, model in others)]
    if "--unconditional" in text:
        read.append("student again, the response alone")
    if "local:" in text:
        read.append("student again, each sentence after the prompt and the K before it")
    return ", ".join(read)


PUBLISHED_HEADS = ("metric", "mean over the students", "least", "most")


def published_rows() -> list[tuple[str, ...]]:
    """Spearman's correlation over 11 teachers of each published metric with the result after training, of 5 students.

    From the tables of arXiv 2601.14249 that ship in data/published; signs are those of the printed values.
    """
    table = pl.read_csv(ROOT / "data" / "published" / "metrics.csv").join(
        pl.read_csv(ROOT / "data" / "published" / "scores.csv"), on=["student", "teacher"], how="inner"
    )
    names = [name for name in table.columns if name not in ("student", "teacher", "score")]
    found = {}
    for name in names:
        students = table.partition_by("student", maintain_order=True)
        each = [spearman(own[name].to_list(), own["score"].to_list()) for own in students]
        found[name] = [value for value in each if value is not None]
    ordered = sorted(found, key=lambda name: -abs(fmean(found[name])))
    return [
        (f"`{name}`", *(f"{value:+.2f}" for value in (fmean(found[name]), min(found[name]), max(found[name]))))
        for name in ordered
    ]
