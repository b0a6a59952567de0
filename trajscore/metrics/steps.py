"""Naturalness step by step: in a local context, without the confounding of step length; and the share of steps judged wrong.

A step is a sentence. Its first tokens are improbable, and the longer a step, the less they weigh in the mean over all tokens: a
mean log-probability prefers long steps. Notation: T scored tokens, S sentences in which one of them starts, F = S / T.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from trajscore.metrics.base import Metric, finite, mean, shared
from trajscore.options import Parameter

_SURPRISAL, _SENTENCE, _REWARDS = "student_surprisal", "sentence", "step_rewards"
_COLUMNS = (_SURPRISAL, _SENTENCE)
_LOCAL = "student_local_sentence_logprob"
_PAPER = "arXiv 2604.06834 (ASLEC)"


def lalp() -> pl.Expr:
    """Mean over sentences of the mean ln p of a sentence after the prompt and the K sentences before it. Higher is better.

    Every sentence counts equally, however long it is. K is that of `score --extra local:K`; what others report of the
    paper is 4.

    Returns:
        float64 per row, nats, at most 0. A sentence without a value (no token starts in it) is left out. Null for refused rows,
        a value that is not finite, and where no sentence has one.

    Source: arXiv 2510.03988, equation 2.

    >>> pl.DataFrame({"student_local_sentence_logprob": [[-1.0, None, -2.0]]}).select(lalp()).item()
    -1.5
    """
    return _LALP.value()


def aslec_drop(first: int = 1) -> pl.Expr:
    """Mean ln p without the first token of every sentence. Higher is better.

    Args:
        first: tokens left out of each sentence; the paper's text says one, its code leaves out two.

    Returns:
        float64 per row, nats, at most 0. Null for refused rows, lists with a null or a value that is not finite, and where no
        token remains (the authors' code takes -16 there).

    Source: arXiv 2604.06834.

    >>> tokens = {"student_surprisal": [[9.0, 1.0, 9.0, 3.0, 2.0]], "sentence": [[0, 0, 1, 1, 1]]}
    >>> pl.DataFrame(tokens).select(aslec_drop()).item(), pl.DataFrame(tokens).select(aslec_drop(first=2)).item()
    (-2.0, -2.0)
    """
    return _ASLEC_DROP.given(first=first).value()


def aslec_casl() -> pl.Expr:
    """Mean ln p less what the share of first tokens explains of it: M - gamma F. Higher is better.

    gamma is the coefficient of F in the least-squares fit of M on M_non, M_first, F and a constant over all trajectories that
    have them: M is the mean ln p, M_first that of the first tokens of sentences, M_non that of the others. As an expression it
    is fitted on the frame that it is evaluated on; `select` and `report` fit it on all scored rows, before `--where`, and
    record it.

    Returns:
        float64 per row, nats. Null as for `aslec_drop`, and for all rows where fewer than four or no four independent
        trajectories determine the fit.

    Source: arXiv 2604.06834.

    >>> rows = {"student_surprisal": [[1.0, 2.0]], "sentence": [[0, 0]]}
    >>> pl.DataFrame(rows).select(aslec_casl()).to_series().to_list()
    [None]
    """
    return _ASLEC_CASL.value()


def step_errors(threshold: float = 0.5) -> pl.Expr:
    """Share of the steps whose reward is below the threshold. Lower is better.

    `step_rewards` is a column that the corpus brings: a list with one number per step, from a process reward model, say.

    Args:
        threshold: rewards below it mark a step as wrong; none is published, so 0.5 of rewards in [0, 1] is ours.

    Returns:
        float64 per row, in [0, 1], no unit. Null where there is no step, or a reward that is no number.

    Source: arXiv 2410.20533, which finds that wrong steps harm more than a wrong answer.

    >>> pl.DataFrame({"step_rewards": [[0.9, 0.2, 0.7, 0.5]]}).select(step_errors()).item()
    0.25
    """
    return _STEP_ERRORS.given(threshold=threshold).value()


@shared
def _logprobs() -> pl.Expr:
    """ln p of each token: [T] -> [T]."""
    return pl.col(_SURPRISAL).list.eval(-pl.element().cast(pl.Float64))


def _over(tokens: pl.Expr) -> pl.Expr:
    """Mean ln p over the tokens where a list holds 1 rather than null: [T] -> [1]."""
    # Only one list can be seen inside list.eval: a factor of null takes a token out of the mean.
    return finite((_logprobs() * tokens).list.mean(), _SURPRISAL)


@shared
def _first() -> pl.Expr:
    """1 at the first token of each sentence, else null: [T] -> [T]. Sentences follow each other."""
    token = pl.element()
    return pl.col(_SENTENCE).list.eval(pl.when(token.ne_missing(token.shift(1))).then(1.0))


@shared
def _over_later(first: int = 1) -> pl.Expr:
    """Mean ln p over every token but the first ones of its sentence: [T], [T] -> [1]."""
    token = pl.element()
    return _over(pl.col(_SENTENCE).list.eval(pl.when(token == token.shift(first)).then(1.0)))


def _features() -> dict[str, pl.Expr]:
    """M, M_non, M_first and F of each row."""
    share = _first().list.sum() / pl.col(_SENTENCE).list.len()
    return {"mean": -mean(_SURPRISAL), "others": _over_later(), "first": _over(_first()), "share": share}


def _casl(mean: pl.Expr, others: pl.Expr, first: pl.Expr, share: pl.Expr, gamma: float = math.nan) -> pl.Expr:
    # Not with -, whose last bits depend on how polars plans it.
    value = pl.sum_horizontal(mean, share * -gamma, ignore_nulls=False)
    return pl.when(others.is_finite() & first.is_finite()).then(value)


def _fit(features: pl.DataFrame) -> dict[str, float]:
    """gamma, or NaN where the trajectories do not determine it. The order of the rows does not matter."""
    features = features.filter(pl.all_horizontal(pl.all().is_finite().fill_null(False))).sort(features.columns)
    mean_R, *columns = features.to_numpy().T
    if len(mean_R) < 4:
        return {"gamma": math.nan}
    coefficients, _, rank, _ = np.linalg.lstsq(np.column_stack([*columns, np.ones(len(mean_R))]), mean_R, rcond=None)
    return {"gamma": float(coefficients[2]) if rank == 4 else math.nan}


def _wrong_steps(threshold: float = 0.5) -> pl.Expr:
    wrong = pl.col(_REWARDS).list.eval((pl.element().cast(pl.Float64) < threshold).cast(pl.Float64))
    return finite(wrong.list.mean(), _REWARDS)


def _mean_over_sentences() -> pl.Expr:
    return pl.col(_LOCAL).list.eval(pl.element().cast(pl.Float64)).list.mean()


_LALP = Metric(
    name="lalp",
    numerator=_mean_over_sentences,
    unit="nats",
    direction="higher",
    columns=(_LOCAL,),
    source="arXiv 2510.03988, equation 2",
    meaning="mean over sentences of their mean ln p after the prompt and the K sentences before alone",
)
_ASLEC_DROP = Metric(
    name="aslec_drop",
    numerator=_over_later,
    unit="nats",
    direction="higher",
    columns=_COLUMNS,
    source=_PAPER,
    meaning="mean ln p without the first token of every sentence, which long sentences dilute",
    parameters=(Parameter("first", 1, "tokens left out of each sentence", at_least=1),),
)
_ASLEC_CASL = Metric(
    name="aslec_casl",
    numerator=_casl,
    unit="nats",
    direction="higher",
    columns=_COLUMNS,
    source=_PAPER,
    meaning="mean ln p less what the share of sentences' first tokens explains, fitted over the corpus",
    features=_features,
    fit=_fit,
)
_STEP_ERRORS = Metric(
    name="step_errors",
    numerator=_wrong_steps,
    unit="",
    direction="lower",
    columns=(_REWARDS,),
    source="arXiv 2410.20533; the threshold is ours",
    meaning="share of the steps whose reward, a list that the corpus brings, is below 0.5",
    parameters=(Parameter("threshold", 0.5, "rewards below it mark a step as wrong"),),
)

STEPS = (_LALP, _ASLEC_DROP, _ASLEC_CASL, _STEP_ERRORS)
"""The metrics of this family, in the order in which they are listed."""
