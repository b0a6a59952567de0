"""How uncertain the student is at single tokens: the sum over its most uncertain ones, and the norm of its errors."""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, finite
from trajscore.options import Parameter

_ENTROPY, _SURPRISAL, _COLLISION = "student_entropy", "student_surprisal", "student_collision"
_INFERENCE = "inference_entropy"
SHARE = 0.005


def hes(share: float = SHARE) -> pl.Expr:
    """High-entropy sum: sum of the entropies H_k that are at least Q, the row's (1 - share) quantile. Higher is better.

    Among correct trajectories only: wrong ones score higher for wandering, so the preset `hes` adds `--where correct`. The
    quantile is linear between order statistics, a choice of ours; the largest entropy always counts, and so do its ties. It is
    a sum: longer rows have more such tokens.

    Args:
        share: the share of tokens that counts.

    Returns:
        float64 per row, nats. Null for refused rows, empty responses, and lists with a null or a value that is not finite.

    Source: arXiv 2605.22389.

    >>> pl.DataFrame({"student_entropy": [[0.5, 3.0, 1.0, 2.0]]}).select(hes(share=0.5)).item()
    5.0
    """
    return _HES.given(share=share).value()


def el2n() -> pl.Expr:
    """Mean norm of the error: (1/T) sum_k sqrt(1 - 2 p_k + c_k), c_k the sum of squared probabilities. No direction.

    The source scores examples of image classes, early in training; tokens of a text are an analogy.

    Returns:
        float64 per row, in [0, sqrt 2], no unit. Null for refused rows, empty responses, and lists with a null or a value that
        is not finite.

    Source: arXiv 2107.07075 (Data Diet), the error L2-norm.

    >>> from math import log
    >>> tokens = {"student_surprisal": [[log(2.0)]], "student_collision": [[0.5]]}
    >>> round(pl.DataFrame(tokens).select(el2n()).item(), 6) == round(0.5**0.5, 6)
    True
    """
    return _EL2N.value()


def inference_entropy() -> pl.Expr:
    """How unsure the student is as it begins to answer the prompt itself (EDCO). Higher is better.

    A number of the prompt: all its rows have it. It is a column that `trajscore skills entropy` writes beside the scores, from
    what `trajscore skills answer --entropy` measured.

    Returns:
        float64 per row, bits, at most log2 20. Null where the prompt was not answered.

    Source: arXiv 2601.03725 and the authors' code.

    >>> pl.DataFrame({"inference_entropy": [1.5, None]}).select(inference_entropy()).to_series().to_list()
    [1.5, None]
    """
    return _INFERENCE_ENTROPY.value()


def _of_prompt() -> pl.Expr:
    return pl.col(_INFERENCE).cast(pl.Float64)


def _high_entropy_sum(share: float = SHARE) -> pl.Expr:
    entropy = pl.element()
    # Rounding must not lift the quantile above the largest.
    least = pl.min_horizontal(entropy.quantile(1 - share, "linear"), entropy.max())
    values = pl.col(_ENTROPY).cast(pl.List(pl.Float64))
    total = values.list.eval(pl.when(entropy >= least).then(entropy)).list.sum()
    return finite(total, _ENTROPY)


def _error_norm() -> pl.Expr:
    p = pl.col(_SURPRISAL).list.eval((-pl.element().cast(pl.Float64)).exp())
    collision = pl.col(_COLLISION).cast(pl.List(pl.Float64))
    # The stored collision is rounded to float32, so that a certain token may come out below 0.
    norms = (collision - p * 2).list.eval((pl.element() + 1).clip(lower_bound=0).sqrt())
    return finite(norms.list.mean(), _SURPRISAL, _COLLISION)


_HES = Metric(
    name="hes",
    numerator=_high_entropy_sum,
    unit="nats",
    direction="higher",
    columns=(_ENTROPY,),
    source="arXiv 2605.22389",
    meaning="sum of the entropies of the 0.5 % most uncertain tokens; for correct trajectories, wrong ones score higher",
    parameters=(Parameter("share", SHARE, "share of the tokens that counts", above=0, at_most=1),),
)
_EL2N = Metric(
    name="el2n",
    numerator=_error_norm,
    unit="",
    direction=None,
    columns=(_SURPRISAL, _COLLISION),
    source="arXiv 2107.07075 (Data Diet)",
    meaning="mean norm of the error of the student's predictions, the root of the Brier score of each token",
)
_INFERENCE_ENTROPY = Metric(
    name=_INFERENCE,
    numerator=_of_prompt,
    unit="bits",
    direction="higher",
    columns=(_INFERENCE,),
    source="arXiv 2601.03725 (EDCO), the authors' code",
    meaning="of the prompt: how unsure the student is as it begins a brief answer of its own, a column of `skills entropy`",
)

UNCERTAINTY = (
    _HES,
    _EL2N,
    _INFERENCE_ENTROPY,
)
"""The metrics of this family, in the order in which they are listed."""
