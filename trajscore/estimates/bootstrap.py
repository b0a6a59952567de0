"""Percentile bootstrap over prompts, for ratios of sums.

A prompt is drawn with all its rows of all groups, so that groups are compared on the same prompts (paired). Axes:
P prompts, B replicates, G prompts of one group, M metrics, C = 2 M columns of sums. Memory is B x groups x M numbers, one chunk
of counts and the draws that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
"""Lower and upper end."""

_CHUNK = 4_000_000
"""Counts that are multiplied at once, as float64."""

_KEPT = 64_000_000
"""Counts of one set of draws that are kept, two bytes each as a rule; more are drawn anew every time."""


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
            has_all = np.array_equal(group.prompts, np.arange(prompts))
            drawn = (counts_BP if has_all else counts_BP[:, group.prompts]) @ sums_GC
            numerator, denominator = drawn[:, :metrics], drawn[:, metrics:]
            np.divide(numerator, denominator, out=values[start:stop, number], where=denominator != 0)
        start = stop
    return values


def _counts(prompts: int, drawn: int, replicates: int, seed: int) -> Iterator[Floats]:
    """How often each prompt was drawn, a chunk of replicates at a time: [chunk, P]."""
    chunk = max(1, _CHUNK // max(prompts, 1))
    if prompts * replicates <= _KEPT:
        kept_BP = _kept_draws(prompts, drawn, replicates, seed)
        for start in range(0, replicates, chunk):
            yield kept_BP[start : start + chunk].astype(np.float64)
        return
    draws = _draws(prompts, drawn, replicates, seed)
    while rows := list(islice(draws, chunk)):
        yield np.array(rows, dtype=np.float64)


@lru_cache(maxsize=4)
def _kept_draws(prompts: int, drawn: int, replicates: int, seed: int) -> NDArray[np.unsignedinteger]:
    """All replicates' counts, [B, P]: a report compares every teacher with the leader on the same draws."""
    counts_BP = np.empty((replicates, prompts), np.min_scalar_type(drawn))
    for number, drawn_P in enumerate(_draws(prompts, drawn, replicates, seed)):
        counts_BP[number] = drawn_P
    counts_BP.flags.writeable = False
    return counts_BP


def _draws(prompts: int, drawn: int, replicates: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each prompt was drawn: [P], replicate after replicate."""
    generator = np.random.default_rng(seed)
    for _ in range(replicates):
        # One call of the generator per replicate: the draws must not depend on the size of a chunk.
        yield np.bincount(generator.integers(0, prompts, drawn), minlength=prompts)


def interval(values_B: Floats, confidence: float, prompts: int) -> Interval | None:
    """The interval of one group: `intervals` of one column.

    >>> [round(end) for end in interval(np.arange(101.0), 0.5, prompts=10**9)]
    [25, 75]
    """
    return intervals(values_B[:, None], confidence, np.array([prompts]))[0]


def intervals(values_BG: Floats, confidence: float, prompts_G: NDArray[np.int64]) -> list[Interval | None]:
    """The percentile intervals of replicates, widened for few prompts: [B, groups] -> one per group.

    Percentile intervals are too short by a factor that Student's t and sqrt(prompts / (prompts - 1)) make good (Hesterberg
    2015, doi:10.1080/00031305.2015.1089789, "expanded percentile interval").

    Args:
        values_BG: one value per replicate and group; those that are not finite are left out.
        confidence: share of such intervals that hold the true value, in (0, 1).
        prompts_G: what was resampled of each group, at least 2.

    Returns:
        Lower and upper end, or None where no replicate has a value.

    >>> intervals(np.array([[1.0, np.nan], [1.0, np.nan]]), 0.9, np.array([40, 40]))
    [(1.0, 1.0), None]
    """
    if not values_BG.size:
        return [None] * values_BG.shape[1]
    finite_BG = np.isfinite(values_BG)
    # What is not finite comes last, so that each group's quantiles lie among the first of its column.
    sorted_BG = np.sort(np.where(finite_BG, values_BG, np.nan), axis=0)
    counts_G = finite_BG.sum(axis=0)
    tails = {prompts: expanded_tail((1 - confidence) / 2, prompts) for prompts in np.unique(prompts_G).tolist()}
    tail_G = np.array([tails[prompts] for prompts in prompts_G.tolist()])
    low_G, high_G = (_quantiles(sorted_BG, counts_G, share_G).tolist() for share_G in (tail_G, 1 - tail_G))
    ends = zip(low_G, high_G, strict=True)
    return [each if count else None for count, each in zip(counts_G.tolist(), ends, strict=True)]


def _quantiles(sorted_BG: Floats, counts_G: NDArray[np.int64], share_G: Floats) -> Floats:
    """One quantile of the first `counts_G` values of each column, as numpy interpolates it: [groups]."""
    last_G = np.maximum(counts_G - 1, 0)
    place_G = share_G * last_G
    before_G = place_G.astype(np.int64)
    low_G, high_G = (
        np.take_along_axis(sorted_BG, at[None], 0)[0] for at in (before_G, np.minimum(before_G + 1, last_G))
    )
    part_G = place_G - before_G
    step_G = high_G - low_G
    # From the nearer of the two, so that the end of the way is met exactly.
    found: Floats = np.where(part_G < 0.5, low_G + part_G * step_G, high_G - (1 - part_G) * step_G)
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
