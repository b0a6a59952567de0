"""Several metrics combined into one number to rank by.

Every result is oriented: higher is better. A metric by itself is its own value or its negative; combined ones are first
made comparable within a group (one prompt, or the corpus) and then averaged with their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

Standing = Callable[[pl.Expr], pl.Expr]


def rank_standing(value: pl.Expr) -> pl.Expr:
    """The share of the group's rows that are worse, ties and the row itself counting half: (n - r + 0.5) / n.

    With n rows and r the average rank, 1 the best. Strictly inside (0, 1), mean 0.5 in every group, so that groups of
    different sizes compare; 0.5 for a row that is alone.

    >>> pl.DataFrame({"v": [1.0, 5.0, 5.0, 9.0]}).select(rank_standing(pl.col("v"))).to_series().to_list()
    [0.125, 0.5, 0.5, 0.875]
    """
    return (value.rank("average") - 0.5) / value.len()


def zscore_standing(value: pl.Expr) -> pl.Expr:
    """Standard deviations better than the group's mean, with the population's standard deviation.

    0 in a group that is constant or has one row: it has no spread, so nobody in it stands out.

    Source: z-scores before a weighted sum, arXiv 2601.14249, Appendix B (rule-based quality).

    >>> pl.DataFrame({"v": [1.0, 3.0]}).select(zscore_standing(pl.col("v"))).to_series().to_list()
    [-1.0, 1.0]
    """
    # In units of the range first: neither the squares of huge values overflow nor those of tiny ones vanish, and a
    # constant group is found by comparison, not by a deviation that rounding has made almost zero.
    spread = value.max() - value.min()
    unit = (value - value.min()) / spread
    return pl.when(spread > 0).then((unit - unit.mean()) / unit.std(ddof=0)).otherwise(0.0)


COMBINATIONS: dict[str, Standing] = {"rank": rank_standing, "zscore": zscore_standing}
"""What each metric is turned into before the average, by name."""


def oriented(name: str, better: str) -> pl.Expr:
    """A metric so that higher is better.

    Args:
        name: the metric's column.
        better: `higher` or `lower`.
    """
    return pl.col(name) if better == "higher" else -pl.col(name)


def combined(
    better: Mapping[str, str], standing: str, weights: Sequence[float] = (), within: str | None = None
) -> pl.Expr:
    """The weighted mean of the metrics' standings, higher is better.

    Args:
        better: `higher` or `lower` of each metric, by column.
        standing: a name in `COMBINATIONS`.
        weights: one per metric; empty for equal ones. A negative one turns its metric around; their absolute values sum
            to one after scaling.
        within: the column that names the group; None for the whole frame.

    Returns:
        float64 per row, to 12 decimals. The frame must hold no null in these columns; sums run in its row order.

    >>> frame = pl.DataFrame({"rsr": [2.0, 3.0, 4.0], "length": [9.0, 5.0, 1.0]})
    >>> frame.select(combined({"rsr": "lower", "length": "higher"}, "rank").round(3)).to_series().to_list()
    [0.833, 0.5, 0.167]
    """
    shares = list(weights) or [1.0] * len(better)
    total = sum(abs(weight) for weight in shares)
    terms = []
    for (name, end), weight in zip(better.items(), shares, strict=True):
        value = oriented(name, end) * (1 if weight > 0 else -1)
        each = COMBINATIONS[standing](value)
        terms.append((each if within is None else each.over(within)) * (abs(weight) / total))
    # Standings that are equal on paper differ in their last bits after a sum, and a tie must go to the id.
    return pl.sum_horizontal(terms).round(12)
