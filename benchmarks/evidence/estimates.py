"""Intervals over problems and seeds, and the compute multiplier over random; numpy only. S seeds, P problems.

All seeds answer the same problems, so both are samples and neither is nested in the other: a crossed design.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Mean(NamedTuple):
    """A mean and the interval that holds the true one; one seed alone says nothing of other seeds, so its interval is
    None.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int


def student_t(share: float, free: float) -> float:
    """The quantile of Student's t with `free` degrees of freedom, by integrating its density; right to four digits.

    >>> [round(student_t(0.975, free), 3) for free in (1, 2, 7, 1000)]
    [12.706, 4.303, 2.365, 1.962]
    """
    # With t = sqrt(free) tan(a) the density is cos(a) ** (free - 1), on a bounded range.
    angle = np.linspace(-math.pi / 2, math.pi / 2, 20_001)
    density = np.cos(angle).clip(0) ** (free - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(free) * np.tan(np.interp(share, mass / mass[-1], angle)))


def crossed_mean(values_SP: Floats, confidence: float = 0.95) -> Mean:
    """The mean over seeds and problems, both drawn at random, with Student's interval.

    The variance of the mean is (MS_seeds + MS_problems - MS_rest) / (S P) of the two-way analysis of variance, at
    least the larger of the first two over S P; the degrees of freedom are Satterthwaite's, at least S - 1.

    >>> crossed_mean(np.array([[1.0, 0.0], [1.0, 0.0]])).value
    0.5
    """
    seeds, problems = values_SP.shape
    mean = float(values_SP.mean())
    if seeds < 2:
        return Mean(mean, None, None, seeds)
    by_seed, by_problem = values_SP.mean(1), values_SP.mean(0)
    rest_SP = values_SP - by_seed[:, None] - by_problem[None, :] + mean
    squares = (problems * by_seed.var(ddof=1), seeds * by_problem.var(ddof=1))
    rest = float((rest_SP**2).sum() / ((seeds - 1) * (problems - 1)))
    total = max(squares[0] + squares[1] - rest, *squares)
    if total == 0:
        return Mean(mean, mean, mean, seeds)
    spread = squares[0] ** 2 / (seeds - 1) + squares[1] ** 2 / (problems - 1)
    spread += rest**2 / ((seeds - 1) * (problems - 1))
    half = student_t((1 + confidence) / 2, max(total**2 / spread, seeds - 1)) * math.sqrt(total / (seeds * problems))
    return Mean(mean, mean - half, mean + half, seeds)


def seed_mean(values_S: Sequence[float], confidence: float = 0.95) -> Mean:
    """The mean over seeds with Student's interval.

    >>> [round(each, 2) for each in seed_mean([1.0, 2.0, 3.0])[:3]]
    [2.0, -0.48, 4.48]
    """
    values = np.asarray(values_S, dtype=np.float64)
    mean, seeds = float(values.mean()), len(values)
    if seeds < 2:
        return Mean(mean, None, None, seeds)
    half = student_t((1 + confidence) / 2, seeds - 1) * float(values.std(ddof=1)) / math.sqrt(seeds)
    return Mean(mean, mean - half, mean + half, seeds)


class Multiplier(NamedTuple):
    """How many times the tokens random would need for the same accuracy.

    `value` lies between the smallest and the largest measured budget over the policy's own; `beyond` is "below" or
    "above" where the accuracy lies outside of what random reached there, and `value` is then the end that it lies
    beyond.
    """

    value: float
    beyond: str | None


def multiplier(accuracy: float, curve: Sequence[tuple[int, float]], budget: int) -> Multiplier:
    """Read the budget at which random has this accuracy off its measured curve, and divide by the policy's own budget.

    Args:
        accuracy: the policy's.
        curve: random's budgets, ascending, with the accuracy at each. Where it falls, neighbours are pooled to their
            mean; between budgets it is a line over the logarithm of the budget. Nothing is read beyond its ends.
        budget: the policy's tokens.

    >>> curve = [(100, 0.1), (200, 0.3), (400, 0.5)]
    >>> multiplier(0.4, curve, 200).value.__round__(3), multiplier(0.6, curve, 200), multiplier(0.05, curve, 200)
    (1.414, Multiplier(value=2.0, beyond='above'), Multiplier(value=0.5, beyond='below'))
    """
    logs = np.log([each for each, _ in curve])
    rising = _pooled([value for _, value in curve])
    if accuracy < rising[0]:
        return Multiplier(curve[0][0] / budget, "below")
    if accuracy > rising[-1]:
        return Multiplier(curve[-1][0] / budget, "above")
    # On a level stretch every budget fits: its middle is taken.
    low, high = (float(np.interp(accuracy, *sides)) for sides in (_strict(rising, logs, -1), _strict(rising, logs, 1)))
    return Multiplier(math.exp((low + high) / 2) / budget, None)


def _pooled(values: Sequence[float]) -> list[float]:
    """The closest sequence that never falls: neighbours that fall are replaced by their mean, as often as needed."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (last, m), (before, n) = blocks.pop(), blocks.pop()
            blocks.append(((last * m + before * n) / (m + n), m + n))
    return [value for value, count in blocks for _ in range(count)]


def _strict(rising: list[float], logs: Floats, side: int) -> tuple[list[float], list[float]]:
    """Of equal values the first (side -1) or the last (side 1) alone, so that the curve can be read from its values."""
    wanted: dict[float, float] = {}
    for value, at in zip(rising, logs.tolist(), strict=True):
        if side > 0 or value not in wanted:
            wanted[value] = at
    return list(wanted), list(wanted.values())


class MultiplierInterval(NamedTuple):
    """A multiplier with the interval of its bootstrap; an end that lies beyond the measured curve says so by the sign
    in `text`.
    """

    estimate: Multiplier
    text: str


def multiplier_interval(
    policy_SP: Floats,
    curve_BSP: Sequence[tuple[int, Floats]],
    budget: int,
    confidence: float = 0.9,
    replicates: int = 2000,
) -> MultiplierInterval:
    """The multiplier with a bootstrap over seeds and problems together, from seed 0; the same resample for policy and
    curve.

    Args:
        policy_SP: 1 where the policy's student of a seed solved a problem, else 0.
        curve_BSP: random's budgets with the same of random; the same seeds in the same order.
        budget: the policy's tokens.
        confidence: share of such intervals that hold the true value; few seeds make it too short.
        replicates: bootstrap replicates.
    """
    estimate = multiplier(float(policy_SP.mean()), [(each, float(values.mean())) for each, values in curve_BSP], budget)
    generator, (seeds, problems) = np.random.default_rng(0), policy_SP.shape
    low_end, high_end = curve_BSP[0][0] / budget, curve_BSP[-1][0] / budget
    drawn = []
    for _ in range(replicates if seeds > 1 else 0):
        at = np.ix_(generator.integers(0, seeds, seeds), generator.integers(0, problems, problems))
        curve = [(each, float(values[at].mean())) for each, values in curve_BSP]
        drawn.append(multiplier(float(policy_SP[at].mean()), curve, budget).value)
    shown = _end(estimate.value, low_end, high_end) if estimate.beyond else f"{estimate.value:.2f}"
    if drawn:
        low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        shown += f" [{_end(low, low_end, high_end)}, {_end(high, low_end, high_end)}]"
    return MultiplierInterval(estimate, shown)


def _end(value: float, low: float, high: float) -> str:
    """A value, with a sign where it is the end of what was measured.

    >>> _end(0.25, 0.25, 2.0), _end(2.0, 0.25, 2.0), _end(1.0, 0.25, 2.0)
    ('< 0.25', '> 2.00', '1.00')
    """
    sign = "< " if value <= low else "> " if value >= high else ""
    return f"{sign}{value:.2f}"
