"""An output head: from final hidden states to float32 logits of some vocabulary entries, or float64 ones of float64 states.

Several processes may hold a part of its rows each: then each makes the logits of its own entries alone, and what it sums over
them is gathered.
Axes: N tokens, D hidden width, V vocabulary entries that count, W entries here, B entries asked for, S processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = -1e30
"""Stands for a logit of minus infinity: its exponential is 0, and 0 times it is 0 and not NaN."""


@dataclass(frozen=True)
class VocabularyShard:
    """Which part of a vocabulary a head holds. All parts have equally many entries; those beyond the vocabulary are absent.

    Attributes:
        number: of this part, from 0.
        count: S, how many there are.
        vocabulary: V of all of them.
        gather: a tensor of each process -> those of all, [S, ...]. All processes call it at once, with tensors of one shape;
            all statistics do so, in one order.
    """

    number: int
    count: int
    vocabulary: int
    gather: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Head:
    """The map from final hidden states to logits: softcap(scale * (weight @ hidden + bias)).

    Attributes:
        weight_VD: one row per vocabulary entry that counts; padding rows beyond the tokenizer are cut off by the caller.
        bias_V: added to the product, or None; minus infinity makes an entry impossible.
        scale: factor on the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: c in c * tanh(logits / c) (Gemma 2), or None.
        absent_V: True for entries that the tokenizer cannot produce, or None when it can produce all.
        shard: which part of the vocabulary the rows of all these are; None for the whole.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    absent_V: Tensor | None = None
    shard: VocabularyShard | None = None

    @property
    def vocabulary(self) -> int:
        """V, of all parts."""
        return self.entries if self.shard is None else self.shard.vocabulary

    @property
    def entries(self) -> int:
        """W, how many entries are here."""
        return int(self.weight_VD.shape[0])

    @property
    def first(self) -> int:
        """The id of the first entry here."""
        return 0 if self.shard is None else self.shard.number * self.entries

    def gathered(self, tensor: Tensor) -> Tensor:
        """What each process has of something, [S, ...]."""
        return tensor[None] if self.shard is None else self.shard.gather(tensor)

    def from_owners(self, found: Tensor, ids: Tensor) -> Tensor:
        """Of what each process found for some ids, what the one has that holds the id; shaped as the ids."""
        return self.gathered(found).gather(0, (ids // self.entries)[None])[0]

    def logits(self, hidden_ND: Tensor, ids: slice | Tensor, *, out: Tensor | None = None) -> Tensor:
        """Logits of some of the entries here, shape [N, B], in the precision `width`; minus infinity is `NEVER`.

        Args:
            hidden_ND: of any floating dtype.
            ids: which entries, B of them, counted from the first one here.
            out: a tensor [N, B] of that precision that may be written to and returned, to save an allocation.
        """
        logits_NB = _product(hidden_ND, self.weight_VD[ids], out)
        if self.bias_V is not None:
            # Far enough below NEVER to stay there when the scale makes it smaller.
            logits_NB += self.bias_V[ids].to(logits_NB.dtype).clamp_min(2 * NEVER / self.scale)
        if self.scale != 1.0:
            logits_NB *= self.scale
        if self.softcap is not None:
            logits_NB = logits_NB.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.absent_V is not None:
            logits_NB.masked_fill_(self.absent_V[ids], NEVER)
        return logits_NB

    def damage(self) -> str:
        """What says that weights of entries that count are NaN or infinite, so that no token has a probability; else empty.

        All processes say the same.
        """
        bad_V = torch.cat([~rows_BD.isfinite().all(1) for rows_BD in torch.split(self.weight_VD, 2**14)])
        if self.bias_V is not None:
            bad_V |= self.bias_V.isnan() | self.bias_V.isposinf()
        if self.absent_V is not None:
            bad_V &= ~self.absent_V
        ids = self.gathered(bad_V).flatten().nonzero()[:, 0].tolist()
        many = f"{len(ids)} of {self.vocabulary} entries" if len(ids) > 1 else "one entry"
        return f"the output head has NaN or infinity in {many} (token id {ids[0]})." if ids else ""

    def impossible(self) -> Tensor:
        """True for the entries here that have probability 0 whatever the hidden state, shape [W]."""
        never_V = torch.zeros(self.entries, dtype=torch.bool, device=self.weight_VD.device)
        if self.bias_V is not None and self.softcap is None:
            never_V |= self.bias_V * self.scale <= NEVER
        return never_V if self.absent_V is None else never_V | self.absent_V


def prepare(hidden_ND: Tensor, head: Head) -> Tensor:
    """The hidden states in the dtype that the products want: `width`, unless the device adds up lower ones in float32."""
    return hidden_ND if _mixed(hidden_ND, head.weight_VD) else hidden_ND.to(width(hidden_ND))


def width(hidden_ND: Tensor) -> torch.dtype:
    """The precision of logits and of all that is made of a block of them: float32, of float64 hidden states float64."""
    return torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32


def _product(hidden_ND: Tensor, weight_BD: Tensor, out: Tensor | None) -> Tensor:
    if _mixed(hidden_ND, weight_BD):
        return torch.mm(hidden_ND, weight_BD.T, out_dtype=torch.float32)
    dtype = width(hidden_ND)
    return torch.mm(hidden_ND.to(dtype), weight_BD.to(dtype).T, out=out)


def _mixed(hidden_ND: Tensor, weight_BD: Tensor) -> bool:
    low = hidden_ND.dtype == weight_BD.dtype and hidden_ND.dtype in (torch.bfloat16, torch.float16)
    return low and hidden_ND.is_cuda and _has_mixed_product(hidden_ND.dtype)


@functools.cache
def _has_mixed_product(dtype: torch.dtype) -> bool:
    """Whether CUDA multiplies `dtype` into float32 (torch 2.8 and later). Not yet run on a GPU."""
    few = torch.zeros(16, 16, dtype=dtype, device="cuda")
    try:
        torch.mm(few, few, out_dtype=torch.float32)
    except (TypeError, RuntimeError):
        return False
    return True
