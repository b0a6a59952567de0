"""Rank, surprisal, entropy and collision of given tokens under one model.

Axes: N scored tokens, D hidden width, V vocabulary entries that count, B entries of one block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trajscore.statistics.blocks import (
    BlockSums,
    Fused,
    Kernels,
    OwnColumns,
    Totals,
    blocks,
    fused,
    merge,
    of_all_blocks,
    padded,
    reduce_block,
    sizes,
    target_logits,
    tiles,
)
from trajscore.statistics.head import Head, prepare


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of N tokens under one model.

    Attributes:
        rank_N: int64, 1 + number of vocabulary entries with a strictly larger logit (ties share the best rank); 0 where the
            logits are NaN.
        surprisal_N: float32, -ln p(token), nats; infinite for a token whose logit is minus infinity.
        entropy_N: float32, -sum p ln p over the vocabulary, nats.
        collision_N: float32, sum p^2 over the vocabulary.
    """

    rank_N: Tensor
    surprisal_N: Tensor
    entropy_N: Tensor
    collision_N: Tensor

    @classmethod
    def of(cls, totals: Totals, target_N: Tensor) -> TokenStatistics:
        """From sums over the vocabulary and the logits of the targets."""
        return cls(
            rank_N=totals.rank_N,
            surprisal_N=totals.surprisal(target_N).float(),
            entropy_N=totals.entropy_N.float(),
            collision_N=totals.collision_N.float(),
        )

    @classmethod
    def concatenate(cls, chunks: list[TokenStatistics]) -> TokenStatistics:
        """Statistics of several chunks of rows, one after the other."""
        return cls(*(torch.cat([getattr(chunk, field.name) for chunk in chunks]) for field in fields(cls)))


@torch.no_grad()
def token_statistics(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, *, block: int | None = None, rows: int | None = None
) -> TokenStatistics:
    """Rank, surprisal, entropy and collision probability of each target token.

    The logits are float32 whatever the dtype of the hidden states, unless these are float64. Ranks compare the target's
    logit with the other logits of the same matrix product (never with its own column), so that exact ties do not count, as in
    RSR (arXiv 2601.14249, Eq. 2). Blocks are summed in the logits' precision, the blocks' sums in float64.

    Args:
        hidden_ND: final hidden states after the final norm; row n predicts target n.
        head: the model's output head.
        targets_N: int64 vocabulary ids, each below V.
        block: vocabulary entries per block; by default what suits the device.
        rows: rows reduced together; likewise. Extra memory is a float32 tensor of `rows` x `block` and a few small ones.

    Returns:
        Statistics on the device of the hidden states. Non-finite hidden states give NaN and rank 0.

    Raises:
        ValueError: shapes do not fit, or a target is outside the head's vocabulary.

    >>> head = Head(torch.eye(3))
    >>> found = token_statistics(torch.tensor([[0.0, 0.0, 0.0]]), head, torch.tensor([1]))
    >>> found.rank_N.item(), round(found.surprisal_N.item(), 4), round(found.entropy_N.item(), 4)
    (1, 1.0986, 1.0986)
    """
    check_targets(hidden_ND, head, targets_N)
    block, rows = sizes(hidden_ND, block, rows)
    chunks = [
        _reduce(prepare(hidden_RD, head), head, targets_R, block)
        for hidden_RD, targets_R in zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True)
    ]
    return TokenStatistics.concatenate(chunks)


def check_targets(hidden_ND: Tensor, head: Head, targets_N: Tensor) -> None:
    """Refuse what does not fit, with ValueError."""
    if hidden_ND.ndim != 2 or targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"hidden states {tuple(hidden_ND.shape)} and targets {tuple(targets_N.shape)} do not fit.")
    if targets_N.numel() and bool(((targets_N < 0) | (targets_N >= head.vocabulary)).any()):
        raise ValueError(f"a target id is outside the vocabulary of {head.vocabulary} entries.")


def same(guess_N: Tensor, own_N: Tensor) -> bool:
    """Whether the guessed logits of the targets are those of the blocks; NaN counts as equal to NaN."""
    return bool(((guess_N == own_N) | (guess_N.isnan() & own_N.isnan())).all())


def _reduce(hidden_ND: Tensor, head: Head, targets_N: Tensor, block: int) -> TokenStatistics:
    if hidden_ND.is_cuda:
        found = reduce_in_kernels(padded(hidden_ND), head, padded(targets_N), block, fused)
        return TokenStatistics(*(getattr(found, each.name)[: len(targets_N)] for each in fields(found)))
    guess_N = target_logits(hidden_ND, head, targets_N, block)
    sums, own_N = _pass(hidden_ND, head, targets_N, guess_N, block)
    if not same(guess_N, own_N):
        # This device adds up gathered columns in another order: count again, with what the blocks gave.
        sums, own_N = _pass(hidden_ND, head, targets_N, own_N, block)
    return TokenStatistics.of(merge(sums), own_N)


def reduce_in_kernels(hidden_ND: Tensor, head: Head, targets_N: Tensor, block: int, reduce: Fused) -> TokenStatistics:
    """Statistics of padded rows, by one compiled reduction of each block; waits for the device once."""
    kernels = Kernels(targets_N, head, block)

    def count(target_N: Tensor) -> tuple[BlockSums, Tensor]:
        sums_C6N = kernels.sums(lambda ids: (head.logits(hidden_ND, ids),), (target_N,), reduce, 6)
        *sums, own_CN = sums_C6N.unbind(1)
        return BlockSums(*sums), kernels.own(own_CN)

    guess_N = target_logits(hidden_ND, head, targets_N, block)
    sums, own_N = count(guess_N)
    if not same(guess_N, own_N):
        sums, own_N = count(own_N)
    return TokenStatistics.of(merge(sums), own_N)


def _pass(hidden_ND: Tensor, head: Head, targets_N: Tensor, target_N: Tensor, block: int) -> tuple[BlockSums, Tensor]:
    """Sums of all blocks, and the targets' logits as found in the blocks."""
    spans = list(blocks(head.entries, block))
    own = OwnColumns(targets_N, head, spans, target_N.dtype)
    sums_5CN = torch.empty(5, len(spans), len(targets_N), dtype=target_N.dtype, device=hidden_ND.device)
    logits_NB = torch.empty(len(targets_N), min(block, head.entries), dtype=target_N.dtype, device=hidden_ND.device)
    for index, (ids, skip) in enumerate(spans):
        z_NB = head.logits(hidden_ND, ids, out=logits_NB)[:, skip:]
        own.take(index, z_NB)
        for rows, (z_RB, target_R) in tiles(z_NB, target_N):
            e_RB = torch.empty_like(z_RB, memory_format=torch.contiguous_format)
            found = sums_5CN[:, index, rows].unbind()
            reduce_block(z_RB, target_R, e_RB, found)
            torch.sum(z_RB.mul_(e_RB), 1, out=found[2])
    return BlockSums(*of_all_blocks(sums_5CN, head)), own.logits()
