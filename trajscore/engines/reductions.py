"""What an engine does with final hidden states: reduce them to a few numbers per token, or hand them on.

Every reduction maps one batch to one result per sequence. It knows the statistics and no model.
Axes: N scored tokens of a batch, D and E widths of two models, K kept entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajscore.engines import PairScores, TokenScores, TopKScores
from trajscore.statistics import (
    Head,
    TokenStatistics,
    TopK,
    pair_statistics,
    teacher_top,
    token_statistics,
    topk_divergences,
)

__all__ = [
    "HiddenBatch",
    "Pair",
    "Reduction",
    "States",
    "Tensor",
    "Top",
    "TopPair",
    "hidden_states",
    "join_states",
    "join_top",
    "token_scores",
]

Result = TypeVar("Result")


@dataclass(frozen=True)
class HiddenBatch:
    """Final hidden states of the scored tokens of a batch of sequences.

    Attributes:
        indices: which of the engine's sequences these are, in the order of the rows.
        counts: scored tokens of each.
        hidden_ND: states after the final norm; row n predicts target n.
        targets_N: int64 token ids.
        head: the model's output head.
    """

    indices: list[int]
    counts: list[int]
    hidden_ND: Tensor
    targets_N: Tensor
    head: Head

    def split(self, values_N: Tensor) -> list[npt.NDArray[Any]]:
        """Values of all scored tokens, one array per sequence."""
        return np.split(values_N.cpu().numpy(), np.cumsum(self.counts)[:-1])


Reduction = Callable[[HiddenBatch], Sequence[Result]]
"""Maps a batch to one result per sequence."""

States = Callable[[list[int]], Tensor]
"""Hidden states of another model for the scored tokens of some sequences, given by their indices, [N, E]."""


def token_scores(batch: HiddenBatch) -> list[TokenScores]:
    """Rank, surprisal, entropy and collision of every scored token."""
    return _scores(batch, token_statistics(batch.hidden_ND, batch.head, batch.targets_N))


def hidden_states(batch: HiddenBatch) -> list[Tensor]:
    """The hidden states themselves, where the model has them and in its precision."""
    return list(torch.split(batch.hidden_ND, batch.counts))


@dataclass(frozen=True)
class Pair:
    """Student and teacher together, exact over the full vocabulary.

    Attributes:
        teacher_states: the teacher's hidden states for the same tokens.
        teacher_head: the teacher's output head.
    """

    teacher_states: States
    teacher_head: Head

    def __call__(self, batch: HiddenBatch) -> list[PairScores]:
        """Statistics of both models and their divergences."""
        teacher_NE = self.teacher_states(batch.indices).to(batch.hidden_ND.device)
        found = pair_statistics(batch.hidden_ND, batch.head, teacher_NE, self.teacher_head, batch.targets_N)
        return [
            PairScores(*row)
            for row in zip(
                _scores(batch, found.student),
                _scores(batch, found.teacher),
                batch.split(found.kl_student_teacher_N),
                batch.split(found.kl_teacher_student_N),
                batch.split(cast(Tensor, found.js_N)),
                strict=True,
            )
        ]


@dataclass(frozen=True)
class Top:
    """A model's statistics with its K most probable entries at every position.

    Attributes:
        k: K.
    """

    k: int

    def __call__(self, batch: HiddenBatch) -> list[tuple[TokenScores, TopK]]:
        """One (statistics, entries) per sequence, the entries on the CPU."""
        top = teacher_top(batch.hidden_ND, batch.head, self.k)
        columns = (torch.split(column.cpu(), batch.counts) for column in (top.ids_NK, top.logprobs_NK, top.log_tail_N))
        return list(zip(token_scores(batch), (TopK(*row) for row in zip(*columns, strict=True)), strict=True))


@dataclass(frozen=True)
class TopPair:
    """Student against the teacher's K most probable entries and one bucket for the rest.

    Attributes:
        teacher_top: the teacher's entries for the scored tokens of some sequences, given by their indices.
    """

    teacher_top: Callable[[list[int]], TopK]

    def __call__(self, batch: HiddenBatch) -> list[tuple[TokenScores, TopKScores]]:
        """The student's statistics and the truncated divergences."""
        top, device = self.teacher_top(batch.indices), batch.hidden_ND.device
        top = TopK(top.ids_NK.to(device), top.logprobs_NK.to(device), top.log_tail_N.to(device))
        found = topk_divergences(batch.hidden_ND, batch.head, top)
        columns = (found.kl_student_teacher_N, found.kl_teacher_student_N, found.js_N, found.mass_N)
        truncated = (TopKScores(*row) for row in zip(*(batch.split(column) for column in columns), strict=True))
        return list(zip(token_scores(batch), truncated, strict=True))


def join_states(states: Sequence[Tensor]) -> Tensor:
    """Hidden states of several sequences one below the other."""
    return torch.cat(list(states))


def join_top(tops: Sequence[TopK]) -> TopK:
    """Entries of several sequences one below the other."""
    columns = zip(*((top.ids_NK, top.logprobs_NK, top.log_tail_N) for top in tops), strict=True)
    return TopK(*(torch.cat(column) for column in columns))


def _scores(batch: HiddenBatch, found: TokenStatistics) -> list[TokenScores]:
    columns = (found.rank_N.to(torch.uint32), found.surprisal_N, found.entropy_N, found.collision_N)
    return [TokenScores(*row) for row in zip(*(batch.split(column) for column in columns), strict=True)]
