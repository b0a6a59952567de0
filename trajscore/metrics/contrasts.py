"""Two means over the same tokens set against each other: thinking and answer, two models, with and without the prompt.

Notation: T scored tokens, s_k surprisal and H_k entropy in nats.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, mean
from trajscore.options import Parameter
from trajscore.rendering.phases import ANSWER, THINKING

_ENTROPY, _SURPRISAL, _DISTILLED = "student_entropy", "student_surprisal", "distilled_surprisal"
_UNCONDITIONAL = "student_unconditional_surprisal"


def phase_entropy(alpha: float = 1.0) -> pl.Expr:
    """PEAR's penalty: max(0, mean entropy while thinking - alpha * mean entropy of the answer). Lower is better.

    High where the thinking wanders though the answer is settled. The markers themselves count in neither mean. Thinking without
    an answer, as of a truncated trajectory, has an answer's entropy of 0, as in the source: it is not excused.

    Args:
        alpha: weight of the answer's entropy; the paper finds 1 best.

    Returns:
        float64 per row, nats, at least 0. Null where there is no thinking, which the source does not define, for refused rows,
        and for lists with a null or a value that is not finite. `select` counts such rows as `undefined_metric` where this
        ranks; beside another metric `--where "phase_entropy IS NULL OR phase_entropy < 1"` keeps them.

    Source: arXiv 2510.08026.

    >>> tokens = {"student_entropy": [[1.0, 2.0, 9.0, 0.5]], "phase": [[0, 0, 1, 2]]}
    >>> pl.DataFrame(tokens).select(phase_entropy()).item()
    1.0
    """
    return _PHASE_ENTROPY.given(alpha=alpha).value()


def ood_ratio() -> pl.Expr:
    """Log-likelihood ratio of base and trained student per token: (1/T) sum_k (s_k^distilled - s_k^student).

    Positive: training has made the text less likely, so it is unlike what was trained on. No direction: the source finds
    outliers by it (rank descending), and selects nothing.

    Returns:
        float64 per row, nats. Null for refused rows, rows that either could not read, and lists with a null or a value that is
        not finite.

    Source: arXiv 2404.08679, the length-normalised ratio.

    >>> tokens = {"distilled_surprisal": [[1.0, 2.0]], "student_surprisal": [[0.5, 1.0]]}
    >>> pl.DataFrame(tokens).select(ood_ratio()).item()
    0.75
    """
    return _OOD_RATIO.value()


def ifd() -> pl.Expr:
    """Instruction-following difficulty: mean surprisal given the conversation over mean surprisal without it.

    Higher is better, but the authors discard values above 1, where the prompt does not help: `--where "ifd <= 1"`. They use
    a student that was trained briefly before. Per dataset: ratio of the sums of the means.

    Returns:
        float64 per row, no unit, at least 0. Both means run over the tokens that have an unconditional surprisal: a first token
        that follows nothing has none. Null for refused rows, bare texts, lists with a value that is not finite, and where every
        unconditional surprisal is exactly 0.

    Source: arXiv 2308.12032, the ratio of the losses.

    >>> tokens = {"student_surprisal": [[9.0, 1.0, 0.5]], "student_unconditional_surprisal": [[None, 2.0, 4.0]]}
    >>> pl.DataFrame(tokens).select(ifd()).item()
    0.25
    """
    return _IFD.value()


def _penalty(alpha: float = 1.0) -> pl.Expr:
    thinking, answer = (_phase_mean(phase) for phase in (THINKING, ANSWER))
    penalty = (thinking - alpha * answer.fill_null(0.0)).clip(lower_bound=0)
    # A token of neither phase that is no number must not be overlooked.
    return pl.when(mean(_ENTROPY).is_finite()).then(penalty)


def _phase_mean(phase: int) -> pl.Expr:
    """Mean entropy over the tokens of a phase: [T], [T] -> [1]; null without any."""
    # Only one list can be seen inside list.eval: a factor of null takes a token out of the mean.
    inside = pl.col("phase").list.eval(pl.when(pl.element() == phase).then(1.0))
    return (pl.col(_ENTROPY).list.eval(pl.element().cast(pl.Float64)) * inside).list.mean()


def _unconditional() -> pl.Expr:
    return pl.col(_UNCONDITIONAL).list.eval(pl.element().cast(pl.Float64)).list.mean()


def _conditional() -> pl.Expr:
    # Adding 0 * u leaves a number as it is and makes it null where u is null.
    nothing = pl.col(_UNCONDITIONAL).list.eval(pl.element().cast(pl.Float64) * 0)
    present = (pl.col(_SURPRISAL).list.eval(pl.element().cast(pl.Float64)) + nothing).list.mean()
    return pl.when(mean(_SURPRISAL).is_finite()).then(present)


_PHASE_ENTROPY = Metric(
    name="phase_entropy",
    numerator=_penalty,
    unit="nats",
    direction="lower",
    columns=(_ENTROPY, "phase"),
    source="arXiv 2510.08026 (PEAR)",
    meaning="mean entropy while thinking minus that of the answer (0 without one), at least 0; null without thinking",
    parameters=(Parameter("alpha", 1.0, "weight of the answer's entropy"),),
)

_OOD_RATIO = Metric(
    name="ood_ratio",
    numerator=lambda: mean(_DISTILLED) - mean(_SURPRISAL),
    unit="nats",
    direction=None,
    columns=(_DISTILLED, _SURPRISAL),
    source="arXiv 2404.08679",
    meaning="mean surprisal after training minus before; positive: unlike what was trained on",
)
_IFD = Metric(
    name="ifd",
    numerator=_conditional,
    denominator=_unconditional,
    unit="",
    direction="higher",
    columns=(_SURPRISAL, _UNCONDITIONAL),
    source="arXiv 2308.12032",
    meaning="mean surprisal with the prompt over that without; above 1 the prompt does not help: discard",
)

CONTRASTS = (
    _PHASE_ENTROPY,
    _OOD_RATIO,
    _IFD,
)
"""The metrics of this family, in the order in which they are listed."""
