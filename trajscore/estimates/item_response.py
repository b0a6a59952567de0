"""Two-parameter item response over teachers and prompts: abilities with intervals, and prompts that rank teachers in reverse.

Teacher i is right on prompt j with sigma(a_j (theta_i - b_j)): ability theta, discrimination a, difficulty b. Teachers are few
and prompts many, so the prompts are integrated out: b ~ N(0, s_b^2), log|a| ~ N(0, s_a^2), and a share of the a is negative,
where a reference is wrong, say. Abilities and these three numbers maximise the marginal likelihood.
Axes: I teachers, J prompts, K distinct patterns of answers, G points of the grid over (a, b).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from trajscore.estimates.bootstrap import Floats

_STEPS, _TOLERANCE = 500, 1e-4
_CELLS = 2_000_000
"""Numbers of patterns x points that are in memory at a time."""

_DIFFICULTIES = np.linspace(-7.0, 7.0, 41)
_LOG_DISCRIMINATIONS = np.linspace(-2.1, 1.8, 14)
_BELIEVED, _SPREAD_A, _NEGATIVE = 5.0, 0.5, 0.05
"""As if five more prompts had shown s_b = 1, s_a = 0.5 and one negative prompt in twenty: few teachers leave these open."""


@dataclass(frozen=True)
class ItemResponse:
    """A fitted model; what the data leave open is NaN.

    Attributes:
        ability_I: theta, the log-odds of being right on a prompt of middling difficulty and discrimination.
        low_I: lower end of its interval.
        high_I: upper end.
        difficulty_J: posterior mean of b.
        discrimination_J: posterior mean of a.
        negative_J: posterior probability that a < 0.
        converged: whether the last step moved nothing by more than 1e-4.
    """

    ability_I: Floats
    low_I: Floats
    high_I: Floats
    difficulty_J: Floats
    discrimination_J: Floats
    negative_J: Floats
    converged: bool


def fit_items(right_IJ: Floats, answers_IJ: Floats, confidence: float) -> ItemResponse:
    """Fit the model.

    Abilities are estimated without a prior: a teacher that was always right, or never, has none, and stays out of the fit.
    Intervals are those of the curvature of the marginal likelihood at its maximum (normal approximation), with the prompts'
    own spread estimated along.

    Args:
        right_IJ: right answers of each teacher to each prompt.
        answers_IJ: its answers; 0 where it gave none.
        confidence: of the intervals.

    Returns:
        Abilities, and of each prompt what its answers say; all NaN with fewer than two teachers that have an ability.

    >>> right = np.array([[1, 1, 0, 1], [1, 0, 0, 0]])
    >>> found = fit_items(right, np.ones((2, 4)), 0.9)
    >>> bool(found.ability_I[0] > found.ability_I[1]), bool(found.difficulty_J[0] < found.difficulty_J[2])
    (True, True)
    """
    right_IJ, answers_IJ = np.asarray(right_IJ, np.float64), np.asarray(answers_IJ, np.float64)
    totals = right_IJ.sum(1), answers_IJ.sum(1)
    fitted = (totals[0] > 0) & (totals[0] < totals[1])
    teachers, prompts = right_IJ.shape
    ability, low, high = (np.full(teachers, np.nan) for _ in range(3))
    if fitted.sum() < 2:
        nothing = np.full(prompts, np.nan)
        return ItemResponse(ability, low, high, nothing, nothing.copy(), nothing.copy(), converged=False)
    model = _Model(right_IJ[fitted], answers_IJ[fitted])
    converged = model.maximise()
    errors_I = model.standard_errors()
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    ability[fitted] = model.ability_I
    low[fitted], high[fitted] = model.ability_I - z * errors_I, model.ability_I + z * errors_I
    return ItemResponse(ability, low, high, *model.prompts(), converged=converged)


class _Prior(NamedTuple):
    """What holds of prompts at large: log s_b, log s_a, and the log-odds of a negative discrimination."""

    log_spread_b: float
    log_spread_a: float
    log_odds_negative: float


class _Expected(NamedTuple):
    """What the answers say, given abilities and prior, summed over the prompts at each point of the grid."""

    prompts_G: Floats
    right_IG: Floats
    answers_IG: Floats


class _Model:
    """The marginal likelihood of the answers; prompts with the same ones are computed once."""

    def __init__(self, right_IJ: Floats, answers_IJ: Floats) -> None:
        patterns_K, self._pattern_J, counts_K = np.unique(
            np.vstack([right_IJ, answers_IJ]).T, axis=0, return_inverse=True, return_counts=True
        )
        self._right_KI, self._answers_KI = np.hsplit(patterns_K, 2)
        self._prompts_K = counts_K.astype(np.float64)
        sizes = np.exp(_LOG_DISCRIMINATIONS)
        a, b = np.meshgrid(np.concatenate([sizes, -sizes]), _DIFFICULTIES, indexing="ij")
        self._a_G, self._b_G = a.ravel(), b.ravel()
        share_I = right_IJ.sum(1) / answers_IJ.sum(1)
        self.ability_I = np.log(share_I / (1 - share_I))
        self._prior = _Prior(0.0, float(np.log(_SPREAD_A)), float(np.log(_NEGATIVE / (1 - _NEGATIVE))))

    def maximise(self) -> bool:
        """EM: prompts given abilities, then abilities given prompts by one Newton step. Whether it came to rest."""
        for _ in range(_STEPS):
            before = np.array([*self.ability_I, *self._prior])
            expected = self._expected(self.ability_I, self._prior)
            slope_I, curvature_I = self._slopes(self.ability_I, expected)
            self.ability_I = self.ability_I + np.clip(slope_I / np.maximum(curvature_I, 1e-9), -1, 1)
            self._prior = self._likeliest_prior(expected.prompts_G)
            if np.abs(np.array([*self.ability_I, *self._prior]) - before).max() < _TOLERANCE:
                return True
        return False

    def standard_errors(self) -> Floats:
        """Of the abilities, [I], from the curvature of the marginal likelihood in all parameters; NaN where it has none."""
        place = np.array([*self.ability_I, *self._prior])
        step = 1e-3
        columns = [
            (self._gradient(place + shift) - self._gradient(place - shift)) / (2 * step)
            for shift in step * np.eye(len(place))
        ]
        information = -(np.array(columns) + np.array(columns).T) / 2
        if np.linalg.eigvalsh(information).min() <= 0:
            return np.full(len(self.ability_I), np.nan)
        return np.sqrt(np.diag(np.linalg.inv(information)))[: len(self.ability_I)]

    def prompts(self) -> tuple[Floats, Floats, Floats]:
        """Posterior mean of b and a, and posterior probability that a < 0: [J] each."""
        wanted_G3 = np.column_stack([self._b_G, self._a_G, self._a_G < 0])
        found_K3 = np.concatenate(
            [weight_KG @ wanted_G3 for _, weight_KG in self._posteriors(self.ability_I, self._prior)]
        )
        difficulty_J, discrimination_J, negative_J = found_K3[self._pattern_J.ravel()].T
        return difficulty_J, discrimination_J, negative_J

    def _posteriors(self, ability_I: Floats, prior: _Prior) -> Iterator[tuple[slice, Floats]]:
        """Patterns a few at a time, with the posterior probability of each point of the grid, [K, G]."""
        odds_IG = self._a_G * (ability_I[:, None] - self._b_G)
        wrong_IG = -np.logaddexp(0, odds_IG)  # ln(1 - P)
        before_G = self._log_prior(prior)
        size = max(1, _CELLS // len(self._a_G))
        for first in range(0, len(self._prompts_K), size):
            some = slice(first, first + size)
            log_KG = self._right_KI[some] @ odds_IG + self._answers_KI[some] @ wrong_IG + before_G
            weight_KG = np.exp(log_KG - log_KG.max(1, keepdims=True))
            yield some, weight_KG / weight_KG.sum(1, keepdims=True)

    def _log_prior(self, prior: _Prior) -> Floats:
        """Up to a constant, [G]."""
        log_a_G = np.log(np.abs(self._a_G))
        spread = (
            -0.5 * (self._b_G / np.exp(prior.log_spread_b)) ** 2 - 0.5 * (log_a_G / np.exp(prior.log_spread_a)) ** 2
        )
        return np.asarray(spread + np.where(self._a_G < 0, prior.log_odds_negative, 0.0))

    def _expected(self, ability_I: Floats, prior: _Prior) -> _Expected:
        points, teachers = len(self._a_G), len(ability_I)
        found = _Expected(np.zeros(points), np.zeros((teachers, points)), np.zeros((teachers, points)))
        for some, weight_KG in self._posteriors(ability_I, prior):
            counted_KG = weight_KG * self._prompts_K[some, None]
            found.prompts_G[:] += counted_KG.sum(0)
            found.right_IG[:] += self._right_KI[some].T @ counted_KG
            found.answers_IG[:] += self._answers_KI[some].T @ counted_KG
        return found

    def _slopes(self, ability_I: Floats, expected: _Expected) -> tuple[Floats, Floats]:
        """Of the expected log-likelihood in each ability: slope, and downward curvature."""
        right_IG = 1 / (1 + np.exp(-self._a_G * (ability_I[:, None] - self._b_G)))
        slope_I = (self._a_G * (expected.right_IG - expected.answers_IG * right_IG)).sum(1)
        return slope_I, (self._a_G**2 * expected.answers_IG * right_IG * (1 - right_IG)).sum(1)

    def _moments(self, prompts_G: Floats) -> Floats:
        """Sums over the prompts and those believed in: of b^2, of log|a|^2, of negative ones, and their number."""
        log_a_G = np.log(np.abs(self._a_G))
        sums = np.array(
            [prompts_G @ self._b_G**2, prompts_G @ log_a_G**2, prompts_G[self._a_G < 0].sum(), prompts_G.sum()]
        )
        return np.asarray(sums + _BELIEVED * np.array([1.0, _SPREAD_A**2, _NEGATIVE, 1.0]))

    def _likeliest_prior(self, prompts_G: Floats) -> _Prior:
        squares_b, squares_a, negative, number = self._moments(prompts_G)
        spreads = 0.5 * np.log(np.array([squares_b, squares_a]) / number)
        return _Prior(float(spreads[0]), float(spreads[1]), float(np.log(negative / (number - negative))))

    def _gradient(self, place: Floats) -> Floats:
        """Of the marginal log-likelihood with what is believed of prompts, in abilities and prior (Fisher's identity)."""
        ability_I, prior = place[:-3], _Prior(*place[-3:])
        expected = self._expected(ability_I, prior)
        squares_b, squares_a, negative, number = self._moments(expected.prompts_G)
        share = 1 / (1 + np.exp(-prior.log_odds_negative))
        own = (
            squares_b / np.exp(2 * prior.log_spread_b) - number,
            squares_a / np.exp(2 * prior.log_spread_a) - number,
            negative - share * number,
        )
        return np.array([*self._slopes(ability_I, expected)[0], *own])
