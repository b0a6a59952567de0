"""A vocabulary that several processes share: every statistic is that of the whole, and only numbers per token are exchanged."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.oracles import divergences, from_logits, probabilities
from tests.helpers.shared_vocabulary import Group
from tests.statistics.test_divergences import Case, _logits
from tests.statistics.test_further_divergences import ASKED, _expected
from trajscore.statistics import (
    Head,
    at_entries,
    further_divergences,
    pair_statistics,
    pairs,
    teacher_top,
    token_statistics,
    tokens,
    topk_divergences,
)
from trajscore.statistics.blocks import Fused, block_pure, padded

BLOCK = 40


def _case(**changes: Any) -> Case:
    """301 entries: as 2, 3 or 8 parts the last is not full; some entries are absent, and two in different parts are equal."""
    case = Case(1.5, seed=4)
    absent = torch.zeros(301, dtype=torch.bool)
    absent[[3, 150, 299]] = True
    case.head.weight_VD[290] = case.head.weight_VD[7]
    case.head = replace(case.head, absent_V=absent, **changes)
    case.teacher = replace(case.teacher, absent_V=absent)
    case.targets[:4] = torch.tensor([7, 290, 0, 300])
    return case


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize(
    "changes",
    [{}, {"scale": 0.5, "softcap": 3.0, "bias_V": torch.linspace(-1, 1, 301)}],
    ids=["plain", "bias, scale and cap"],
)
def test_one_model_against_float64(count: int, changes: dict[str, Any]) -> None:
    case, group = _case(**changes), Group(count)
    oracle = from_logits(_logits(case.hidden, case.head), case.targets.numpy())
    whole = token_statistics(case.hidden, case.head, case.targets, block=BLOCK)
    for found in group.run(lambda head: token_statistics(case.hidden, head, case.targets, block=BLOCK), case.head):
        assert np.array_equal(found.rank_N, oracle.rank)
        assert torch.equal(found.rank_N, whole.rank_N)
        for name in ("surprisal", "entropy", "collision"):
            np.testing.assert_allclose(getattr(found, f"{name}_N"), getattr(oracle, name), atol=1e-5, err_msg=name)
    blocks = math.ceil(math.ceil(301 / count) / BLOCK)
    assert max(group.gathered) == 5 * len(case.hidden) * count * blocks, "sums of blocks, never the head"
    assert max(group.gathered) < case.head.weight_VD.numel() / 4


@pytest.mark.parametrize("count", [2, 8])
def test_two_models_against_float64(count: int) -> None:
    case, group = _case(), Group(count)
    states = case.hidden, case.teacher_hidden
    asked_of = [each for each in ASKED if each != ("topk_mass", 301.0)]
    student, teacher = _logits(case.hidden, case.head), _logits(case.teacher_hidden, case.teacher)
    counted = np.isfinite(student[0])
    expected, named = divergences(student, teacher), _expected(student[:, counted], teacher[:, counted])

    def all_of_them(own: Head, other: Head) -> tuple[Any, Any, Any, Any]:
        pair = pair_statistics(states[0], own, states[1], other, case.targets, block=BLOCK)
        further = further_divergences(states[0], own, states[1], other, asked_of, block=BLOCK)
        best = teacher_top(states[1], other, 16, block=BLOCK)
        kept = at_entries(states[1], other, teacher_top(states[0], own, 16, block=BLOCK).ids_NK, block=BLOCK)
        return pair, further, (best, kept), topk_divergences(states[0], own, best, block=BLOCK)

    whole_pair, whole_further, whole_kept, whole_truncated = all_of_them(case.head, case.teacher)
    for pair, further, kept, truncated in group.run(all_of_them, case.head, case.teacher):
        for name in ("kl_student_teacher", "kl_teacher_student", "js"):
            np.testing.assert_allclose(getattr(pair, f"{name}_N"), getattr(expected, name), atol=1e-5, err_msg=name)
            torch.testing.assert_close(
                getattr(pair, f"{name}_N"), getattr(whole_pair, f"{name}_N"), atol=1e-6, rtol=1e-5
            )
        assert torch.equal(pair.teacher.rank_N, whole_pair.teacher.rank_N)
        for column, asked in enumerate(asked_of):
            np.testing.assert_allclose(further[:, column], named[asked], atol=2e-5, err_msg=str(asked))
        torch.testing.assert_close(further, whole_further, atol=1e-6, rtol=1e-5)
        for ours, theirs in zip(kept, whole_kept, strict=True):
            assert torch.equal(ours.ids_NK, theirs.ids_NK)
            torch.testing.assert_close(ours.logprobs_NK, theirs.logprobs_NK)
            torch.testing.assert_close(ours.log_tail_N, theirs.log_tail_N)
        q_NV = probabilities(teacher)
        assert np.array_equal(kept[0].ids_NK, np.argsort(-q_NV, axis=1, kind="stable")[:, :16])
        np.testing.assert_allclose(
            kept[0].logprobs_NK.exp(), np.take_along_axis(q_NV, kept[0].ids_NK.numpy(), 1), atol=1e-6
        )
        for name, value in vars(truncated).items():
            torch.testing.assert_close(value, vars(whole_truncated)[name], atol=1e-6, rtol=1e-5)
    assert max(group.gathered) < case.head.weight_VD.numel() / 2, "never a head"


def test_what_one_model_alone_can_produce_is_seen_by_all() -> None:
    """An impossible entry lies in one part; both divergences are infinite or finite everywhere alike."""
    case, bias = _case(), torch.zeros(301)
    bias[280] = -torch.inf
    teacher = replace(case.teacher, bias_V=bias)
    for found in Group(3).run(
        lambda own, other: pair_statistics(case.hidden, own, case.teacher_hidden, other, case.targets),
        case.head,
        teacher,
    ):
        assert found.kl_student_teacher_N.isinf().all()
        assert found.kl_teacher_student_N.isfinite().all()


def test_a_part_in_which_nothing_counts() -> None:
    """Five entries for four processes, as tiny vocabularies are padded: the last part has none."""
    head, hidden = Head(torch.randn(5, 3)), torch.randn(6, 3)
    targets = torch.tensor([0, 1, 2, 3, 4, 4])
    whole = token_statistics(hidden, head, targets)
    for found, best in Group(4).run(
        lambda part: (token_statistics(hidden, part, targets), teacher_top(hidden, part, 5)), head
    ):
        torch.testing.assert_close(vars(found), vars(whole))
        assert torch.equal(best.ids_NK, teacher_top(hidden, head, 5).ids_NK)
        assert (best.log_tail_N == -torch.inf).all()


def test_the_way_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one shape, as a compiler wants them, uncompiled."""
    monkeypatch.setattr(Fused, "__call__", lambda self, *tensors: self._eager(*tensors))
    case = _case()
    whole = pair_statistics(case.hidden, case.head, case.teacher_hidden, case.teacher, case.targets)

    def both(own: Head, other: Head) -> tuple[Any, Any]:
        states = case.hidden, case.teacher_hidden, case.targets
        hidden, targets = padded(case.hidden), padded(case.targets)
        return (
            tokens.reduce_in_kernels(hidden, own, targets, BLOCK, Fused(block_pure)),
            pairs._in_kernels((own, other), BLOCK, states, True),
        )

    for single, pair in Group(3).run(both, case.head, case.teacher):
        for name, value in vars(whole.student).items():
            torch.testing.assert_close(vars(single)[name][: len(value)], value, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(vars(pair.student)[name], value, atol=1e-5, rtol=1e-5)
        for name in ("kl_student_teacher_N", "kl_teacher_student_N", "js_N"):
            torch.testing.assert_close(getattr(pair, name), getattr(whole, name), atol=1e-5, rtol=1e-5)


def test_damage_in_one_part_is_said_by_all() -> None:
    weight = torch.randn(11, 3)
    weight[9, 1] = torch.nan
    assert Group(4).run(Head.damage, Head(weight)) == [Head(weight).damage()] * 4
    assert "token id 9" in Head(weight).damage()


def test_heads_of_other_parts_are_refused() -> None:
    case, group = _case(), Group(2)
    with pytest.raises(ValueError, match="other parts"):
        pair_statistics(
            case.hidden, group.part(case.head, 0), case.teacher_hidden, group.part(case.teacher, 1), case.targets
        )


def test_the_control_sums_of_one_part_alone_are_not_those_of_the_whole() -> None:
    case = _case()
    part = replace(Group(2).part(case.head, 0), shard=None)
    oracle = from_logits(_logits(case.hidden, case.head), case.targets.numpy())
    found = token_statistics(case.hidden, part, case.targets.clamp_max(150))
    assert np.abs(found.entropy_N.numpy() - oracle.entropy).max() > 0.1
