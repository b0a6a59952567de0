"""The class `Metric`, and the list arithmetic that all metrics share.

Axis T is the scored tokens of one trajectory; a token column is one list of length T per row. Stored lists are uint32
or float32; every sum here runs over float64: a sum of uint32 wraps around, a sum of float32 forgets small terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

Direction = Literal["lower", "higher"]


def one() -> pl.Expr:
    """The denominator of a metric that is a plain mean over trajectories."""
    return pl.lit(1.0)


@dataclass(frozen=True)
class Metric:
    """One number per trajectory, and one per dataset: numerator over denominator.

    Per trajectory the value is `numerator / denominator`. Per dataset it is `sum(numerator) / sum(denominator)` over
    the trajectories where the metric is defined: the ratio of sums for a ratio, the mean without denominator.

    Attributes:
        name: the name users type, and the column's name in what `select` writes.
        numerator: builds the numerator, one float64 per row.
        unit: unit of the value, empty when it has none.
        direction: which end is better, `lower` or `higher`.
        columns: score columns that are read.
        source: arXiv id and equation.
        meaning: one sentence for tables.
        denominator: builds the denominator, one float64 per row; 1 unless given.
        within: for a metric that compares the rows of a prompt: makes its value of numerator, denominator and prompt, all of
            them columns by then, so that no token list is held until its prompt is complete. The dataset value is the mean.
    """

    name: str
    numerator: Callable[[], pl.Expr]
    unit: str
    direction: Direction
    columns: tuple[str, ...]
    source: str
    meaning: str
    denominator: Callable[[], pl.Expr] = one
    within: Callable[[pl.Expr, pl.Expr, pl.Expr], pl.Expr] | None = None

    def value(self) -> pl.Expr:
        """The metric of each trajectory: float64, null where undefined, named after the metric."""
        return self.of_terms(self.numerator(), self.denominator(), pl.col("prompt_id"))

    def of_terms(self, numerator: pl.Expr, denominator: pl.Expr, prompt: pl.Expr) -> pl.Expr:
        """The metric, from its terms of all rows and their prompts."""
        if self.within is None:
            return ratio(numerator, denominator).alias(self.name)
        return ratio(self.within(numerator, denominator, prompt), one()).alias(self.name)


def ratio(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """`numerator / denominator`, null where either is null or not finite, or where the denominator is zero.

    Never NaN, infinite or a stand-in: a row that cannot be measured must not win a ranking.

    >>> frame = pl.DataFrame({"n": [6.0, 1.0, float("nan"), None], "d": [2.0, 0.0, 1.0, 1.0]})
    >>> frame.select(ratio(pl.col("n"), pl.col("d"))).to_series().to_list()
    [3.0, None, None, None]
    """
    value = numerator / denominator
    # A finite quotient of finite terms: the denominator is checked by itself because x / inf is a finite 0.
    return pl.when(value.is_finite() & denominator.is_finite()).then(value)


def mean(column: str, upper: int | None = None) -> pl.Expr:
    """Mean of a token column per row, in float64: [list of T] -> [1].

    Args:
        column: name of the token column.
        upper: values above it count as it; None leaves them.

    Returns:
        The mean; null for a null or empty list and for a list that holds a null (a mean over fewer tokens than the
        other columns have would be a different quantity). A NaN or infinite token makes it NaN or infinite: see `ratio`.

    >>> frame = pl.DataFrame({"r": [[1, 153, 18], []]}, schema={"r": pl.List(pl.UInt32)})
    >>> frame.select(mean("r", upper=101)).to_series().to_list()
    [40.0, None]
    """
    token = pl.element()
    if upper is not None:
        # What clip does, in less than half the time.
        token = pl.when((token > upper) & ~token.is_nan()).then(upper).otherwise(token)
    values = pl.col(column).list
    return pl.when(~has_null(column)).then(values.eval(token.cast(pl.Float64)).list.mean())


def has_null(column: str) -> pl.Expr:
    """Whether a token column's list holds a null, per row; null for a null list."""
    return pl.col(column).list.eval(pl.element().is_null()).list.any()
