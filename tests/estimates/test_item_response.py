"""Item response: simulated abilities lie in their intervals as often as these say, and planted bad labels are found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from trajscore.estimates.bootstrap import Floats
from trajscore.estimates.item_response import _Model, fit_items


class Simulated:
    """Answers drawn from the model; the first `bad` prompts have a negative discrimination.

    Args:
        seed: of the draws.
        teachers: I.
        prompts: J.
        bad: negative prompts.
        samples: answers of each teacher to each prompt.
        missing: share of the cells without any.
    """

    def __init__(
        self, seed: int, teachers: int, prompts: int, bad: int = 0, samples: int = 1, missing: float = 0.0
    ) -> None:
        draw = np.random.default_rng(seed)
        self.ability_I = draw.normal(0, 1, teachers)
        a_J, b_J = np.exp(draw.normal(0, 0.3, prompts)), draw.normal(0, 1, prompts)
        a_J[:bad] *= -1
        shape = (teachers, prompts)
        self.answers_IJ = np.where(draw.random(shape) < missing, 0, samples).astype(float)
        self.right_IJ = draw.binomial(
            self.answers_IJ.astype(int), 1 / (1 + np.exp(-a_J * (self.ability_I[:, None] - b_J)))
        ).astype(float)


def _covered(seeds: range, shape: dict[str, float]) -> Iterator[bool]:
    for seed in seeds:
        truth = Simulated(seed, **shape)  # type: ignore[arg-type]
        found = fit_items(truth.right_IJ, truth.answers_IJ, 0.9)
        assert found.converged
        yield from (found.low_I <= truth.ability_I) & (truth.ability_I <= found.high_I)


def test_intervals_hold_the_truth_in_short() -> None:
    shape = {"teachers": 10, "prompts": 120, "missing": 0.2}
    covered = list(_covered(range(8), shape))
    # 80 of which 72 are expected, with a standard deviation of 2.7 if they were independent.
    assert 62 <= sum(covered) <= 80
    # A control: half as wide they would hold 0.59 of them.
    truths = [Simulated(seed, **shape) for seed in range(3)]  # type: ignore[arg-type]
    half = [fit_items(each.right_IJ, each.answers_IJ, 0.59) for each in truths]
    inside = [(f.low_I <= t.ability_I) & (t.ability_I <= f.high_I) for f, t in zip(half, truths, strict=True)]
    assert np.mean(inside) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        {"teachers": 12, "prompts": 150, "bad": 8},
        {"teachers": 5, "prompts": 400},
        {"teachers": 8, "prompts": 300, "bad": 15, "missing": 0.3},
        {"teachers": 12, "prompts": 40, "samples": 2},
    ],
    ids=str,
)
def test_intervals_hold_the_truth(shape: dict[str, float]) -> None:
    covered = np.array(list(_covered(range(60), shape)))
    # Abilities of one simulation share its prompts: 60 independent draws are the cautious count.
    assert abs(covered.mean() - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 60)


def test_planted_bad_labels_are_found_and_good_ones_are_not() -> None:
    truth = Simulated(1, teachers=24, prompts=100, bad=10, samples=4)
    found = fit_items(truth.right_IJ, truth.answers_IJ, 0.9)
    suspect = found.negative_J >= 0.9
    assert suspect[:10].sum() >= 7
    assert suspect[10:].sum() <= 2
    assert (found.discrimination_J[suspect] < 0).all()
    # A control: without planted ones hardly any is found.
    honest = Simulated(1, teachers=24, prompts=100, samples=4)
    assert (fit_items(honest.right_IJ, honest.answers_IJ, 0.9).negative_J >= 0.9).sum() <= 2


def _by_hand(right_I: Floats, answers_I: Floats, ability_I: Floats, prior: tuple[float, float, float]) -> float:
    """The likelihood of one prompt's answers, as sums over a finer grid than the model's."""
    total = norm = 0.0
    spread_b, spread_a, negative = math.exp(prior[0]), math.exp(prior[1]), 1 / (1 + math.exp(-prior[2]))
    for b, log_a, sign in product(np.arange(-8, 8, 0.1), np.arange(-2.1, 1.81, 0.1), (1, -1)):
        weight = math.exp(-((b / spread_b) ** 2) / 2 - (log_a / spread_a) ** 2 / 2)
        weight *= negative if sign < 0 else 1 - negative
        likelihood = 1.0
        for right, answers, ability in zip(right_I, answers_I, ability_I, strict=True):
            p = 1 / (1 + math.exp(-sign * math.exp(log_a) * (ability - b)))
            likelihood *= p**right * (1 - p) ** (answers - right)
        total, norm = total + weight * likelihood, norm + weight
    return total / norm


def test_the_slope_is_that_of_the_likelihood_in_plain_python() -> None:
    right_IJ, answers_IJ = np.array([[1.0, 0], [2, 1]]), np.array([[2.0, 1], [3, 1]])
    model = _Model(right_IJ, answers_IJ)
    prior, place = (0.1, -0.6, -2.5), np.array([0.3, -0.2])

    def log_likelihood(first: float) -> float:
        ability_I = np.array([first, place[1]])
        return sum(math.log(_by_hand(right_IJ[:, j], answers_IJ[:, j], ability_I, prior)) for j in range(2))

    slope = (log_likelihood(0.31) - log_likelihood(0.29)) / 0.02
    assert model._gradient(np.array([*place, *prior]))[0] == pytest.approx(slope, abs=2e-3)


def test_what_is_undefined_is_nan() -> None:
    right_IJ = np.array([[1.0, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 1]])
    found = fit_items(right_IJ, np.ones((4, 3)), 0.9)
    assert np.isnan(found.ability_I).tolist() == [True, False, True, False]
    assert np.isnan(found.low_I).tolist() == [True, False, True, False]
    for few in (right_IJ[:2], right_IJ[1:3], right_IJ[:1], right_IJ[:, :0]):
        alone = fit_items(few, np.ones(few.shape), 0.9)
        assert np.isnan(alone.ability_I).all()
        assert np.isnan(alone.negative_J).all()
        assert not alone.converged
    # A prompt without answers is what prompts are at large.
    empty = np.array([[1.0, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]])
    left = fit_items(np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]), empty, 0.9)
    assert left.difficulty_J[2] == pytest.approx(0, abs=1e-9)


def test_order_of_teachers_and_prompts_does_not_matter() -> None:
    truth = Simulated(3, teachers=6, prompts=40, missing=0.1)
    order = np.random.default_rng(0)
    teachers, prompts = order.permutation(6), order.permutation(40)
    found = fit_items(truth.right_IJ, truth.answers_IJ, 0.9)
    again = fit_items(truth.right_IJ[teachers][:, prompts], truth.answers_IJ[teachers][:, prompts], 0.9)
    assert again.ability_I == pytest.approx(found.ability_I[teachers], abs=1e-6)
    assert again.negative_J == pytest.approx(found.negative_J[prompts], abs=1e-6)
