"""Percentile bootstrap over prompts, for ratios of sums.

A prompt is drawn with all its rows of all groups, so that groups are compared on the same prompts (paired). Axes:
P prompts, B replicates, G prompts of one group, M metrics, C = 2 M columns of sums. Memory is B x groups x M numbers plus
one chunk of counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CHUNK = 4_000_000


@dataclass(frozen=True)
class GroupSums:
    """What one group (a teacher, say) brings.

    Attributes:
        prompts: numbers of the group's prompts, [G].
        numerators: sums per prompt and metric, [G, M].
        denominators: the same shape.
    """

    prompts: NDArray[np.int64]
    numerators: Floats
    denominators: Floats


def replicate(
    groups: list[GroupSums], prompts: int, replicates: int, seed: int, drawn_prompts: int | None = None
) -> Floats:
    """Every group's and metric's value in every replicate.

    Args:
        groups: the groups; all refer to the same numbering of prompts.
        prompts: how many prompts there are.
        replicates: how many replicates, B.
        seed: seed of the generator; the draws depend on nothing else but `prompts`, `drawn_prompts` and `replicates`.
        drawn_prompts: how many prompts a replicate draws, with replacement; None draws as many as there are.

    Returns:
        [B, groups, M]: sum(numerator) / sum(denominator) over the drawn prompts; NaN where the denominators sum to 0.

    >>> one = GroupSums(np.array([0, 1]), np.array([[1.0], [1.0]]), np.array([[2.0], [2.0]]))
    >>> replicate([one], prompts=2, replicates=3, seed=0).ravel().tolist()
    [0.5, 0.5, 0.5]
    """
    metrics = groups[0].numerators.shape[1] if groups else 0
    values = np.full((replicates, len(groups), metrics), np.nan)
    sums = [np.hstack([group.numerators, group.denominators]) for group in groups]
    start = 0
    for counts_BP in _counts(prompts, drawn_prompts or prompts, replicates, seed):
        stop = start + len(counts_BP)
        for number, (group, sums_GC) in enumerate(zip(groups, sums, strict=True)):
            drawn = counts_BP[:, group.prompts] @ sums_GC
            numerator, denominator = drawn[:, :metrics], drawn[:, metrics:]
            np.divide(numerator, denominator, out=values[start:stop, number], where=denominator != 0)
        start = stop
    return values


def _counts(prompts: int, drawn: int, replicates: int, seed: int) -> Iterator[Floats]:
    """How often each prompt was drawn, a chunk of replicates at a time: [chunk, P]."""
    if 0 < prompts * replicates <= _CHUNK:
        yield _drawn_once(prompts, drawn, replicates, seed)
        return
    yield from _drawn(prompts, drawn, replicates, seed)


@lru_cache(maxsize=4)
def _drawn_once(prompts: int, drawn: int, replicates: int, seed: int) -> Floats:
    """All replicates' counts: a report compares every teacher with the leader on the same draws."""
    (counts_BP,) = _drawn(prompts, drawn, replicates, seed)
    counts_BP.flags.writeable = False
    return counts_BP


def _drawn(prompts: int, drawn: int, replicates: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(prompts, 1))
    for start in range(0, replicates, chunk):
        # One call of the generator per replicate: the draws must not depend on the size of a chunk.
        yield np.array(
            [
                np.bincount(generator.integers(0, prompts, drawn), minlength=prompts)
                for _ in range(min(chunk, replicates - start))
            ],
            dtype=np.float64,
        )


def interval(values: Floats, confidence: float, prompts: int) -> tuple[float, float] | None:
    """The percentile interval of replicates, widened for few prompts: [B] -> two numbers.

    Percentile intervals are too short by a factor that Student's t and sqrt(prompts / (prompts - 1)) make good (Hesterberg
    2015, doi:10.1080/00031305.2015.1089789, "expanded percentile interval").

    Args:
        values: one value per replicate; those that are not finite are left out.
        confidence: share of such intervals that hold the true value, in (0, 1).
        prompts: what was resampled, at least 2.

    Returns:
        Lower and upper end, or None where no replicate has a value.

    >>> [round(end) for end in interval(np.arange(101.0), 0.5, prompts=10**9)]
    [25, 75]
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    tail = expanded_tail((1 - confidence) / 2, prompts)
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def intervals(values_BG: Floats, confidence: float, prompts_G: NDArray[np.int64]) -> list[tuple[float, float] | None]:
    """`interval` of many groups at once: [B, groups] and what was resampled of each, at least 2 -> one interval per group.

    >>> intervals(np.arange(101.0)[:, None], 0.5, np.array([10**9])) == [interval(np.arange(101.0), 0.5, 10**9)]
    True
    """
    found: list[tuple[float, float] | None] = [None] * values_BG.shape[1]
    complete_G = np.isfinite(values_BG).all(axis=0) & (len(values_BG) > 0)
    for prompts in np.unique(prompts_G):
        alike = np.flatnonzero(complete_G & (prompts_G == prompts))
        tail = expanded_tail((1 - confidence) / 2, int(prompts))
        ends = np.quantile(values_BG[:, alike], [tail, 1 - tail], axis=0) if alike.size else np.empty((2, 0))
        for place, low, high in zip(alike.tolist(), *ends.tolist(), strict=True):
            found[place] = (low, high)
    for place in np.flatnonzero(~complete_G).tolist():
        found[place] = interval(values_BG[:, place], confidence, int(prompts_G[place]))
    return found


def expanded_tail(tail: float, prompts: int) -> float:
    """The share to cut off at each end so that about `tail` is missed there.

    Student's quantile is Cornish and Fisher's expansion of the normal one, four terms, which is right to 1 % from 4 prompts
    and tail 0.05 on; below 4 prompts it is a guess.

    >>> round(expanded_tail(0.05, 40), 4), round(expanded_tail(0.05, 5), 4)
    (0.044, 0.0086)
    """
    normal, free = NormalDist(), max(prompts - 1, 1)
    z = normal.inv_cdf(1 - tail)
    student = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return normal.cdf(-math.sqrt(prompts / free) * student)


def share_best(values: Floats, lower_is_better: bool) -> list[float | None]:
    """In which share of the replicates each group is the best: [B, groups] -> one number per group, summing to 1.

    Args:
        values: one value per replicate and group; NaN where a group has none.
        lower_is_better: which end is best.

    Returns:
        Shares; groups that tie for the best split the replicate evenly. None for all where no replicate has a value.

    >>> share_best(np.array([[1.0, 2.0], [1.0, 1.0]]), lower_is_better=True)
    [0.75, 0.25]
    """
    oriented = np.where(np.isnan(values), np.inf, values if lower_is_better else -values)
    oriented = oriented[np.isfinite(oriented).any(axis=1)]
    if not oriented.size:
        return [None] * values.shape[1]
    best = oriented == oriented.min(axis=1, keepdims=True)
    shares = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    return [float(share) for share in shares]
