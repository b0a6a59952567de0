"""How likely each group is the best, from bootstrap replicates.

The share of replicates in which a group comes first is no probability: the leader of several near-equals leads in part by
luck, and each replicate repeats that luck. So the estimates are first drawn together as far as their errors demand: true
values normal around a common mean, errors normal with the replicates' covariance, and the weight of the errors
B = error / (error + spread) uniform on [0, 1] (the uniform shrinkage prior, Daniels 1999, doi:10.2307/3315751). Only
contrasts count, so what all groups have in common (the difficulty of the drawn prompts) cancels: the comparison is paired.
With few prompts the covariance of many groups is noise, and singular with fewer prompts than groups: some contrast would pass
for known. So it counts as n - 1 observations beside C (1 + 64 / (n - 1)) of equal variance (an inverse Wishart prior, its scale
pooled); the 64 comes from simulated corpora of 8 groups on 8 prompts, whose leaders would be 14 points too sure with C alone.
Axes: R replicates, G groups, C = G - 1 contrasts, D draws, n prompts.
"""

from __future__ import annotations

import numpy as np

from trajscore.estimates.bootstrap import Floats, share_best

_GRID = 400
_DRAWS = 10_000
_POOLED = 64
_MOST = 200


def probability_best(values_G: Floats, replicates_RG: Floats, prompts: int, lower_is_better: bool, seed: int) -> Floats:
    """The probability of each group to have the best true value: [G], [R, G] -> [G], summing to 1.

    Args:
        values_G: the estimates, all finite.
        replicates_RG: their bootstrap replicates; those with a value that is not finite are left out.
        prompts: what was resampled, at least 2; the bootstrap's variance is too small by (prompts - 1) / prompts.
        lower_is_better: which end is best.
        seed: seed of the draws.

    Returns:
        Probabilities; groups that tie share; 0 for those that are not among the 200 with the best estimates. NaN for all
        where fewer than two replicates are complete.

    >>> probability_best(np.array([1.0, 2.0]), np.array([[1.0, 2.0], [1.1, 2.1]]), 9, True, 0).tolist()
    [1.0, 0.0]
    """
    groups = values_G.size
    if groups > _MOST:
        # The others are out of reach, and a covariance of thousands of groups takes minutes.
        near = np.argsort(values_G if lower_is_better else -values_G, kind="stable")[:_MOST]
        found = np.zeros(groups)
        found[near] = probability_best(values_G[near], replicates_RG[:, near], prompts, lower_is_better, seed)
        return found
    complete = replicates_RG[np.isfinite(replicates_RG).all(axis=1)]
    if groups == 1:
        return np.ones(1)
    if len(complete) < 2:
        return np.full(groups, np.nan)
    contrasts_GC = np.linalg.svd(np.eye(groups) - 1 / groups)[0][:, : groups - 1]
    covariance = np.cov((complete @ contrasts_GC).T).reshape(groups - 1, groups - 1) * prompts / (prompts - 1)
    free, contrasts = prompts - 1, groups - 1
    pooled = np.trace(covariance) / contrasts * np.eye(contrasts)
    beside = contrasts * (1 + _POOLED / free)
    errors_C, axes = np.linalg.eigh((free * covariance + beside * pooled) / (free + beside))
    # Below the rounding of the values themselves an error is none.
    scale = float(np.abs(values_G).max())
    errors_C = np.where(errors_C > (1e-12 * scale) ** 2, errors_C, 0.0)
    estimates_C = axes.T @ (contrasts_GC.T @ values_G)
    drawn_DC = _posterior(estimates_C, errors_C, seed)
    draws_DG = drawn_DC @ (contrasts_GC @ axes).T
    # Equal groups differ by rounding after two changes of basis; a tie must stay one.
    shares = share_best(np.round(draws_DG / scale, 12) if scale else draws_DG, lower_is_better)
    return np.array(shares, dtype=np.float64)


def _posterior(estimates_C: Floats, errors_C: Floats, seed: int) -> Floats:
    """Draws of the true contrasts, given their estimates and error variances: [C], [C] -> [D, C]."""
    if not errors_C.any():
        return estimates_C[None]
    weight_B = (np.arange(_GRID) + 0.5) / _GRID
    spread_B1 = (errors_C.mean() * (1 - weight_B) / weight_B)[:, None]
    total_BC = spread_B1 + errors_C
    likelihood_B = -0.5 * (np.log(total_BC) + estimates_C**2 / total_BC).sum(axis=1)
    chances_B = np.exp(likelihood_B - likelihood_B.max())
    generator = np.random.default_rng(seed)
    chosen = generator.choice(_GRID, size=_DRAWS, p=chances_B / chances_B.sum())
    kept_DC = spread_B1[chosen] / total_BC[chosen]
    noise_DC = generator.normal(size=(_DRAWS, errors_C.size))
    draws: Floats = kept_DC * estimates_C + np.sqrt(kept_DC * errors_C) * noise_DC
    return draws
