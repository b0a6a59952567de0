"""The statistics that every engine gives, for one model, for two, and truncated to K entries.

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
