"""Teachers ranked by their dataset values: row counts, intervals, and how likely each is the best.

It works on the small table of metrics per row, which is sorted first, so that every number is bit-identical whatever the order
of rows and the size of parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from trajscore.errors import UsageError
from trajscore.estimates.bootstrap import Floats, GroupSums, Interval, intervals, replicate
from trajscore.estimates.comparison import MIN_PROMPTS, Comparison, Resampling, compare, unranked
from trajscore.metrics import Metric, dataset_values
from trajscore.schema import OK

UNKNOWN_TEACHER = "(unknown)"

_REPLICATED = 8_000_000
"""Replicates of values that are held at once, over teachers and metrics."""


@dataclass(frozen=True)
class RankingOptions:
    """How the ranking is made.

    Attributes:
        confidence: share of the replicates inside an interval, in (0, 1).
        replicates: bootstrap replicates, at least 1.
        seed: seed of the resampling.
        primary: name of the metric that ranks.

    Raises:
        UsageError: a value is out of range.
    """

    confidence: float = 0.9
    replicates: int = 1000
    seed: int = 0
    primary: str = "rsr"

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise UsageError(f"--confidence is {self.confidence}.", "Give a number between 0 and 1, such as 0.9.")
        if self.replicates < 1:
            raise UsageError(f"--replicates is {self.replicates}.", "Give a whole number of at least 1.")
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}.", "Give a whole number of at least 0.")


@dataclass(frozen=True)
class IntervalEstimate:
    """A dataset value with its percentile interval; None where undefined, or with fewer than `MIN_PROMPTS` prompts."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TeacherLine:
    """One teacher.

    Attributes:
        teacher: the name; `(unknown)` collects rows that name none.
        rows: its rows; `rows == scored + sum(refused.values())`.
        scored: rows with status ok.
        refused: refused rows by status, most first.
        truncated: scored rows that were cut at the maximum model length; None where the scores do not say.
        prompts: prompts with a scored row of this teacher.
        mean_length: mean number of scored tokens of its scored rows; None without any.
        share_correct: share of correct rows among all its rows that say so, refused ones too; None where none does.
        metrics: dataset values by metric, over all its rows.
        probability_best: how likely it is the best by the primary metric, on the prompts of the ranking's `comparison`; None
            where it has no value or too few prompts.
    """

    teacher: str
    rows: int
    scored: int
    refused: dict[str, int]
    truncated: int | None
    prompts: int
    mean_length: float | None
    share_correct: float | None
    metrics: dict[str, IntervalEstimate]
    probability_best: float | None


@dataclass(frozen=True)
class Ranking:
    """All teachers, best first.

    Attributes:
        lines: sorted by the primary metric's value, ties by name, undefined last.
        options: how it was made.
        prompts: prompts with a scored row.
        shared_prompts: prompts with a scored row of every teacher that has one.
        comparison: the teachers on the same prompts, by the primary metric.
        notes: what a reader should know, such as why an interval is missing.
        better: which end of the primary metric is better, with its unit.
        unranked: whether the primary metric has no direction. Then nothing is ranked: `lines` are sorted by name, and
            `comparison` has values only.
        groups: teachers that common prompts connect, most teachers first. With several groups each is ranked by itself, in this
            order, and `comparison` is that of the first.
    """

    lines: tuple[TeacherLine, ...]
    options: RankingOptions
    prompts: int
    shared_prompts: int
    comparison: Comparison
    notes: tuple[str, ...]
    better: str
    groups: tuple[tuple[str, ...], ...] = ()
    unranked: bool = False


def rank_teachers(table: pl.DataFrame, metrics: Sequence[Metric], options: RankingOptions) -> Ranking:
    """Rank teachers by dataset values, with percentile bootstrap intervals over prompts.

    A prompt is drawn with all its rows of all teachers, so differences between teachers are paired.

    Args:
        table: one line per row: `id`, `prompt_id`, `teacher`, `status`, `n_tokens`, `truncated` and `correct` if known,
            and for each metric `NAME`, `NAME:numerator`, `NAME:denominator`.
        metrics: the metrics; one of them is `options.primary`.
        options: how.

    Returns:
        The ranking. Per metric sum(numerator) / sum(denominator) over a teacher's rows where it is defined: for `rsr`
        the ratio of the sums of per-trajectory means (arXiv 2601.14249, Eq. 8-9).

    >>> from trajscore.metrics import find
    >>> table = pl.DataFrame({"id": ["a", "b"], "prompt_id": ["p", "q"], "teacher": ["T", "T"], "status": ["ok", "ok"],
    ...     "rsr": [2.0, 4.0], "rsr:numerator": [2.0, 4.0], "rsr:denominator": [1.0, 1.0]})
    >>> rank_teachers(table, find(["rsr"]), RankingOptions(replicates=9)).lines[0].metrics["rsr"].value
    3.0
    """
    table = with_teachers(table)
    scored, prompts = _numbered(table)
    names = table["teacher"].unique().sort().to_list()
    sums = _sums(scored, metrics, names)
    primary = [metric.name for metric in metrics].index(options.primary)
    direction = metrics[primary].direction
    lower = direction == "lower"
    how = Resampling(options.confidence, options.replicates, options.seed)
    own = {name: _one_metric(group, primary) for name, group in zip(names, sums, strict=True)}
    groups = sorted(
        _connected(own), key=lambda names: (-len(names), min(_standing(own[name], lower) for name in names), names)
    )
    comparisons = [compare({name: own[name] for name in group}, lower, how) for group in groups]
    if direction is None:
        comparisons = [unranked(each) for each in comparisons]
    best = {
        name: share for each in comparisons if len(each.values) > 1 for name, share in each.probability_best.items()
    }
    # One teacher alone is the best of its group by definition, which says something only where it is the only one.
    best |= comparisons[0].probability_best if len(groups) == 1 else {}
    ends = _intervals(scored, sums, metrics, names, prompts.height, how)
    lines = _lines(table, scored, names, _estimates(scored, metrics, names, ends), best)
    place = {name: number for number, group in enumerate(groups) for name in group}
    return Ranking(
        lines=tuple(sorted(lines, key=lambda line: (place[line.teacher], *_order(line, options.primary, direction)))),
        options=options,
        prompts=prompts.height,
        shared_prompts=_shared(scored),
        comparison=comparisons[0],
        notes=tuple(_notes(lines, groups)),
        groups=tuple(tuple(group) for group in groups),
        unranked=direction is None,
        better=", ".join(filter(None, (metrics[primary].better, metrics[primary].unit))),
    )


def _standing(group: GroupSums, lower: bool) -> float:
    """A group's value, the better the smaller; infinite where it has none."""
    total = float(group.denominators.sum())
    value = float(group.numerators.sum()) / total if total else math.inf
    return value if lower or not total else -value


def _connected(groups: Mapping[str, GroupSums]) -> list[list[str]]:
    """Names that common prompts connect, directly or through others. Those without any prompt stand with the first."""
    leader: dict[int, str] = {}
    parent = {name: name for name in groups}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for name, group in groups.items():
        for prompt in group.prompts.tolist():
            parent[root(name)] = root(leader.setdefault(prompt, name))
    found: dict[str, list[str]] = {}
    for name, group in groups.items():
        if group.prompts.size:
            found.setdefault(root(name), []).append(name)
    ordered = sorted(found.values(), key=lambda names: (-len(names), names))
    without = [name for name, group in groups.items() if not group.prompts.size]
    return [sorted([*ordered[0], *without]), *ordered[1:]] if ordered else [without]


def teacher_names(table: pl.DataFrame) -> pl.Expr:
    """The column `teacher` of a table, with a name in place of every unknown one."""
    teacher = pl.col("teacher") if "teacher" in table.columns else pl.lit(None, pl.String)
    return teacher.fill_null(UNKNOWN_TEACHER).alias("teacher")


def with_teachers(table: pl.DataFrame) -> pl.DataFrame:
    """The table in an order of its own, with `teacher_names`."""
    return table.with_columns(teacher_names(table)).sort("prompt_id", "id", maintain_order=True)


def teacher_sums(table: pl.DataFrame, metric: Metric) -> dict[str, GroupSums]:
    """Each teacher's sums per prompt of one metric, as the ranking compares them."""
    table = with_teachers(table)
    scored, _ = _numbered(table)
    names = table["teacher"].unique().sort().to_list()
    return dict(zip(names, _sums(scored, [metric], names), strict=True))


def _numbered(table: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The scored rows with the number of their prompt, and the prompts."""
    scored = table.filter(pl.col("status") == OK)
    prompts = scored.select(pl.col("prompt_id").unique(maintain_order=True)).with_row_index("prompt")
    return scored.join(prompts, on="prompt_id", how="left", maintain_order="left"), prompts


def _sums(scored: pl.DataFrame, metrics: Sequence[Metric], names: Sequence[str]) -> list[GroupSums]:
    """Each teacher's sums per prompt; rows where a metric is undefined are null in both terms and so add nothing."""
    terms = [f"{metric.name}:{term}" for term in ("numerator", "denominator") for metric in metrics]
    sums = scored.group_by("teacher", "prompt", maintain_order=True).agg(pl.col(term).sum() for term in terms)
    sums = sums.sort("teacher", maintain_order=True)
    values: Floats = np.ascontiguousarray(sums.select(terms).to_numpy(), dtype=np.float64)
    prompts = sums["prompt"].to_numpy().astype(np.int64)
    first, last = (sums["teacher"].search_sorted(pl.Series(names), side=side) for side in ("left", "right"))
    return [
        GroupSums(prompts[start:stop], values[start:stop, : len(metrics)], values[start:stop, len(metrics) :])
        for start, stop in zip(first.to_list(), last.to_list(), strict=True)
    ]


def _one_metric(group: GroupSums, number: int) -> GroupSums:
    column = slice(number, number + 1)
    return GroupSums(group.prompts, group.numerators[:, column], group.denominators[:, column])


def _intervals(
    scored: pl.DataFrame,
    sums: Sequence[GroupSums],
    metrics: Sequence[Metric],
    names: Sequence[str],
    prompts: int,
    how: Resampling,
) -> list[list[Interval | None]]:
    """Each teacher's intervals, in the order of names and metrics; None with fewer than `MIN_PROMPTS` prompts."""
    defined = scored.group_by("teacher", "prompt").agg(pl.col(metric.name).count() > 0 for metric in metrics)
    counted = defined.group_by("teacher").agg(pl.col(metric.name).sum() for metric in metrics)
    prompts_of = {teacher: counts for teacher, *counts in counted.iter_rows()}
    counts_TM = np.array([prompts_of.get(name, [0] * len(metrics)) for name in names], dtype=np.int64)
    judged_TM = counts_TM >= MIN_PROMPTS
    found: list[list[Interval | None]] = [[None] * len(metrics) for _ in names]
    together = max(1, _REPLICATED // (how.replicates * len(metrics)))
    for start in range(0, len(names) if judged_TM.any() else 0, together):
        values_BTM = replicate(list(sums[start : start + together]), prompts, how.replicates, how.seed)
        teachers, columns = np.nonzero(judged_TM[start : start + together])
        counts = counts_TM[start : start + together][teachers, columns]
        ends = intervals(values_BTM[:, teachers, columns], how.confidence, counts)
        for teacher, column, each in zip(teachers.tolist(), columns.tolist(), ends, strict=True):
            found[start + teacher][column] = each
    return found


def _estimates(
    scored: pl.DataFrame, metrics: Sequence[Metric], names: Sequence[str], ends: Sequence[Sequence[Interval | None]]
) -> list[dict[str, IntervalEstimate]]:
    """The metrics of each teacher, in the order of the names."""
    found: list[dict[str, IntervalEstimate]] = [{} for _ in names]
    for number, metric in enumerate(metrics):
        values = dataset_values(scored, ["teacher"], f"{metric.name}:numerator", f"{metric.name}:denominator")
        for own, name, each in zip(found, names, ends, strict=True):
            low, high = each[number] or (None, None)
            own[metric.name] = IntervalEstimate(values.get((name,), (None, 0))[0], low, high)
    return found


def _lines(
    table: pl.DataFrame,
    scored: pl.DataFrame,
    names: Sequence[str],
    metrics: Sequence[dict[str, IntervalEstimate]],
    best: Mapping[str, float | None],
) -> list[TeacherLine]:
    """One line per teacher, in the order of the names."""
    refused = (
        table.filter(pl.col("status").ne_missing(OK)).group_by("teacher", pl.col("status").fill_null("unknown")).len()
    )
    reasons: dict[str, dict[str, int]] = {}
    for teacher, status, count in refused.sort("len", "status", descending=[True, False]).iter_rows():
        reasons.setdefault(teacher, {})[status] = count
    rows = {name: (count, right) for name, count, right in _grouped(table, pl.len(), _mean(table, "correct"))}
    truncated = pl.col("truncated").sum() if "truncated" in scored.columns else pl.lit(None)
    facts = _grouped(scored, pl.len(), truncated, pl.col("prompt_id").n_unique(), _mean(scored, "n_tokens"))
    own = {name: each for name, *each in facts}
    lines = []
    for name, values in zip(names, metrics, strict=True):
        count, cut, prompts, length = own.get(name, (0, 0 if "truncated" in scored.columns else None, 0, None))
        lines.append(
            TeacherLine(
                teacher=name,
                rows=rows[name][0],
                scored=count,
                refused=reasons.get(name, {}),
                truncated=None if cut is None else int(cut),
                prompts=prompts,
                mean_length=length,
                share_correct=rows[name][1],
                metrics=values,
                probability_best=best.get(name),
            )
        )
    return lines


def _grouped(table: pl.DataFrame, *facts: pl.Expr) -> Iterator[tuple[Any, ...]]:
    return table.group_by("teacher").agg(fact.alias(str(place)) for place, fact in enumerate(facts)).iter_rows()


def _mean(rows: pl.DataFrame, column: str) -> pl.Expr:
    """Mean of a numeric or boolean column over its values; null without any, or where the column is something else."""
    if column not in rows.columns or not (rows[column].dtype.is_numeric() or rows[column].dtype == pl.Boolean):
        return pl.lit(None, pl.Float64)
    return pl.col(column).cast(pl.Float64).mean()


def _order(line: TeacherLine, primary: str, direction: str | None) -> tuple[bool, float, str]:
    value = line.metrics[primary].value
    standing = 0.0 if value is None or direction is None else value if direction == "lower" else -value
    return (value is None and direction is not None, standing, line.teacher)


def _shared(scored: pl.DataFrame) -> int:
    teachers = scored["teacher"].n_unique()
    per_prompt = scored.group_by("prompt_id").agg(pl.col("teacher").n_unique())
    return per_prompt.filter(pl.col("teacher") == teachers).height


def _notes(lines: Sequence[TeacherLine], groups: Sequence[Sequence[str]]) -> list[str]:
    notes = []
    if len(groups) > 1:
        shown = "; ".join(map(_first_names, groups[:4]))
        notes.append(
            f"{len(groups)} groups of teachers have no prompt in common, so each group is ranked by itself: {shown}"
            f"{'' if len(groups) <= 4 else '; ...'}."
        )
    without = sorted(line.teacher for line in lines if line.prompts == 0)
    few = sorted(line.teacher for line in lines if 0 < line.prompts < MIN_PROMPTS)
    for names, what in (
        (without, "no row could be scored"),
        (few, f"fewer than {MIN_PROMPTS} prompts, so there is no interval"),
    ):
        if names:
            notes.append(f"{_first_names(names)}: {what}.")
    return notes


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
