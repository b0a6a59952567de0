"""The same tokens under two models: the statistics of both and the divergences of their predictions, over the whole vocabulary.

Axes: N scored tokens, D and E hidden widths, V vocabulary entries that count, B entries of one block, C blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from trajscore.statistics.blocks import (
    BlockSums,
    Fused,
    Kernels,
    OwnColumns,
    Totals,
    blocks,
    five_sums,
    merge,
    of_all_blocks,
    own_logits_pure,
    padded,
    reduce_block,
    sizes,
    target_logits,
    tiles,
)
from trajscore.statistics.head import Head, prepare, width
from trajscore.statistics.tokens import TokenStatistics, check_targets, same

_TINY = 1e-37
"""Below every sum of two probabilities that matters, above the smallest normal float32: its logarithm is finite."""


@dataclass(frozen=True)
class PairStatistics:
    """Statistics of N tokens under a student and a teacher.

    Attributes:
        student: under the student.
        teacher: under the teacher.
        kl_student_teacher_N: float32, KL(student || teacher) = sum p_S ln(p_S / p_T), nats, not negative; infinite where the
            student can produce what the teacher cannot. The "reverse" KL of TIP (arXiv 2604.14084).
        kl_teacher_student_N: float32, KL(teacher || student), likewise; the "forward" KL.
        js_N: float32, Jensen-Shannon divergence with weight 1/2, KL(p_S || m) / 2 + KL(p_T || m) / 2 with m = (p_S + p_T) / 2,
            nats, from 0 to ln 2 (TSD-KD, arXiv 2603.13260, has it with a general weight); or None where it was not wanted.
    """

    student: TokenStatistics
    teacher: TokenStatistics
    kl_student_teacher_N: Tensor
    kl_teacher_student_N: Tensor
    js_N: Tensor | None


@torch.no_grad()
def pair_statistics(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_NE: Tensor,
    teacher_head: Head,
    targets_N: Tensor,
    *,
    js: bool = True,
    block: int | None = None,
    rows: int | None = None,
) -> PairStatistics:
    """Statistics of each target under both models, both Kullback-Leibler divergences, and the Jensen-Shannon divergence.

    One pass over the vocabulary makes each model's product once and gives all but the Jensen-Shannon divergence, which
    needs both normalisers and thus a second pass that makes both products again. Divergences below about 1e-6 are rounding.

    Args:
        student_hidden_ND: the student's final hidden states; row n predicts target n.
        student_head: the student's output head.
        teacher_hidden_NE: the teacher's hidden states of the same rows, of any width, on the same device.
        teacher_head: the teacher's output head, over the same V entries; what is absent in one head is absent in both.
        targets_N: int64 vocabulary ids, each below V.
        js: whether to make the second pass.
        block: vocabulary entries per block; by default what suits the device.
        rows: rows reduced together; likewise. Extra memory is two float32 tensors of `rows` x `block` and a few small ones.

    Returns:
        Statistics on the device of the hidden states. Non-finite hidden states give NaN and rank 0.

    Raises:
        ValueError: shapes or vocabularies do not fit, or a target is outside the vocabulary.

    >>> student, teacher = Head(torch.tensor([[0.0], [math.log(3)]])), Head(torch.zeros(2, 5))
    >>> found = pair_statistics(torch.ones(1, 1), student, torch.ones(1, 5), teacher, torch.tensor([0]))
    >>> [round(value.item(), 4) for value in (found.kl_student_teacher_N, found.kl_teacher_student_N, found.js_N)]
    [0.1308, 0.1438, 0.0338]
    """
    check_targets(student_hidden_ND, student_head, targets_N)
    check_targets(teacher_hidden_NE, teacher_head, targets_N)
    heads = same_support(student_head, teacher_head)
    block, rows = sizes(student_hidden_ND, block, rows)
    tensors = (prepare(student_hidden_ND, heads[0]), prepare(teacher_hidden_NE, heads[1]), targets_N)
    inputs = (torch.split(tensor, rows) for tensor in tensors)
    chunks = [
        _in_kernels(heads, block, chunk, js)
        if student_hidden_ND.is_cuda
        else _Pair(chunk[0], heads[0], chunk[1], heads[1], block).reduce(chunk[2], js)
        for chunk in zip(*inputs, strict=True)
    ]
    return _concatenate(chunks)


def _in_kernels(heads: tuple[Head, Head], block: int, chunk: tuple[Tensor, ...], js: bool) -> PairStatistics:
    """Statistics of some rows by one compiled reduction of each block of both models."""
    student_ND, teacher_NE, targets_N = map(padded, chunk)
    found = _Pair(student_ND, heads[0], teacher_NE, heads[1], block, in_kernels=True).reduce(targets_N, js)
    rows = slice(len(chunk[2]))
    return PairStatistics(
        TokenStatistics(*(getattr(found.student, each.name)[rows] for each in fields(found.student))),
        TokenStatistics(*(getattr(found.teacher, each.name)[rows] for each in fields(found.teacher))),
        found.kl_student_teacher_N[rows],
        found.kl_teacher_student_N[rows],
        None if found.js_N is None else found.js_N[rows],
    )


def same_support(student: Head, teacher: Head) -> tuple[Head, Head]:
    """Both heads, over the same entries: what the tokenizer of one cannot produce is absent in both.

    Raises:
        ValueError: they have different numbers of entries, or other parts of them.
    """
    if student.vocabulary != teacher.vocabulary:
        raise ValueError(
            f"the student's head has {student.vocabulary} entries, the teacher's {teacher.vocabulary}: "
            "cut both to the ids the tokenizer knows."
        )
    if (student.first, student.entries) != (teacher.first, teacher.entries):
        raise ValueError("the student's head and the teacher's are other parts of the vocabulary.")
    masks = [head.absent_V for head in (student, teacher) if head.absent_V is not None]
    absent_V = torch.stack(masks).any(0) if masks else None
    return replace(student, absent_V=absent_V), replace(teacher, absent_V=absent_V)


def _concatenate(chunks: list[PairStatistics]) -> PairStatistics:
    js = [chunk.js_N for chunk in chunks if chunk.js_N is not None]
    return PairStatistics(
        student=TokenStatistics.concatenate([chunk.student for chunk in chunks]),
        teacher=TokenStatistics.concatenate([chunk.teacher for chunk in chunks]),
        kl_student_teacher_N=torch.cat([chunk.kl_student_teacher_N for chunk in chunks]),
        kl_teacher_student_N=torch.cat([chunk.kl_teacher_student_N for chunk in chunks]),
        js_N=torch.cat(js) if js else None,
    )


@dataclass(frozen=True)
class _PairSums:
    """Sums over each block; the gap is the teacher's logit minus the student's, each relative to its block's maximum.

    Attributes:
        student: of the student's logits.
        teacher: of the teacher's.
        student_gap_CN: sum e^(z_S - m_S) gap.
        teacher_gap_CN: sum e^(z_T - m_T) gap. Summing differences rather than both logits keeps small divergences from
            drowning in the rounding of large entropies.
    """

    student: BlockSums
    teacher: BlockSums
    student_gap_CN: Tensor
    teacher_gap_CN: Tensor

    @classmethod
    def of(cls, sums_12CN: Iterable[Tensor]) -> _PairSums:
        """Of the twelve sums, each [C, N], in their order."""
        each = list(sums_12CN)
        return cls(BlockSums(*each[:5]), BlockSums(*each[5:10]), *each[10:])


@dataclass(frozen=True)
class _Pair:
    """Rows of both models, reduced together."""

    student_ND: Tensor
    student_head: Head
    teacher_NE: Tensor
    teacher_head: Head
    block: int
    in_kernels: bool = False

    def _both(self, ids: slice) -> tuple[Tensor, ...]:
        return self.student_head.logits(self.student_ND, ids), self.teacher_head.logits(self.teacher_NE, ids)

    def _kernels(self, targets_N: Tensor) -> Kernels:
        return Kernels(targets_N, self.student_head, self.block)

    def reduce(self, targets_N: Tensor, js: bool) -> PairStatistics:
        student_N = target_logits(self.student_ND, self.student_head, targets_N, self.block)
        teacher_N = target_logits(self.teacher_NE, self.teacher_head, targets_N, self.block)
        sums, student_own_N, teacher_own_N = self._pass(targets_N, student_N, teacher_N)
        if not (same(student_N, student_own_N) and same(teacher_N, teacher_own_N)):
            sums, student_own_N, teacher_own_N = self._pass(targets_N, student_own_N, teacher_own_N)
        student, teacher = merge(sums.student), merge(sums.teacher)
        kl_student_teacher_N, kl_teacher_student_N = self._kl(sums, student, teacher)
        normalisers = student.log_normaliser().to(student_N), teacher.log_normaliser().to(teacher_N)
        return PairStatistics(
            student=TokenStatistics.of(student, student_own_N),
            teacher=TokenStatistics.of(teacher, teacher_own_N),
            kl_student_teacher_N=kl_student_teacher_N.float(),
            kl_teacher_student_N=kl_teacher_student_N.float(),
            js_N=self._js(*normalisers).float() if js else None,
        )

    def _logits(self, spans: list[tuple[slice, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Both models' logits of each block, without the entries that were in the block before."""
        shape = (2, len(self.student_ND), min(self.block, self.student_head.entries))
        student_NB, teacher_NB = torch.empty(shape, dtype=width(self.student_ND), device=self.student_ND.device)
        for ids, skip in spans:
            student = self.student_head.logits(self.student_ND, ids, out=student_NB)
            teacher = self.teacher_head.logits(self.teacher_NE, ids, out=teacher_NB)
            yield student[:, skip:], teacher[:, skip:]

    def _pass(self, targets_N: Tensor, student_N: Tensor, teacher_N: Tensor) -> tuple[_PairSums, Tensor, Tensor]:
        """Sums of all blocks, and the targets' logits as found in the blocks."""
        if self.in_kernels:
            kernels = self._kernels(targets_N)
            found_C14N = kernels.sums(self._both, (student_N, teacher_N), _fused_sums, 14)
            *each, student_CN, teacher_CN = found_C14N.unbind(1)
            return _PairSums.of(each), kernels.own(student_CN), kernels.own(teacher_CN)
        spans = list(blocks(self.student_head.entries, self.block))
        student_own, teacher_own = (
            OwnColumns(targets_N, head, spans, student_N.dtype) for head in (self.student_head, self.teacher_head)
        )
        sums_12CN = torch.empty(12, len(spans), len(targets_N), dtype=student_N.dtype, device=student_N.device)
        for index, (student_NB, teacher_NB) in enumerate(self._logits(spans)):
            student_own.take(index, student_NB)
            teacher_own.take(index, teacher_NB)
            for rows, tensors in tiles(student_NB, teacher_NB, student_N, teacher_N):
                _reduce_tile(sums_12CN[:, index, rows].unbind(), *tensors)
        sums = _PairSums.of(of_all_blocks(sums_12CN, self.student_head))
        return sums, student_own.logits(), teacher_own.logits()

    def _kl(self, sums: _PairSums, student: Totals, teacher: Totals) -> tuple[Tensor, Tensor]:
        """KL(student || teacher) and KL(teacher || student): expectations of the gap between the log probabilities."""
        student_shift_CN = sums.student.maximum_CN.double() - student.maximum_N
        shift_CN = sums.teacher.maximum_CN.double() - teacher.maximum_N - student_shift_CN
        # The mean gap of each block, times the block's probability.
        student_CN = student.share_CN * (sums.student_gap_CN.double() / sums.student.mass_CN + shift_CN)
        teacher_CN = teacher.share_CN * (sums.teacher_gap_CN.double() / sums.teacher.mass_CN + shift_CN)
        normalisers_N = teacher.log_mass_N - student.log_mass_N
        # Impossible entries are a matter of the heads and the same for all rows.
        student_never_V, teacher_never_V = self.student_head.impossible(), self.teacher_head.impossible()
        alone = [(teacher_never_V & ~student_never_V).any(), (student_never_V & ~teacher_never_V).any()]
        student_alone, teacher_alone = self.student_head.gathered(torch.stack(alone)).any(0)
        return (
            _bounded(normalisers_N - student_CN.sum(0), student_alone),
            _bounded(teacher_CN.sum(0) - normalisers_N, teacher_alone),
        )

    def _js(self, student_N: Tensor, teacher_N: Tensor) -> Tensor:
        """Jensen-Shannon divergence from both models' ln sum e^z; float64.

        Every entry's term, p_S ln(2 p_S / (p_S + p_T)) + p_T ln(2 p_T / (p_S + p_T)), is not negative: nothing cancels.
        """
        twice_N = torch.zeros_like(student_N, dtype=torch.float64)
        if self.in_kernels:
            kernels = self._kernels(torch.zeros_like(student_N, dtype=torch.int64))
            shares_C1N = kernels.sums(self._both, (student_N, teacher_N), _fused_js, 1)
            return (shares_C1N[:, 0].double().sum(0) / 2).clamp(0, math.log(2))
        for student_NB, teacher_NB in self._logits(list(blocks(self.student_head.entries, self.block))):
            for rows, tensors in tiles(student_NB, teacher_NB, student_N, teacher_N):
                twice_N[rows] += _js_tile(*tensors)
        return (self.student_head.gathered(twice_N).sum(0) / 2).clamp(0, math.log(2))


def _bounded(kl_N: Tensor, infinite: Tensor) -> Tensor:
    """Not below zero; infinite, but for NaN, where the first can produce what the second cannot."""
    return torch.where(infinite & ~kl_N.isnan(), torch.inf, kl_N.clamp_min(0))


def _reduce_tile(
    sums: tuple[Tensor, ...], student_RB: Tensor, teacher_RB: Tensor, student_R: Tensor, teacher_R: Tensor
) -> None:
    """Fill the sums of some rows of one block of both models; overwrites the logits."""
    p_RB, q_RB, gap_RB = student_RB.new_empty(3, *student_RB.shape)
    reduce_block(student_RB, student_R, p_RB, sums[:5])
    reduce_block(teacher_RB, teacher_R, q_RB, sums[5:10])
    torch.sub(teacher_RB, student_RB, out=gap_RB)
    torch.sum(student_RB.mul_(p_RB), 1, out=sums[2])
    torch.sum(teacher_RB.mul_(q_RB), 1, out=sums[7])
    torch.sum(p_RB.mul_(gap_RB), 1, out=sums[10])
    torch.sum(gap_RB.mul_(q_RB), 1, out=sums[11])


def _sums_pure(
    student_NB: Tensor, teacher_NB: Tensor, student_N: Tensor, teacher_N: Tensor, targets_N: Tensor, first: Tensor
) -> Tensor:
    """The twelve sums of one block and both own logits as one expression, [14, N], for a compiler to fuse."""
    student, teacher = five_sums(student_NB, student_N), five_sums(teacher_NB, teacher_N)
    z_NB, y_NB = student_NB - student[0][:, None], teacher_NB - teacher[0][:, None]
    gaps = (z_NB.exp() * (y_NB - z_NB)).sum(1), (y_NB.exp() * (y_NB - z_NB)).sum(1)
    own = (own_logits_pure(each_NB, targets_N, first) for each_NB in (student_NB, teacher_NB))
    return torch.stack([*student, *teacher, *gaps, *own])


def _js_tile(student_RB: Tensor, teacher_RB: Tensor, student_R: Tensor, teacher_R: Tensor) -> Tensor:
    """Twice the block's share of the Jensen-Shannon divergence, [R]; overwrites the logits."""
    p_RB, q_RB, sum_RB = student_RB.new_empty(3, *student_RB.shape)
    torch.exp(student_RB.sub_(student_R[:, None]), out=p_RB)
    torch.exp(teacher_RB.sub_(teacher_R[:, None]), out=q_RB)
    torch.add(p_RB, q_RB, out=sum_RB)
    both_R = sum_RB.sum(1)
    # 0 ln 0 is 0: where both vanish the logarithm stays finite.
    sum_RB.clamp_min_(_TINY).log_()
    student_RB.sub_(sum_RB).mul_(p_RB)
    return student_RB.addcmul_(teacher_RB.sub_(sum_RB), q_RB).sum(1).add_(both_R, alpha=math.log(2))


def _js_pure(
    student_NB: Tensor, teacher_NB: Tensor, student_N: Tensor, teacher_N: Tensor, targets_N: Tensor, first: Tensor
) -> Tensor:
    """The same as one expression without side effects, [1, N], for a compiler to fuse; of whose targets it is, is not asked."""
    log_p_NB, log_q_NB = student_NB - student_N[:, None], teacher_NB - teacher_N[:, None]
    p_NB, q_NB = log_p_NB.exp(), log_q_NB.exp()
    log_m_NB = (p_NB + q_NB).clamp_min(_TINY).log() - math.log(2)
    return (p_NB * (log_p_NB - log_m_NB) + q_NB * (log_q_NB - log_m_NB)).sum(1)[None]


_fused_sums, _fused_js = Fused(_sums_pure), Fused(_js_pure)
