"""Divergences that are asked for by name, and probabilities of given entries: float64, identities, bounds, wrong formulas."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.oracles import Float64, named_divergence, probabilities
from tests.statistics.test_divergences import VOCABULARY, Case, _difference
from tests.statistics.test_statistics import _Largest
from trajscore.schema import EXTRAS
from trajscore.statistics import Head, at_entries, further_divergences, teacher_top

ASKED = [
    *(("tv", None), ("hellinger", None), ("jsd", 0.1), ("jsd", 0.5), ("jsd", 0.9), ("skew_kl", 0.1), ("skew_rkl", 0.1)),
    *(("renyi", 0.5), ("renyi", 0.999), ("renyi", 2.0), ("kl_at", 1.0), ("kl_at", 2.0), ("kl_at", 0.5)),
    *(("standardised", 2.0), ("topk_mass", 16.0), ("topk_mass", float(VOCABULARY))),
]
COLUMN = {each: number for number, each in enumerate(ASKED)}


def _expected(student: Float64, teacher: Float64) -> dict[tuple[str, float | None], Float64]:
    return {each: named_divergence(student, teacher, *each) for each in ASKED}


def _found(case: Case, swapped: bool = False, **settings: Any) -> dict[tuple[str, float | None], torch.Tensor]:
    student, teacher = (case.hidden, case.head), (case.teacher_hidden, case.teacher)
    one, other = (teacher, student) if swapped else (student, teacher)
    return dict(zip(ASKED, further_divergences(*one, *other, ASKED, **settings).T, strict=True))


@pytest.mark.parametrize(("scale", "tolerance"), [(0.05, 1e-6), (1.0, 1e-5), (4.0, 1e-5)])
def test_they_agree_with_float64(scale: float, tolerance: float) -> None:
    case = Case(scale)
    expected = _expected(*case.logits())
    for block, rows in ((50, 5), (4096, 512)):
        found = _found(case, block=block, rows=rows)
        errors = {name: _difference(found[name], expected[name]) for name in ASKED}
        assert max(errors.values()) < tolerance * (1 + 4 * max(map(np.max, expected.values()))), errors
    if scale == 1.0:
        wrong = _expected(*case.logits()[::-1])
        apart = {name for name in ASKED if _difference(found[name], wrong[name]) > 100 * tolerance}
        symmetric = {("tv", None), ("hellinger", None), ("jsd", 0.5), ("renyi", 0.5), ("topk_mass", float(VOCABULARY))}
        assert apart == set(ASKED) - symmetric, "control: the direction is told apart where there is one"


def test_identities_and_bounds() -> None:
    case = Case(1.5, seed=3)
    found, pair = _found(case), case.found()
    assert pair.js_N is not None
    close = partial(torch.testing.assert_close, atol=2e-6, rtol=2e-5)
    close(found["jsd", 0.5], pair.js_N)
    close(found["kl_at", 1.0], pair.kl_teacher_student_N)
    close(found["renyi", 0.5], -2 * torch.log1p(-found["hellinger", None]))
    # Towards order 1 it is the Kullback-Leibler divergence, from below.
    torch.testing.assert_close(found["renyi", 0.999], pair.kl_teacher_student_N, atol=0, rtol=5e-3)
    assert (found["renyi", 0.5] < found["renyi", 0.999]).all()
    assert (found["renyi", 0.999] < found["renyi", 2.0]).all()
    tv, hellinger = found["tv", None], found["hellinger", None]
    assert ((hellinger <= tv) & (tv <= torch.sqrt(2 * hellinger))).all(), "Le Cam's inequalities"
    assert (2 * tv.square() <= pair.kl_teacher_student_N + 1e-6).all(), "Pinsker's inequality"
    assert (found["topk_mass", 16.0] < 1).all()
    close(found["topk_mass", float(VOCABULARY)], torch.ones(len(tv)))
    back = _found(case, swapped=True)
    for one, other in (("tv", "tv"), ("hellinger", "hellinger"), ("skew_kl", "skew_rkl")):
        value = None if one == other else 0.1
        close(found[one, value], back[other, value])
    close(found["jsd", 0.1], back["jsd", 0.9])


def test_standardised_logits_forget_scale_and_shift() -> None:
    case = Case(1.0, seed=5)
    other = Case(1.0, seed=5)
    other.head = replace(case.head, scale=3.0, bias_V=torch.full((VOCABULARY,), 2.0))
    same, moved = _found(case), _found(other)
    torch.testing.assert_close(same["standardised", 2.0], moved["standardised", 2.0], atol=1e-5, rtol=1e-4)
    assert (same["kl_at", 2.0] - moved["kl_at", 2.0]).abs().max() > 0.1, "control: other divergences do not"


def test_by_hand() -> None:
    """p = (0.2, 0.8), q = (0.5, 0.5)."""
    student, teacher = Head(torch.tensor([[0.0], [math.log(4)]])), Head(torch.zeros(2, 1))
    asked = [("tv", None), ("hellinger", None), ("renyi", 2.0), ("topk_mass", 1.0)]
    found = further_divergences(torch.ones(1, 1), student, torch.ones(1, 1), teacher, asked)
    assert found[0].tolist() == pytest.approx(
        [0.3, 1 - math.sqrt(0.1) - math.sqrt(0.4), math.log(1.5625), 0.5], abs=1e-6
    )


def test_impossible_entries() -> None:
    """What neither can produce does not count; what one alone can produce makes some divergences infinite, others not."""
    absent = torch.zeros(VOCABULARY, dtype=torch.bool)
    absent[::7] = True
    case = Case(1.0)
    case.head = replace(case.head, absent_V=absent)
    expected = _expected(*(np.delete(logits, absent.nonzero()[:, 0].numpy(), 1) for logits in case.logits()))
    errors = {name: _difference(each, expected[name]) for name, each in _found(case, block=40).items()}
    assert max(errors.values()) < 1e-4, errors
    bias = torch.zeros(VOCABULARY)
    bias[3] = -torch.inf
    case = Case(1.0)
    case.head = replace(case.head, bias_V=bias)
    found = _found(case, block=40)
    for name, value in (("renyi", 2.0), ("kl_at", 2.0), ("standardised", 2.0)):
        assert found[name, value].isinf().all(), name
    finite = [("tv", None), ("hellinger", None), ("jsd", 0.5), ("skew_kl", 0.1), ("skew_rkl", 0.1), ("renyi", 0.5)]
    assert all(found[each].isfinite().all() for each in finite)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = _expected(*case.logits())
    assert max(_difference(found[each], expected[each]) for each in finite) < 1e-5


def test_what_cannot_be_computed_is_nan_or_refused() -> None:
    case = Case(1.0)
    case.hidden[0] = torch.nan
    found = _found(case)
    assert all(each[0].isnan() for each in found.values())
    assert all(each[1:].isfinite().all() for each in found.values())
    with pytest.raises(ValueError, match="'chi' is unknown"):
        further_divergences(case.hidden, case.head, case.teacher_hidden, case.teacher, [("chi", None)])


def test_every_extra_of_two_models_has_a_sum() -> None:
    assert {name for name, _ in ASKED} == {each.name for each in EXTRAS.values() if each.two_models}


def test_entries_that_are_given_have_their_exact_probabilities() -> None:
    case = Case(2.0)
    best = teacher_top(case.hidden, case.head, 9)
    found = at_entries(case.teacher_hidden, case.teacher, best.ids_NK, block=50, rows=4)
    log_q = np.log(probabilities(case.logits()[1]))
    for ids, logprobs, tail, row in zip(found.ids_NK, found.logprobs_NK, found.log_tail_N, log_q, strict=True):
        assert logprobs.tolist() == pytest.approx(row[ids.numpy()].tolist(), abs=1e-5)
        assert logprobs.tolist() == sorted(logprobs.tolist(), reverse=True)
        assert tail.item() == pytest.approx(math.log(1 - np.exp(row[ids.numpy()]).sum()), abs=1e-5)
    assert (found.ids_NK.sort(1).values == best.ids_NK.sort(1).values).all()
    equal = at_entries(torch.ones(1, 1), Head(torch.zeros(5, 1)), torch.tensor([[4, 0, 2]]))
    assert equal.ids_NK.tolist() == [[0, 2, 4]], "ties by the lower id"


def test_tokens_x_vocabulary_never_exists() -> None:
    rows, vocabulary, block = 100, 5000, 64
    hidden, head, other = torch.randn(rows, 8), Head(torch.randn(vocabulary, 8)), Head(torch.randn(vocabulary, 8))
    asked = [each for each in ASKED if each[1] != VOCABULARY]
    largest = _Largest(hidden, head.weight_VD, other.weight_VD)
    with largest:
        further_divergences(hidden, head, hidden, other, asked, block=block)
        at_entries(hidden, other, teacher_top(hidden, head, 10, block=block).ids_NK, block=block)
    assert rows * block <= largest.elements < rows * vocabulary / 4
