"""The least that an engine needs to know of a trajectory: its token ids and which of them are scored.

Axes: P input tokens of one sequence, N its scored tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenSequence:
    """One tokenized trajectory.

    Attributes:
        input_ids_P: int32, the whole conversation.
        positions_N: uint32, index into `input_ids_P` of each token to score; ascending, at least one, none of them 0.
    """

    input_ids_P: npt.NDArray[np.int32]
    positions_N: npt.NDArray[np.uint32]
