"""Whose a sentence is: the teacher's, the student's or common to them, by the probabilities that the models give it.

The one place of this rule and its margin of 0.1: `trace` and `inspect` show the classes, the metrics at the end count the
teacher's sentences, and `mask --rule teacher_sentences` keeps their tokens.

N scored tokens and S sentences of one trajectory. A sentence's probability under a model is the geometric mean over its tokens,
p = exp(mean ln p), so tokenizers need not agree. Differences are of probabilities, not of their logarithms.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from trajscore.metrics.base import Metric, shared
from trajscore.options import Parameter
from trajscore.scores.list_columns import flatten, unflatten

BETA = 0.1
"""How much likelier one model must find a sentence than the other (arXiv 2512.20908, best of 0.05, 0.1 and 0.15)."""

ALPHA = 0.1
"""Up to this, three models agree; the paper does not state it, so it is taken equal to `BETA`."""

_COLUMNS = ("teacher_sentence_logprob", "student_sentence_logprob")
_PAPERS = "arXiv 2512.20908, teacher-guided selection; arXiv 2601.09088 (DAS)"

FOUR_WAY = ("shared", "teacher", "student", "boosted")
THREE_WAY = ("common", "teacher", "student")
UNDEFINED = "undefined"

MEANINGS = {
    "shared": "all three models find it about equally likely",
    "common": "teacher and student find it about equally likely",
    "teacher": "the teacher finds it likelier than the student",
    "student": "the student finds it likelier than the teacher",
    "boosted": "the distilled model differs, though teacher and student do not",
    UNDEFINED: "a model gives it no probability, because no token of that model starts in it",
}
"""What each class means."""


def classify(
    student: pl.Expr, teacher: pl.Expr, distilled: pl.Expr | None = None, *, alpha: float = ALPHA, beta: float = BETA
) -> pl.Expr:
    """The class of each sentence: a string per row.

    With a distilled model, in this order: `shared` if all three differ by at most alpha; `teacher` if p_T - p_S > beta;
    `student` if p_S - p_T > beta; else `boosted`. Without: `teacher`, `student`, else `common`. A difference of exactly beta is
    `boosted` or `common`. Null or NaN under any model: `undefined`.

    Args:
        student: p_S of each sentence, float64.
        teacher: p_T.
        distilled: p_D; None before training.
        alpha: up to this difference three models agree; used with a distilled model only.
        beta: above this difference teacher and student differ.

    Source: arXiv 2512.20908; arXiv 2601.09088.

    >>> rows = pl.DataFrame({"s": [0.5, 0.25, 0.75], "t": [0.5, 0.75, 0.25]})
    >>> rows.select(classify(pl.col("s"), pl.col("t"))).to_series().to_list()
    ['common', 'teacher', 'student']
    """
    models = [student, teacher, *([] if distilled is None else [distilled])]
    defined = pl.all_horizontal(model.is_not_null() & model.is_not_nan() for model in models)
    leads = pl.when(teacher - student > beta).then(pl.lit("teacher"))
    differ = leads.when(student - teacher > beta).then(pl.lit("student"))
    if distilled is None:
        found = differ.otherwise(pl.lit("common"))
    else:
        pairs = ((student, distilled), (teacher, distilled), (teacher, student))
        alike = pl.all_horizontal((first - second).abs() <= alpha for first, second in pairs)
        found = pl.when(alike).then(pl.lit("shared")).otherwise(differ.otherwise(pl.lit("boosted")))
    return pl.when(defined).then(found).otherwise(pl.lit(UNDEFINED))


def sentence_sizes() -> pl.Expr:
    """Scored tokens that start in each sentence: `sentence` [N], `student_sentence_logprob` [S] -> [S], uint32.

    >>> rows = pl.DataFrame({"sentence": [[0, 0, 2]], "student_sentence_logprob": [[-1.0, None, -2.0]]})
    >>> rows.select(sentence_sizes()).item().to_list()
    [2, 0, 1]
    """
    columns = pl.struct(sentence="sentence", of="student_sentence_logprob")
    return columns.map_batches(_sizes, return_dtype=pl.List(pl.UInt32), is_elementwise=True)


def _sizes(rows: pl.Series) -> pl.Series:
    sentences = flatten(rows.struct.field("sentence"))
    lengths = rows.struct.field("of").list.len().fill_null(0).cast(pl.Int64).to_numpy()
    places = (np.cumsum(lengths) - lengths)[sentences.rows] + sentences.values
    return unflatten(lengths, np.bincount(places, minlength=int(lengths.sum())).astype(np.uint32))


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
    return _TEACHER_SENTENCES.given(beta=beta).value()


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
    return _TEACHER_SENTENCE_RATIO.given(beta=beta).value()


def das_margin() -> pl.Expr:
    """Sum over sentences of max(0, ln p_T(a) - ln p_S(a)), p the geometric mean. Higher is better.

    Unlike `teacher_sentences` it measures by how much the teacher leads: by log-ratios, so that a sentence which the student
    finds hardly possible counts, and without a threshold. The report that proposes to prefer text rich in Teacher sentences
    gives no formula; this one is a choice of ours. It grows with length.

    Returns:
        float64 per row, nats. A sentence that is null on either side is left out. Null for refused rows, rows that the teacher
        could not read, a value that is not a probability or 0 under the student alone, and where no sentence can be compared.

    Source: arXiv 2601.09088 (DAS).

    >>> sentences = {"teacher_sentence_logprob": [[-1.0, -3.0, None]], "student_sentence_logprob": [[-2.5, -2.0, -1.0]]}
    >>> pl.DataFrame(sentences).select(das_margin()).item()
    1.5
    """
    return _DAS_MARGIN.value()


def _margin() -> pl.Expr:
    teacher, student = (pl.col(name).cast(pl.List(pl.Float64)) for name in _COLUMNS)
    leads = teacher - student
    return pl.when(_comparable() > 0).then(leads.list.eval(pl.element().clip(lower_bound=0)).list.sum())


@shared
def probability_leads() -> pl.Expr:
    """p_T - p_S of each sentence, null where either is: the two sentence columns [S], [S] -> [S], float64."""
    teacher, student = (pl.col(name).list.eval(pl.element().cast(pl.Float64).exp()) for name in _COLUMNS)
    return teacher - student


@shared
def _comparable() -> pl.Expr:
    return probability_leads().list.drop_nulls().list.len().cast(pl.Float64)


@shared
def _count(beta: float = BETA) -> pl.Expr:
    leads = probability_leads()
    sound = leads.list.eval(pl.element().is_finite()).list.all() & (_comparable() > 0)
    return pl.when(sound).then(leads.list.eval((pl.element() > beta).cast(pl.Float64)).list.sum())


MARGIN = Parameter("beta", BETA, "difference of probabilities above which the teacher leads", at_least=-1, below=1)
"""The margin of the sentence classes."""

_TEACHER_SENTENCES = Metric(
    name="teacher_sentences",
    numerator=_count,
    unit="sentences",
    direction="higher",
    columns=_COLUMNS,
    source=_PAPERS,
    meaning="number of sentences more probable to the teacher by over 0.1 (geometric means); grows with length",
    parameters=(MARGIN,),
)
_TEACHER_SENTENCE_RATIO = Metric(
    name="teacher_sentence_ratio",
    numerator=_count,
    denominator=_comparable,
    unit="",
    direction="higher",
    columns=_COLUMNS,
    source="arXiv 2512.20908, ablation",
    meaning="share of such sentences among those that both models can judge; free of length",
    parameters=(MARGIN,),
)

_DAS_MARGIN = Metric(
    name="das_margin",
    numerator=_margin,
    unit="nats",
    direction="higher",
    columns=_COLUMNS,
    source="arXiv 2601.09088 (DAS), which gives no formula",
    meaning="sum over sentences of ln p_T - ln p_S (geometric means) where that is above 0; grows with length",
)

PROVENANCE = (
    _TEACHER_SENTENCES,
    _TEACHER_SENTENCE_RATIO,
    _DAS_MARGIN,
)
"""The metrics of this family, in the order in which they are listed."""
