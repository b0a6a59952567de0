"""Pearson's, Spearman's and Kendall's correlation of two lists, of every two of many, and of many resampled ones at once.

Nulls and values that are not finite drop their pair. Axes: N pairs, B replicates, M lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

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
    return _pearson(_ranked(both))


def spearmans(values_MN: Floats) -> Floats:
    """`spearman` of every two rows, each over the pairs where both are finite: [M, N] -> [M, M].

    Returns:
        Numbers in [-1, 1]; NaN with fewer than three pairs or where one side is constant.

    >>> spearmans(np.array([[1.0, 2.0, 3.0], [9.0, 4.0, 1.0], [np.nan, 2.0, 3.0]])).round(12).tolist()
    [[1.0, -1.0, nan], [-1.0, 1.0, nan], [nan, nan, nan]]
    """
    # Rows with the same gaps are ranked once for all of their pairs.
    alike: dict[bytes, list[int]] = {}
    finite_MN = np.isfinite(values_MN)
    for row, finite_N in enumerate(finite_MN):
        alike.setdefault(finite_N.tobytes(), []).append(row)
    found_MM = np.empty((len(values_MN), len(values_MN)))
    for left, right in combinations_with_replacement(alike.values(), 2):
        both_N = finite_MN[left[0]] & finite_MN[right[0]]
        left_units, right_units = (_units(_ranked(values_MN[rows][:, both_N])) for rows in (left, right))
        products = np.clip(left_units @ right_units.T, -1.0, 1.0)
        found_MM[np.ix_(left, right)] = products
        found_MM[np.ix_(right, left)] = products.T
    return found_MM


def _ranked(values_MN: Floats) -> Floats:
    return np.array([average_ranks(values_N) for values_N in values_MN])


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
    left_N, right_N = _units(both)
    value = float(np.clip(left_N @ right_N, -1.0, 1.0))
    return None if np.isnan(value) else value


def _units(values_MN: Floats) -> Floats:
    """Rows centred and scaled to length 1, whose products are correlations; NaN where constant or of too few values."""
    if values_MN.shape[1] < MIN_PAIRS:
        # At least one value: the product of none would be 0.
        return np.full((len(values_MN), 1), np.nan)
    # max == min and not a zero deviation: the mean of equal floats can differ from them in the last bit.
    constant_M = values_MN.max(axis=1) == values_MN.min(axis=1)
    deviations: Floats = values_MN - values_MN.mean(axis=1, keepdims=True)
    deviations[constant_M] = np.nan
    deviations /= np.abs(deviations).max(axis=1, keepdims=True)
    deviations /= np.sqrt((deviations**2).sum(axis=1, keepdims=True))
    return deviations
