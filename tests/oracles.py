"""Independent float64 computations that the package is tested against. Nothing here shares code with trajscore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    rank: npt.NDArray[np.int64]
    surprisal: Float64
    entropy: Float64
    collision: Float64


def from_logits(logits_NV: Float64, targets: npt.NDArray[np.int64]) -> Oracle:
    """Statistics of whole logits, row by row, in float64."""
    rank, surprisal, entropy, collision = [], [], [], []
    for logits, target in zip(logits_NV, targets, strict=True):
        shifted = logits - logits[np.isfinite(logits)].max()
        weights = np.exp(shifted)
        p = weights / weights.sum()
        positive = p[p > 0]
        rank.append(1 + sum(1 for value in logits if value > logits[target]))
        surprisal.append(np.log(weights.sum()) - shifted[target])
        entropy.append(-(positive * np.log(positive)).sum())
        collision.append((p**2).sum())
    return Oracle(np.array(rank), np.array(surprisal), np.array(entropy), np.array(collision))


def model_logits(model: torch.nn.Module, input_ids: npt.NDArray[np.int32]) -> Float64:
    """The model's own logits for one sequence, with weights and arithmetic in float64, shape [P, V]."""
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor(input_ids[None], dtype=torch.int64)).logits[0]
    array: Float64 = logits.double().numpy()
    return array


def near_ties(logits_V: Float64, target: int, within: float = 1e-5) -> int:
    """How many other entries lie so near the target's logit that float32 may order them either way."""
    return int((np.abs(logits_V - logits_V[target]) < within).sum()) - 1
