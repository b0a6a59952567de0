"""What an engine does with final hidden states: reduce them to a few numbers per token, or hand them on.

Every reduction maps one batch to one result per sequence. It knows the statistics and no model.
Axes: N scored tokens of a batch, D and E widths of two models, K kept entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trajscore.engines import TokenScores
from trajscore.statistics import Head, TokenStatistics, token_statistics

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


def token_scores(batch: HiddenBatch) -> list[TokenScores]:
    """Rank, surprisal, entropy and collision of every scored token."""
    return _scores(batch, token_statistics(batch.hidden_ND, batch.head, batch.targets_N))


def hidden_states(batch: HiddenBatch) -> list[Tensor]:
    """The hidden states themselves, on the CPU in the model's precision."""
    return list(torch.split(batch.hidden_ND.cpu(), batch.counts))


def _scores(batch: HiddenBatch, found: TokenStatistics) -> list[TokenScores]:
    columns = (found.rank_N.to(torch.uint32), found.surprisal_N, found.entropy_N, found.collision_N)
    return [TokenScores(*row) for row in zip(*(batch.split(column) for column in columns), strict=True)]
