"""Log-ratios of two models on the written tokens, and what estimates their divergence from these alone.

Notation: T scored tokens, s_k surprisal under the student, s_k^T under the teacher, s_k^D under the distilled model, nats.
k1 = s_k^T - s_k = ln p_S - ln p_T of the written token. No source ranks trajectories by these, so they have no direction. All
are null for refused rows, rows that one of the two could not read, and lists with a null or a value that is not finite; per
data set each is the mean over trajectories.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, finite, mean, shared

_STUDENT, _TEACHER, _DISTILLED = "student_surprisal", "teacher_surprisal", "distilled_surprisal"
_SAMPLER = "sampler_logprob"
_KDRL = "arXiv 2506.02208 (KDRL), after Schulman's estimators of the KL divergence"


def log_ratio() -> pl.Expr:
    """Mean log-ratio of teacher and student, (1/T) sum_k (s_k - s_k^T): the reward of on-policy distillation. No direction.

    On text that the student wrote, its negative estimates KL(student || teacher); on other text it is a plain mean.

    Returns:
        float64 per row, nats; positive where the teacher finds the text likelier.

    Source: arXiv 2506.02208 (KDRL).

    >>> tokens = {"student_surprisal": [[1.0, 3.0]], "teacher_surprisal": [[0.5, 2.0]]}
    >>> pl.DataFrame(tokens).select(log_ratio()).item()
    0.75
    """
    return _LOG_RATIO.value()


def k2() -> pl.Expr:
    """Mean of k1^2 / 2, k1 = s_k^T - s_k: an estimate of KL(student || teacher) with little variance and a bias. No direction.

    It estimates that on text that the student wrote only.

    Returns:
        float64 per row, nats^2, at least 0.

    Source: arXiv 2506.02208 (KDRL).

    >>> tokens = {"student_surprisal": [[1.0, 3.0]], "teacher_surprisal": [[0.0, 5.0]]}
    >>> pl.DataFrame(tokens).select(k2()).item()
    1.25
    """
    return _K2.value()


def k3() -> pl.Expr:
    """Mean of e^-k1 - 1 + k1, k1 = s_k^T - s_k: estimates KL(student || teacher) without bias, never negative. No direction.

    It estimates that on text that the student wrote only.

    Returns:
        float64 per row, nats, at least 0. Null also where e^-k1 overflows.

    Source: arXiv 2506.02208 (KDRL).

    >>> from math import log
    >>> tokens = {"student_surprisal": [[log(2.0)]], "teacher_surprisal": [[0.0]]}
    >>> round(pl.DataFrame(tokens).select(k3()).item(), 6) == round(2 - 1 - log(2.0), 6)
    True
    """
    return _K3.value()


def confidence_shift() -> pl.Expr:
    """ln of the text's probability after training over that before: sum_k (s_k - s_k^D). No direction.

    ACE enlarges the negative advantage of wrong rollouts where this is positive; how much is not established, so it is left
    out. It is a sum and grows with length.

    Returns:
        float64 per row, nats; positive where training has made the text likelier.

    Source: arXiv 2602.21420 (ACE), the confidence shift.

    >>> tokens = {"student_surprisal": [[1.0, 3.0]], "distilled_surprisal": [[0.5, 2.0]]}
    >>> pl.DataFrame(tokens).select(confidence_shift()).item()
    1.5
    """
    return _CONFIDENCE_SHIFT.value()


def sampler_mismatch() -> pl.Expr:
    """Mean distance of the sampler's log-probabilities, which came with the rows, from the student's. No direction.

    Large where the engine that sampled and the model that is trained are not the same, or read the text differently.

    Returns:
        float64 per row, nats, at least 0. Null where the row brought none, or one that is not finite.

    Source: the mismatch of samplers and trainers that verl (issues 7590 and 7806) and TRL report; arXiv 2506.02208 (KDRL).

    >>> tokens = {"student_surprisal": [[1.0, 3.0]], "sampler_logprob": [[-1.5, -2.0]]}
    >>> pl.DataFrame(tokens).select(sampler_mismatch()).item()
    0.75
    """
    return _SAMPLER_MISMATCH.value()


def importance() -> pl.Expr:
    """Mean importance ratio of student and sampler, (1/T) sum_k min(2, p_student / p_sampler). No direction.

    Returns:
        float64 per row, no unit, in [0, 2]; 1 where the two agree. Null as for `sampler_mismatch`.

    Source: truncated importance sampling as TRL does it, after arXiv 2506.02208 (KDRL).

    >>> from math import log
    >>> tokens = {"student_surprisal": [[log(2.0), 0.0]], "sampler_logprob": [[0.0, -log(8.0)]]}
    >>> round(pl.DataFrame(tokens).select(importance()).item(), 6)
    1.25
    """
    return _IMPORTANCE.value()


@shared
def _sampler_ratio() -> pl.Expr:
    """ln p_student - ln p_sampler: [T], [T] -> [T]."""
    student = pl.col(_STUDENT).list.eval(-pl.element().cast(pl.Float64))
    return student - pl.col(_SAMPLER).cast(pl.List(pl.Float64))


def _mismatch() -> pl.Expr:
    return finite(_sampler_ratio().list.eval(pl.element().abs()).list.mean(), _STUDENT, _SAMPLER)


def _importance() -> pl.Expr:
    return finite(_sampler_ratio().list.eval(pl.element().exp().clip(upper_bound=2.0)).list.mean(), _STUDENT, _SAMPLER)


@shared
def _k1() -> pl.Expr:
    teacher, student = (pl.col(name).cast(pl.List(pl.Float64)) for name in (_TEACHER, _STUDENT))
    return teacher - student


def _k2() -> pl.Expr:
    return finite(_k1().list.eval(pl.element().pow(2) / 2).list.mean(), _STUDENT, _TEACHER)


def _k3() -> pl.Expr:
    element = pl.element()
    # Rounding must not make it negative where the two agree almost.
    values = _k1().list.eval(((-element).exp() - 1 + element).clip(lower_bound=0))
    return finite(values.list.mean(), _STUDENT, _TEACHER)


def _shift() -> pl.Expr:
    student, distilled = (pl.col(name).cast(pl.List(pl.Float64)) for name in (_STUDENT, _DISTILLED))
    return finite((student - distilled).list.sum(), _STUDENT, _DISTILLED)


_LOG_RATIO = Metric(
    name="log_ratio",
    numerator=lambda: mean(_STUDENT) - mean(_TEACHER),
    unit="nats",
    direction=None,
    columns=(_STUDENT, _TEACHER),
    source=_KDRL,
    meaning="mean ln p of the teacher minus that of the student, on the written tokens; reward of on-policy distillation",
)
_K2 = Metric(
    name="k2",
    numerator=_k2,
    unit="nats^2",
    direction=None,
    columns=(_STUDENT, _TEACHER),
    source=_KDRL,
    meaning="mean of half the squared log-ratio on the written tokens; estimates KL on the student's own text only",
)
_K3 = Metric(
    name="k3",
    numerator=_k3,
    unit="nats",
    direction=None,
    columns=(_STUDENT, _TEACHER),
    source=_KDRL,
    meaning="mean of e^-k1 - 1 + k1, k1 = ln p_S - ln p_T of the written token; KL without bias on the student's own text",
)
_CONFIDENCE_SHIFT = Metric(
    name="confidence_shift",
    numerator=_shift,
    unit="nats",
    direction=None,
    columns=(_STUDENT, _DISTILLED),
    source="arXiv 2602.21420 (ACE)",
    meaning="ln of the text's probability after training over that before, a sum: grows with length",
)
_SAMPLER_MISMATCH = Metric(
    name="sampler_mismatch",
    numerator=_mismatch,
    unit="nats",
    direction=None,
    columns=(_STUDENT, _SAMPLER),
    source="as verl and TRL report it; arXiv 2506.02208 (KDRL)",
    meaning="mean distance of the sampler's log-probabilities, which came with the rows, from the student's",
)
_IMPORTANCE = Metric(
    name="importance",
    numerator=_importance,
    unit="",
    direction=None,
    columns=(_STUDENT, _SAMPLER),
    source="as TRL does it; arXiv 2506.02208 (KDRL)",
    meaning="mean importance ratio of student and sampler, each at most 2",
)

LOG_RATIOS = (
    _LOG_RATIO,
    _K2,
    _K3,
    _CONFIDENCE_SHIFT,
    _SAMPLER_MISMATCH,
    _IMPORTANCE,
)
"""The metrics of this family, in the order in which they are listed."""
