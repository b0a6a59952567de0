"""What the page "Which metric should I use?" shows: all metrics on scores, how far they agree, and the published correlations.

Agreement is Spearman's, the better end against the better end; of a metric without a direction the higher end. A record holds
that of every two metrics over rows, once: under the earlier one's name in the order of the record.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
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
"""Metrics that every other one is compared with in the tables."""

BESIDE_STUDENT = {"teacher": "teacher-plain", "distilled": "random-2400"}
"""Which arms of the experiment trained the copies of the real student that stand for a teacher and for a distilled model."""

PROMPTS = 16
"""Of the pool's sixty, a dozen rows each: a row takes two seconds of a processor with three models and every flag."""

ALIKE = 0.95
"""Metrics whose agreement is at least so large, either way, order rows nearly alike."""

HEADS = (
    *("metric", "over all rows", "best teacher", "its right rows, %", "with being right, rows"),
    *(f"with {name}, {what}" for name in BESIDE for what in ("rows", "teachers")),
)


def measured(scores: str | Path | pl.LazyFrame) -> dict[str, Any]:
    """The record of scores: by metric its values over all rows and by teacher, and what it agrees with."""
    source = open_scores(scores)
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
        record["over_teachers"] = {
            other: spearman([*by_teacher[name].values()], [*by_teacher[other].values()]) for other in BESIDE
        }
    agreement = {
        name: {
            other: _rounded(spearman(own.to_numpy(), rows[other].to_numpy()), 4) for other in list(rows)[number + 1 :]
        }
        for number, (name, own) in enumerate(rows.items())
    }
    return {"rows": table.height, "correct": right, "metrics": _rounded(found), "agreement": agreement}


def _rounded(value: Any, digits: int = 6) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each, digits) for key, each in value.items()}
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def first(prompts: int, lines: str) -> str:
    """The lines of a corpus about its first prompts."""
    rows = [(json.loads(line)["prompt_id"], line) for line in lines.split("\n") if line]
    kept = list(dict.fromkeys(prompt for prompt, _ in rows))[:prompts]
    return "".join(f"{line}\n" for prompt, line in rows if prompt in kept)


def stored(name: str) -> dict[str, Any]:
    """A record, `world` or `real`."""
    record: dict[str, Any] = json.loads((STORED / f"{name}.json").read_text("utf-8"))
    return record


def rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per metric that has a value, in the order of the table of metrics."""
    return [_row(name, record) for name in METRICS if record["metrics"].get(name, {}).get("value") is not None]


def over_rows(record: Mapping[str, Any], one: str, other: str) -> float | None:
    """How far two metrics agree over rows; None where one is the same on all rows, or has no value."""
    pairs = record["agreement"]
    if one == other:
        return None if record["metrics"].get(one, {}).get("value") is None else 1.0
    found: float | None = pairs.get(one, {}).get(other, pairs.get(other, {}).get(one))
    return found


def compared(*records: Mapping[str, Any]) -> list[str]:
    """The metrics that order the rows of one of the records, in the order of the table of metrics."""
    return [
        name
        for name in METRICS
        if any(over_rows(each, name, other) is not None for each in records for other in METRICS if other != name)
    ]


def matrix(record: Mapping[str, Any]) -> str:
    """The agreement of every two metrics over rows as CSV; empty where there is none."""
    names = compared(record)
    lines = [[name, *(_plain(over_rows(record, name, other)) for other in names)] for name in names]
    return "".join(",".join(line) + "\n" for line in (["metric", *names], *lines))


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def alike(*records: Mapping[str, Any]) -> list[list[str]]:
    """Groups of metrics of which every two agree by at least `ALIKE`, either way, in every one of the records.

    The closest two are joined, then the next: two groups only as a whole, so that no chain of neighbours makes one.
    """
    groups = [[name] for name in compared(*records)]

    def closeness(one: Sequence[str], other: Sequence[str]) -> float:
        return min(abs(over_rows(record, left, right) or 0.0) for record in records for left in one for right in other)

    while len(groups) > 1:
        one, other = max(itertools.combinations(groups, 2), key=lambda pair: closeness(*pair))
        if closeness(one, other) < ALIKE:
            break
        groups = [group for group in groups if group not in (one, other)] + [[*one, *other]]
    order = list(METRICS)
    return sorted(
        (sorted(group, key=order.index) for group in groups if len(group) > 1), key=lambda g: order.index(g[0])
    )


ALIKE_HEADS = ("metrics that order the rows nearly alike", "where", "least agreement of two of them")


def alike_rows() -> Iterator[tuple[str, ...]]:
    """Such groups in both records, then those of one alone."""
    world, real = stored("world"), stored("real")
    shown: list[list[str]] = []
    for where, records in (("both tables", (world, real)), ("the world", (world,)), ("the real student", (real,))):
        for group in alike(*records):
            if group in shown:
                continue
            shown.append(group)
            least = min(
                abs(over_rows(each, *pair) or 0.0) for each in records for pair in itertools.combinations(group, 2)
            )
            yield ", ".join(f"`{name}`" for name in group), where, f"{least:.3f}"


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
    agreed = [
        _signed(value) for other in BESIDE for value in (over_rows(record, name, other), own["over_teachers"][other])
    ]
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
