"""Plain means of the student's token columns, and the length.

Notation: T scored tokens, r_k rank (1 = most probable), s_k surprisal in nats, H_k entropy in nats. All are null for
refused rows, empty responses and lists with a null or a value that is not finite; per dataset each is the mean over
trajectories.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, mean
from trajscore.metrics.rank_surprisal import CLIP, PAPER, R_MAX


def surprisal() -> pl.Expr:
    """Mean surprisal, (1/T) sum_k s_k: the log of the perplexity. Lower is better, as in GRAPE and RSR's baseline.

    Returns:
        float64 per row, nats; 0 where every token was certain.

    Source: arXiv 2502.04194 (GRAPE); arXiv 2601.14249, Appendix B.

    >>> pl.DataFrame({"student_surprisal": [[0.5, 1.0]]}).select(surprisal()).item()
    0.75
    """
    return _SURPRISAL.value()


def rank(r_max: int = R_MAX) -> pl.Expr:
    """Mean clipped rank, (1/T) sum_k min(r_k, r_max). Lower is better.

    Args:
        r_max: ranks above it count as it.

    Returns:
        float64 per row, at least 1, no unit.

    Source: arXiv 2601.14249, Appendix B and Table 14.

    >>> pl.DataFrame({"student_rank": [[1, 153]]}).select(rank()).item()
    50.5
    """
    return _RANK.given(r_max=r_max).value()


def rank_unclipped() -> pl.Expr:
    """Mean rank, (1/T) sum_k r_k. Lower is better; a few very improbable tokens dominate it.

    Returns:
        float64 per row, at least 1, no unit.

    Source: arXiv 2601.14249, Appendix B.

    >>> pl.DataFrame({"student_rank": [[1, 153]]}).select(rank_unclipped()).item()
    77.0
    """
    return _RANK_UNCLIPPED.value()


def entropy() -> pl.Expr:
    """Mean entropy of the student's next-token distribution, (1/T) sum_k H_k. No direction.

    RSR's paper prints only an absolute correlation (0.495); GTPO drops what is above 0.7 nats, EDCO and HES prefer more of it.

    Returns:
        float64 per row, nats.

    Source: arXiv 2601.14249, Appendix B and Table 14.

    >>> pl.DataFrame({"student_entropy": [[0.25, 0.75]]}).select(entropy()).item()
    0.5
    """
    return _ENTROPY.value()


def length() -> pl.Expr:
    """Number of scored tokens. A control: a metric that selects no better than length has measured length.

    Higher is better in the sense of the paper's baseline "max token length", and length correlates positively with the
    score after training; both are weaker than RSR.

    Returns:
        float64 per row, tokens; null for refused rows and for empty responses.

    Source: arXiv 2601.14249, Tables 4 and 6.

    >>> pl.DataFrame({"n_tokens": [3, 0]}).select(length()).to_series().to_list()
    [3.0, None]
    """
    return _LENGTH.value()


def _n_tokens() -> pl.Expr:
    return pl.when(pl.col("n_tokens") > 0).then(pl.col("n_tokens").cast(pl.Float64))


_RANK = Metric(
    name="rank",
    numerator=lambda r_max=R_MAX: mean("student_rank", r_max),
    unit="",
    direction="lower",
    columns=("student_rank",),
    source=f"{PAPER}, Table 14",
    meaning="mean rank, clipped at 100",
    parameters=(CLIP,),
)

_SURPRISAL = Metric(
    name="surprisal",
    numerator=lambda: mean("student_surprisal"),
    unit="nats",
    direction="lower",
    columns=("student_surprisal",),
    source=f"arXiv 2502.04194; {PAPER}, Appendix B",
    meaning="mean surprisal, the log of the perplexity; greedy loops look excellent to it",
)
_RANK_UNCLIPPED = Metric(
    name="rank_unclipped",
    numerator=lambda: mean("student_rank"),
    unit="",
    direction="lower",
    columns=("student_rank",),
    source=f"{PAPER}, Appendix B",
    meaning="mean rank; a few very improbable tokens dominate it",
)
_ENTROPY = Metric(
    name="entropy",
    numerator=lambda: mean("student_entropy"),
    unit="nats",
    direction=None,
    columns=("student_entropy",),
    source=f"{PAPER}, Table 14",
    meaning="mean entropy of the student's next-token distribution; sources disagree which end is better",
)
_LENGTH = Metric(
    name="length",
    numerator=_n_tokens,
    unit="tokens",
    direction="higher",
    columns=("n_tokens",),
    source=f"{PAPER}, Tables 4 and 6",
    meaning="number of scored tokens; a control: what selects no better than length has measured length",
)

SUMMARIES = (
    _SURPRISAL,
    _RANK,
    _RANK_UNCLIPPED,
    _ENTROPY,
    _LENGTH,
)
"""The metrics of this family, in the order in which they are listed."""
