"""Hidden states and an output head -> rank, surprisal, entropy and collision of given tokens, exact over the whole vocabulary.

Pure tensor math: it knows no model, no tokenizer, no file. The logits are made block by block of the vocabulary and reduced
at once with running maxima and sums, so that tokens x vocabulary never exists.
Axes: N scored tokens, D hidden width, V vocabulary entries that count, B entries of one block, U distinct targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 2048
"""Vocabulary entries per block: a block of 512 rows stays in the cache of one core."""

ROWS = 512
"""Rows reduced together; extra memory is about ROWS x BLOCK x 12 bytes."""

_NEVER = -1e30
"""Stands for a logit of minus infinity: its exponential is 0, and 0 times it is 0 and not NaN."""


@dataclass(frozen=True)
class Head:
    """The map from final hidden states to logits: softcap(scale * (weight @ hidden + bias)).

    Attributes:
        weight_VD: one row per vocabulary entry that counts; padding rows beyond the tokenizer are cut off by the caller.
        bias_V: added to the product, or None.
        scale: factor on the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: c in c * tanh(logits / c) (Gemma 2), or None.
        absent_V: True for entries below V that the tokenizer cannot produce, or None when it can produce all.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    absent_V: Tensor | None = None

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.weight_VD.shape[0])

    def logits(self, hidden_ND: Tensor, ids: slice | Tensor) -> Tensor:
        """float32 logits of the vocabulary entries `ids`, shape [N, len(ids)]; minus infinity is `_NEVER`."""
        logits_NB = hidden_ND @ self.weight_VD[ids].to(hidden_ND.dtype).T
        if self.bias_V is not None:
            logits_NB += self.bias_V[ids].to(hidden_ND.dtype).clamp_min(_NEVER)
        if self.scale != 1.0:
            logits_NB *= self.scale
        if self.softcap is not None:
            logits_NB = logits_NB.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.absent_V is not None:
            logits_NB.masked_fill_(self.absent_V[ids], _NEVER)
        return logits_NB


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of N tokens under one model.

    Attributes:
        rank_N: int64, 1 + number of vocabulary entries with a strictly larger logit (ties share the best rank).
        surprisal_N: float32, -ln p(token), nats; infinite for a token whose logit is minus infinity.
        entropy_N: float32, -sum p ln p over the vocabulary, nats.
        collision_N: float32, sum p^2 over the vocabulary.
    """

    rank_N: Tensor
    surprisal_N: Tensor
    entropy_N: Tensor
    collision_N: Tensor


def token_statistics(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, *, block: int = BLOCK, rows: int = ROWS
) -> TokenStatistics:
    """Rank, surprisal, entropy and collision probability of each target token.

    The logits are float32 whatever the dtype of the hidden states. Ranks compare the target's logit with the other logits
    of the same matrix product (never with its own column), so that exact ties do not count, as in RSR (arXiv 2601.14249,
    Eq. 2). Sums run in float64 over blocks summed in float32.

    Args:
        hidden_ND: final hidden states after the final norm; row n predicts target n.
        head: the model's output head.
        targets_N: int64 vocabulary ids, each below V.
        block: vocabulary entries per block.
        rows: rows reduced together.

    Returns:
        Statistics on the device of the hidden states. Non-finite hidden states give non-finite statistics.

    Raises:
        ValueError: shapes do not fit, or a target is outside the head's vocabulary.

    >>> head = Head(torch.eye(3))
    >>> found = token_statistics(torch.tensor([[0.0, 0.0, 0.0]]), head, torch.tensor([1]))
    >>> found.rank_N.item(), round(found.surprisal_N.item(), 4), round(found.entropy_N.item(), 4)
    (1, 1.0986, 1.0986)
    """
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"hidden states {tuple(hidden_ND.shape)} and targets {tuple(targets_N.shape)} do not fit.")
    if targets_N.numel() and not 0 <= int(targets_N.min()) <= int(targets_N.max()) < head.vocabulary:
        raise ValueError(f"a target id is outside the vocabulary of {head.vocabulary} entries.")
    chunks = [
        _reduce(hidden_RD.to(torch.float32), head, targets_R, block)
        for hidden_RD, targets_R in zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True)
    ]
    return TokenStatistics(
        rank_N=torch.cat([chunk.rank_N for chunk in chunks]),
        surprisal_N=torch.cat([chunk.surprisal_N for chunk in chunks]),
        entropy_N=torch.cat([chunk.entropy_N for chunk in chunks]),
        collision_N=torch.cat([chunk.collision_N for chunk in chunks]),
    )


def _target_logits(hidden_ND: Tensor, head: Head, targets_N: Tensor, block: int) -> Tensor:
    """Logits of the targets, bit for bit as the blocked products give them.

    A row-wise dot product would differ in the last bit, and then ties (equal rows of the head) would count. Products over
    gathered columns sum in the same order; with few rows only if they are as wide as a block, hence the filling.
    """
    unique_U, index_N = torch.unique(targets_N, return_inverse=True)
    if len(targets_N) < 32:
        filling = unique_U.new_zeros(max(0, min(block, head.vocabulary) - len(unique_U)))
        unique_U = torch.cat([unique_U, filling])
    return head.logits(hidden_ND, unique_U).gather(1, index_N[:, None])[:, 0]


def _reduce(hidden_ND: Tensor, head: Head, targets_N: Tensor, block: int) -> TokenStatistics:
    target_N = _target_logits(hidden_ND, head, targets_N, block)
    maximum_N = target_N.clone()
    zero_N = torch.zeros_like(target_N, dtype=torch.float64)
    # With m the running maximum: sum e^(z-m), sum e^(z-m) (z-m), sum e^(2(z-m)).
    mass_N, moment_N, square_N = zero_N, zero_N.clone(), zero_N.clone()
    larger_N = torch.zeros_like(targets_N)
    scratch_NB = torch.empty(len(targets_N), min(block, head.vocabulary), dtype=torch.float32, device=hidden_ND.device)
    for start in range(0, head.vocabulary, block):
        logits_NB = head.logits(hidden_ND, slice(start, min(start + block, head.vocabulary)))
        work_NB = scratch_NB[:, : logits_NB.shape[1]]
        # Counted in float32, exact up to 2^24: several times as fast as summing booleans on CPU.
        larger_N += torch.gt(logits_NB, target_N[:, None], out=work_NB).sum(1).long()
        larger_N -= _own_column_larger(logits_NB, targets_N - start, target_N)
        new_N = torch.maximum(maximum_N, logits_NB.amax(1))
        shift_N = (maximum_N - new_N).double()
        factor_N = shift_N.exp()
        logits_NB -= new_N[:, None]
        weights_NB = torch.exp(logits_NB, out=work_NB)
        moment_N = (moment_N + mass_N * shift_N) * factor_N + logits_NB.mul_(weights_NB).sum(1)
        mass_N = mass_N * factor_N + weights_NB.sum(1)
        square_N = square_N * factor_N.square() + weights_NB.square_().sum(1)
        maximum_N = new_N
    log_mass_N = mass_N.log()
    surprisal_N = log_mass_N - (target_N - maximum_N).double()
    surprisal_N = torch.where(target_N <= _NEVER, torch.inf, surprisal_N)
    entropy_N = log_mass_N - moment_N / mass_N
    # Rounding may leave a certain prediction a hair below zero; NaN passes through clamp_min.
    return TokenStatistics(
        rank_N=1 + larger_N,
        surprisal_N=surprisal_N.clamp_min(0).float(),
        entropy_N=entropy_N.clamp_min(0).float(),
        collision_N=(square_N / mass_N.square()).float(),
    )


def _own_column_larger(logits_NB: Tensor, column_N: Tensor, target_N: Tensor) -> Tensor:
    """1 where the target's own column of this block exceeds the target's logit by rounding, else 0."""
    here_N = (column_N >= 0) & (column_N < logits_NB.shape[1])
    own_N = logits_NB.gather(1, column_N.clamp(0, logits_NB.shape[1] - 1)[:, None])[:, 0]
    return (here_N & (own_N > target_N)).to(torch.int64)
