"""The table of metrics: every metric by name, with its direction, what it reads and its source.

`base.py` says what a metric is; the families are a file each. `measure.py` makes the table of rows and metrics that `select`
and `report` start from, `conditions.py` reads `--where`, `user_file.py` a metric of the user's.

To add one: a function that returns an expression and a `Metric` in the tuple at the end of a family's file (`summaries`,
`rank_surprisal`, `divergences`, ...), and the function's name in the imports and in `__all__` below; a new family also in
`_FAMILIES`. The tests over `METRICS` cover it, and ask for its oracle; docs/contributing/adding.md says where that stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from trajscore.errors import UsageError, did_you_mean
from trajscore.metrics.base import Direction, Metric
from trajscore.metrics.contrasts import CONTRASTS, ifd, ood_ratio, phase_entropy
from trajscore.metrics.divergences import (
    DIVERGENCES,
    chunk_divergence,
    divergence,
    js,
    kl_student_teacher,
    kl_teacher_student,
    of_column,
)
from trajscore.metrics.learnability import LEARNABILITY, lark
from trajscore.metrics.log_ratios import LOG_RATIOS, confidence_shift, importance, k2, k3, log_ratio, sampler_mismatch
from trajscore.metrics.rank_surprisal import RANK_SURPRISAL, rank_entropy_ratio, rsr, rsr_filtered
from trajscore.metrics.repetition import REPETITION, compression_ratio, loop, repeated_line_ratio, repeated_ngram_ratio
from trajscore.metrics.sentence_classes import PROVENANCE, das_margin, teacher_sentence_ratio, teacher_sentences
from trajscore.metrics.steps import STEPS, aslec_casl, aslec_drop, lalp, step_errors
from trajscore.metrics.summaries import SUMMARIES, entropy, length, rank, rank_unclipped, surprisal
from trajscore.metrics.uncertainty import UNCERTAINTY, el2n, hes, inference_entropy
from trajscore.metrics.user_file import read_metrics_file
from trajscore.metrics.wording import WORDING, rule_quality
from trajscore.options import parse_named
from trajscore.schema import COLUMNS

__all__ = [
    "METRICS",
    "Direction",
    "Metric",
    "aslec_casl",
    "aslec_drop",
    "check_values",
    "chunk_divergence",
    "coefficients_of",
    "compression_ratio",
    "confidence_shift",
    "das_margin",
    "dataset_value",
    "dataset_values",
    "divergence",
    "el2n",
    "entropy",
    "find",
    "hes",
    "ifd",
    "importance",
    "inference_entropy",
    "js",
    "k2",
    "k3",
    "kl_student_teacher",
    "kl_teacher_student",
    "known_metrics",
    "lalp",
    "lark",
    "length",
    "log_ratio",
    "loop",
    "missing_columns",
    "ood_ratio",
    "parse_metric",
    "phase_entropy",
    "rank",
    "rank_entropy_ratio",
    "rank_unclipped",
    "repeated_line_ratio",
    "repeated_ngram_ratio",
    "require",
    "rsr",
    "rsr_filtered",
    "rule_quality",
    "sampler_mismatch",
    "step_errors",
    "surprisal",
    "teacher_sentence_ratio",
    "teacher_sentences",
]

_RSR, *_RATIOS = RANK_SURPRISAL
_FAMILIES = (UNCERTAINTY, STEPS, PROVENANCE, LOG_RATIOS, DIVERGENCES, CONTRASTS, LEARNABILITY, WORDING, REPETITION)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (_RSR, *SUMMARIES, *_RATIOS, *(metric for family in _FAMILIES for metric in family))
}
"""Every metric by name, in the order in which it is listed and reported."""


def known_metrics(metrics_file: str | Path | None = None) -> dict[str, Metric]:
    """Every metric that can be named: ours, and those of a Python file that defines `METRICS = [Metric(...), ...]`.

    Args:
        metrics_file: the file, which is run; None for ours alone.

    Raises:
        UsageError: something is wrong with the file.

    >>> known_metrics() == METRICS
    True
    """
    return METRICS if metrics_file is None else METRICS | read_metrics_file(metrics_file, METRICS)


def find(names: Iterable[str], known: Mapping[str, Metric] = METRICS) -> list[Metric]:
    """The metrics of these names, each once, in the order given.

    Args:
        names: names, with parameters where others than the defaults are meant.
        known: what can be named.

    Raises:
        UsageError: a name or parameter is unknown, or there is a weight.

    >>> [metric.name for metric in find(["rank", "rsr,r_max=500", "rank"])]
    ['rank', 'rsr[r_max=500]']
    """
    metrics = {}
    for text in names:
        metric, weight = parse_metric(text, known)
        if weight is not None:
            raise UsageError(f"metric {text!r}: a weight says nothing here.", "Write NAME or NAME,KEY=VALUE.")
        metrics[metric.name] = metric
    return list(metrics.values())


def parse_metric(text: str, known: Mapping[str, Metric] = METRICS) -> tuple[Metric, float | None]:
    """A metric with its parameters, and its weight: `rsr`, `rsr:2,r_max=500`, `length:-0.5`; None where none was written.

    Raises:
        UsageError: the name or a parameter is unknown, or the weight is no number, or zero.

    >>> metric, weight = parse_metric("rsr:2,r_max=500")
    >>> metric.name, weight
    ('rsr[r_max=500]', 2.0)
    """
    named = parse_named("--metric", text)
    other = None if named.name in known else of_column(named.name)
    if other is not None:
        known = {**known, other.name: other}
    if named.name not in known:
        raise UsageError(f"metric {named.name!r} is unknown.", did_you_mean(named.name, known))
    if named.number == 0:
        raise UsageError(
            f"--metric {text!r}: the weight is 0.",
            "Give another number, or leave the metric out; a negative one turns the metric's direction around.",
        )
    return known[named.name].given(**named.given), named.number


def coefficients_of(metrics: Iterable[Metric]) -> dict[str, dict[str, float | None]]:
    """The fitted coefficients by metric, of those that have any; None where the rows did not determine one."""
    return {
        metric.name: {name: value if math.isfinite(value) else None for name, value in metric.fitted.items()}
        for metric in metrics
        if metric.fitted is not None
    }


def missing_columns(metric: Metric, columns: Iterable[str]) -> list[str]:
    """The columns that a metric reads and a frame lacks.

    >>> missing_columns(METRICS["rsr"], ["id", "student_rank"])
    ['student_surprisal']
    """
    present = set(columns)
    return [column for column in metric.columns if column not in present]


def require(metrics: Sequence[Metric], columns: Iterable[str]) -> None:
    """Check that a frame holds what the metrics read.

    Raises:
        UsageError: a column is missing; the message names the flag of `trajscore score` that writes it.
    """
    present = set(columns)
    for metric in metrics:
        missing = missing_columns(metric, present)
        if missing:
            hint = "It is no column that `trajscore score` writes, so the corpus must bring it."
            if missing[0] in COLUMNS:
                flag = COLUMNS[missing[0]].flag or "--student MODEL --engine hf"
                hint = f"Score the corpus with `trajscore score ... {flag}`."
            raise UsageError(
                f"metric {metric.name!r} reads the column {missing[0]!r}, which these scores do not hold.", hint
            )


def check_values(metrics: Sequence[Metric], columns: Mapping[str, pl.DataType]) -> None:
    """Check, on no rows, that the metrics make one number per row of columns of these types.

    Raises:
        UsageError: an expression does not fit the columns, gives something else than numbers, or one number for all rows.
    """
    for metric in metrics:
        nothing = pl.DataFrame(schema={name: columns[name] for name in metric.columns})
        for term, expression in metric.terms().items():
            try:
                value = nothing.select(expression.alias("value"))["value"]
            except pl.exceptions.PolarsError as error:
                raise UsageError(
                    f"metric {metric.name!r}: its {term} does not fit the columns ({error}).",
                    f"It reads {', '.join(f'{name} ({columns[name]})' for name in metric.columns)}.",
                ) from error
            if not value.dtype.is_numeric() or (term == "numerator" and len(value)):
                what = f"gives {value.dtype}" if not value.dtype.is_numeric() else "gives one number for all rows"
                raise UsageError(f"metric {metric.name!r}: its {term} {what}.", "It must give one number per row.")


def dataset_value(numerators: pl.Series, denominators: pl.Series) -> float | None:
    """A metric's value over many trajectories: sum(numerator) / sum(denominator), over those where it is defined.

    Args:
        numerators: one float64 per trajectory.
        denominators: the same rows.

    Returns:
        The ratio of the sums; None where no trajectory has the metric. Bit-identical for every order of the rows.

    Source: for `rsr` arXiv 2601.14249, Eq. 8-9.

    >>> dataset_value(pl.Series([1.0, 5.0, 9.0]), pl.Series([1.0, 2.0, 0.0]))
    2.0
    """
    table = pl.DataFrame({"n": numerators, "d": denominators}).with_columns(group=pl.lit(0))
    return dataset_values(table, ["group"], "n", "d").get((0,), (None, 0))[0]


def dataset_values(
    table: pl.DataFrame, by: Sequence[str], numerator: str, denominator: str
) -> dict[tuple[Any, ...], tuple[float | None, int]]:
    """As `dataset_value`, for many groups of trajectories at once.

    Args:
        table: one line per trajectory.
        by: columns that name the group.
        numerator: column of the numerators.
        denominator: column of the denominators.

    Returns:
        By the group's names: the value and the number of trajectories that have the metric; groups without any are missing.

    >>> table = pl.DataFrame({"teacher": ["A", "A", "B"], "n": [1.0, 5.0, 9.0], "d": [1.0, 2.0, 3.0]})
    >>> dataset_values(table, ["teacher"], "n", "d") == {("A",): (2.0, 2), ("B",): (3.0, 1)}
    True
    """
    terms = table.select(*by, n=numerator, d=denominator)
    terms = terms.filter((pl.col("n") / pl.col("d")).is_finite() & pl.col("d").is_finite())
    # fsum is exact, hence independent of the order, at the price of leaving Arrow: one number per trajectory is few.
    found = {}
    for *names, above, below in terms.group_by(by).agg("n", "d").iter_rows():
        total = math.fsum(below)
        found[tuple(names)] = (math.fsum(above) / total if total else None, len(below))
    return found


def __dir__() -> list[str]:
    # What completes after `metrics.` in a notebook: the metrics, and nothing of how they are kept.
    return sorted(METRICS)
