"""The student, its teachers and the distilled model: what each is, whether it is in memory, and which rows it reads.

It knows names of models, renderers and engines; not what is computed of two models together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from trajscore.corpus import Trajectory
from trajscore.engines import Engine, EngineOptions, ModelSource, TokenSequence, load_engine
from trajscore.engines.fingerprint import model_identity
from trajscore.errors import UsageError
from trajscore.rendering.renderer import Rendered, Renderer, RenderOptions
from trajscore.schema import OK
from trajscore.scoring.part_table import ScoredRow

Values = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TeacherTokens:
    """Tokens of a teacher with a tokenizer of its own, where the student's rendering says the same.

    Attributes:
        start_B: offset in the student's response at which each token starts.
        end_B: offset at which it ends.
        logprob_B: ln p of each, nats.
        turns: begin and end of the turns that both renderings have.
    """

    start_B: npt.NDArray[Any]
    end_B: npt.NDArray[Any]
    logprob_B: npt.NDArray[Any]
    turns: list[tuple[int, int]]


@dataclass
class WaitingRow:
    """A row on its way through the models.

    Attributes:
        trajectory: what to read.
        rendered: its tokens under the student.
        values: list columns found so far.
        api_logprobs: log-probabilities that came with the row.
        teacher_tokens: tokens of a teacher with a tokenizer of its own, kept for chunks.
    """

    trajectory: Trajectory
    rendered: Rendered
    values: Values = field(default_factory=dict)
    api_logprobs: Any = None
    teacher_tokens: TeacherTokens | None = None

    @property
    def sequence(self) -> TokenSequence:
        """The tokens for an engine."""
        return TokenSequence(self.rendered.input_ids_P, self.rendered.positions_N)

    def finished(self) -> ScoredRow:
        """The row for the table of a part."""
        return ScoredRow(self.trajectory, self.rendered, self.values if self.rendered.status == OK else None)


class RoleModel:
    """A model in a role, loaded when it is needed.

    Args:
        role: `student`, `teacher` or `distilled`.
        name: hub id or folder.
        options: how it runs.
        rendering: how conversations become tokens.
        engine: name of the engine.
        revision: hub revision.
        writes: the value of the row's `teacher` whose rows it reads; None for all rows.
        student: the student's renderer, None for the student itself.

    Attributes:
        renderer: makes its tokens.
        shares_tokenizer: whether its tokenizer makes the same tokens as the student's.
        source: the model and its vocabulary.
        token_bytes: size of the hidden state of one token, once the model was loaded.
        entries: vocabulary entries of its head that count, once the model was loaded.
        needs_files: whether its engine reads other models' rows from files, once the model was loaded.
        load_seconds: time that loading it took so far, each time counted.
    """

    def __init__(
        self,
        role: str,
        name: str,
        options: EngineOptions,
        rendering: RenderOptions,
        *,
        engine: str = "auto",
        revision: str | None = None,
        writes: str | None = None,
        student: Renderer | None = None,
    ) -> None:
        self.role, self.name, self.writes = role, name, writes
        self._options, self._engine_name = options, engine
        self._engine: Engine | None = None
        self.token_bytes = self.entries = 0
        self.needs_files = False
        self.load_seconds = 0.0
        self.renderer = Renderer(name, rendering, revision=revision, trust_remote_code=options.trust_remote_code)
        self.shares_tokenizer = student is None or student.same_tokenizer(self.renderer)
        self.source = ModelSource(
            name,
            (student or self.renderer).vocabulary if self.shares_tokenizer else self.renderer.vocabulary,
            revision,
            # The limit that was asked for is in the student's tokens.
            rendering.max_model_len if self.shares_tokenizer else None,
        )

    def load(self) -> Engine:
        """The engine, loaded if it is not in memory.

        Raises:
            UsageError: the model cannot be loaded, or the student is made for fewer tokens than asked for.
        """
        if self._engine is None:
            began = time.monotonic()
            self._engine_name, self._engine = load_engine(self._engine_name, self.source, self._options)
            self.load_seconds += time.monotonic() - began
            self.token_bytes, self.entries = self._engine.state_bytes, self._engine.vocabulary
            self.needs_files = self._engine.needs_files
            asked, possible = self.renderer.options.max_model_len, self._engine.max_model_len
            if self.role == "student" and asked and possible and asked > possible:
                raise UsageError(
                    f"--max-model-len {asked}: {self.name} was made for {possible} tokens.", f"Give at most {possible}."
                )
            # The limit that was asked for is in the student's tokens.
            limits = (asked, possible) if self.shares_tokenizer else (possible,)
            self.renderer.max_model_len = min(filter(None, limits), default=None)
        return self._engine

    @property
    def engine_name(self) -> str:
        """What runs it; `auto` until it was loaded."""
        return self._engine_name

    def release(self) -> None:
        """Free the model's memory; it is loaded again when needed."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def describe(self) -> dict[str, Any]:
        """What identifies the model and can change its numbers, for the manifest."""
        described = {
            **model_identity(self.name, self.source.revision),
            **self.load().describe(),
            "engine": self._engine_name,
        }
        return described if self.writes is None else {"writes": self.writes, **described}

    def reads(self, row: WaitingRow) -> bool:
        """Whether a row is for this model: it can be scored, and this model wrote it if several teachers are given."""
        return self._is_meant(row) and not self.is_too_long(row)

    def is_too_long(self, row: WaitingRow) -> bool:
        """Whether a row is for this model but longer than it takes; with a tokenizer of its own that shows on rendering."""
        limit = self.renderer.max_model_len
        return (
            self.shares_tokenizer
            and self._is_meant(row)
            and limit is not None
            and len(row.rendered.input_ids_P) > limit
        )

    def _is_meant(self, row: WaitingRow) -> bool:
        return row.rendered.status == OK and self.writes in (None, row.trajectory.teacher)
