"""The class `Metric`, and the list arithmetic that all metrics share.

Axis T is the scored tokens of one trajectory; a token column is one list of length T per row. Stored lists are uint32
or float32; every sum here runs over float64: a sum of uint32 wraps around, a sum of float32 forgets small terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import polars as pl

from trajscore.options import Parameter, named_with, settle

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
        numerator: builds the numerator, one float64 per row; its keywords are the parameters.
        unit: unit of the value, empty when it has none.
        direction: which end is better, `lower` or `higher`; None where no source shows it: then it ranks nothing by itself.
        columns: score columns that are read.
        source: arXiv id and equation.
        meaning: one sentence for tables.
        denominator: builds the denominator, one float64 per row; 1 unless given.
        within: for a metric that compares the rows of a prompt: makes its value of numerator, denominator and prompt, all of
            them columns by then, so that no token list is held until its prompt is complete. The dataset value is the mean.
        parameters: what can be given with `NAME,KEY=VALUE`.
        fit: for a metric that reads the whole corpus: its coefficients, further keywords of the numerator, from the columns of
            all scored rows.
        fitted: the coefficients in force; None before `on`.
    """

    name: str
    numerator: Callable[..., pl.Expr]
    unit: str
    direction: Direction | None
    columns: tuple[str, ...]
    source: str
    meaning: str
    denominator: Callable[[], pl.Expr] = one
    within: Callable[[pl.Expr, pl.Expr, pl.Expr], pl.Expr] | None = None
    parameters: tuple[Parameter, ...] = ()
    fit: Callable[[pl.LazyFrame], dict[str, float]] | None = None
    fitted: Mapping[str, float] | None = field(default=None, hash=False)

    @property
    def kind(self) -> Literal["row", "prompt", "corpus"]:
        """What its value depends on: the row alone, the other rows of its prompt, or all rows."""
        return "corpus" if self.fit is not None else "row" if self.within is None else "prompt"

    def on(self, rows: pl.LazyFrame) -> Metric:
        """The metric with the coefficients of these rows; itself where nothing is to be fitted."""
        if self.fit is None or self.fitted is not None:
            return self
        coefficients = self.fit(rows)
        return replace(self, numerator=partial(self.numerator, **coefficients), fitted=coefficients)

    @property
    def better(self) -> str:
        """Which end is better, in words."""
        return "no direction" if self.direction is None else f"{self.direction} is better"

    def given(self, **values: Any) -> Metric:
        """The metric with these parameters, named with those that are not its defaults.

        Raises:
            UsageError: a parameter is unknown, or its value not allowed.

        >>> squares = Metric("s", lambda by=1: pl.col("x") * by, "", "lower", ("x",), "own", "x times by",
        ...                  parameters=(Parameter("by", 1, "a factor"),))
        >>> squares.given(by=2).name, squares.given(by=1).name
        ('s[by=2]', 's')
        """
        settled = settle(f"metric {self.name!r}", self.parameters, values)
        name = named_with(self.name, self.parameters, settled)
        return self if name == self.name else replace(self, name=name, numerator=partial(self.numerator, **settled))

    def value(self) -> pl.Expr:
        """The metric of each trajectory: float64, null where undefined, named after the metric.

        Where coefficients are still to be fitted, they are those of the frame on which it is evaluated.
        """
        if self.fit is not None and self.fitted is None:
            return pl.struct(self.columns).map_batches(self._fitted_here, return_dtype=pl.Float64).alias(self.name)
        return self.of_terms(self.numerator(), self.denominator(), pl.col("prompt_id"))

    def _fitted_here(self, rows: pl.Series) -> pl.Series:
        frame = rows.struct.unnest()
        return frame.select(self.on(frame.lazy()).value()).to_series()

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


def finite(value: pl.Expr, *columns: str) -> pl.Expr:
    """A value where every token of these columns is a finite number and there is one; null elsewhere."""
    return pl.when(pl.all_horizontal(mean(column).is_finite() for column in columns)).then(value)


def has_null(column: str) -> pl.Expr:
    """Whether a token column's list holds a null, per row; null for a null list."""
    return pl.col(column).list.eval(pl.element().is_null()).list.any()
