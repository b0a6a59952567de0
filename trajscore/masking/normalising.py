"""Token columns scaled to the range from 0 to 1, within a trajectory or over a corpus.

N scored tokens of one trajectory; a token column is one list of length N per row. The quantile of a corpus is exact and needs
no more memory than a histogram: floats of one sign order like their bits, so two passes of 2^16 bins find any order statistic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

QUANTILE = 0.98
"""Values above this quantile count as it, where a column is clipped (arXiv 2604.14084)."""

_HALF = 2**16
_SIGN = np.uint32(2**31)


@dataclass(frozen=True)
class ColumnRange:
    """What 0 and 1 stand for.

    Attributes:
        low: the value that becomes 0, as well as everything below.
        high: the value that becomes 1, as well as everything above.
    """

    low: float
    high: float


def normalised(column: str, quantile: float = 1.0, within: ColumnRange | None = None) -> pl.Expr:
    """(min(x, high) - low) / (high - low) of a token column: [N] -> [N], float64.

    Args:
        column: name of the token column; its values are finite.
        quantile: `high` is this quantile (linear between order statistics); 1 is the maximum.
        within: the range; None takes each trajectory's own, from its minimum.

    Returns:
        Values from 0 to 1. Where `high` equals `low` (one token, constant values) there is nothing to tell apart: all are 0.

    Source: arXiv 2604.14084 (TIP): min-max after the top 2 % were clipped.

    >>> frame = pl.DataFrame({"x": [[1.0, 3.0, 2.0], [5.0, 5.0]]})
    >>> frame.select(normalised("x")).to_series().to_list()
    [[0.0, 1.0, 0.5], [0.0, 0.0]]
    """
    values = pl.col(column).cast(pl.List(pl.Float64))
    if within is None:
        low, high = values.list.min(), values.list.max()
        if quantile < 1:
            high = values.list.eval(pl.element().quantile(quantile, "linear")).list.first()
    else:
        low, high = pl.lit(within.low), pl.lit(within.high)
    # Nothing is above the range but what was clipped; 0 / 0 and, where only clipped values differ, x / 0 become 0.
    shares = (values - low) / (high - low)
    return shares.list.eval(pl.when(pl.element().is_finite()).then(pl.element().clip(0, 1)).otherwise(0.0))


def corpus_range(parts: Sequence[pl.LazyFrame], column: str, quantile: float = 1.0) -> ColumnRange | None:
    """The range of a token column over all tokens of all rows, exact, in the memory of one part and a histogram.

    Args:
        parts: the rows, in any number of frames that are read one after the other; the column's values are finite and count
            as float32, which is how they are stored.
        column: name of the token column.
        quantile: `high` is this quantile (linear between order statistics); 1 is the maximum.

    Returns:
        The range; None where there is no token.

    >>> corpus_range([pl.LazyFrame({"x": [[0.0, 2.0], [1.0]]})], "x")
    ColumnRange(low=0.0, high=2.0)
    """
    # Lists without elements would leave a null each.
    values = [rows.select(value=pl.col(column).explode().cast(pl.Float32)).drop_nulls() for rows in parts]
    keyed = [
        each.with_columns(key=pl.col("value").map_batches(_keys, return_dtype=pl.UInt32, is_elementwise=True))
        for each in values
    ]
    bins = [
        each.group_by(bin=pl.col("key") // _HALF).agg(pl.len(), low=pl.col("value").min(), high=pl.col("value").max())
        for each in keyed
    ]
    coarse = _counted(bins, "bin", low=pl.col("low").min(), high=pl.col("high").max())
    if coarse.is_empty():
        return None
    low, high = float(coarse["low"].min()), float(coarse["high"].max())  # type: ignore[arg-type]
    return ColumnRange(low, _quantile(keyed, coarse, quantile) if quantile < 1 else high)


def _counted(groups: Iterable[pl.LazyFrame], key: str, **facts: pl.Expr) -> pl.DataFrame:
    """Groups of all parts as one table, in the order of the key: `len` is added up, in 64 bits, and the facts are joined."""
    table: pl.DataFrame | None = None
    for each in groups:
        part = each.collect(engine="streaming").with_columns(pl.col("len").cast(pl.Int64))
        table = part if table is None else pl.concat([table, part]).group_by(key).agg(pl.col("len").sum(), **facts)
    return (pl.DataFrame({key: [], "len": []}) if table is None else table).sort(key)


def _keys(values: pl.Series) -> pl.Series:
    """Whole numbers in the order of the floats; -0 counts as 0."""
    bits = (values.to_numpy() + np.float32(0)).view(np.uint32)
    return pl.Series(np.where(bits & _SIGN, ~bits, bits | _SIGN))


def _quantile(keyed: Sequence[pl.LazyFrame], coarse: pl.DataFrame, quantile: float) -> float:
    """Linear between the two order statistics around the quantile."""
    place = quantile * (int(coarse["len"].sum()) - 1)
    below = int(place)
    last = coarse["len"].cum_sum()
    ranks = [below, below + (place > below)]
    numbers = [int((last <= rank).sum()) for rank in ranks]
    wanted = coarse["bin"].gather(sorted(set(numbers)))
    kept = (each.filter((pl.col("key") // _HALF).is_in(wanted.implode())) for each in keyed)
    fine = [each.group_by("key").agg(pl.len(), pl.first("value")) for each in kept]
    table = _counted(fine, "key", value=pl.col("value").first())
    # Bins between the two hold nothing, so ranks within the wanted bins are ranks minus what lies before the first.
    before = int(last[numbers[0]]) - int(coarse["len"][numbers[0]])
    ends = table["len"].cum_sum()
    first, second = (float(table["value"][int((ends <= rank - before).sum())]) for rank in ranks)
    return first + (second - first) * (place - below)
