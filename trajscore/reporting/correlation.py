"""Rank and linear correlation of two short lists. Plain numbers in, one number out; nothing of teachers or metrics.

Nulls and values that are not finite drop their pair. Axis N is the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_PAIRS = 3
"""Fewer pairs than this have no correlation worth a number."""


def pairs(left: Sequence[float | None], right: Sequence[float | None]) -> NDArray[np.float64]:
    """The complete pairs, as an array of shape [2, N].

    >>> pairs([1.0, None, 3.0], [4.0, 5.0, float("nan")]).tolist()
    [[1.0], [4.0]]
    """
    both = np.array([left, right], dtype=np.float64)
    return both[:, np.isfinite(both).all(axis=0)]


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1-based ranks, smallest first; equal values share the mean of their ranks: [N] -> [N].

    >>> average_ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def pearson(left: Sequence[float | None], right: Sequence[float | None]) -> float | None:
    """Pearson's correlation over the complete pairs.

    Returns:
        A number in [-1, 1]; None with fewer than three pairs or where one side is constant.

    >>> round(pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) or 0, 12)
    1.0
    """
    return _pearson(pairs(left, right))


def spearman(left: Sequence[float | None], right: Sequence[float | None]) -> float | None:
    """Spearman's rank correlation over the complete pairs: Pearson's of the average ranks, which is right with ties.

    Returns:
        A number in [-1, 1]; None with fewer than three pairs or where one side is constant.

    >>> round(spearman([1.0, 2.0, 3.0], [9.0, 4.0, 1.0]) or 0, 12)
    -1.0
    """
    both = pairs(left, right)
    return _pearson(np.array([average_ranks(side) for side in both]))


def _pearson(both: NDArray[np.float64]) -> float | None:
    # max == min and not a zero deviation: the mean of equal floats can differ from them in the last bit.
    if both.shape[1] < MIN_PAIRS or (both.max(axis=1) == both.min(axis=1)).any():
        return None
    deviations = both - both.mean(axis=1, keepdims=True)
    deviations /= np.abs(deviations).max(axis=1, keepdims=True)
    norm = np.sqrt((deviations**2).sum(axis=1))
    return float(np.clip((deviations[0] / norm[0]) @ (deviations[1] / norm[1]), -1.0, 1.0))
