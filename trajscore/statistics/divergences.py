"""Divergences of two models that are asked for by name, over the whole vocabulary: total variation, generalised Jensen-Shannon,
skewed and tempered Kullback-Leibler divergences, Renyi's, and the teacher's mass on the student's best entries.

Blocks of logits are float32 and what is made of them is float64: near an order of 1, Renyi's divergence divides by almost
nothing. A first pass over the vocabulary finds what scales the logits, a second one sums.
Axes: N scored tokens, D and E hidden widths, V vocabulary entries that count, B entries of one block, X divergences asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trajscore.statistics.blocks import blocks, sizes, tiles
from trajscore.statistics.head import NEVER, Head, prepare, width
from trajscore.statistics.pairs import same_support
from trajscore.statistics.top import log_buckets, teacher_top

_IMPOSSIBLE = NEVER / 10
"""Logits below it are minus infinity, and sums above its absolute value infinity."""

_TINY = 1e-300


@torch.no_grad()
def further_divergences(
    student_hidden_ND: Tensor,
    student_head: Head,
    teacher_hidden_NE: Tensor,
    teacher_head: Head,
    asked: Sequence[tuple[str, float | None]],
    *,
    block: int | None = None,
    rows: int | None = None,
) -> Tensor:
    """Divergences of the teacher's prediction q and the student's prediction p at each position, float32, [N, X].

    With m_b = b q + (1 - b) p, in nats where nothing else is said:

    - `tv`: 1/2 sum |p - q|, from 0 to 1. `hellinger`: the square, 1 - sum sqrt(p q), from 0 to 1.
    - `jsd` b: b KL(q || m_b) + (1 - b) KL(p || m_b); b is what GKD (arXiv 2306.13649) calls beta, the teacher's weight.
    - `skew_kl` a: KL(q || m_a). `skew_rkl` a: KL(p || m_(1 - a)). DistiLLM (arXiv 2402.03898) takes 0.1.
    - `renyi` a: ln(sum q^a p^(1 - a)) / (a - 1); towards a = 1 it is KL(q || p).
    - `kl_at` T: KL(q || p) of logits divided by T, times T^2.
    - `standardised` T: the same of logits less their mean over the vocabulary, divided by their (sample) standard deviation
      and T, times T^2 (arXiv 2403.01427).
    - `topk_mass` K: sum of q over the student's K most probable entries, ties by the lower id.

    Args:
        student_hidden_ND: the student's final hidden states.
        student_head: the student's output head.
        teacher_hidden_NE: the teacher's hidden states of the same rows, of any width, on the same device.
        teacher_head: the teacher's output head, over the same V entries; what is absent in one head is absent in both.
        asked: names with their values; None where a name takes none.
        block: vocabulary entries per block; by default what suits the device.
        rows: rows reduced together; likewise. Extra memory is two float32 tensors of `rows` x `block` and a few small ones.

    Raises:
        ValueError: vocabularies do not fit, or a name is not known.

    >>> student, teacher = Head(torch.tensor([[0.0], [3.0]]).log1p()), Head(torch.zeros(2, 5))
    >>> states = torch.ones(1, 1), student, torch.ones(1, 5), teacher
    >>> [round(each, 4) for each in further_divergences(*states, [("tv", None), ("renyi", 2.0)])[0].tolist()]
    [0.3, 0.4463]
    """
    heads = same_support(student_head, teacher_head)
    block, rows = sizes(student_hidden_ND, block, rows)
    tensors = prepare(student_hidden_ND, heads[0]), prepare(teacher_hidden_NE, heads[1])
    chunks = [
        _Rows(student_RD, heads[0], teacher_RE, heads[1], block).divergences(asked)
        for student_RD, teacher_RE in zip(*(torch.split(each, rows) for each in tensors), strict=True)
    ]
    return torch.cat(chunks)


@dataclass(frozen=True)
class _Scale:
    """What one model's logits are measured by, float64: ln sum e^z, and mean and sample standard deviation over what counts."""

    log_normaliser_N: Tensor
    mean_N: Tensor
    deviation_N: Tensor


class _Exponentials:
    """A running sum of exponentials, and of these times something else, relative to the largest exponent; float64."""

    def __init__(self, like_N: Tensor) -> None:
        self._maximum_N = torch.full_like(like_N, -torch.inf, dtype=torch.float64)
        self._sums_2N = torch.zeros(2, len(like_N), dtype=torch.float64, device=like_N.device)

    def add(self, rows: slice, exponents_RB: Tensor, times_RB: Tensor | None = None) -> None:
        """Add e^exponent, and e^exponent times the other, of some rows."""
        own_R = exponents_RB.amax(1)
        new_R = torch.maximum(self._maximum_N[rows], own_R)
        weights_RB = (exponents_RB - new_R[:, None]).exp()
        factor_R = (self._maximum_N[rows] - new_R).exp()
        self._sums_2N[:, rows] *= factor_R
        self._sums_2N[0, rows] += weights_RB.sum(1)
        if times_RB is not None:
            self._sums_2N[1, rows] += (weights_RB * times_RB).sum(1)
        self._maximum_N[rows] = new_R

    def of_all(self, head: Head) -> _Exponentials:
        """The sums of all processes that share a head's vocabulary."""
        together, maximum_SN = _Exponentials(self._maximum_N), head.gathered(self._maximum_N)
        together._maximum_N = maximum_SN.amax(0)
        factor_SN = (maximum_SN - together._maximum_N).exp()
        together._sums_2N = (head.gathered(self._sums_2N) * factor_SN[:, None]).sum(0)
        return together

    def log(self) -> Tensor:
        """ln of the sum."""
        return self._maximum_N + self._sums_2N[0].log()

    def mean(self) -> Tensor:
        """The other's mean, by the exponentials as weights."""
        return self._sums_2N[1] / self._sums_2N[0]


@dataclass(frozen=True)
class _Rows:
    """Rows of both models, reduced together."""

    student_ND: Tensor
    student_head: Head
    teacher_NE: Tensor
    teacher_head: Head
    block: int

    def divergences(self, asked: Sequence[tuple[str, float | None]]) -> Tensor:
        summed = {each for each in asked if each[0] != "topk_mass"}
        scales = self._scales() if summed else None
        sums = {each: self._start(*each) for each in summed}
        if scales is not None:
            student, teacher = scales
            for rows, z_RB, y_RB in self._logits():
                log_p_RB = z_RB - student.log_normaliser_N[rows, None]
                log_q_RB = y_RB - teacher.log_normaliser_N[rows, None]
                for (name, value), sum_N in sums.items():
                    if isinstance(sum_N, Tensor):
                        sum_N[rows] += _SUMS[name](log_p_RB, log_q_RB, value or 0.0)
                    elif name == "renyi":
                        order = value or 0.0
                        sum_N[0].add(rows, order * log_q_RB + (1 - order) * log_p_RB)
                    else:
                        z_RT, y_RT = (
                            _scaled(each, scale, rows, name, value or 1.0)
                            for each, scale in ((z_RB, student), (y_RB, teacher))
                        )
                        sum_N[0].add(rows, y_RT, y_RT - z_RT)
                        sum_N[1].add(rows, z_RT)
        return torch.stack([self._finish(name, value, sums.get((name, value))) for name, value in asked], 1).float()

    def _start(self, name: str, value: float | None) -> Tensor | tuple[_Exponentials, _Exponentials]:
        if name in _SUMS:
            return torch.zeros(len(self.student_ND), dtype=torch.float64, device=self.student_ND.device)
        if name not in ("renyi", "kl_at", "standardised"):
            raise ValueError(f"divergence {name!r} is unknown.")
        return _Exponentials(self.student_ND[:, 0]), _Exponentials(self.student_ND[:, 0])

    def _finish(
        self, name: str, value: float | None, sums: Tensor | tuple[_Exponentials, _Exponentials] | None
    ) -> Tensor:
        if sums is None:
            best = teacher_top(self.student_ND, self.student_head, int(value or 0), block=self.block)
            kept_NK = log_buckets(self.teacher_NE, self.teacher_head, best.ids_NK, self.block)[:, :-1]
            # Of a row of NaN the best entries are any.
            return torch.where(best.logprobs_NK[:, 0].isnan(), torch.nan, kept_NK.exp().sum(1).clamp_max(1))
        if isinstance(sums, Tensor):
            found_N = self.student_head.gathered(sums).sum(0)
        else:
            first = sums[0].of_all(self.student_head)
            if name == "renyi":
                found_N = first.log() / ((value or 0.0) - 1)
            else:
                second = sums[1].of_all(self.student_head)
                found_N = (first.mean() - first.log() + second.log()) * (value or 1.0) ** 2
        found_N = torch.where(found_N > -_IMPOSSIBLE / 1e3, torch.inf, found_N)
        return found_N.clamp_min(0)

    def _scales(self) -> tuple[_Scale, _Scale]:
        sums = _Exponentials(self.student_ND[:, 0]), _Exponentials(self.student_ND[:, 0])
        moments_23N = torch.zeros(2, 3, len(self.student_ND), dtype=torch.float64, device=self.student_ND.device)
        for rows, *both in self._logits():
            for model, logits_RB in enumerate(both):
                sums[model].add(rows, logits_RB)
                never_RB = logits_RB <= _IMPOSSIBLE
                counts_RB = (~never_RB).double()
                counted_RB = logits_RB.masked_fill(never_RB, 0.0)
                moments_23N[model][:, rows] += torch.stack(
                    [counts_RB.sum(1), counted_RB.sum(1), counted_RB.square().sum(1)]
                )
        moments_23N = self.student_head.gathered(moments_23N).sum(0)
        student, teacher = (each.of_all(self.student_head) for each in sums)
        return _scale(student, moments_23N[0]), _scale(teacher, moments_23N[1])

    def _logits(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, and both models' logits of them in a block, float64, without the entries that were in the block before."""
        shape = (2, len(self.student_ND), min(self.block, self.student_head.entries))
        student_NB, teacher_NB = torch.empty(shape, dtype=width(self.student_ND), device=self.student_ND.device)
        for ids, skip in blocks(self.student_head.entries, self.block):
            student = self.student_head.logits(self.student_ND, ids, out=student_NB)[:, skip:]
            teacher = self.teacher_head.logits(self.teacher_NE, ids, out=teacher_NB)[:, skip:]
            for rows, (z_RB, y_RB) in tiles(student, teacher):
                yield slice(rows.start, rows.start + len(z_RB)), z_RB.double(), y_RB.double()


def _scale(sums: _Exponentials, moments_3N: Tensor) -> _Scale:
    count_N, sum_N, squares_N = moments_3N
    mean_N = sum_N / count_N
    variance_N = (squares_N - sum_N * mean_N).clamp_min(0) / (count_N - 1).clamp_min(1)
    return _Scale(sums.log(), mean_N, variance_N.sqrt())


def _scaled(logits_RB: Tensor, scale: _Scale, rows: slice, name: str, temperature: float) -> Tensor:
    if name == "kl_at":
        return logits_RB / temperature
    # 1e-7 keeps equal logits equal, as in the authors' code.
    deviation_R = (1e-7 + scale.deviation_N[rows, None]) * temperature
    return torch.where(logits_RB <= _IMPOSSIBLE, NEVER, (logits_RB - scale.mean_N[rows, None]) / deviation_R)


def _mixture(log_p_RB: Tensor, log_q_RB: Tensor, weight: float) -> Tensor:
    """ln of `weight` q + (1 - weight) p; finite where both vanish."""
    return (weight * log_q_RB.exp() + (1 - weight) * log_p_RB.exp()).clamp_min(_TINY).log()


def _tv(log_p_RB: Tensor, log_q_RB: Tensor, _: float) -> Tensor:
    return (log_p_RB.exp() - log_q_RB.exp()).abs().sum(1) / 2


def _hellinger(log_p_RB: Tensor, log_q_RB: Tensor, _: float) -> Tensor:
    # Squares of differences: 1 less a sum near 1 would be rounding.
    return ((log_p_RB / 2).exp() - (log_q_RB / 2).exp()).square().sum(1) / 2


def _jsd(log_p_RB: Tensor, log_q_RB: Tensor, weight: float) -> Tensor:
    log_m_RB = _mixture(log_p_RB, log_q_RB, weight)
    teacher_RB = log_q_RB.exp() * (log_q_RB - log_m_RB)
    return (weight * teacher_RB + (1 - weight) * log_p_RB.exp() * (log_p_RB - log_m_RB)).sum(1)


def _skew_kl(log_p_RB: Tensor, log_q_RB: Tensor, weight: float) -> Tensor:
    return (log_q_RB.exp() * (log_q_RB - _mixture(log_p_RB, log_q_RB, weight))).sum(1)


def _skew_rkl(log_p_RB: Tensor, log_q_RB: Tensor, weight: float) -> Tensor:
    return _skew_kl(log_q_RB, log_p_RB, weight)


_SUMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "tv": _tv,
    "hellinger": _hellinger,
    "jsd": _jsd,
    "skew_kl": _skew_kl,
    "skew_rkl": _skew_rkl,
}
"""Sums over a block of what each entry contributes."""
