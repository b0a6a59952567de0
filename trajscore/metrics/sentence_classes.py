"""Which model a sentence comes from, by the probabilities that models give it. It knows probabilities; no text and no file.

N scored tokens and S sentences of one trajectory. A sentence's probability under a model is the geometric mean over its tokens,
p = exp(mean ln p), so tokenizers need not agree. Differences are of probabilities, not of their logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from trajscore.errors import UsageError
from trajscore.metrics.flat import flatten, unflatten

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


@dataclass(frozen=True)
class Thresholds:
    """Which differences of probabilities count.

    Attributes:
        alpha: up to this, three models agree; used with a distilled model only.
        beta: above this, teacher and student differ.

    Raises:
        UsageError: one is not in [0, 1).
    """

    alpha: float = 0.1
    beta: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 <= value < 1:
                raise UsageError(
                    f"--{name} is {value}.", "Give a difference of probabilities, at least 0 and below 1, such as 0.1."
                )


def classify(thresholds: Thresholds, student: pl.Expr, teacher: pl.Expr, distilled: pl.Expr | None = None) -> pl.Expr:
    """The class of each sentence: a string per row.

    With a distilled model, in this order: `shared` if all three differ by at most alpha; `teacher` if p_T - p_S > beta;
    `student` if p_S - p_T > beta; else `boosted`. Without: `teacher`, `student`, else `common`. A difference of exactly beta is
    `boosted` or `common`. Null or NaN under any model: `undefined`.

    Args:
        thresholds: alpha and beta.
        student: p_S of each sentence, float64.
        teacher: p_T.
        distilled: p_D; None before training.

    Source: arXiv 2512.20908; beta = 0.1 is the paper's, alpha is not stated there and taken equal. arXiv 2601.09088.

    >>> rows = pl.DataFrame({"s": [0.5, 0.25, 0.75], "t": [0.5, 0.75, 0.25]})
    >>> rows.select(classify(Thresholds(), pl.col("s"), pl.col("t"))).to_series().to_list()
    ['common', 'teacher', 'student']
    """
    models = [student, teacher, *([] if distilled is None else [distilled])]
    defined = pl.all_horizontal(model.is_not_null() & model.is_not_nan() for model in models)
    leads = pl.when(teacher - student > thresholds.beta).then(pl.lit("teacher"))
    differ = leads.when(student - teacher > thresholds.beta).then(pl.lit("student"))
    if distilled is None:
        found = differ.otherwise(pl.lit("common"))
    else:
        pairs = ((student, distilled), (teacher, distilled), (teacher, student))
        alike = pl.all_horizontal((first - second).abs() <= thresholds.alpha for first, second in pairs)
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
