"""Independent float64 computations that the package is tested against. Nothing here shares code with trajscore."""

from __future__ import annotations

from collections.abc import Callable
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


@dataclass(frozen=True)
class DivergenceOracle:
    kl_student_teacher: Float64
    kl_teacher_student: Float64
    js: Float64


def divergences(student_NV: Float64, teacher_NV: Float64) -> DivergenceOracle:
    """Both Kullback-Leibler divergences and the Jensen-Shannon divergence of whole logits, in float64, nats.

    Jensen-Shannon in its entropy form, H(m) - (H(p) + H(q)) / 2, which is not how the package computes it.
    """
    p, q = probabilities(student_NV), probabilities(teacher_NV)
    log_p, log_q = _log_probabilities(student_NV), _log_probabilities(teacher_NV)
    with np.errstate(invalid="ignore"):  # where one or both are impossible
        kl_student_teacher = np.where(log_p == -np.inf, 0.0, p * (log_p - log_q)).sum(1)
        kl_teacher_student = np.where(log_q == -np.inf, 0.0, q * (log_q - log_p)).sum(1)
    js = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return DivergenceOracle(kl_student_teacher, kl_teacher_student, js)


def named_divergence(student_NV: Float64, teacher_NV: Float64, name: str, value: float | None = None) -> Float64:
    """A divergence of `--extra` by its definition, of whole logits, in float64; in another form than the package's where there
    is one. `value` is what stands behind its colon."""
    p, q, x = probabilities(student_NV), probabilities(teacher_NV), float(value or 0)
    if name == "topk_mass":
        best = np.argsort(-student_NV, axis=1, kind="stable")[:, : int(x)]
        return np.array([row[ids].sum() for row, ids in zip(q, best, strict=True)])
    if name in ("kl_at", "standardised"):
        z, y = (student_NV, teacher_NV) if name == "kl_at" else map(_standardised, (student_NV, teacher_NV))
        return np.asarray(x**2 * _kl(probabilities(y / x), probabilities(z / x)))
    formulas: dict[str, Callable[[], Float64]] = {
        "tv": lambda: np.maximum(p - q, 0).sum(1),
        "hellinger": lambda: 1 - np.sqrt(p * q).sum(1),
        "jsd": lambda: entropy(x * q + (1 - x) * p) - x * entropy(q) - (1 - x) * entropy(p),
        "skew_kl": lambda: _kl(q, x * q + (1 - x) * p),
        "skew_rkl": lambda: _kl(p, x * p + (1 - x) * q),
        "renyi": lambda: np.log((q**x * p ** (1 - x)).sum(1)) / (x - 1),
    }
    return np.asarray(formulas[name]())


def _kl(q_NV: Float64, p_NV: Float64) -> Float64:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(q_NV > 0, q_NV * (np.log(q_NV) - np.log(p_NV)), 0.0).sum(1))


def _standardised(logits_NV: Float64) -> Float64:
    """By the definition of each row: its mean and its sample standard deviation over what can be produced."""
    rows = []
    for row in logits_NV:
        known = row[np.isfinite(row)]
        rows.append((row - known.mean()) / known.std(ddof=1))
    return np.array(rows)


def probabilities(logits_NV: Float64) -> Float64:
    """Softmax of each row, in float64."""
    return np.asarray(np.exp(_log_probabilities(logits_NV)))


def entropy(p_NV: Float64) -> Float64:
    """-sum p ln p of each row, with 0 ln 0 = 0."""
    logs = np.log(p_NV, out=np.zeros_like(p_NV), where=p_NV > 0)
    return np.asarray(-(p_NV * logs).sum(1))


def _log_probabilities(logits_NV: Float64) -> Float64:
    shifted = logits_NV - logits_NV.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def model_logits(model: torch.nn.Module, input_ids: npt.NDArray[np.int32]) -> Float64:
    """The model's own logits for one sequence, with weights and arithmetic in float64, shape [P, V]."""
    with torch.no_grad():
        logits = model.double()(input_ids=torch.tensor(input_ids[None], dtype=torch.int64)).logits[0]
    array: Float64 = logits.double().numpy()
    return array


def near_ties(logits_V: Float64, target: int, within: float = 1e-5) -> int:
    """How many other entries lie so near the target's logit that float32 may order them either way."""
    return int((np.abs(logits_V - logits_V[target]) < within).sum()) - 1
