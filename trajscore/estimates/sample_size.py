"""How many trajectories are enough: from a sample to the size that would settle the ranking.

Two answers, from two sides. A normal approximation: the standard error of a difference shrinks with the square root of the
prompts, so n prompts with difference d and error s need n (z s / d)^2 for a leader that is ahead with the chosen
confidence. And a simulation: samples of many sizes are drawn from the present one, as if it were the truth, and compared
with it. Both take the present difference at its word; `prompts_at_worst` does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from trajscore.estimates.bootstrap import GroupSums, replicate
from trajscore.estimates.comparison import MIN_PROMPTS, Comparison, Difference, Resampling, compared_groups
from trajscore.estimates.correlation import kendall

SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Prompts in a simulated sample."""

PUBLISHED = 200
"""Trajectories per teacher from which arXiv 2601.14249 selected teachers (Table 7)."""


@dataclass(frozen=True)
class Step:
    """Simulated samples of one size.

    Attributes:
        prompts: prompts in the sample.
        same_leader: share of the samples with the same best teacher as the present sample; ties share.
        rank_agreement: mean Kendall's tau-b of the sample's ranking with the present one; None below three teachers.
    """

    prompts: int
    same_leader: float
    rank_agreement: float | None


@dataclass(frozen=True)
class Separation:
    """What it takes to separate one teacher from the leader.

    Attributes:
        teacher: the other teacher.
        leader_ahead: probability now that the leader is ahead of it.
        prompts: prompts needed; None where there is no difference to be found.
        trajectories: the same in trajectories of this teacher.
        prompts_at_worst: prompts needed if the true difference lies at the unfavourable end of what is plausible at the same
            confidence; None where that includes no difference, so that the sample bounds nothing.
    """

    teacher: str
    leader_ahead: float | None
    prompts: int | None
    trajectories: int | None
    prompts_at_worst: int | None


@dataclass(frozen=True)
class SamplePlan:
    """How many trajectories are enough.

    Attributes:
        metric: the metric that ranks.
        confidence: the confidence asked for.
        prompts: prompts of the present sample on which teachers are compared.
        leader: the present leader.
        stable: whether the leader is the best with this confidence already.
        separations: every other teacher, best first.
        steps: the simulation, by growing sample size.
        sentence: all this in words.
    """

    metric: str
    confidence: float
    prompts: int
    leader: str | None
    stable: bool
    separations: tuple[Separation, ...]
    steps: tuple[Step, ...]
    sentence: str


def plan_sample(
    metric: str,
    comparison: Comparison,
    groups: Mapping[str, GroupSums],
    rows_per_prompt: Mapping[str, float],
    how: Resampling,
) -> SamplePlan:
    """SamplePlan a sample that settles the ranking.

    Args:
        metric: name of the metric that ranks.
        comparison: the teachers as they stand.
        groups: sums per prompt of this metric by teacher, as `compare` was given them.
        rows_per_prompt: mean number of scored rows per prompt, by teacher.
        how: the confidence asked for, replicates per size and the seed.
    """
    separations = tuple(_separation(each, rows_per_prompt[each.name], how) for each in comparison.differences)
    share = comparison.probability_best.get(comparison.leader or "")
    stable = share is not None and share >= how.confidence and len(separations) > 0
    steps = _steps(comparison, groups, how) if separations and comparison.prompts >= MIN_PROMPTS else ()
    return SamplePlan(
        metric=metric,
        confidence=how.confidence,
        prompts=comparison.prompts,
        leader=comparison.leader,
        stable=stable,
        separations=separations,
        steps=steps,
        sentence=_sentence(metric, comparison, separations, stable, how),
    )


def prompts_needed(difference: float, standard_error: float, prompts: int, confidence: float) -> int | None:
    """Prompts from which a difference of this size leads with this confidence; None without a difference.

    >>> prompts_needed(0.5, 0.5, prompts=50, confidence=0.95)
    136
    """
    if difference == 0:
        return None
    z = NormalDist().inv_cdf(confidence)
    return max(2, math.ceil(prompts * (z * standard_error / difference) ** 2))


def _separation(each: Difference, rows: float, how: Resampling) -> Separation:
    if each.value is None or each.standard_error is None:
        return Separation(each.name, each.leader_ahead, None, None, None)
    # The bootstrap's variance is too small by (prompts - 1) / prompts.
    error = each.standard_error * math.sqrt(each.prompts / (each.prompts - 1))
    needed = prompts_needed(each.value, error, each.prompts, how.confidence)
    worst = abs(each.value) - NormalDist().inv_cdf(how.confidence) * error
    return Separation(
        teacher=each.name,
        leader_ahead=each.leader_ahead,
        prompts=needed,
        trajectories=None if needed is None else math.ceil(needed * rows),
        prompts_at_worst=prompts_needed(worst, error, each.prompts, how.confidence) if worst > 0 else None,
    )


def _steps(comparison: Comparison, groups: Mapping[str, GroupSums], how: Resampling) -> tuple[Step, ...]:
    on_them, prompts = compared_groups(groups)
    names = list(on_them)
    sign = 1.0 if comparison.lower_is_better else -1.0
    now = np.array([sign * float(comparison.values[name] or 0.0) for name in names])
    steps = []
    for size in sorted({*SIZES, comparison.prompts}):
        drawn = sign * replicate(list(on_them.values()), int(prompts.size), how.replicates, how.seed, size)[:, :, 0]
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        if not len(drawn):
            continue
        best = drawn == drawn.min(axis=1, keepdims=True)
        same = best[:, names.index(str(comparison.leader))] / best.sum(axis=1)
        taus = [kendall(now.tolist(), row.tolist()) for row in drawn[:200]]
        defined = [tau for tau in taus if tau is not None]
        steps.append(Step(size, float(same.mean()), sum(defined) / len(defined) if defined else None))
    return tuple(steps)


def _sentence(
    metric: str, comparison: Comparison, separations: tuple[Separation, ...], stable: bool, how: Resampling
) -> str:
    compared = [each for each in separations if each.leader_ahead is not None]
    if not compared or comparison.prompts < MIN_PROMPTS:
        return f"Nothing to plan: it takes two teachers that share {MIN_PROMPTS} prompts to compare."
    rival = max(compared, key=lambda each: math.inf if each.prompts is None else each.prompts)
    level = f"{100 * how.confidence:g} % confidence"
    head = f"The leader is settled at {level}. " if stable else f"The leader is not settled at {level}. "
    if rival.prompts is None:
        return f"{head}{comparison.leader} and {rival.teacher} do not differ in {metric}: no number of prompts separates them."
    tail = (
        f"To separate {comparison.leader} from its closest rival {rival.teacher} by {metric} takes about "
        f"{rival.prompts:,} prompts ({rival.trajectories:,} trajectories of {rival.teacher})"
    )
    worst = (
        f", at worst {rival.prompts_at_worst:,}"
        if rival.prompts_at_worst is not None
        else "; the sample is too small to say how many at worst"
    )
    have = f"The sample holds {comparison.prompts:,} prompts; the authors of RSR used {PUBLISHED} trajectories."
    return f"{head}{tail}{worst}. {have}"
