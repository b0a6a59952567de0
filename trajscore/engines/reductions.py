"""What an engine makes of final hidden states: a few numbers per token, or the states themselves for another model.

A reduction is a name and its parameters, so that it can run where the hidden states are, be that this process or an engine's
worker (`reduced_rows`); what comes back is one row of numbers per scored token. PyTorch is not needed to ask: a server answers
without.
Axes: N scored tokens, D and E widths of two models, K kept entries of the vocabulary, C numbers per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from trajscore.engines.token_scores import PairScores, TokenScores, TopKScores

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trajscore.statistics import Head

Result = TypeVar("Result")


@dataclass(frozen=True)
class StoredRows:
    """Where rows of another model lie in a file, for an engine whose worker reads them itself.

    Attributes:
        path: the file.
        offset: first byte.
        shape: (tokens, numbers per token).
        dtype: name of the torch dtype.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def read(self, first: int = 0, count: int | None = None) -> Tensor:
        """Rows from `first` on, `count` of them or all the rest, bit for bit, on the CPU."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        rows = self.shape[0] - first if count is None else count
        width = int(np.prod(self.shape[1:])) * dtype.itemsize
        if not rows * width:
            return torch.empty((rows, *self.shape[1:]), dtype=dtype)
        raw = np.fromfile(self.path, np.uint8, rows * width, offset=self.offset + first * width)
        return torch.from_numpy(raw).view(dtype).reshape(rows, *self.shape[1:])


@dataclass(frozen=True)
class Other:
    """What another model left for the same scored tokens: its hidden states, or its most probable entries.

    Attributes:
        rows: rows for some of the engine's sequences, one below the other.
        stored: where the rows of one sequence lie on disk; None when they are made as they are asked for.
        head: the other model's output head, where hidden states are handed on.
    """

    rows: Callable[[list[int]], Tensor]
    stored: Callable[[int], StoredRows] | None = None
    head: Head | None = None


@dataclass(frozen=True)
class Reduction(Generic[Result]):
    """What to compute of each sequence.

    Attributes:
        kind: a name that `reduce_rows` knows, or `written`.
        unpack: from the rows of one sequence, on the CPU unless they are hidden states, to its result.
        parameters: further keywords of `reduce_rows`, of values that JSON has.
        other: what another model left, for `pair` and `top_pair`.
    """

    kind: str
    unpack: Callable[[Tensor], Result]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    other: Other | None = field(default=None, compare=False)


def pair(
    teacher: Other, k: int = 0, *, at_student: bool = False, further: Sequence[tuple[str, float | None]] = ()
) -> Reduction[PairScores]:
    """Student and teacher together, exact over the full vocabulary.

    Args:
        teacher: its hidden states and its head.
        k: entries of the teacher to keep; 0 for none.
        at_student: keep them at the student's best entries and not at the teacher's own.
        further: divergences beside the usual ones.
    """

    def unpack(rows_NC: Tensor) -> PairScores:
        from trajscore.engines.reduced_rows import entries

        student, teacher = _token_scores(rows_NC[:, :4]), _token_scores(rows_NC[:, 4:8])
        columns = _arrays(rows_NC[:, 8 : 11 + len(further)])
        kept = entries(rows_NC[:, 11 + len(further) :]) if k else None
        return PairScores(student, teacher, columns[0], columns[1], columns[2], tuple(columns[3:]), kept)

    parameters = {"k": k, "at_student": at_student, "further": [list(each) for each in further]}
    return Reduction("pair", unpack, parameters, other=teacher)


def top(k: int) -> Reduction[tuple[TokenScores, Tensor]]:
    """A model's statistics, and its k most probable entries as rows for `top_pair` and `entries`."""
    return Reduction("top", lambda rows: (_token_scores(rows[:, :4]), rows[:, 4:]), {"k": k})


def top_pair(teacher: Other) -> Reduction[tuple[TokenScores, TopKScores]]:
    """The student's statistics, and its divergences from the teacher's most probable entries and one bucket for the rest.

    Args:
        teacher: rows that `top` made.
    """
    return Reduction(
        "top_pair", lambda rows: (_token_scores(rows[:, :4]), TopKScores(*_arrays(rows[:, 4:]))), other=teacher
    )


def _arrays(rows_NC: Tensor) -> Sequence[Any]:
    return list(rows_NC.T.contiguous().numpy())


def _token_scores(rows_N4: Tensor) -> TokenScores:
    rank_N, surprisal_N, entropy_N, collision_N = _arrays(rows_N4)
    return TokenScores(rank_N.astype(np.uint32), surprisal_N, entropy_N, collision_N)


def _states(rows_ND: Tensor) -> Tensor:
    return rows_ND


TOKENS: Reduction[TokenScores] = Reduction("tokens", _token_scores)
"""Rank, surprisal, entropy and collision of every scored token."""


def written(path: Path) -> Reduction[StoredRows]:
    """Hidden states that an engine's worker writes by itself, so that they pass through no other process.

    Args:
        path: what the names of the files begin with; each worker adds its number. For engines that need files.
    """

    def found(rows_15: Tensor) -> StoredRows:
        offset, count, width, dtype, worker = rows_15[0].tolist()
        return StoredRows(f"{path}.{worker}", offset, (count, width), WRITTEN_TYPES[dtype])

    return Reduction("written", found, {"path": str(path)})


WRITTEN_TYPES = ("float32", "bfloat16", "float16")
"""Precisions of hidden states, by the number that stands for them in what a worker says of a file."""

STATES: Reduction[Tensor] = Reduction("states", _states)
"""The hidden states themselves, where the model has them and in its precision."""
