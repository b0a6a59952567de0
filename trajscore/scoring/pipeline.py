"""The steps from a corpus to parts: chunks are rendered, read by the models, made into tables, and handed to a writer.

A run in this process, each worker of Ray and the timing of a dry run go through here, with a few chunks on the way at a time.
Each step is a file of its own: `rows` renders, `passes` runs the models, `part_table` makes tables, `scores.part_files` writes
them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from trajscore.corpus import Chunk, Corpus
from trajscore.errors import UsageError, did_you_mean
from trajscore.scores import Manifest, ScoreFolder
from trajscore.scoring.background import BackgroundWriter, prefetch
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.part_table import part_table
from trajscore.scoring.passes import Passes
from trajscore.scoring.reuse import OlderScores, with_keys
from trajscore.scoring.rows import ScoredRow, render

_LOG = logging.getLogger("trajscore")

ROUND_TOKENS = 20_000_000
"""Tokens whose rows are held in memory while models take turns: some hundred MB."""

Rendered = tuple[Chunk, list[ScoredRow]]
"""A part on its way: the rows as they were read, and what is known of each."""


class Finished(NamedTuple):
    """What is known when the last part was written: the manifest, why models have null columns, rows whose text is another than
    their token ids, rows of earlier runs."""

    manifest: Manifest
    null_columns: dict[str, int]
    other_texts: int
    resumed_rows: int


def open_passes(
    student: RoleModel, corpus: Corpus, options: ScoreOptions, scratch: Path, replies: Path | None = None
) -> Passes:
    """The models of a run over a corpus, none of them in memory yet.

    Args:
        student: the student.
        corpus: what they will read.
        options: every setting.
        scratch: file in which hidden states may wait.
        replies: where replies of servers are kept, the beginning of files' names; None keeps none.

    Raises:
        UsageError: a model or an option that does not fit, or a tokenizer without a chat template.
    """
    name, known = options.teacher_logprobs, corpus.schema.names
    if name is not None and name not in known:
        raise UsageError(f"--teacher-logprobs {name}: the corpus has no such column.", did_you_mean(name, known))
    _try_first_row(corpus, student)
    return Passes(student, options, scratch, replies)


@contextlib.contextmanager
def saying_what_is_kept(folder: ScoreFolder, rows: int | None) -> Iterator[None]:
    """If a run is stopped or fails, say how many rows are safe."""
    try:
        yield
    except BaseException:
        total = "" if rows is None else f" of {rows:,}"
        _LOG.warning("%s%s rows are safe; the same command goes on from there", f"{folder.finished_rows:,}", total)
        raise


def score_parts(
    chunks: Iterator[Chunk],
    passes: Passes,
    write: Callable[[int, pa.Table], Any],
    progress: Callable[[int, int], None] | None = None,
    older: OlderScores | None = None,
) -> None:
    """Score chunks, each of which becomes a part.

    The next chunks are read and rendered, and the last ones written, while the models compute.

    Args:
        chunks: of `part_rows` rows each, the corpus's last one perhaps fewer.
        passes: the models.
        write: called in order, in another thread, with the number of the part and its table.
        progress: told rows and scored tokens that the student has read since the last call.
        older: scores from which rows are copied.
    """

    def write_part(chunk: Chunk, rows: list[ScoredRow]) -> None:
        write(chunk.first_row // passes.options.part_rows, table_of(chunk, rows, passes))

    with BackgroundWriter() as in_background:
        for round_ in prefetch(rounds(chunks, passes, older)):
            together = [row for _, rows in round_ for row in rows]
            left = [row for row in together if not row.copied]
            if progress and len(left) < len(together):
                progress(len(together) - len(left), 0)
            passes.run(left, progress)
            for chunk, rows in round_:
                in_background(write_part, chunk, rows)


def table_of(chunk: Chunk, rows: list[ScoredRow], passes: Passes) -> pa.Table:
    """The table of a part, once all models have read its rows."""
    columns = [*passes.columns(), *chunk.added_columns]
    table = part_table(chunk.table, rows, columns, passes.options.storage, chunk.renamed, passes.absent())
    return with_keys(table, rows)


def rounds(chunks: Iterator[Chunk], passes: Passes, older: OlderScores | None = None) -> Iterator[list[Rendered]]:
    """Rendered chunks that go through the models together: one, or where models take turns as many as there is room for.

    Rows that older scores hold have their values already.

    Raises:
        UsageError: what a single chunk leaves on disk is more than `--hidden-budget`.
    """
    together: list[Rendered] = []
    waiting = held = 0
    for chunk in chunks:
        rows = passes.rows_of(chunk)
        if older is not None:
            older.copy_into(rows)
        added = passes.waiting_bytes([row for row in rows if not row.copied])
        if error := over_budget(passes, len(rows), added):
            raise error
        if not passes.takes_turns:
            yield [(chunk, rows)]
            continue
        if together and (waiting + added > passes.budget_bytes or held > ROUND_TOKENS):
            yield together
            together, waiting, held = [], 0, 0
        together.append((chunk, rows))
        waiting += added
        held += sum(len(row.rendered.input_ids_P) for row in rows)
    if together:
        yield together


def over_budget(passes: Passes, rows: int, waiting: float) -> UsageError | None:
    """Why a part of so many rows, of which so many bytes wait on disk, cannot be scored; None where it can."""
    if waiting <= passes.budget_bytes:
        return None
    return UsageError(
        f"--hidden-budget {passes.options.hidden_budget:g}: hidden states of {rows} rows take {waiting / 2**30:.3g} GiB.",
        "Give a larger budget, or fewer --part-rows in a new folder.",
    )


def _try_first_row(corpus: Corpus, student: RoleModel) -> None:
    """Render one row, so that a tokenizer without a chat template stops the run before the model is loaded."""
    renderer = student.renderer
    for chunk in corpus.chunks(1 if renderer.has_template else 1000):
        for trajectory in chunk.trajectories:
            if trajectory.messages is not None or renderer.has_template:
                render(trajectory, renderer)
                return
