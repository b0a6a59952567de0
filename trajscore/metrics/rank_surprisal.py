"""The rank-surprisal ratio and its published relatives (arXiv 2601.14249), from the student's token columns.

Not named `rsr.py`: a module of that name would compete with the function `trajscore.metrics.rsr` for the attribute.
Notation: T scored tokens, r_k rank (1 = most probable), s_k surprisal in nats, H_k entropy in nats.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, has_null, mean
from trajscore.options import Parameter

PAPER = "arXiv 2601.14249"
R_MAX = 100
TOP_PERCENT = 30

_RANK, _SURPRISAL, _ENTROPY = "student_rank", "student_surprisal", "student_entropy"


def rsr(r_max: int = R_MAX) -> pl.Expr:
    """Rank-surprisal ratio: sum_k min(r_k, r_max) / sum_k s_k. Lower is better: informative, yet within reach.

    Per dataset: sum over trajectories of the mean clipped rank / sum of the mean surprisal, so that each trajectory
    counts equally, whatever its length. It is neither the pooled-token ratio nor the mean of the trajectories' ratios.

    Args:
        r_max: ranks above it count as it. The paper finds 100 to 500 robust and 50 clearly worse.

    Returns:
        float64 per row, unit 1/nats. Null for refused rows, empty responses, lists with a null or a value that is
        not finite, and where every surprisal is exactly 0 (the reference code floors the denominator at 1e-12 instead, which
        gives a huge but finite number).

    Source: arXiv 2601.14249, Eq. 7; per dataset Eq. 8-9.

    >>> tokens = {"student_rank": [[153, 18]], "student_surprisal": [[7.25, 4.75]]}
    >>> pl.DataFrame(tokens).select(rsr()).item() == (100 + 18) / 12
    True
    """
    return _RSR.given(r_max=r_max).value()


def rank_entropy_ratio(r_max: int = R_MAX) -> pl.Expr:
    """Mean clipped rank over mean entropy: sum_k min(r_k, r_max) / sum_k H_k. Lower is better.

    Args:
        r_max: ranks above it count as it.

    Returns:
        float64 per row, unit 1/nats. Null as for `rsr`, and where every entropy is exactly 0.

    Source: arXiv 2601.14249, Table 14 (ablation; correlation 0.764 where RSR has 0.856).

    >>> tokens = {"student_rank": [[1, 3]], "student_entropy": [[0.5, 0.5]]}
    >>> pl.DataFrame(tokens).select(rank_entropy_ratio()).item()
    4.0
    """
    return _RANK_ENTROPY_RATIO.given(r_max=r_max).value()


def rsr_filtered(top_percent: int = TOP_PERCENT) -> pl.Expr:
    """Mean of r_k / s_k, ranks unclipped, over the tokens with the trajectory's largest surprisals. Lower is better.

    With k = ceil(top_percent / 100 * T), a token counts if its surprisal is at least the k-th largest, ties included.

    Args:
        top_percent: the share of tokens that counts, in whole percent (1 to 100), so that k has no rounding error.

    Returns:
        float64 per row, unit 1/nats. Null as for `rsr`, and where a token that counts has a surprisal of exactly 0.

    Source: arXiv 2601.14249, Eq. 5 (ablation; correlation 0.793 where RSR has 0.856).

    >>> tokens = {"student_rank": [[1, 1, 6, 1]], "student_surprisal": [[0.25, 0.5, 3.0, 2.0]]}
    >>> pl.DataFrame(tokens).select(rsr_filtered()).item() == (6 / 3.0 + 1 / 2.0) / 2
    True
    """
    return _RSR_FILTERED.given(top_percent=top_percent).value()


def _filtered(top_percent: int = TOP_PERCENT) -> pl.Expr:
    """The mean of `rsr_filtered` before values that are not finite become null: [T], [T] -> [1]."""
    element = pl.element()
    k = (pl.len() * top_percent + 99) // 100
    counts = element >= element.top_k(k).min()
    # Only one list can be seen inside list.eval, so tokens that do not count are carried as a surprisal of infinity:
    # their r / inf is 0, which no token that counts can have (r >= 1), and the mean skips them.
    kept = pl.col(_SURPRISAL).list.eval(pl.when(counts).then(element.cast(pl.Float64)).otherwise(float("inf")))
    quotients = pl.col(_RANK).list.eval(element.cast(pl.Float64)) / kept
    value = quotients.list.eval(pl.when(element > 0).then(element)).list.mean()
    sound = ~has_null(_RANK) & mean(_SURPRISAL).is_finite()
    return pl.when(sound).then(value)


def _clipped(r_max: int = R_MAX) -> pl.Expr:
    return mean(_RANK, r_max)


CLIP = Parameter("r_max", R_MAX, "ranks above it count as it", at_least=1)
"""The rank at which ranks are clipped."""

_RSR = Metric(
    name="rsr",
    numerator=_clipped,
    denominator=lambda: mean(_SURPRISAL),
    unit="1/nats",
    direction="lower",
    columns=(_RANK, _SURPRISAL),
    source=f"{PAPER}, Eq. 7-9",
    meaning="mean rank (clipped at 100) over mean surprisal: informative for the student, yet within its reach",
    parameters=(CLIP,),
)
_RANK_ENTROPY_RATIO = Metric(
    name="rank_entropy_ratio",
    numerator=_clipped,
    denominator=lambda: mean(_ENTROPY),
    unit="1/nats",
    direction="lower",
    columns=(_RANK, _ENTROPY),
    source=f"{PAPER}, Table 14",
    meaning="mean rank (clipped at 100) over mean entropy of the student",
    parameters=(CLIP,),
)
_RSR_FILTERED = Metric(
    name="rsr_filtered",
    numerator=_filtered,
    unit="1/nats",
    direction="lower",
    columns=(_RANK, _SURPRISAL),
    source=f"{PAPER}, Eq. 5",
    meaning="mean of unclipped rank / surprisal over the 30 % most surprising tokens",
    parameters=(
        Parameter("top_percent", TOP_PERCENT, "share of tokens that counts, in whole percent", at_least=1, at_most=100),
    ),
)

RANK_SURPRISAL = (_RSR, _RANK_ENTROPY_RATIO, _RSR_FILTERED)
"""The metrics of this family, in the order in which they are listed."""
