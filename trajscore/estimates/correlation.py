"""Pearson's, Spearman's and Kendall's correlation of two lists, and of many resampled ones at once.

Nulls and values that are not finite drop their pair. Axes: N pairs, B replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_PAIRS = 3
"""Fewer pairs than this have no correlation worth a number."""


Numbers = Sequence[float | None] | NDArray[np.float64]


def pairs(left: Numbers, right: Numbers) -> NDArray[np.float64]:
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


def pearson(left: Numbers, right: Numbers) -> float | None:
    """Pearson's correlation over the complete pairs.

    Returns:
        A number in [-1, 1]; None with fewer than three pairs or where one side is constant.

    >>> round(pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) or 0, 12)
    1.0
    """
    return _pearson(pairs(left, right))


def spearman(left: Numbers, right: Numbers) -> float | None:
    """Spearman's rank correlation over the complete pairs: Pearson's of the average ranks, which is right with ties.

    Returns:
        A number in [-1, 1]; None with fewer than three pairs or where one side is constant.

    >>> round(spearman([1.0, 2.0, 3.0], [9.0, 4.0, 1.0]) or 0, 12)
    -1.0
    """
    both = pairs(left, right)
    return _pearson(np.array([average_ranks(side) for side in both]))


def kendall(left: Sequence[float | None], right: Sequence[float | None]) -> float | None:
    """Kendall's tau-b over the complete pairs: (concordant - discordant) / sqrt(pairs untied on the left x on the right).

    Memory grows with the square of the number of pairs: for teachers, not for trajectories.

    Returns:
        A number in [-1, 1]; None with fewer than three pairs or where one side is constant.

    >>> round(kendall([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) or 0, 12)
    0.333333333333
    """
    both = pairs(left, right)
    if both.shape[1] < MIN_PAIRS:
        return None
    value = float(_taus(*_signs(both[:, None]))[0])
    return None if np.isnan(value) else value


@dataclass(frozen=True)
class Replicates:
    """Correlations of resampled pairs, [B] each; NaN where a side of the replicate is constant."""

    spearman: Floats
    pearson: Floats
    kendall: Floats


def resample(left: Sequence[float | None], right: Sequence[float | None], replicates: int, seed: int) -> Replicates:
    """Correlations over pairs drawn with replacement.

    Args:
        left: one side.
        right: the other.
        replicates: how many times as many pairs as there are complete ones are drawn, B.
        seed: seed of the draws, which depend on nothing else but the number of complete pairs.

    >>> resample([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], replicates=9, seed=0).kendall.shape
    (9,)
    """
    both = pairs(left, right)
    count = both.shape[1]
    if not count:
        nothing = np.full(replicates, np.nan)
        return Replicates(nothing, nothing, nothing)
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, replicates, chunk := max(1, 4_000_000 // count**2)):
        drawn = generator.integers(0, count, (min(chunk, replicates - start), count))
        values = both[:, drawn]
        signs = _signs(values)
        # Twice a centred average rank is the number of values below minus the number above.
        ranks = np.array([side.sum(axis=-1) for side in signs], dtype=np.float64)
        found.append((_pearsons(ranks), _pearsons(values), _taus(*signs)))
    return Replicates(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _signs(values_2BN: Floats) -> Floats:
    return np.sign(values_2BN[..., :, None] - values_2BN[..., None, :])


def _taus(left_BNN: Floats, right_BNN: Floats) -> Floats:
    product = np.einsum("bij,bij->b", left_BNN, right_BNN)
    untied = np.abs(left_BNN).sum(axis=(1, 2)) * np.abs(right_BNN).sum(axis=(1, 2))
    result: Floats = np.divide(product, np.sqrt(untied), out=np.full_like(product, np.nan), where=untied > 0)
    return result


def _pearsons(values_2BN: Floats) -> Floats:
    constant = (values_2BN.max(axis=2) == values_2BN.min(axis=2)).any(axis=0)
    deviations = values_2BN - values_2BN.mean(axis=2, keepdims=True)
    scale = np.abs(deviations).max(axis=2, keepdims=True)
    deviations = np.divide(deviations, scale, out=np.zeros_like(deviations), where=scale > 0)
    norm = np.sqrt((deviations**2).sum(axis=2)).prod(axis=0)
    product = deviations.prod(axis=0).sum(axis=1)
    result: Floats = np.divide(product, norm, out=np.full_like(product, np.nan), where=~constant & (norm > 0))
    return result


def _pearson(both: NDArray[np.float64]) -> float | None:
    # max == min and not a zero deviation: the mean of equal floats can differ from them in the last bit.
    if both.shape[1] < MIN_PAIRS or (both.max(axis=1) == both.min(axis=1)).any():
        return None
    deviations = both - both.mean(axis=1, keepdims=True)
    deviations /= np.abs(deviations).max(axis=1, keepdims=True)
    norm = np.sqrt((deviations**2).sum(axis=1))
    return float(np.clip((deviations[0] / norm[0]) @ (deviations[1] / norm[1]), -1.0, 1.0))
