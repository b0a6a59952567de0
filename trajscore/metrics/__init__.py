"""The table of metrics. It knows every metric by name and what each reads; how one is computed is in its family's file.

To add one: a function that returns an expression and a `Metric` in a family's tuple; the tests over `METRICS` cover it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import polars as pl

from trajscore.errors import UsageError, did_you_mean
from trajscore.metrics.base import Direction, Metric
from trajscore.metrics.contrasts import CONTRASTS, ifd, ood_ratio, phase_entropy
from trajscore.metrics.divergences import DIVERGENCES, js, kl_student_teacher, kl_teacher_student
from trajscore.metrics.learnability import LEARNABILITY, lark
from trajscore.metrics.provenance import PROVENANCE, teacher_sentence_ratio, teacher_sentences
from trajscore.metrics.rank_surprisal import RANK_SURPRISAL, rank_entropy_ratio, rsr, rsr_filtered
from trajscore.metrics.repetition import REPETITION, compression_ratio, repeated_line_ratio
from trajscore.metrics.summaries import SUMMARIES, entropy, length, rank, rank_unclipped, surprisal
from trajscore.schema import COLUMNS

__all__ = [
    "METRICS",
    "Direction",
    "Metric",
    "compression_ratio",
    "dataset_value",
    "entropy",
    "find",
    "ifd",
    "js",
    "kl_student_teacher",
    "kl_teacher_student",
    "lark",
    "length",
    "missing_columns",
    "ood_ratio",
    "phase_entropy",
    "rank",
    "rank_entropy_ratio",
    "rank_unclipped",
    "repeated_line_ratio",
    "require",
    "rsr",
    "rsr_filtered",
    "surprisal",
    "teacher_sentence_ratio",
    "teacher_sentences",
]

_RSR, *_RATIOS = RANK_SURPRISAL
_FAMILIES = (PROVENANCE, DIVERGENCES, CONTRASTS, LEARNABILITY, REPETITION)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (_RSR, *SUMMARIES, *_RATIOS, *(metric for family in _FAMILIES for metric in family))
}
"""Every metric by name, in the order in which it is listed and reported."""


def find(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once, in the order given.

    Raises:
        UsageError: a name is unknown.

    >>> [metric.name for metric in find(["rank", "rsr", "rank"])]
    ['rank', 'rsr']
    """
    metrics = []
    for name in dict.fromkeys(names):
        if name not in METRICS:
            raise UsageError(f"metric {name!r} is unknown.", did_you_mean(name, METRICS))
        metrics.append(METRICS[name])
    return metrics


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
            raise UsageError(
                f"metric {metric.name!r} reads the column {missing[0]!r}, which these scores do not hold.",
                f"Score the corpus with `trajscore score ... {COLUMNS[missing[0]].flag or '--student MODEL'}`.",
            )


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
    terms = pl.DataFrame({"n": numerators, "d": denominators}).filter((pl.col("n") / pl.col("d")).is_finite())
    terms = terms.filter(pl.col("d").is_finite())
    # fsum is exact, hence independent of the order, at the price of leaving Arrow: one number per trajectory is few.
    total = math.fsum(terms["d"].to_list())
    return math.fsum(terms["n"].to_list()) / total if total else None
