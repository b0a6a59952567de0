"""Mean divergences between the next-token predictions of student and teacher, from the exact columns.

No source ranks whole trajectories by these, so they have no direction: what marks tokens for distillation (TIP, arXiv
2604.14084) would, over whole rows, keep those that fit student and teacher least. All are null for refused rows, rows that the
teacher could not read, and lists with a null or a value that is not finite; per dataset each is the mean over trajectories.
"""

from __future__ import annotations

from functools import partial

import polars as pl

from trajscore.errors import UsageError
from trajscore.metrics.base import Metric, finite, mean
from trajscore.options import Parameter
from trajscore.schema import COLUMNS, extra_column

_CHUNKS = ("teacher_chunk_logprob", "student_chunk_logprob")
_NEVER_CERTAIN = 1e-6
_SOURCES = {
    "tv": "arXiv 2302.08215 (f-divergences)",
    "hellinger": "arXiv 2302.08215 (f-divergences)",
    "jsd": "arXiv 2306.13649 (GKD)",
    "skew": "arXiv 2402.03898 (DistiLLM)",
    "renyi": "arXiv 2302.08215 (f-divergences)",
    "kl": "arXiv 1503.02531 (temperature); arXiv 2403.01427 (standardised logits)",
}
_TIP = "arXiv 2604.14084 (TIP)"


def kl_student_teacher() -> pl.Expr:
    """Mean KL(student || teacher) over the scored tokens, the reverse KL of distillation. No direction.

    Returns:
        float64 per row, nats.

    Source: arXiv 2604.14084 (TIP), where it marks tokens.

    >>> pl.DataFrame({"kl_student_teacher": [[0.5, 1.0]]}).select(kl_student_teacher()).item()
    0.75
    """
    return _PREDICTIONS["kl_student_teacher"].value()


def kl_teacher_student() -> pl.Expr:
    """Mean KL(teacher || student) over the scored tokens, the forward KL of distillation. No direction.

    Returns:
        float64 per row, nats.

    Source: arXiv 2604.14084 (TIP), where it marks over-confident tokens.

    >>> pl.DataFrame({"kl_teacher_student": [[0.5, 1.0]]}).select(kl_teacher_student()).item()
    0.75
    """
    return _PREDICTIONS["kl_teacher_student"].value()


def js() -> pl.Expr:
    """Mean Jensen-Shannon divergence over the scored tokens, at most ln 2. No direction.

    Returns:
        float64 per row, nats.

    Source: arXiv 2604.14084 (TIP), whose code uses it in place of the KL.

    >>> pl.DataFrame({"js": [[0.25, 0.5]]}).select(js()).item()
    0.375
    """
    return _PREDICTIONS["js"].value()


def divergence(extra: str) -> pl.Expr:
    """Mean over the scored tokens of a divergence that `score --extra` wrote, such as `jsd:0.1`. No direction.

    Args:
        extra: as it is typed after `--extra`. The metric is named like its column, `jsd_b01`.

    Returns:
        float64 per row, in the column's unit.

    Raises:
        UsageError: there is no such extra, or it compares no two models.

    Source: GKD (arXiv 2306.13649), DistiLLM (arXiv 2402.03898), f-divergences (arXiv 2302.08215).

    >>> pl.DataFrame({"jsd_b01": [[0.25, 0.5]]}).select(divergence("jsd:0.1")).item()
    0.375
    """
    found = of_column(extra_column(extra))
    if found is None:
        raise UsageError(f"{extra!r} is no divergence of two models.", "For example 'jsd:0.1' or 'tv'.")
    return found.value()


def of_column(name: str) -> Metric | None:
    """The mean of a divergence that `score --extra` writes, by its column; None where there is no such column."""
    column = COLUMNS.get(name)
    further = (
        column is not None and column.flag.startswith("--teacher MODEL --extra ") and not name.startswith("teacher_")
    )
    if column is None or not further:
        return None
    return Metric(
        name=name,
        numerator=partial(mean, name),
        unit=column.unit,
        direction=None,
        columns=(name,),
        source=_SOURCES[name.partition("_")[0]],
        meaning=f"mean of {column.meaning}",
    )


def chunk_divergence(temperature: float = 100.0) -> pl.Expr:
    """Mean over byte-aligned chunks of KL(Bernoulli(q_T) || Bernoulli(q_S)), for models of two tokenizers. No direction.

    q = exp(ln p / temperature - 1e-6), p the chunk's probability: the binary cross-entropy of ALM less the entropy of the
    teacher's Bernoulli, so that it is 0 where the two agree, and there alone.

    Args:
        temperature: what ln p is divided by, so that long chunks do not all become impossible.

    Returns:
        float64 per row, nats, at least 0. Null for refused rows, rows without a chunk, and lists with a null or a value that is
        not finite.

    Source: arXiv 2503.20083 (ALM), and its code.

    >>> chunks = {"teacher_chunk_logprob": [[-2.0, -1.0]], "student_chunk_logprob": [[-2.0, -1.0]]}
    >>> pl.DataFrame(chunks).select(chunk_divergence()).item()
    0.0
    """
    return _CHUNK_DIVERGENCE.given(temperature=temperature).value()


def _binary_divergence(temperature: float = 100.0) -> pl.Expr:
    teacher, student = (
        pl.col(name).list.eval(pl.element().cast(pl.Float64) / temperature - _NEVER_CERTAIN) for name in _CHUNKS
    )
    q = teacher.list.eval(pl.element().exp())
    rest = q.list.eval(1 - pl.element())
    logs_of_rest = (each.list.eval((1 - pl.element().exp()).log()) for each in (teacher, student))
    gap = next(logs_of_rest) - next(logs_of_rest)
    divergence = q * (teacher - student) + rest * gap
    return finite(divergence.list.eval(pl.element().clip(lower_bound=0)).list.mean(), *_CHUNKS)


_CHUNK_DIVERGENCE = Metric(
    name="chunk_divergence",
    numerator=_binary_divergence,
    unit="nats",
    direction=None,
    columns=_CHUNKS,
    source="arXiv 2503.20083 (ALM)",
    meaning="mean divergence of the two models' binarised chunk likelihoods, for tokenizers that differ; 0 where they agree",
    parameters=(Parameter("temperature", 100.0, "what the chunks' ln p are divided by", above=0),),
)

_PREDICTIONS = {
    name: Metric(
        name=name,
        numerator=partial(mean, name),
        unit="nats",
        direction=None,
        columns=(name,),
        source=_TIP,
        meaning=f"mean {what} of the next-token predictions; sources rank tokens by it, not trajectories",
    )
    for name, what in (
        ("kl_student_teacher", "KL(student ‖ teacher)"),
        ("kl_teacher_student", "KL(teacher ‖ student)"),
        ("js", "Jensen-Shannon divergence"),
    )
}

DIVERGENCES = (
    *_PREDICTIONS.values(),
    _CHUNK_DIVERGENCE,
    *(metric for name in COLUMNS if (metric := of_column(name)) is not None),
)
"""The metrics of this family, in the order in which they are listed."""
