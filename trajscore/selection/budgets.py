"""The global budget of a selection: how many of the ranked rows are kept, in rows, shares or tokens, under quotas.

With a share as quota the limit depends on how many rows are kept, and that on the limit. So a size n is guessed, from
above: n starts at the budget (all rows where there is none); each value may have floor(share * n) rows; rows are taken
greedily, best first, while every quota and the budget have room; if fewer than n were taken, n becomes that number and
all begins again. What is kept at the end has exactly n rows, hence every share holds of the rows that are kept. With one
quota and no --max-tokens this n is the largest that the quota allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import polars as pl

from trajscore.errors import UsageError
from trajscore.selection.policy import Policy, Quota

QUOTA = "quota"
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


def quota_column(number: int) -> str:
    """The column of the small table that holds what the quota of this number limits, as text.

    >>> quota_column(0)
    'quota:0'
    """
    return f"quota:{number}"


def budget_steps(ranked: pl.DataFrame, options: Policy) -> pl.Series:
    """What drops each row: null (kept), `quota`, or the budget's name.

    Args:
        ranked: rows that reach the budget, best first, with `quota:0`, ... as `options.quotas` and `n_tokens` with
            `options.max_tokens`.
        options: budget and quotas.

    Raises:
        UsageError: shares that no set of rows can have, so that nothing would be kept.

    >>> rows = pl.DataFrame({"quota:0": ["A", "A", "A", "B", "B"]})
    >>> share = Quota("teacher", None, 0.5, "teacher=0.5")
    >>> budget_steps(rows, Policy(quotas=(share,), top=3)).to_list()
    [None, 'quota', 'quota', None, 'quota']
    """
    limit = _row_limit(ranked.height, options)
    tokens = _tokens(ranked, options)
    limited = [_Limited.of(quota, ranked[quota_column(number)]) for number, quota in enumerate(options.quotas)]
    size = limit
    while True:
        size = _bound(size, limited)
        taken = _greedy([each.codes for each in limited], [each.quota.cap(size) for each in limited], ranked.height)
        kept = taken & (np.cumsum(taken) <= size) & (np.cumsum(np.where(taken, tokens, 0)) <= _token_limit(options))
        if int(kept.sum()) == size:
            break
        size = int(kept.sum())
    _refuse_impossible_shares(kept, tokens, options)
    # The budget drops a row where it was full before the row, or too full for it; else a quota did.
    before: Ints = np.cumsum(kept) - kept
    full = (before >= limit) | (np.cumsum(np.where(taken, tokens, 0)) > _token_limit(options))
    steps = np.where(full, options.budget or QUOTA, QUOTA)
    return pl.Series("rank_step", steps, dtype=pl.String).set(pl.Series(kept), None)


def _row_limit(reached: int, options: Policy) -> int:
    if options.top is not None:
        return min(options.top, reached)
    if options.fraction is not None:
        # Through the decimal text: 0.29 * 100 is 28.999999999999996 in binary floating point, and 29 is meant.
        return min(reached, max(1, int(Fraction(str(options.fraction)) * reached)))
    return reached


def _token_limit(options: Policy) -> float:
    return float("inf") if options.max_tokens is None else options.max_tokens


def _tokens(ranked: pl.DataFrame, options: Policy) -> Ints:
    if options.max_tokens is None:
        return np.zeros(ranked.height, np.int64)
    # int64: a cumulative sum of uint32 could wrap around.
    return ranked["n_tokens"].cast(pl.Int64).to_numpy()


class _Limited:
    """A quota and, per row, the number of the group that it limits; -1 where it limits nothing."""

    def __init__(self, quota: Quota, codes: Ints) -> None:
        self.quota = quota
        self.codes = codes
        self.sizes = np.bincount(codes[codes >= 0])
        self.free = int((codes < 0).sum())

    @classmethod
    def of(cls, quota: Quota, values: pl.Series) -> _Limited:
        if quota.value is None:
            return cls(quota, values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy())
        return cls(quota, np.where(values.eq_missing(quota.value).to_numpy(), 0, -1))


def _bound(size: int, limited: Sequence[_Limited]) -> int:
    """The largest number of rows up to `size` that each quota by itself allows, found from above."""
    while True:
        room = [each.free + int(np.minimum(each.sizes, each.quota.cap(size)).sum()) for each in limited]
        smaller = min([size, *room])
        if smaller == size:
            return size
        size = smaller


def _greedy(codes: Sequence[Ints], caps: Sequence[int], rows: int) -> Bools:
    """Whether each row, best first, is taken while every group that it belongs to has room.

    In rounds: a row is sure to be taken if it had room even were all undecided rows before it taken; it is out if those
    surely taken leave none. Each round decides the first undecided row at least; with one quota a single round does.
    """
    taken = np.zeros(rows, bool)
    open_ = np.ones(rows, bool)
    while open_.any():
        room, full = np.ones(rows, bool), np.zeros(rows, bool)
        for group, cap in zip(codes, caps, strict=True):
            limited = group >= 0
            room &= ~limited | (_counts(group, taken | open_) <= cap)
            full |= limited & (_counts(group, taken) >= cap)
        taken |= open_ & room
        open_ &= ~room & ~full
    return taken


def _counts(group: Ints, counted: Bools) -> Ints:
    """For each row the number of counted rows of its group up to and with it."""
    frame = pl.DataFrame({"group": group, "counted": counted})
    return frame.select(pl.col("counted").cast(pl.Int64).cum_sum().over("group")).to_series().to_numpy()


def _refuse_impossible_shares(kept: Bools, tokens: Ints, options: Policy) -> None:
    if kept.any() or not kept.size or (tokens.size and tokens[0] > _token_limit(options)):
        return
    shares = [quota.text for quota in options.quotas if isinstance(quota.limit, float)]
    raise UsageError(
        f"no row can be kept: no set of these {kept.size} rows holds to --quota {' and '.join(shares)}.",
        "Raise the share (among k values one of at least 1/k is needed) or the budget, or give a number of rows.",
    )
