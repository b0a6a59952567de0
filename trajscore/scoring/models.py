"""The models of one run and what they make of parts of a corpus. It knows reading, rendering and engines; no folder of scores.

One process scores with it into a folder, or each of many workers some parts.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from trajscore import __version__
from trajscore.corpus import Chunk, Corpus, FieldNames, SourceOptions
from trajscore.errors import UsageError, did_you_mean
from trajscore.rendering.renderer import Renderer
from trajscore.scores import Manifest
from trajscore.scoring.background import Behind, ahead
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.part_table import part_table
from trajscore.scoring.passes import Passes, PassOptions, render
from trajscore.scoring.roles import RoleModel, WaitingRow


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total: int | None, done: int) -> None:
        """The corpus has `total` rows (None when unknown), of which an earlier run finished `done`."""

    def advance(self, rows: int, tokens: int) -> None:
        """The student has read that many more rows and scored tokens; they are kept once their part is written."""


class Scoring:
    """Student, teachers and distilled model, ready to score parts of a corpus.

    Args:
        student: the student, see `student_role`.
        corpus: what is scored.
        options: every setting.
        scratch: file in which hidden states may wait.

    Raises:
        UsageError: a model or an option that does not fit.
    """

    def __init__(self, student: RoleModel, corpus: Corpus, options: ScoreOptions, scratch: Path) -> None:
        self.corpus, self.options = corpus, options
        _check_logprobs_field(corpus, options.teacher_logprobs)
        _try_first_row(corpus, student.renderer)
        self.passes = _passes(student, options, scratch)

    @property
    def tokenizer_json(self) -> str:
        """The student's tokenizer."""
        return self.passes.student.renderer.tokenizer_json

    def table(self, chunk: Chunk, rows: Sequence[WaitingRow]) -> pa.Table:
        """The table of a part, of rows that all models have read."""
        extra = [*self.passes.columns(), *(f"student_{name}" for name in self.options.extra)]
        return part_table(chunk.table, [row.finished() for row in rows], extra, self.options.storage)

    def run(
        self,
        chunks: Iterator[Chunk],
        write: Callable[[int, pa.Table], Any],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Score chunks, each of which becomes a part.

        The next chunks are read, and the last ones written, while the models compute.

        Args:
            chunks: of `part_rows` rows each, the corpus's last one perhaps fewer.
            write: called in order, in another thread, with the number of the part and its table.
            progress: told rows and scored tokens that the student has read since the last call.
        """

        def finish(chunk: Chunk, rows: list[WaitingRow]) -> None:
            write(chunk.first_row // self.options.part_rows, self.table(chunk, rows))

        with Behind() as behind:
            for group in ahead(groups_of(chunks, self.passes, self.options)):
                self.passes.run([row for _, rows in group for row in rows], progress)
                for chunk, rows in group:
                    behind(finish, chunk, rows)

    def manifest(self) -> Manifest:
        """The manifest of a run with these models and settings, without parts. Loads the models."""
        passes, options = self.passes, self.options
        student = passes.student
        settings: dict[str, Any] = {
            "trajscore": __version__,
            "input": self.corpus.fingerprint,
            "limit": options.limit,
            "student": student.describe(),
            "rendering": student.renderer.describe(),
            "fields": {name: getattr(options, f"{name}_field") for name in ("id", "prompt", "teacher", "messages")},
            "extra": list(options.extra),
            "unconditional": options.unconditional,
            "part_rows": options.part_rows,
        }
        if options.storage != "float32":
            settings["storage"] = options.storage
        environment = {
            "python": platform.python_version(),
            "machine": platform.platform(),
            **student.load().environment(),
        }
        if passes.takes_turns:
            student.release()
        if passes.others:
            settings |= {"divergence": options.divergence, "align": options.align}
        described = []
        # From the last to the first: where models take turns, the first is the next to run and stays.
        for model in reversed(passes.others):
            described.append(model.describe())
            if passes.takes_turns and model is not passes.others[0]:
                model.release()
        if described:
            settings["others"] = described[::-1]
        if options.teacher_logprobs:
            settings["teacher_logprobs"] = options.teacher_logprobs
        return Manifest(
            settings=settings,
            environment=environment,
            input_columns=self.corpus.schema.names,
            rows_in=self.corpus.n_rows,
        )

    def close(self) -> None:
        """Free all models."""
        self.passes.close()


def student_role(name: str, options: ScoreOptions) -> RoleModel:
    """The student: its tokenizer is loaded, its weights are not."""
    return _role("student", name, options)


def source_options(options: ScoreOptions) -> SourceOptions:
    """How the corpus is read."""
    return SourceOptions(
        fields=FieldNames(options.id_field, options.prompt_field, options.teacher_field, options.messages_field),
        limit=options.limit,
        split=options.split,
        config_name=options.config_name,
        streaming=options.streaming,
        revision=options.data_revision,
    )


def _try_first_row(corpus: Corpus, renderer: Renderer) -> None:
    """Render one row, so that a tokenizer without a chat template stops the run before the model is loaded."""
    for chunk in corpus.chunks(1 if renderer.has_template else 1000):
        for trajectory in chunk.trajectories:
            if trajectory.messages is not None or renderer.has_template:
                render(trajectory, renderer)
                return


def _check_logprobs_field(corpus: Corpus, name: str | None) -> None:
    if name is not None and name not in corpus.schema.names:
        raise UsageError(
            f"--teacher-logprobs {name}: the corpus has no such column.", did_you_mean(name, corpus.schema.names)
        )


def _role(
    role: str, name: str, options: ScoreOptions, writes: str | None = None, beside: Renderer | None = None
) -> RoleModel:
    # A template that was given is the student's; a model with a tokenizer of its own brings its own.
    # It reads all that it is given or nothing: a text cut elsewhere would not compare.
    rendering = options if role == "student" else dataclasses.replace(options, chat_template=None, on_overlong="refuse")
    return RoleModel(
        role,
        name,
        options,
        rendering,
        engine=options.engine,
        revision=options.revision if role == "student" else None,
        writes=writes,
        student=beside,
    )


def _passes(student: RoleModel, options: ScoreOptions, scratch: Path) -> Passes:
    teachers = _teachers(options.teacher)
    others = [_role("teacher", name, options, writes, student.renderer) for writes, name in teachers]
    if options.distilled:
        others.append(_role("distilled", options.distilled, options, None, student.renderer))
    budget = int(options.hidden_budget * 2**30)
    what = PassOptions(options.divergence, options.align, options.swap_models, budget, options.unconditional)
    return Passes(student, others, what, scratch, api_logprobs=options.teacher_logprobs is not None)


def _teachers(given: Sequence[str]) -> list[tuple[str | None, str]]:
    """(value of the row's `teacher` or None for all rows, model) of each --teacher."""
    if len(given) == 1 and ("=" not in given[0] or Path(given[0]).is_dir()):
        return [(None, given[0])]
    pairs = [tuple(text.split("=", 1)) for text in given]
    names = [pair[0] for pair in pairs]
    if any(len(pair) != 2 or not all(pair) for pair in pairs) or len(set(names)) != len(names):
        raise UsageError(
            f"--teacher {' '.join(given)}: several teachers are told apart by the rows they wrote.",
            "Give one model for all rows, or NAME=MODEL for each different value of the row's `teacher`.",
        )
    return [(pair[0], pair[1]) for pair in pairs]


Group = list[tuple[Chunk, list[WaitingRow]]]

ROUND_TOKENS = 20_000_000
"""Tokens whose rows are held in memory while models take turns: some hundred MB."""


def groups_of(chunks: Iterator[Chunk], passes: Passes, options: ScoreOptions) -> Iterator[Group]:
    """Chunks that go through the models together: one, or as many as may leave hidden states on disk."""
    group: Group = []
    waiting = held = 0
    for chunk in chunks:
        given = (
            chunk.table[options.teacher_logprobs].to_pylist()
            if options.teacher_logprobs
            else [None] * chunk.table.num_rows
        )
        rows = [
            WaitingRow(trajectory, render(trajectory, passes.student.renderer), api_logprobs=value)
            for trajectory, value in zip(chunk.trajectories, given, strict=True)
        ]
        added = passes.waiting_bytes(rows)
        if added > passes.options.hidden_budget:
            raise UsageError(
                f"--hidden-budget {options.hidden_budget:g}: hidden states of {len(rows)} rows take {added / 2**30:.3g} GiB.",
                "Give a larger budget, or fewer --part-rows in a new folder.",
            )
        if not passes.takes_turns:
            yield [(chunk, rows)]
            continue
        if group and (waiting + added > passes.options.hidden_budget or held > ROUND_TOKENS):
            yield group
            group, waiting, held = [], 0, 0
        group.append((chunk, rows))
        waiting += added
        held += sum(len(row.rendered.input_ids_P) for row in rows)
    if group:
        yield group
