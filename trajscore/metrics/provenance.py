"""Sentences that the teacher finds likely and the student does not. It reads the sentence columns of the two, no tokens.

Sentence columns exist whatever the tokenizers, so these metrics do too. Notation: S sentences, p_M(a) the geometric mean of
model M's token probabilities in sentence a.
"""

from __future__ import annotations

import polars as pl

from trajscore.metrics.base import Metric, one, ratio

BETA = 0.1

_COLUMNS = ("teacher_sentence_logprob", "student_sentence_logprob")
_PAPERS = "arXiv 2512.20908, teacher-guided selection; arXiv 2601.09088 (DAS)"


def teacher_sentences(beta: float = BETA) -> pl.Expr:
    """Number of Teacher sentences: those with p_T(a) - p_S(a) > beta. Higher is better.

    A difference of probabilities, not of their logarithms. The count grows with length: in the paper the longest response
    is 0.8 points behind it, so look at `teacher_sentence_ratio` and `length` beside it.

    Args:
        beta: the margin; the paper finds 0.1 best of 0.05, 0.1 and 0.15.

    Returns:
        float64 per row, sentences. A sentence that is null on either side (no token of that model starts in it) is left out.
        Null for refused rows, rows that the teacher could not read, a value that is not a probability, and where no sentence
        can be compared.

    Source: arXiv 2512.20908; the same sentences in arXiv 2601.09088 (DAS).

    >>> from math import log
    >>> sentences = {"teacher_sentence_logprob": [[log(0.9), log(0.5), None]],
    ...              "student_sentence_logprob": [[log(0.5), log(0.45), log(0.1)]]}
    >>> pl.DataFrame(sentences).select(teacher_sentences()).item()
    1.0
    """
    return ratio(_count(beta), one()).alias("teacher_sentences")


def teacher_sentence_ratio(beta: float = BETA) -> pl.Expr:
    """Share of Teacher sentences among the sentences that can be compared. Higher is better; free of length.

    Per dataset: Teacher sentences of all trajectories over their comparable sentences, so that each sentence counts equally,
    as in the paper's shares of sentence classes.

    Args:
        beta: the margin.

    Returns:
        float64 per row, in [0, 1], no unit. Null as for `teacher_sentences`.

    Source: arXiv 2512.20908 (ablation: 56.4 where the count has 58.7 and random selection 56.2).

    >>> from math import log
    >>> sentences = {"teacher_sentence_logprob": [[log(0.9), log(0.5), None]],
    ...              "student_sentence_logprob": [[log(0.5), log(0.45), log(0.1)]]}
    >>> pl.DataFrame(sentences).select(teacher_sentence_ratio()).item()
    0.5
    """
    return ratio(_count(beta), _comparable()).alias("teacher_sentence_ratio")


def _differences() -> pl.Expr:
    """p_T - p_S of each sentence, null where either is: [S], [S] -> [S]."""
    teacher, student = (pl.col(name).list.eval(pl.element().cast(pl.Float64).exp()) for name in _COLUMNS)
    return teacher - student


def _comparable() -> pl.Expr:
    return _differences().list.drop_nulls().list.len().cast(pl.Float64)


def _count(beta: float) -> pl.Expr:
    differences = _differences()
    sound = differences.list.eval(pl.element().is_finite()).list.all() & (_comparable() > 0)
    return pl.when(sound).then(differences.list.eval((pl.element() > beta).cast(pl.Float64)).list.sum())


PROVENANCE = (
    Metric(
        name="teacher_sentences",
        numerator=lambda: _count(BETA),
        unit="sentences",
        direction="higher",
        columns=_COLUMNS,
        source=_PAPERS,
        meaning="number of sentences more probable to the teacher by over 0.1 (geometric means); grows with length",
    ),
    Metric(
        name="teacher_sentence_ratio",
        numerator=lambda: _count(BETA),
        denominator=_comparable,
        unit="",
        direction="higher",
        columns=_COLUMNS,
        source="arXiv 2512.20908, ablation",
        meaning="share of such sentences among those that both models can judge; free of length",
    ),
)
"""The metrics of this family, in the order in which they are listed."""
