"""Divergences from a teacher's K most probable entries and one bucket for the rest: what two engines can cheaply exchange.

They are lower bounds of the exact ones (merging entries never raises a divergence) and never share a name with them.
Axes: N tokens, D and E hidden widths, V vocabulary entries that count, K kept entries, B entries of one block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from trajscore.statistics.blocks import blocks, sizes
from trajscore.statistics.head import NEVER, Head, prepare, width


@dataclass(frozen=True)
class TopK:
    """A teacher's most probable entries at N positions.

    Attributes:
        ids_NK: int64, from the most probable on; ties by the lower id.
        logprobs_NK: float32, ln p over the whole vocabulary, nats; minus infinity for impossible entries.
        log_tail_N: float32, ln of the probability of all other entries, summed and not subtracted from 1: where the teacher is
            nearly certain, 1 minus the kept mass would be rounding. Minus infinity when nothing is left.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    log_tail_N: Tensor


@dataclass(frozen=True)
class TopKDivergences:
    """Divergences over K + 1 buckets, nats, float32; each at most its exact counterpart in `PairStatistics`.

    Attributes:
        kl_student_teacher_N: KL(student || teacher).
        kl_teacher_student_N: KL(teacher || student).
        js_N: Jensen-Shannon divergence with weight 1/2, from 0 to ln 2.
        mass_N: the teacher's probability of its K entries.
    """

    kl_student_teacher_N: Tensor
    kl_teacher_student_N: Tensor
    js_N: Tensor
    mass_N: Tensor


@torch.no_grad()
def teacher_top(hidden_NE: Tensor, head: Head, k: int, *, block: int | None = None, rows: int | None = None) -> TopK:
    """The k most probable entries at each position, with exact log probabilities, in one pass over the vocabulary.

    Args:
        hidden_NE: the teacher's final hidden states.
        head: its output head.
        k: how many entries, from 1 to V.
        block: vocabulary entries per block; by default what suits the device.
        rows: rows reduced together; likewise.

    Raises:
        ValueError: k is below 1 or above V.

    >>> top = teacher_top(torch.ones(1, 1), Head(torch.tensor([[0.0], [1.0], [1.0]])), 2)
    >>> top.ids_NK.tolist(), [round(value, 4) for value in top.logprobs_NK[0].tolist()]
    ([[1, 2]], [-0.862, -0.862])
    """
    if not 1 <= k <= head.vocabulary:
        raise ValueError(f"k is {k}; allowed: 1 to {head.vocabulary}.")
    block, rows = sizes(hidden_NE, block, rows)
    chunks = [_top(prepare(hidden_RE, head), head, k, block) for hidden_RE in torch.split(hidden_NE, rows)]
    return TopK(
        ids_NK=torch.cat([chunk.ids_NK for chunk in chunks]),
        logprobs_NK=torch.cat([chunk.logprobs_NK for chunk in chunks]),
        log_tail_N=torch.cat([chunk.log_tail_N for chunk in chunks]),
    )


@torch.no_grad()
def at_entries(
    hidden_NE: Tensor, head: Head, ids_NK: Tensor, *, block: int | None = None, rows: int | None = None
) -> TopK:
    """A model's probabilities of given entries, such as another model's best, and of all the rest.

    Args:
        hidden_NE: its final hidden states.
        head: its output head.
        ids_NK: int64, entries of each row, no two equal.
        block: vocabulary entries per block; by default what suits the device.
        rows: rows reduced together; likewise.

    Returns:
        The entries from the most probable on, ties by the lower id.

    >>> at_entries(torch.ones(1, 1), Head(torch.tensor([[0.0], [1.0], [1.0]])), torch.tensor([[0, 2]])).ids_NK.tolist()
    [[2, 0]]
    """
    block, rows = sizes(hidden_NE, block, rows)
    # Rising ids: what is equal afterwards is in their order.
    ids_NK = ids_NK.sort(1).values
    pairs = zip(torch.split(prepare(hidden_NE, head), rows), torch.split(ids_NK, rows), strict=True)
    logs = torch.cat([log_buckets(hidden_RE, head, ids_RK, block) for hidden_RE, ids_RK in pairs]).float()
    kept_NK, order_NK = logs[:, :-1].sort(dim=1, descending=True, stable=True)
    return TopK(ids_NK.gather(1, order_NK), kept_NK, logs[:, -1])


@torch.no_grad()
def topk_divergences(
    student_hidden_ND: Tensor, student_head: Head, top: TopK, *, block: int | None = None, rows: int | None = None
) -> TopKDivergences:
    """Divergences of student and teacher over the teacher's K entries plus one bucket for the rest.

    Args:
        student_hidden_ND: the student's final hidden states; row n belongs to row n of `top`.
        student_head: the student's output head; should have the same absent entries as the teacher's.
        top: from `teacher_top`.
        block: vocabulary entries per block; by default what suits the device.
        rows: rows reduced together; likewise.

    Raises:
        ValueError: the rows do not fit, or an id is outside the student's vocabulary.

    >>> head = Head(torch.tensor([[0.0], [1.0], [1.0]]))
    >>> round(topk_divergences(torch.zeros(1, 1), head, teacher_top(torch.ones(1, 1), head, 2)).js_N.item(), 4)
    0.0218
    """
    if student_hidden_ND.ndim != 2 or len(student_hidden_ND) != len(top.ids_NK):
        shapes = tuple(student_hidden_ND.shape), tuple(top.ids_NK.shape)
        raise ValueError(f"hidden states {shapes[0]} and ids {shapes[1]} do not fit.")
    if top.ids_NK.numel() and not 0 <= int(top.ids_NK.min()) <= int(top.ids_NK.max()) < student_head.vocabulary:
        raise ValueError(f"an id is outside the student's vocabulary of {student_head.vocabulary} entries.")
    block, rows = sizes(student_hidden_ND, block, rows)
    hidden_ND = prepare(student_hidden_ND, student_head)
    pairs = zip(torch.split(hidden_ND, rows), torch.split(top.ids_NK, rows), strict=True)
    log_p = torch.cat([log_buckets(hidden_RD, student_head, ids_RK, block) for hidden_RD, ids_RK in pairs])
    log_q = torch.cat([top.logprobs_NK, top.log_tail_N[:, None]], 1).double()
    # ln of the mixture p/2 + q/2.
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js_N = (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2
    return TopKDivergences(
        kl_student_teacher_N=_kl(log_p, log_q).clamp_min(0).float(),
        kl_teacher_student_N=_kl(log_q, log_p).clamp_min(0).float(),
        js_N=js_N.clamp(0, math.log(2)).float(),
        mass_N=top.logprobs_NK.double().exp().sum(1).clamp_max(1).float(),
    )


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """sum p ln(p / q) over the last axis; 0 ln 0 is 0, and what only p can produce gives infinity."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


class _Rest:
    """The running sum of the exponentials of logits, as a maximum and a mass relative to it, in float64."""

    def __init__(self, like_NB: Tensor) -> None:
        self._maximum_N = like_NB.new_full(like_NB.shape[:1], NEVER, dtype=torch.float64)
        self._mass_N = torch.zeros_like(self._maximum_N)

    def add(self, logits_NB: Tensor) -> None:
        """Add e to the power of each logit; those at `NEVER` add nothing. Overwrites the logits."""
        maximum_N = logits_NB.amax(1)
        mass_N = logits_NB.sub_(maximum_N[:, None]).exp_().sum(1).double()
        mass_N = torch.where(maximum_N <= NEVER, 0.0, mass_N)
        new_N = torch.maximum(self._maximum_N, maximum_N.double())
        self._mass_N = self._mass_N * (self._maximum_N - new_N).exp() + mass_N * (maximum_N.double() - new_N).exp()
        self._maximum_N = new_N

    def of_all(self, head: Head) -> _Rest:
        """The sums of all processes that share a head's vocabulary."""
        together, maximum_SN = _Rest(self._maximum_N[:, None]), head.gathered(self._maximum_N)
        together._maximum_N = maximum_SN.amax(0)
        together._mass_N = (head.gathered(self._mass_N) * (maximum_SN - together._maximum_N).exp()).sum(0)
        return together

    def log(self) -> Tensor:
        """ln of the sum; minus infinity for nothing."""
        return self._maximum_N + self._mass_N.log()


def _buffer(hidden_ND: Tensor, head: Head, block: int) -> Tensor:
    """Room for the logits of a block."""
    shape = (len(hidden_ND), min(block, head.entries))
    return torch.empty(shape, dtype=width(hidden_ND), device=hidden_ND.device)


def _log_softmax(kept_NK: Tensor, rest: _Rest) -> Tensor:
    """Log probabilities of the kept logits and, in a last column, of the rest; float64, [N, K + 1]."""
    kept_NK = kept_NK.double().masked_fill(kept_NK <= NEVER, -torch.inf)
    return torch.cat([kept_NK, rest.log()[:, None]], 1).log_softmax(1)


def _top(hidden_NE: Tensor, head: Head, k: int, block: int) -> TopK:
    logits_NB = _buffer(hidden_NE, head, block)
    rest = _Rest(logits_NB)
    kept_NK = logits_NB[:, :0]
    ids_NK = torch.empty(kept_NK.shape, dtype=torch.int64, device=hidden_NE.device)
    for span, skip in blocks(head.entries, block):
        z_NB = head.logits(hidden_NE, span, out=logits_NB)[:, skip:]
        best = _first_largest(z_NB, min(k, z_NB.shape[1]))
        values_NK = torch.cat([kept_NK, z_NB.gather(1, best)], 1)
        # Earlier blocks have lower ids and come first, so that the position breaks ties as the id does.
        ids = torch.cat([ids_NK, best + (head.first + span.start + skip)], 1)
        rest.add(z_NB.scatter_(1, best, NEVER))
        kept_NK, ids_NK = _keep(values_NK, ids, k, rest)
    if head.shard is not None:
        # Those of all processes, which have higher and higher ids, too.
        values_NK, ids = (head.gathered(each).transpose(0, 1).flatten(1) for each in (kept_NK, ids_NK))
        rest = rest.of_all(head)
        kept_NK, ids_NK = _keep(values_NK, ids, k, rest)
    logprobs = _log_softmax(kept_NK, rest).float()
    return TopK(ids_NK, logprobs[:, :-1], logprobs[:, -1])


def _keep(values_NB: Tensor, ids_NB: Tensor, k: int, rest: _Rest) -> tuple[Tensor, Tensor]:
    """The k largest logits and their ids, or all; the others are added to the rest."""
    order = _first_largest(values_NB, min(k, values_NB.shape[1]))
    rest.add(values_NB.scatter(1, order, NEVER))
    return values_NB.gather(1, order), ids_NB.gather(1, order)


def _first_largest(values_NB: Tensor, k: int) -> Tensor:
    """Columns of the k largest values, from the largest on, equal ones from the left.

    `topk` orders ties as it likes. The integer read from a float's bits orders as the float does (negative ones after
    turning over all but the sign); the column below it makes every key different.
    """
    if values_NB.dtype == torch.float64:
        # No integer has bits for the column besides; whoever asks for float64 can wait for a whole sort.
        return values_NB.sort(dim=1, descending=True, stable=True).indices[:, :k]
    bits = (values_NB + 0.0).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    column_B = torch.arange(values_NB.shape[1] - 1, -1, -1, device=values_NB.device)
    return (ordered * 2**32 + column_B).topk(k, 1).indices


def log_buckets(hidden_ND: Tensor, head: Head, ids_NK: Tensor, block: int) -> Tensor:
    """Log probabilities of the given ids and of all the rest, float64, [N, K + 1], of states as `prepare` gives them."""
    logits_NB = _buffer(hidden_ND, head, block)
    rest = _Rest(logits_NB)
    kept_NK = logits_NB.new_zeros(ids_NK.shape)
    for span, skip in blocks(head.entries, block):
        z_NB = head.logits(hidden_ND, span, out=logits_NB)[:, skip:]
        column_NK = ids_NK - (head.first + span.start + skip)
        here_NK = (column_NK >= 0) & (column_NK < z_NB.shape[1])
        column_NK = column_NK.clamp(0, z_NB.shape[1] - 1)
        kept_NK = torch.where(here_NK, z_NB.gather(1, column_NK), kept_NK)
        # The minimum with infinity leaves alone what lies in other blocks, without waiting to know which.
        never_NK = torch.where(here_NK, NEVER, torch.inf).to(logits_NB)
        rest.add(z_NB.scatter_reduce(1, column_NK, never_NK, "amin"))
    return _log_softmax(head.from_owners(kept_NK, ids_NK), rest.of_all(head))
