"""The statistics that engines give, for one model, for two, and truncated to K entries; a server gives what it can
(`served_replies`).

Axes: N scored tokens of one sequence, K kept entries of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Scores = TypeVar("Scores")


@dataclass(frozen=True)
class TokenScores:
    """Statistics of the N scored tokens of one sequence; entry n describes `input_ids_P[positions_N[n]]`.

    Attributes:
        rank_N: uint32, 1 + number of vocabulary entries with a strictly larger logit.
        surprisal_N: float32, -ln p(token | prefix), nats.
        entropy_N: float32, entropy of the whole next-token distribution, nats.
        collision_N: float32, sum of squared probabilities.
    """

    rank_N: npt.NDArray[np.uint32]
    surprisal_N: npt.NDArray[np.float32]
    entropy_N: npt.NDArray[np.float32]
    collision_N: npt.NDArray[np.float32]

    @property
    def finite(self) -> bool:
        """Whether every statistic is a number: a model in low precision may overflow."""
        return bool(
            np.isfinite(self.surprisal_N).all()
            and np.isfinite(self.entropy_N).all()
            and np.isfinite(self.collision_N).all()
        )


@dataclass(frozen=True)
class TopKEntries:
    """A model's probabilities of K entries at each of N tokens, to be stored.

    Attributes:
        ids_NK: int32, from the most probable on, ties by the lower id.
        logprobs_NK: float32, ln p over the whole vocabulary, nats; minus infinity for impossible entries.
        log_tail_N: float32, ln of the probability of all other entries; minus infinity where there is none.
    """

    ids_NK: npt.NDArray[np.int32]
    logprobs_NK: npt.NDArray[np.float32]
    log_tail_N: npt.NDArray[np.float32]


@dataclass(frozen=True)
class ServedScores:
    """What a server tells of the N scored tokens of one sequence, and what follows from its K best entries.

    Attributes:
        surprisal_N: float32, -ln p(token | prefix), nats, over all entries of the server's head.
        ids_NK: int32, best entries, from the most probable on, ties by the lower id.
        logprobs_NK: float32, ln p of these.
        tail_N: float64, probability of all others: 1 minus the kept mass, though no less than the written token's where it is
            none of the K, and no less than the rounding of such a sum where anything is left.
        rank_topk_N: uint32, 1 + number of the first k with a strictly larger ln p: the rank if that is at most k, else k + 1.
        entropy_topk_N: float32, entropy over the first k and one bucket for the rest, nats: a lower bound of the entropy.
        mass_N: float32, probability of the first k together.
    """

    surprisal_N: npt.NDArray[np.float32]
    ids_NK: npt.NDArray[np.int32]
    logprobs_NK: npt.NDArray[np.float32]
    tail_N: npt.NDArray[np.float64]
    rank_topk_N: npt.NDArray[np.uint32]
    entropy_topk_N: npt.NDArray[np.float32]
    mass_N: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        logprob_N: npt.NDArray[np.float32],
        ids_NK: npt.NDArray[np.int32],
        logprobs_NK: npt.NDArray[np.float32],
        targets_N: npt.NDArray[np.int32],
        vocabulary: int,
        k: int,
    ) -> ServedScores:
        """From ln p of the written tokens and of the best entries.

        Args:
            logprob_N: of the written tokens.
            ids_NK: the best entries.
            logprobs_NK: ln p of these.
            targets_N: ids of the written tokens.
            vocabulary: number of all entries.
            k: over how many of the best the truncated statistics run.
        """
        own_N, best_NK = logprob_N.astype(np.float64), logprobs_NK.astype(np.float64)
        p_NK = np.exp(best_NK)
        mass_N = p_NK.sum(1)
        outside_N = ~(ids_NK == targets_N[:, None]).any(1)
        least_N = np.where(outside_N, np.exp(own_N), 0.0)
        if ids_NK.shape[1] < vocabulary:
            least_N = np.maximum(least_N, _ROUNDING)
        tail_N = np.maximum(1.0 - mass_N, least_N)
        parts_NB = np.concatenate([p_NK[:, :k], (p_NK[:, k:].sum(1) + tail_N)[:, None]], 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy_N = np.where(parts_NB > 0, -parts_NB * np.log(parts_NB), 0.0).sum(1)
        return cls(
            surprisal_N=np.maximum(-logprob_N, np.float32(0)),
            ids_NK=ids_NK,
            logprobs_NK=logprobs_NK,
            tail_N=tail_N,
            rank_topk_N=(1 + (best_NK[:, :k] > own_N[:, None]).sum(1)).astype(np.uint32),
            entropy_topk_N=np.maximum(entropy_N, 0.0).astype(np.float32),
            mass_N=np.minimum(p_NK[:, :k].sum(1), 1.0).astype(np.float32),
        )

    def best(self, k: int) -> TopKEntries:
        """The first k entries; what the others had is in the tail."""
        rest_N = np.exp(self.logprobs_NK[:, k:].astype(np.float64)).sum(1) + self.tail_N
        with np.errstate(divide="ignore"):
            return TopKEntries(self.ids_NK[:, :k], self.logprobs_NK[:, :k], np.log(rest_N).astype(np.float32))

    @property
    def finite(self) -> bool:
        """Whether every token has a probability above 0."""
        return bool(np.isfinite(self.surprisal_N).all())


_ROUNDING = 2.0**-24
"""Of a probability near 1 in float32, as servers print them."""


@dataclass(frozen=True)
class PairScores:
    """Statistics of the same N tokens under student and teacher, and the divergences of their predictions.

    Attributes:
        student: under the student.
        teacher: under the teacher.
        kl_student_teacher_N: float32, KL(student || teacher), nats, full vocabulary.
        kl_teacher_student_N: float32, KL(teacher || student), nats.
        js_N: float32, Jensen-Shannon divergence, nats, at most ln 2.
        further: divergences that were asked for besides, float32, in the order in which they were.
        kept: the teacher's entries that were asked for, else None.
    """

    student: TokenScores
    teacher: TokenScores
    kl_student_teacher_N: npt.NDArray[np.float32]
    kl_teacher_student_N: npt.NDArray[np.float32]
    js_N: npt.NDArray[np.float32]
    further: tuple[npt.NDArray[np.float32], ...] = ()
    kept: TopKEntries | None = None


@dataclass(frozen=True)
class TopKScores:
    """Divergences over the teacher's K most probable entries and one bucket for the rest: lower bounds of the exact ones.

    Attributes:
        kl_student_teacher_N: float32, nats.
        kl_teacher_student_N: float32, nats.
        js_N: float32, nats.
        mass_N: float32, the teacher's probability of its K entries together.
    """

    kl_student_teacher_N: npt.NDArray[np.float32]
    kl_teacher_student_N: npt.NDArray[np.float32]
    js_N: npt.NDArray[np.float32]
    mass_N: npt.NDArray[np.float32]


def at(scores: Scores, which_N: npt.NDArray[np.bool_]) -> Scores:
    """The same statistics, of some of the tokens.

    Args:
        scores: statistics of one of the kinds above.
        which_N: the tokens that are wanted.
    """
    values: dict[str, Any] = {each.name: getattr(scores, each.name) for each in fields(scores)}  # type: ignore[arg-type]
    return type(scores)(**{n: at(v, which_N) if is_dataclass(v) else v[which_N] for n, v in values.items()})
