"""Mean divergences between the next-token predictions of student and teacher, from the exact columns.

No source ranks whole trajectories by these. The direction follows token selection for distillation (TIP, arXiv 2604.14084),
where tokens of large divergence carry the signal: higher is better, because there is more to learn. All are null for refused
rows, rows that the teacher could not read, and lists with a null or a value that is not finite; per dataset each is the mean
over trajectories.
"""

from __future__ import annotations

from functools import partial

import polars as pl

from trajscore.metrics.base import Metric, mean, one, ratio

_TIP = "arXiv 2604.14084 (TIP)"


def kl_student_teacher() -> pl.Expr:
    """Mean KL(student || teacher) over the scored tokens, the reverse KL of distillation. Higher: more to learn.

    Returns:
        float64 per row, nats.

    Source: arXiv 2604.14084 (TIP), where it marks tokens.

    >>> pl.DataFrame({"kl_student_teacher": [[0.5, 1.0]]}).select(kl_student_teacher()).item()
    0.75
    """
    return ratio(mean("kl_student_teacher"), one()).alias("kl_student_teacher")


def kl_teacher_student() -> pl.Expr:
    """Mean KL(teacher || student) over the scored tokens, the forward KL of distillation. Higher: more to learn.

    Returns:
        float64 per row, nats.

    Source: arXiv 2604.14084 (TIP), where it marks over-confident tokens.

    >>> pl.DataFrame({"kl_teacher_student": [[0.5, 1.0]]}).select(kl_teacher_student()).item()
    0.75
    """
    return ratio(mean("kl_teacher_student"), one()).alias("kl_teacher_student")


def js() -> pl.Expr:
    """Mean Jensen-Shannon divergence over the scored tokens, at most ln 2. Higher: more to learn.

    Returns:
        float64 per row, nats.

    Source: arXiv 2604.14084 (TIP), whose code uses it in place of the KL.

    >>> pl.DataFrame({"js": [[0.25, 0.5]]}).select(js()).item()
    0.375
    """
    return ratio(mean("js"), one()).alias("js")


DIVERGENCES = tuple(
    Metric(
        name=name,
        numerator=partial(mean, name),
        unit="nats",
        direction="higher",
        columns=(name,),
        source=_TIP,
        meaning=f"mean {what} of the next-token predictions; its direction is by analogy with token selection",
    )
    for name, what in (
        ("kl_student_teacher", "KL(student ‖ teacher)"),
        ("kl_teacher_student", "KL(teacher ‖ student)"),
        ("js", "Jensen-Shannon divergence"),
    )
)
"""The metrics of this family, in the order in which they are listed."""
