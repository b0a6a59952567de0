"""One block of logits -> a few sums per token, and the sums of all blocks -> those of the whole vocabulary.

The sums of a block are float32, as its logits are, and relative to the block's own maximum; only when all blocks are known are
they brought to the common maximum and added, in float64. So no running maximum has to be rescaled, and nothing overflows or
vanishes.
Where processes share the vocabulary, a block of another is a block like any other: the sums are gathered, and then added.
Axes: N tokens, V vocabulary, B entries of one block, C blocks, F numbers of each, S processes that share the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trajscore.errors import first_line
from trajscore.statistics.head import NEVER, Head, width

BLOCK, CUDA_BLOCK = 1024, 8192
"""Vocabulary entries per block; on CUDA kernels must be large (not measured)."""

ROWS, CUDA_ROWS = 512, 2048
"""Rows multiplied together; extra memory is about ROWS x BLOCK x 4 bytes for each model."""

FEWEST = 64
"""Rows that are reduced together at least, however little memory there is."""

STEP = 64
"""Rows of compiled reductions are padded to a multiple of this."""

TILE = 128
"""Rows of a block that each CPU thread reduces at a time: all passes over them find them in the cache of its core."""

_LOG = logging.getLogger("trajscore")


@dataclass(frozen=True)
class BlockSums:
    """Sums over each of C blocks, in the logits' precision, [C, N].

    Attributes:
        maximum_CN: m, the block's largest logit.
        mass_CN: sum e^(z-m).
        moment_CN: sum e^(z-m) (z-m).
        square_CN: sum e^(2(z-m)).
        larger_CN: how many logits exceed the target's; counted in floats (exact up to 2^24, and several times as fast as
            summing booleans).
    """

    maximum_CN: Tensor
    mass_CN: Tensor
    moment_CN: Tensor
    square_CN: Tensor
    larger_CN: Tensor


@dataclass(frozen=True)
class Totals:
    """One model's distribution over the whole vocabulary, in float64.

    Attributes:
        maximum_N: the largest logit.
        log_mass_N: ln sum e^(z - maximum); the normaliser is their sum.
        entropy_N: nats, not negative.
        collision_N: sum p^2.
        rank_N: int64, 1 + entries with a larger logit than the target's.
        share_CN: probability of each block.
    """

    maximum_N: Tensor
    log_mass_N: Tensor
    entropy_N: Tensor
    collision_N: Tensor
    rank_N: Tensor
    share_CN: Tensor

    def log_normaliser(self) -> Tensor:
        """ln sum e^z, [N]."""
        return self.maximum_N + self.log_mass_N

    def surprisal(self, target_N: Tensor) -> Tensor:
        """-ln p of the entries with these logits, nats; infinite for impossible ones."""
        surprisal_N = self.log_mass_N - (target_N.double() - self.maximum_N)
        # Rounding may leave a certain prediction a hair below zero; NaN passes through clamp_min.
        return torch.where(target_N <= NEVER, torch.inf, surprisal_N).clamp_min(0)


def merge(sums: BlockSums) -> Totals:
    """Bring stacked sums to the common maximum and add them, in float64."""
    maximum_CN = sums.maximum_CN.double()
    maximum_N = maximum_CN.amax(0)
    shift_CN = maximum_CN - maximum_N
    factor_CN = shift_CN.exp()
    mass_CN = sums.mass_CN.double() * factor_CN
    mass_N = mass_CN.sum(0)
    moment_N = (sums.moment_CN.double() * factor_CN + mass_CN * shift_CN).sum(0)
    log_mass_N = mass_N.log()
    return Totals(
        maximum_N=maximum_N,
        log_mass_N=log_mass_N,
        entropy_N=(log_mass_N - moment_N / mass_N).clamp_min(0),
        collision_N=(sums.square_CN.double() * factor_CN.square()).sum(0) / mass_N.square(),
        # NaN logits compare as not larger: without this they would look like a prediction that was right.
        rank_N=torch.where(mass_N.isnan(), 0, 1 + sums.larger_CN.double().sum(0)).long(),
        share_CN=mass_CN / mass_N,
    )


class RowLimit:
    """How often this process has halved the rows that are reduced together, because memory ran out."""

    def __init__(self) -> None:
        self.halvings = 0

    def of(self, rows: int) -> int:
        """As many of the rows as are reduced together."""
        return max(FEWEST, rows >> self.halvings)

    def halve(self) -> bool:
        """Reduce half as many rows together from now on; False where they are the fewest already."""
        before = self.of(CUDA_ROWS)
        self.halvings += 1
        return self.of(CUDA_ROWS) < before


ROW_LIMIT = RowLimit()
"""The limit of this process."""


def sizes(hidden_ND: Tensor, block: int | None, rows: int | None) -> tuple[int, int]:
    """Block and rows, with the device's own where None is given."""
    cuda = hidden_ND.is_cuda
    return block or (CUDA_BLOCK if cuda else BLOCK), rows or ROW_LIMIT.of(CUDA_ROWS if cuda else ROWS)


def blocks(vocabulary: int, block: int) -> Iterator[tuple[slice, int]]:
    """Slices of the vocabulary, all equally long, and how many leading entries of each were in the one before.

    The last one reaches back instead of being short: products of one shape add up in one order, so that exact ties stay exact.
    """
    width = min(block, vocabulary)
    for start in range(0, vocabulary, width):
        first = min(start, vocabulary - width)
        yield slice(first, first + width), start - first


def of_all_blocks(sums_FCN: Tensor, head: Head) -> Tensor:
    """Sums of the blocks of this process -> those of all processes' blocks, [F, S x C, N]."""
    return head.gathered(sums_FCN).transpose(0, 1).flatten(1, 2)


def target_logits(hidden_ND: Tensor, head: Head, targets_N: Tensor, block: int) -> Tensor:
    """Logits of the targets as the blocked products give them, as a rule bit for bit.

    A row-wise dot product would differ in the last bit, and then ties (equal rows of the head) would count. Here the columns of
    the targets are gathered into products of the same shape. Whoever meets the target's own column checks the guess.
    """
    together = min(block, head.entries)
    found = [targets_N.new_empty(0, dtype=width(hidden_ND))]
    # Of a target that lies elsewhere another's logit is made, and not taken.
    here_N = (targets_N - head.first).clamp(0, head.entries - 1)
    for start in range(0, len(targets_N), together):
        ids = here_N[start : start + together]
        filled = torch.cat([ids, ids.new_zeros(together - len(ids))])
        found.append(head.logits(hidden_ND, filled)[start : start + len(ids)].diagonal())
    return head.from_owners(torch.cat(found), targets_N)


class Kernels:
    """Blocks as a compiler wants them: all of one shape, so that a reduction of them is compiled once or twice in a process.

    Rows are padded to a multiple of `STEP`, the last block is full, and what it shares with the one before is made impossible
    in place of being cut off. Nothing here waits for the device.
    Axes as above; the functions that are compiled give F numbers per token, the targets' own logits in their block last.

    Args:
        targets_N: int64 ids of the targets.
        head: whose entries are reduced; another of the same part of the vocabulary may be reduced beside it.
        block: entries of a block.
    """

    def __init__(self, targets_N: Tensor, head: Head, block: int) -> None:
        self._targets_N, self._head = targets_N, head
        self._spans = list(blocks(head.entries, block))
        firsts = [[head.first + ids.start, ids.start + skip] for ids, skip in self._spans]
        # Two entries a block also keep each block's number where compiled code takes it without a copy.
        self._firsts_C2 = torch.tensor(firsts, device=targets_N.device)

    def sums(
        self,
        logits: Callable[[slice], tuple[Tensor, ...]],
        target_logits: tuple[Tensor, ...],
        reduce: Fused,
        count: int,
    ) -> Tensor:
        """What a compiled function makes of every block of all processes, [S x C, F, N].

        Args:
            logits: one or two models' logits of some entries, [N, B], which may be changed.
            target_logits: the targets' logits for each model.
            reduce: called with logits, targets' logits, targets, and the block's first entry.
            count: F.
        """
        made = torch.empty(
            len(self._spans), count, len(self._targets_N), dtype=target_logits[0].dtype, device=self._targets_N.device
        )
        for index, (ids, skip) in enumerate(self._spans):
            of_block = logits(ids)
            for logits_NB in of_block if skip else ():
                logits_NB[:, :skip] = NEVER
            made[index] = reduce(*of_block, *target_logits, self._targets_N, self._firsts_C2[index, 0])
        return self._head.gathered(made).flatten(0, 1)

    def own(self, found_CN: Tensor) -> Tensor:
        """The targets' logits, each out of the block in which the target lies."""
        width, starts_C = self._head.entries, self._firsts_C2[:, 1].contiguous()
        block_N = torch.bucketize(self._targets_N % width, starts_C, right=True) - 1
        return found_CN.gather(0, (self._targets_N // width * len(starts_C) + block_N)[None])[0]


def padded(tensor_N: Tensor) -> Tensor:
    """Rows, filled up with zeros to a multiple of `STEP`."""
    more = -len(tensor_N) % STEP
    return torch.cat([tensor_N, tensor_N.new_zeros(more, *tensor_N.shape[1:])]) if more else tensor_N


class OwnColumns:
    """Collects the logits of the targets from the blocks in which they lie."""

    def __init__(self, targets_N: Tensor, head: Head, spans: list[tuple[slice, int]], dtype: torch.dtype) -> None:
        self._targets_N, self._head = targets_N, head
        # A block more for what another process holds.
        firsts = [*(ids.start + skip for ids, skip in spans), head.entries]
        here_N = targets_N - head.first
        here_N = torch.where(here_N < 0, head.entries, here_N)
        block_N = torch.bucketize(here_N, torch.tensor(firsts, device=targets_N.device), right=True) - 1
        rows = torch.split(torch.argsort(block_N), torch.bincount(block_N, minlength=len(firsts)).tolist())
        self._places = [(rows_R, here_N[rows_R] - first) for rows_R, first in zip(rows, firsts, strict=True)]
        self._found_N = torch.zeros(len(targets_N), dtype=dtype, device=targets_N.device)

    def take(self, index: int, logits_NB: Tensor) -> None:
        """Keep the targets' logits of block `index`, given without the entries that were in the block before."""
        rows_R, columns_R = self._places[index]
        if len(rows_R):
            self._found_N[rows_R] = logits_NB[rows_R, columns_R]

    def logits(self) -> Tensor:
        """All of them, [N]."""
        return self._head.from_owners(self._found_N, self._targets_N)


def reduce_block(z_RB: Tensor, target_R: Tensor, weights_RB: Tensor, sums: tuple[Tensor, ...]) -> None:
    """Fill the sums of some rows of one block; shifts the logits by their maximum and leaves e^(z-m) in `weights_RB`."""
    maximum_R, mass_R, _, square_R, larger_R = sums
    torch.sum(torch.gt(z_RB, target_R[:, None], out=weights_RB), 1, out=larger_R)
    torch.amax(z_RB, 1, out=maximum_R)
    torch.exp(z_RB.sub_(maximum_R[:, None]), out=weights_RB)
    torch.sum(weights_RB, 1, out=mass_R)
    # The norm squares and adds in one pass; squaring it again costs half an ulp.
    torch.linalg.vector_norm(weights_RB, dim=1, out=square_R).square_()


def tiles(*tensors_NB: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of rows that fit into the cores' caches, and the tensors cut to them."""
    together = TILE * torch.get_num_threads()
    for start in range(0, len(tensors_NB[0]), together):
        rows = slice(start, start + together)
        yield rows, [tensor_NB[rows] for tensor_NB in tensors_NB]


def reduce_block_pure(logits_NB: Tensor, target_N: Tensor) -> Tensor:
    """The five sums of one block as one expression without side effects, [5, N], for a compiler to fuse."""
    return torch.stack(five_sums(logits_NB, target_N))


def five_sums(logits_NB: Tensor, target_N: Tensor) -> tuple[Tensor, ...]:
    """The sums of one block, in the order of `BlockSums`. Stacked once with others they need no kernel of their own."""
    maximum_N = logits_NB.amax(1)
    shifted_NB = logits_NB - maximum_N[:, None]
    weights_NB = shifted_NB.exp()
    moment_N = (weights_NB * shifted_NB).sum(1)
    larger_N = (logits_NB > target_N[:, None]).to(logits_NB.dtype).sum(1)
    return maximum_N, weights_NB.sum(1), moment_N, weights_NB.square().sum(1), larger_N


def own_logits_pure(logits_NB: Tensor, targets_N: Tensor, first: Tensor) -> Tensor:
    """The targets' logits where they lie in the block that begins with an entry, else 0; [N]."""
    columns_B = torch.arange(logits_NB.shape[1], device=logits_NB.device)
    return torch.where(columns_B == (targets_N - first)[:, None], logits_NB, 0.0).sum(1)


def block_pure(logits_NB: Tensor, target_N: Tensor, targets_N: Tensor, first: Tensor) -> Tensor:
    """The five sums of one block and the targets' logits in it, [6, N]."""
    return torch.stack([*five_sums(logits_NB, target_N), own_logits_pure(logits_NB, targets_N, first)])


class Fused:
    """A pure reduction under `torch.compile`; once that fails, or was done for too many shapes, eagerly, with a warning.

    Used for CUDA only: on CPU the eager passes over rows in cache cost as little, and need no C++ compiler.
    Not yet run on a GPU.

    Args:
        function: of tensors, without side effects.
        backend: a backend of `torch.compile`.
    """

    def __init__(self, function: Callable[..., Tensor], backend: str | Callable[..., Any] = "inductor") -> None:
        self._eager, self._backend = function, backend
        self._run: Callable[..., Tensor] | None = None

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The sums of one block."""
        try:
            if self._run is None:
                # The whole graph or an error: past its limit of variants dynamo would run eagerly without a word.
                self._run = torch.compile(self._eager, fullgraph=True, backend=self._backend)
            return self._run(*tensors)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways: none installed, no Triton, an unknown device
            if self._run is self._eager:
                raise
            _LOG.warning("reduction not compiled, it runs eagerly and slower (%s)", first_line(error))
            self._run = self._eager
            return self._eager(*tensors)


fused = Fused(block_pure)
"""The one compiled reduction of this process."""
