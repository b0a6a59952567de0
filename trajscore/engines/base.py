"""What every engine promises: the sequences it takes, and that it gives what a reduction (`reductions`) makes of them.

Axes: P input tokens of one sequence, N its scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from trajscore.errors import EngineError
from trajscore.rendering.tokens import TokenSequence

if TYPE_CHECKING:
    from trajscore.engines.reductions import Reduction
    from trajscore.statistics import Head

Result = TypeVar("Result")


class Engine(Protocol):
    """Runs one model over token sequences.

    Attributes:
        needs_files: whether rows of and for another model go through files, because a worker process writes and reads them.
    """

    needs_files: bool

    @property
    def max_model_len(self) -> int | None:
        """Longest sequence the model takes, in tokens; None when it has no limit."""

    def describe(self) -> dict[str, Any]:
        """Settings of the loaded model that can change a number (dtype of weights and head, vocabulary), for the manifest."""

    def environment(self) -> dict[str, Any]:
        """Versions and device, for the manifest."""

    @property
    def vocabulary(self) -> int:
        """Entries of the output head that count."""

    @property
    def state_bytes(self) -> int:
        """Size of the hidden state of one token."""

    @property
    def head(self) -> Head:
        """The output head, cut to the vocabulary."""

    def run(self, sequences: Sequence[TokenSequence], reduction: Reduction[Result]) -> Iterator[tuple[int, Result]]:
        """Run the model and reduce its final hidden states at the scored tokens.

        Args:
            sequences: what to run it on.
            reduction: one of `engines.reductions`.

        Yields:
            (index into `sequences`, result) in the order in which they are done, each once.

        Raises:
            EngineError: the model failed, or one sequence alone does not fit into memory.
        """

    def sleep(self) -> bool:
        """Free the device's memory and be ready again at the next call; False where only closing and loading anew do that."""

    def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True)
class ModelSource:
    """Which model to load.

    Attributes:
        name: hub id or folder.
        vocabulary: ids that its tokenizer can produce, ascending; other entries of the output head do not count.
        revision: hub revision.
        adapter: folder of an adapter that is merged into it; None for the model as it is.
        memory_share: of what its engine may take of a device, where several models are in memory side by side.
        other_head_bytes: size of another model's output head that will be read beside it.
        max_model_len: longest sequence that will be run, where that is known; None for what the model takes.
        may_sleep: whether its weights may wait in the host's memory while other models have the device.
    """

    name: str
    vocabulary: npt.NDArray[np.int64]
    revision: str | None = None
    adapter: str | None = None
    max_model_len: int | None = None
    memory_share: float = 1.0
    other_head_bytes: int = 0
    may_sleep: bool = False


def check_ids(name: str, known: int, sequences: Sequence[TokenSequence]) -> None:
    """Refuse token ids that a model does not know.

    Raises:
        EngineError: tokenizer and model do not belong together.
    """
    highest = max((int(sequence.input_ids_P.max()) for sequence in sequences), default=0)
    if highest >= known:
        raise EngineError(
            f"{name}: the tokenizer gives token id {highest}, the model knows {known}.",
            "Tokenizer and model do not belong together.",
        )
