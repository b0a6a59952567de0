"""Divergences of two models against a float64 oracle and identities that share no code with them; wrong formulas must fail."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.helpers.oracles import DivergenceOracle, Float64, divergences, entropy, from_logits, probabilities
from trajscore.statistics import (
    Head,
    PairStatistics,
    TopK,
    pair_statistics,
    pairs,
    teacher_top,
    token_statistics,
    topk_divergences,
)
from trajscore.statistics.blocks import tiles

ROWS, STUDENT, TEACHER, VOCABULARY = 13, 24, 40, 301


class Case:
    """Hidden states and heads of two models of different width; logits of either have a standard deviation near `scale`."""

    def __init__(self, scale: float = 1.0, seed: int = 0, teacher_scale: float | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(ROWS, STUDENT, generator=generator)
        self.teacher_hidden = torch.randn(ROWS, TEACHER, generator=generator)
        self.head = Head(torch.randn(VOCABULARY, STUDENT, generator=generator) * scale / STUDENT**0.5)
        scale = scale if teacher_scale is None else teacher_scale
        self.teacher = Head(torch.randn(VOCABULARY, TEACHER, generator=generator) * scale / TEACHER**0.5)
        self.targets = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)

    def found(self, **settings: Any) -> PairStatistics:
        return pair_statistics(self.hidden, self.head, self.teacher_hidden, self.teacher, self.targets, **settings)

    def logits(self) -> tuple[Float64, Float64]:
        return _logits(self.hidden, self.head), _logits(self.teacher_hidden, self.teacher)


def _logits(hidden: Tensor, head: Head) -> Float64:
    """The head's definition, in float64."""
    logits = (hidden.double() @ head.weight_VD.double().T).numpy()
    if head.bias_V is not None:
        logits = logits + head.bias_V.double().numpy()
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * np.tanh(logits / head.softcap)
    if head.absent_V is not None:
        logits[:, head.absent_V.numpy()] = -np.inf
    return np.asarray(logits)


def _difference(found: Tensor, expected: npt.NDArray[Any]) -> float:
    """Largest difference; equal infinities do not differ, NaN is no agreement."""
    array = found.double().numpy()
    with np.errstate(invalid="ignore"):
        differences = np.where(array == expected, 0.0, np.abs(array - expected))
    return float(np.nan_to_num(differences, nan=np.inf).max())


def _divergence_errors(found: PairStatistics, expected: DivergenceOracle) -> dict[str, float]:
    assert found.js_N is not None
    return {
        "kl_student_teacher": _difference(found.kl_student_teacher_N, expected.kl_student_teacher),
        "kl_teacher_student": _difference(found.kl_teacher_student_N, expected.kl_teacher_student),
        "js": _difference(found.js_N, expected.js),
    }


def _check(case: Case, tolerance: float, **settings: Any) -> PairStatistics:
    """All statistics and divergences against the oracle."""
    found = case.found(**settings)
    student, teacher = case.logits()
    for statistics, logits in ((found.student, student), (found.teacher, teacher)):
        oracle = from_logits(logits, case.targets.numpy())
        assert (statistics.rank_N.numpy() == oracle.rank).all()
        assert _difference(statistics.surprisal_N, oracle.surprisal) < tolerance
        assert _difference(statistics.entropy_N, oracle.entropy) < tolerance
        assert _difference(statistics.collision_N, oracle.collision) < tolerance
    errors = _divergence_errors(found, divergences(student, teacher))
    assert max(errors.values()) < tolerance, errors
    return found


def _assert_sound(found: PairStatistics) -> None:
    assert found.js_N is not None
    assert ((found.js_N >= 0) & (found.js_N <= math.log(2) + 1e-7)).all()
    assert (found.kl_student_teacher_N >= 0).all()
    assert (found.kl_teacher_student_N >= 0).all()


@pytest.mark.parametrize(("scale", "tolerance"), [(0.0, 1e-6), (0.05, 1e-5), (1.0, 1e-5), (3.0, 1e-5), (20.0, 1e-4)])
@pytest.mark.parametrize("block", [1, 7, 64, 301, 4096])
def test_agrees_with_the_oracle_whatever_the_block(scale: float, tolerance: float, block: int) -> None:
    _assert_sound(_check(Case(scale), tolerance, block=block, rows=5))


@pytest.mark.parametrize(("student", "teacher"), [(0.0, 20.0), (20.0, 0.0), (0.1, 3.0)])
def test_a_flat_and_a_peaked_model(student: float, teacher: float) -> None:
    _assert_sound(_check(Case(student, teacher_scale=teacher), 1e-4, block=50))


def test_a_sharper_copy_where_naive_float32_gives_nan() -> None:
    """Probabilities that underflow: 0 times minus infinity in the naive formula, a number here."""
    case = Case(40.0)
    case.teacher_hidden, case.teacher = -case.hidden, case.head
    _assert_sound(_check(case, 3e-4, block=50))
    p, q = (torch.tensor(logits).float().softmax(1) for logits in case.logits())
    naive = (p * (p / ((p + q) / 2)).log() + q * (q / ((p + q) / 2)).log()).sum(1) / 2
    assert naive.isnan().any()


def test_ties_in_both_models() -> None:
    case = Case(1.0)
    case.head = Head(case.head.weight_VD[:150].repeat(2, 1))
    case.teacher = Head(case.teacher.weight_VD[:150].repeat(2, 1))
    case.targets %= 300
    found = case.found(block=64)
    for statistics, logits in zip((found.student, found.teacher), case.logits(), strict=True):
        single = from_logits(logits[:, :150], (case.targets % 150).numpy())
        assert (statistics.rank_N.numpy() == 2 * (single.rank - 1) + 1).all()
    assert max(_divergence_errors(found, divergences(*case.logits())).values()) < 1e-5


@pytest.mark.parametrize("impossible", ["student", "teacher", "both", "each"])
def test_minus_infinity_gives_infinite_kl_and_finite_js(impossible: str) -> None:
    case = Case(1.0)
    never = [torch.zeros(VOCABULARY), torch.zeros(VOCABULARY)]
    never[0][::3] = -torch.inf if impossible in ("student", "both", "each") else 0.0
    never[1][1::3] = -torch.inf if impossible == "each" else 0.0
    never[1][::3] = -torch.inf if impossible in ("teacher", "both") else 0.0
    case.head, case.teacher = replace(case.head, bias_V=never[0]), replace(case.teacher, bias_V=never[1])
    found = _check(case, 1e-5, block=50)
    _assert_sound(found)
    assert found.kl_student_teacher_N.isinf().all().item() == (impossible in ("teacher", "each"))
    assert found.kl_teacher_student_N.isinf().all().item() == (impossible in ("student", "each"))
    assert found.js_N is not None
    assert found.js_N.isfinite().all()


def test_a_whole_block_of_impossible_entries() -> None:
    case = Case(1.0)
    bias = torch.zeros(VOCABULARY)
    bias[:128] = -torch.inf
    case.teacher = replace(case.teacher, bias_V=bias)
    _assert_sound(_check(case, 1e-5, block=64))
    case.head = replace(case.head, bias_V=bias)
    _assert_sound(_check(case, 1e-5, block=64))


def test_disjoint_predictions_reach_ln_2() -> None:
    case = Case(1.0)
    first = torch.arange(VOCABULARY) < 150
    case.head = replace(case.head, bias_V=torch.where(first, 0.0, -torch.inf))
    case.teacher = replace(case.teacher, bias_V=torch.where(first, -torch.inf, 0.0))
    found = case.found(block=50)
    assert found.js_N is not None
    assert _difference(found.js_N, np.full(ROWS, math.log(2))) < 1e-6
    _assert_sound(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.3},
        {"softcap": 2.0},
        {"scale": 3.0, "softcap": 5.0},
        {"bias_V": torch.linspace(-2, 2, VOCABULARY)},
        {"bias_V": torch.linspace(-2, 2, VOCABULARY), "softcap": 3.0, "scale": 0.5},
        {"bias_V": torch.zeros(VOCABULARY).index_fill(0, torch.tensor([5, 7]), -torch.inf), "softcap": 3.0},
    ],
)
def test_heads_with_bias_scale_and_cap(changes: dict[str, Any]) -> None:
    case = Case(1.0)
    case.head = replace(case.head, **changes)
    _check(case, 1e-5, block=50)
    case.head, case.teacher = Case(1.0).head, replace(case.teacher, **changes)
    _check(case, 1e-5, block=50)


def test_what_is_absent_in_one_head_is_absent_in_both() -> None:
    case = Case(1.0)
    case.targets = torch.full((ROWS,), 10)
    absent = torch.zeros(2, VOCABULARY, dtype=torch.bool)
    absent[0, [3, 200]] = True
    absent[1, [3, 77]] = True
    either = replace(case.head, absent_V=absent.any(0)), replace(case.teacher, absent_V=absent.any(0))
    case.head, case.teacher = replace(case.head, absent_V=absent[0]), replace(case.teacher, absent_V=absent[1])
    found = case.found(block=50)
    case.head, case.teacher = either
    expected = _check(case, 1e-5, block=50)
    assert torch.equal(found.kl_student_teacher_N, expected.kl_student_teacher_N)
    assert found.kl_student_teacher_N.isfinite().all()
    case.teacher = Case(1.0).teacher
    assert torch.equal(case.found(block=50).kl_teacher_student_N, expected.kl_teacher_student_N)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_and_states_are_reduced_in_float32(dtype: torch.dtype) -> None:
    case = Case(1.0)
    case.hidden, case.head = case.hidden.to(dtype), Head(case.head.weight_VD.to(dtype))
    _check(case, 1e-5)
    case.teacher_hidden, case.teacher = case.teacher_hidden.to(dtype), Head(case.teacher.weight_VD.to(dtype))
    found = _check(case, 1e-5)
    assert {found.js_N.dtype, found.kl_student_teacher_N.dtype} == {torch.float32}  # type: ignore[union-attr]


def test_nan_hidden_states_do_not_look_like_numbers() -> None:
    for impossible in (False, True):
        case = Case(1.0)
        if impossible:
            case.teacher = replace(
                case.teacher, bias_V=torch.zeros(VOCABULARY).index_fill(0, torch.tensor([5]), -torch.inf)
            )
        case.teacher_hidden[2, 3] = torch.nan
        found = case.found()
        assert found.js_N is not None
        for values in (found.kl_student_teacher_N, found.kl_teacher_student_N, found.js_N, found.teacher.surprisal_N):
            assert values[2].isnan()
            assert not values[[0, 1, 3]].isnan().any()
        assert found.teacher.rank_N[2] == 0
        assert found.student.surprisal_N.isfinite().all()


def test_identities_that_share_no_code_with_the_reduction() -> None:
    """H(p) + KL(p || q) is the cross-entropy, the mean surprisal under q; JS is an entropy less the mean of two."""
    case = Case(1.5)
    found = case.found(block=50)
    p, q = (probabilities(logits) for logits in case.logits())
    cross_student = (p * -np.log(q)).sum(1)
    cross_teacher = (q * -np.log(p)).sum(1)
    assert _difference(found.student.entropy_N + found.kl_student_teacher_N, cross_student) < 1e-5
    assert _difference(found.teacher.entropy_N + found.kl_teacher_student_N, cross_teacher) < 1e-5
    assert found.js_N is not None
    ours = found.js_N + (found.student.entropy_N + found.teacher.entropy_N) / 2
    assert _difference(ours, entropy((p + q) / 2)) < 1e-5


def test_a_cross_entropy_from_surprisals_of_every_entry() -> None:
    """The expectation of the teacher's surprisals, each found as a target's, is H + KL."""
    case = Case(1.0)
    hidden, teacher_hidden = case.hidden[:1], case.teacher_hidden[:1]
    every = torch.arange(VOCABULARY)
    surprisal = token_statistics(teacher_hidden.expand(VOCABULARY, -1), case.teacher, every).surprisal_N
    p = torch.from_numpy(probabilities(_logits(hidden, case.head)))[0]
    found = pair_statistics(hidden, case.head, teacher_hidden, case.teacher, every[:1])
    expected = float((p * surprisal.double()).sum())
    assert found.student.entropy_N.item() + found.kl_student_teacher_N.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
def test_a_model_does_not_differ_from_itself(scale: float) -> None:
    case = Case(scale)
    case.teacher_hidden, case.teacher = case.hidden, case.head
    found = case.found(block=50)
    assert (found.kl_student_teacher_N == 0).all()
    assert (found.kl_teacher_student_N == 0).all()
    assert found.js_N is not None
    assert found.js_N.max() < 1e-6


def test_small_divergences_do_not_drown() -> None:
    """Nearly equal models: the divergence itself, not only its distance from 0, is right."""
    case = Case(1.0)
    case.teacher = Head(case.head.weight_VD + 0.004 * Case(1.0, seed=1).head.weight_VD)
    case.teacher_hidden = case.hidden
    found, expected = case.found(), divergences(*case.logits())
    assert expected.kl_student_teacher.max() < 5e-5
    assert max(_divergence_errors(found, expected).values()) < 1e-6


def test_swapping_the_models_swaps_the_divergences() -> None:
    case = Case(1.0)
    found = case.found(block=50)
    case.hidden, case.head, case.teacher_hidden, case.teacher = (
        case.teacher_hidden,
        case.teacher,
        case.hidden,
        case.head,
    )
    swapped = case.found(block=50)
    assert _difference(found.kl_student_teacher_N, swapped.kl_teacher_student_N.double().numpy()) < 1e-6
    assert found.js_N is not None
    assert swapped.js_N is not None
    assert _difference(found.js_N, swapped.js_N.double().numpy()) < 1e-6
    assert torch.equal(found.student.rank_N, swapped.teacher.rank_N)


def test_two_entries_by_hand() -> None:
    """Student 1/4, 3/4; teacher 1/2, 1/2; the mixture is 3/8, 5/8."""
    student = Head(torch.tensor([[0.0], [math.log(3)]]))
    found = pair_statistics(torch.ones(1, 1), student, torch.ones(1, 2), Head(torch.zeros(2, 2)), torch.tensor([0]))
    assert found.kl_student_teacher_N.item() == pytest.approx(math.log(2) - 0.562335, abs=1e-6)
    assert found.kl_teacher_student_N.item() == pytest.approx(math.log(2 / math.sqrt(3)), abs=1e-6)
    mixture = -(3 / 8) * math.log(3 / 8) - (5 / 8) * math.log(5 / 8)
    assert found.js_N is not None
    assert found.js_N.item() == pytest.approx(mixture - (0.562335 + math.log(2)) / 2, abs=1e-6)
    assert (found.student.rank_N.item(), found.teacher.rank_N.item()) == (2, 1)


def test_rows_and_one_model_alone_give_the_same() -> None:
    case = Case(1.0)
    found, whole = case.found(block=64, rows=3), case.found(block=64)
    for field in fields(PairStatistics)[2:]:
        assert torch.allclose(getattr(found, field.name), getattr(whole, field.name), atol=1e-6)
    alone = token_statistics(case.teacher_hidden, case.teacher, case.targets, block=64)
    assert torch.equal(whole.teacher.rank_N, alone.rank_N)
    assert torch.allclose(whole.teacher.surprisal_N, alone.surprisal_N, atol=1e-6)
    assert case.found(js=False).js_N is None


def test_empty_and_wrong_shapes() -> None:
    case = Case(1.0)
    empty = pair_statistics(case.hidden[:0], case.head, case.teacher_hidden[:0], case.teacher, case.targets[:0])
    assert empty.kl_student_teacher_N.shape == (0,)
    assert empty.js_N is not None
    with pytest.raises(ValueError, match="cut both"):
        pair_statistics(
            case.hidden, case.head, case.teacher_hidden, Head(case.teacher.weight_VD[:300]), case.targets % 300
        )
    with pytest.raises(ValueError, match="do not fit"):
        pair_statistics(case.hidden, case.head, case.teacher_hidden[:5], case.teacher, case.targets)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        pair_statistics(case.hidden, case.head, case.teacher_hidden, case.teacher, case.targets + VOCABULARY)


def test_wrong_formulas_would_be_noticed() -> None:
    """Controls: what the tolerance accepts, common mistakes do not pass."""
    case = Case(1.0)
    found, right = case.found(), divergences(*case.logits())
    assert max(_divergence_errors(found, right).values()) < 1e-5
    jeffreys = (right.kl_student_teacher + right.kl_teacher_student) / 2
    swapped = replace(right, kl_student_teacher=right.kl_teacher_student, kl_teacher_student=right.kl_student_teacher)
    assert _divergence_errors(found, swapped)["kl_student_teacher"] > 1e-3
    assert _divergence_errors(found, swapped)["kl_teacher_student"] > 1e-3
    for js in (jeffreys, jeffreys / 2, right.js / math.log(2), 2 * right.js, np.sqrt(right.js)):
        assert _divergence_errors(found, replace(right, js=js))["js"] > 1e-3
    bits = replace(right, kl_student_teacher=right.kl_student_teacher / math.log(2))
    assert _divergence_errors(found, bits)["kl_student_teacher"] > 1e-3


def test_the_fused_expressions_equal_the_passes() -> None:
    """What CUDA compiles is run here uncompiled, against what the CPU runs."""
    case = Case(2.0)
    student, teacher = (torch.tensor(logits).float() for logits in case.logits())
    own, teacher_own = (z[torch.arange(ROWS), case.targets] for z in (student, teacher))
    where = torch.as_tensor(case.targets), torch.tensor(0)
    fused = pairs._sums_pure(student, teacher, own, teacher_own, *where)
    sums_12N = torch.empty(12, ROWS)
    for rows, tensors in tiles(student.clone(), teacher.clone(), own, teacher_own):
        pairs._reduce_tile(sums_12N[:, rows].unbind(), *tensors)
    assert torch.allclose(sums_12N, fused[:12], atol=1e-4, rtol=1e-5)
    assert torch.equal(fused[12:], torch.stack([own, teacher_own]))
    normalisers = student.logsumexp(1), teacher.logsumexp(1)
    (js,) = pairs._js_pure(student, teacher, *normalisers, *where)
    assert torch.allclose(pairs._js_tile(student.clone(), teacher.clone(), *normalisers), js, atol=1e-6)
    assert _difference(js / 2, divergences(*case.logits()).js) < 1e-5


def _reduced(logits: Float64, ids: npt.NDArray[np.int64]) -> Float64:
    """ln of the probabilities of the ids and of everything else, in float64."""
    p = probabilities(logits)
    kept = np.take_along_axis(p, ids, 1)
    rest = p.copy()
    np.put_along_axis(rest, ids, 0.0, 1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.concatenate([kept, rest.sum(1, keepdims=True)], 1)))


@pytest.mark.parametrize("k", [1, 10, 64, VOCABULARY])
@pytest.mark.parametrize(("scale", "tolerance"), [(0.1, 1e-5), (1.0, 1e-5), (5.0, 1e-5), (20.0, 1e-4)])
def test_truncated_divergences_are_lower_bounds(k: int, scale: float, tolerance: float) -> None:
    """Against the oracle over K + 1 buckets, and below the exact ones (data processing inequality)."""
    case = Case(scale)
    top = teacher_top(case.teacher_hidden, case.teacher, k, block=50, rows=4)
    student, teacher = case.logits()
    ids = np.argsort(-teacher, axis=1, kind="stable")[:, :k]
    assert (top.ids_NK.numpy() == ids).all()
    expected = _reduced(teacher, ids)
    assert _difference(top.logprobs_NK, expected[:, :-1]) < tolerance
    assert k == VOCABULARY or _difference(top.log_tail_N, expected[:, -1]) < tolerance
    found = topk_divergences(case.hidden, case.head, top, block=60, rows=5)
    oracle = divergences(_reduced(student, ids), expected)
    assert _difference(found.kl_student_teacher_N, oracle.kl_student_teacher) < tolerance
    assert _difference(found.kl_teacher_student_N, oracle.kl_teacher_student) < tolerance
    assert _difference(found.js_N, oracle.js) < tolerance
    assert _difference(found.mass_N, np.exp(expected[:, :-1]).sum(1)) < 1e-5
    exact = divergences(student, teacher)
    for name in ("kl_student_teacher", "kl_teacher_student", "js"):
        below = getattr(exact, name) - getattr(found, f"{name}_N").double().numpy()
        assert below.min() > -tolerance
        if k == VOCABULARY:
            assert below.max() < tolerance
        elif k == 1 and scale >= 1:
            assert below.max() > 1e-3, "a truncated divergence is no exact one"


def test_a_nearly_certain_teacher_keeps_its_tail() -> None:
    """1 minus the kept mass would be rounding, and with it KL(student || teacher)."""
    student, teacher = Head(torch.zeros(40, 1)), Head(torch.tensor([[30.0], *[[0.0]] * 39]))
    found = topk_divergences(torch.ones(1, 1), student, teacher_top(torch.ones(1, 1), teacher, 4))
    tail = math.log(36) - 30
    expected = 0.1 * math.log(0.1) + 0.9 * (math.log(0.9) - tail) - (0 - 3 * 30) / 40 + 0.1 * math.log(0.25)
    assert found.kl_student_teacher_N.item() == pytest.approx(expected, abs=1e-5)
    assert found.mass_N.item() == 1


@pytest.mark.parametrize("block", [1, 3, 10, 64])
def test_ties_at_the_edge_go_to_the_lower_id(block: int) -> None:
    head = Head(torch.tensor([0.0, 2.0, -1.0, 2.0, 0.0, 2.0, -0.0, 2.0, -1.0, 0.0])[:, None])
    top = teacher_top(torch.ones(2, 1), head, 6, block=block)
    assert top.ids_NK.tolist() == [[1, 3, 5, 7, 0, 4]] * 2
    negative = teacher_top(-torch.ones(1, 1), head, 5, block=block)
    assert negative.ids_NK.tolist() == [[2, 8, 0, 4, 6]]


def test_impossible_entries_among_the_kept() -> None:
    bias = torch.full((8,), -torch.inf)
    bias[[2, 5]] = 0.0
    top = teacher_top(torch.zeros(1, 3), Head(torch.zeros(8, 3), bias_V=bias), 4, block=3)
    assert top.ids_NK[0, :2].tolist() == [2, 5]
    assert top.logprobs_NK[0].tolist() == pytest.approx([-math.log(2), -math.log(2), -math.inf, -math.inf])
    assert top.log_tail_N.item() == -math.inf
    found = topk_divergences(torch.zeros(1, 3), Head(torch.zeros(8, 3)), top)
    assert found.kl_student_teacher_N.item() == math.inf
    assert found.kl_teacher_student_N.item() == pytest.approx(math.log(4), abs=1e-6)
    assert 0 < found.js_N.item() < math.log(2)
    assert topk_divergences(torch.full((1, 3), torch.nan), Head(torch.zeros(8, 3)), top).js_N.isnan().all()


def test_wrong_truncations_are_refused() -> None:
    case = Case(1.0)
    with pytest.raises(ValueError, match="allowed: 1 to 301"):
        teacher_top(case.teacher_hidden, case.teacher, 302)
    top = teacher_top(case.teacher_hidden, case.teacher, 3)
    with pytest.raises(ValueError, match="do not fit"):
        topk_divergences(case.hidden[:2], case.head, top)
    with pytest.raises(ValueError, match="outside the student's vocabulary"):
        topk_divergences(case.hidden, case.head, TopK(top.ids_NK + VOCABULARY, top.logprobs_NK, top.log_tail_N))
