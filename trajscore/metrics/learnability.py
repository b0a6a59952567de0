"""LARK: what the student can learn from a candidate, measured against the other candidates of its prompt.

It reads the student's token columns and `prompt_id`. Notation: K candidates of a prompt, T scored tokens of one, L_k mean
surprisal in nats, B_k mean Brier score, rho_k = B_k / L_k.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, has_null, mean

_SURPRISAL, _COLLISION = "student_surprisal", "student_collision"


def lark() -> pl.Expr:
    """Learnability within the prompt: g_k = (L_k / sum_i L_i) (2 rho_k - sum_i rho_i L_i / sum_i L_i). Higher is better.

    B_k is the mean over tokens of 1 - 2 p_y + sum_v p_v^2, p_y the token's probability: exact over the full vocabulary,
    where the authors take the 50 largest logits and renormalise them. Candidates are all rows of the same `prompt_id` in the
    frame whose two terms are defined, so filtering first changes the values; `select` computes it before it drops any
    row. A prompt's only candidate has g = rho. Per dataset: the mean over trajectories, each relative to its own candidates,
    so teachers compare only where they answered the same prompts.

    Returns:
        float64 per row, 1/nats. Null for refused rows, empty responses, lists with a null or a value that is not finite, and
        prompts whose every L_k is exactly 0. The same to the last bit for every order of the rows.

    Source: arXiv 2605.30651.

    >>> rows = {"prompt_id": ["p", "p"], "student_surprisal": [[1.0], [3.0]], "student_collision": [[0.5], [0.5]]}
    >>> pl.DataFrame(rows).select(lark().round(4)).to_series().to_list()
    [0.2468, 0.2943]
    """
    return _LARK.value()


def _brier() -> pl.Expr:
    """Mean over tokens of 1 - 2 p_y + sum_v p_v^2: [T], [T] -> [1]."""
    p = pl.col(_SURPRISAL).list.eval((-pl.element().cast(pl.Float64)).exp()).list.mean()
    return pl.when(~has_null(_SURPRISAL)).then(1 - 2 * p + mean(_COLLISION))


def _within(brier: pl.Expr, loss: pl.Expr, prompt: pl.Expr) -> pl.Expr:
    """g of each row, from B and L of all rows of its prompt; rho_k is B_k / L_k, so no candidate is divided by its own loss."""
    defined = brier.is_finite() & loss.is_finite()
    briers, losses = (pl.when(defined).then(term) for term in (brier, loss))
    # Sorted, because a sum of floats depends on its order.
    total, all_briers = (term.sort().sum().over(prompt) for term in (losses, briers))
    return (2 * briers - losses * (all_briers / total)) / total


_LARK = Metric(
    name="lark",
    numerator=_brier,
    denominator=lambda: mean(_SURPRISAL),
    within=_within,
    unit="1/nats",
    direction="higher",
    columns=(_SURPRISAL, _COLLISION, "prompt_id"),
    source="arXiv 2605.30651",
    meaning="learnability among all scored candidates of the prompt, from mean surprisal and the exact Brier score",
)

LEARNABILITY = (_LARK,)
"""The metrics of this family, in the order in which they are listed."""
