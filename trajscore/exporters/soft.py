"""A teacher's best entries on their way to trainers: which rows they describe, how they are normalised and compared.

A mask has them as labels are: the entries at index p are of the prediction of token p (SELF). Most distillation losses want at
index p what is predicted from p, that is those of token p + 1 (NEXT); the last row then has none.
Axes: P tokens of a row, K entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.errors import UsageError

TOPK_COLUMNS = ("teacher_topk_ids", "teacher_topk_logprobs", "teacher_log_tail")
"""The columns of a mask that holds soft targets."""


class SoftTargets(NamedTuple):
    """Entries at each token of a row.

    Attributes:
        ids_PK: int64; 0 where there are none.
        logprobs_PK: float64, ln p; minus infinity where there are none.
        log_tail_P: float64, ln of the probability of all other entries; NaN where there are none.
        there_P: whether there are any.
    """

    ids_PK: npt.NDArray[np.int64]
    logprobs_PK: npt.NDArray[np.float64]
    log_tail_P: npt.NDArray[np.float64]
    there_P: npt.NDArray[np.bool_]

    def next(self) -> SoftTargets:
        """From SELF to NEXT."""
        empty = no_targets(1, self.ids_PK.shape[1])
        return SoftTargets(*(np.concatenate([a[1:], b]) for a, b in zip(self, empty, strict=True)))

    def previous(self) -> SoftTargets:
        """From NEXT to SELF."""
        empty = no_targets(1, self.ids_PK.shape[1])
        return SoftTargets(*(np.concatenate([b, a[:-1]]) for a, b in zip(self, empty, strict=True)))

    def normalised(self) -> SoftTargets:
        """Probabilities that sum to 1 over the K entries."""
        total_P1 = np.logaddexp.reduce(self.logprobs_PK, axis=1, keepdims=True)
        logprobs_PK = np.where(
            self.there_P[:, None], self.logprobs_PK - np.where(np.isfinite(total_P1), total_P1, 0), -np.inf
        )
        return self._replace(logprobs_PK=logprobs_PK)

    def same(self, other: SoftTargets) -> bool:
        """Whether both teach the same: equal ids, and equal probabilities after normalising, to float32's precision."""
        if self.ids_PK.shape != other.ids_PK.shape or (self.there_P != other.there_P).any():
            return False
        on = self.there_P
        one, two = np.exp(self.normalised().logprobs_PK[on]), np.exp(other.normalised().logprobs_PK[on])
        return bool((self.ids_PK[on] == other.ids_PK[on]).all() and np.allclose(one, two, rtol=1e-4, atol=1e-6))


def no_targets(tokens: int, k: int) -> SoftTargets:
    """Of so many tokens, none with entries."""
    return SoftTargets(
        np.zeros((tokens, k), np.int64),
        np.full((tokens, k), -np.inf),
        np.full(tokens, np.nan),
        np.zeros(tokens, bool),
    )


def entries_of(ids: pa.ListScalar, logprobs: pa.ListScalar, log_tail: pa.ListScalar | None, k: int) -> SoftTargets:
    """Of one row of a mask, or of what an export of the same layout holds.

    Raises:
        ValueError: lists differ in length, or a token has another number of entries than K.
    """
    sizes = [np.diff(np.asarray(each.values.offsets)) for each in (ids, logprobs)]
    found = no_targets(len(sizes[0]), k)
    found.there_P[:] = sizes[0] > 0
    if len(sizes[0]) != len(sizes[1]) or (sizes[0] != sizes[1]).any() or not np.isin(sizes[0], (0, k)).all():
        raise ValueError(f"a token has neither {k} entries nor none")
    found.ids_PK[found.there_P] = ids.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, k)
    found.logprobs_PK[found.there_P] = logprobs.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, k)
    if log_tail is not None:
        found.log_tail_P[:] = log_tail.values.to_numpy(zero_copy_only=False)
    return found


def soft_rows(batch: pa.RecordBatch, k: int) -> Iterator[SoftTargets]:
    """Of each row of a batch of a mask."""
    for ids, logprobs, log_tail in zip(*(batch[name] for name in TOPK_COLUMNS), strict=True):
        yield entries_of(ids, logprobs, log_tail, k)


def entries_per_token(batch: pa.RecordBatch, where: str) -> int | None:
    """K of a batch of a mask; None where no token of it has entries.

    Raises:
        UsageError: tokens with a label have none, others have, or they differ in number.
    """
    ids, logprobs = (batch[name] for name in TOPK_COLUMNS[:2])
    sizes = [np.diff(np.asarray(each.flatten().offsets)) for each in (ids, logprobs)]
    on = batch["labels"].flatten().to_numpy(zero_copy_only=False) >= 0
    if len(on) != len(sizes[0]) or len(on) != len(sizes[1]):
        raise UsageError(f"{where}: {TOPK_COLUMNS[0]} and labels differ in length.", "Mask again.")
    kinds = np.unique(np.concatenate([each[on] for each in sizes]))
    if len(kinds) > 1 or (len(kinds) and kinds[0] == 0) or any(each[~on].any() for each in sizes):
        raise UsageError(
            f"{where}: tokens with a label have {', '.join(map(str, kinds))} best entries of the teacher, others have some.",
            "Mask again with --soft-targets, folders of one K together.",
        )
    values = logprobs.flatten().flatten().to_numpy(zero_copy_only=False)
    if np.isnan(values).any() or (values > 1e-4).any():
        raise UsageError(f"{where}: a {TOPK_COLUMNS[1]} is NaN or above 0.", "Mask again.")
    return int(kinds[0]) if len(kinds) else None


def nested(values_PK: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """[P, K] as P lists of K."""
    rows, k = values_PK.shape
    ends = pa.array(np.arange(rows + 1, dtype=np.int32) * k)
    return pa.ListArray.from_arrays(ends, pa.array(values_PK.reshape(-1), kind))


def lists_of(rows: list[pa.Array], kind: pa.DataType) -> pa.Array:
    """A list per row."""
    ends = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.concat_arrays(rows) if rows else pa.array([], kind))
