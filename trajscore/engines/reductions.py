"""What an engine makes of final hidden states: a few numbers per token, or the states themselves for another model.

A reduction is a name and its parameters, so that it can run where the hidden states are, be that this process or an engine's
worker; what comes back is one row of numbers per scored token.
Axes: N scored tokens, D and E widths of two models, K kept entries of the vocabulary, C numbers per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from trajscore.engines.token_scores import PairScores, TokenScores, TopKEntries, TopKScores
from trajscore.statistics import (
    Head,
    TokenStatistics,
    TopK,
    at_entries,
    further_divergences,
    pair_statistics,
    teacher_top,
    token_statistics,
    topk_divergences,
)

__all__ = [
    "STATES",
    "TOKENS",
    "Other",
    "Reduction",
    "StoredRows",
    "Tensor",
    "entries",
    "join",
    "narrowed",
    "pair",
    "reduce_rows",
    "top",
    "top_pair",
    "written",
]

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


@torch.no_grad()
def reduce_rows(
    kind: str,
    hidden_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    *,
    k: int = 0,
    at_student: bool = False,
    further: Sequence[tuple[str, float | None]] = (),
    other_NE: Tensor | None = None,
    other_head: Head | None = None,
) -> Tensor:
    """Numbers of every scored token, [N, C], on the device of the hidden states.

    Args:
        kind: `tokens`, `states`, `pair`, `top` or `top_pair`.
        hidden_ND: states after the final norm; row n predicts target n.
        head: the model's output head.
        targets_N: int64 token ids.
        k: entries to keep: of the model's own for `top`, of the other one's for `pair`, where 0 keeps none.
        at_student: for `pair`, whether the other one's are kept at this model's best.
        further: for `pair`, divergences beside the usual ones, as `further_divergences` is asked.
        other_NE: rows of the other model.
        other_head: the other model's head.

    Returns:
        float32, ranks and ids included (exact below 2^24); hidden states in the model's precision.
    """
    if kind == "states":
        return hidden_ND
    if other_NE is not None:
        other_NE = other_NE.to(hidden_ND.device)
    if kind == "pair":
        student, teacher = (hidden_ND, head), (cast(Tensor, other_NE), cast(Head, other_head))
        found = pair_statistics(*student, *teacher, targets_N)
        divergences = (found.kl_student_teacher_N, found.kl_teacher_student_N, cast(Tensor, found.js_N))
        rows = [_columns(found.student), _columns(found.teacher), torch.stack(divergences, 1)]
        if further:
            rows.append(further_divergences(*student, *teacher, [(name, value) for name, value in further]))
        if k:
            best = teacher_top(*(student if at_student else teacher), k)
            rows.append(_rows(at_entries(*teacher, best.ids_NK) if at_student else best))
        return torch.cat(rows, 1)
    own_N4 = _columns(token_statistics(hidden_ND, head, targets_N))
    if kind == "top":
        return torch.cat([own_N4, _rows(teacher_top(hidden_ND, head, k))], 1)
    if kind == "top_pair":
        truncated = topk_divergences(hidden_ND, head, _top(cast(Tensor, other_NE)))
        columns = (truncated.kl_student_teacher_N, truncated.kl_teacher_student_N, truncated.js_N, truncated.mass_N)
        return torch.cat([own_N4, torch.stack(columns, 1)], 1)
    if kind != "tokens":
        raise ValueError(f"reduction {kind!r} is unknown.")
    return own_N4


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
        student, teacher = _token_scores(rows_NC[:, :4]), _token_scores(rows_NC[:, 4:8])
        columns = _arrays(rows_NC[:, 8 : 11 + len(further)])
        kept = entries(rows_NC[:, 11 + len(further) :]) if k else None
        return PairScores(student, teacher, columns[0], columns[1], columns[2], tuple(columns[3:]), kept)

    parameters = {"k": k, "at_student": at_student, "further": [list(each) for each in further]}
    return Reduction("pair", unpack, parameters, other=teacher)


def top(k: int) -> Reduction[tuple[TokenScores, Tensor]]:
    """A model's statistics, and its k most probable entries as rows for `top_pair` and `entries`."""
    return Reduction("top", lambda rows: (_token_scores(rows[:, :4]), rows[:, 4:]), {"k": k})


def narrowed(rows_NE: Tensor, k: int) -> Tensor:
    """Rows that `top` made, of its first k entries alone; what the others had goes to the tail."""
    found = _top(rows_NE)
    others = torch.cat([found.logprobs_NK[:, k:], found.log_tail_N[:, None]], 1)
    return _rows(TopK(found.ids_NK[:, :k], found.logprobs_NK[:, :k], others.double().logsumexp(1).float()))


def entries(rows_NE: Tensor) -> TopKEntries:
    """Rows that `top` made, to be stored."""
    found = _top(rows_NE)
    return TopKEntries(found.ids_NK.int().numpy(), found.logprobs_NK.numpy(), found.log_tail_N.numpy())


def top_pair(teacher: Other) -> Reduction[tuple[TokenScores, TopKScores]]:
    """The student's statistics, and its divergences from the teacher's most probable entries and one bucket for the rest.

    Args:
        teacher: rows that `top` made.
    """
    return Reduction(
        "top_pair", lambda rows: (_token_scores(rows[:, :4]), TopKScores(*_arrays(rows[:, 4:]))), other=teacher
    )


def join(rows: Sequence[Tensor]) -> Tensor:
    """Rows of several sequences one below the other."""
    return torch.cat(list(rows))


def _columns(found: TokenStatistics) -> Tensor:
    return torch.stack([found.rank_N.float(), found.surprisal_N, found.entropy_N, found.collision_N], 1)


def _rows(top: TopK) -> Tensor:
    return torch.cat([top.ids_NK.float(), top.logprobs_NK, top.log_tail_N[:, None]], 1)


def _top(rows_NE: Tensor) -> TopK:
    k = rows_NE.shape[1] // 2
    return TopK(rows_NE[:, :k].long(), rows_NE[:, k : 2 * k], rows_NE[:, 2 * k])


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
