"""The class `Metric`, and the list arithmetic that all metrics share.

Axis T is the scored tokens of one trajectory; a token column is one list of length T per row. Stored lists are uint32
or float32; every sum here runs over float64: a sum of uint32 wraps around, a sum of float32 forgets small terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import polars as pl

from trajscore.options import Parameter, named_with, settle

Direction = Literal["lower", "higher"]
Given = ParamSpec("Given")
Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)

_SHARED: ContextVar[dict[str, pl.Expr] | None] = ContextVar("_SHARED", default=None)


def shared(make: Callable[Given, pl.Expr]) -> Callable[Given, pl.Expr]:
    """What several metrics are made of, such as a mean: inside `select_shared` a column that is computed once.

    polars shares equal expressions by itself, but none with `list.eval`.
    """

    @wraps(make)
    def once(*given: Given.args, **named: Given.kwargs) -> pl.Expr:
        known = _SHARED.get()
        if known is None:
            return make(*given, **named)
        name = f"trajscore.{make.__module__}.{make.__qualname__}{given}{named}"
        if name not in known:
            # What it is made of is entered first.
            made = make(*given, **named)
            known[name] = made
        return pl.col(name)

    return once


def select_shared(frame: Frame, make: Callable[[], Iterable[pl.Expr]]) -> Frame:
    """`frame.select(make())`, with all that is `shared` computed once.

    >>> tokens = pl.DataFrame({"s": [[0.5, 1.0]]})
    >>> select_shared(tokens, lambda: [mean("s").alias("a"), (mean("s") * 2).alias("b")]).row(0)
    (0.75, 1.5)
    """
    before = _SHARED.set({})
    try:
        wanted, known = list(make()), _SHARED.get() or {}
    finally:
        _SHARED.reset(before)
    depths: dict[str, int] = {}
    for name, expression in known.items():
        depths[name] = 1 + max((depths.get(root, 0) for root in expression.meta.root_names()), default=0)
    for depth in sorted(set(depths.values())):
        frame = frame.with_columns(known[name].alias(name) for name in known if depths[name] == depth)
    return frame.select(wanted)


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
        features: for a metric that reads the whole corpus: numbers of each row by name; the numerator gets them as keywords.
        fit: the coefficients of such a metric, further keywords of the numerator, from the features of all scored rows.
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
    features: Callable[[], dict[str, pl.Expr]] | None = None
    fit: Callable[[pl.DataFrame], dict[str, float]] | None = None
    fitted: Mapping[str, float] | None = field(default=None, hash=False)

    @property
    def kind(self) -> Literal["row", "prompt", "corpus"]:
        """What its value depends on: the row alone, the other rows of its prompt, or all rows."""
        return "corpus" if self.fit is not None else "row" if self.within is None else "prompt"

    def terms(self, features: Mapping[str, pl.Expr] | None = None) -> dict[str, pl.Expr]:
        """Numerator and denominator of each row, from the score columns, or from features that are columns already."""
        if features is None:
            features = self.features() if self.features else {}
        return {"numerator": self.numerator(**features), "denominator": self.denominator()}

    def on(self, rows: pl.LazyFrame) -> Metric:
        """The metric with the coefficients of these rows; itself where nothing is to be fitted."""
        features = self.features
        if features is None or self.fitted is not None:
            return self
        found = select_shared(rows, lambda: [value.alias(name) for name, value in features().items()])
        return self.fitted_to(found.collect(engine="streaming"))

    def fitted_to(self, features: pl.DataFrame) -> Metric:
        """The metric with the coefficients of the rows with these features; itself where nothing is to be fitted."""
        if self.fit is None or self.fitted is not None:
            return self
        coefficients = self.fit(features)
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
        terms = self.terms()
        return self.of_terms(terms["numerator"], terms["denominator"], pl.col("prompt_id"))

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


@shared
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


@shared
def has_null(column: str) -> pl.Expr:
    """Whether a token column's list holds a null, per row; null for a null list."""
    return pl.col(column).list.eval(pl.element().is_null()).list.any()
