"""Score folders, or a LazyFrame, opened but not read: their rows, columns and parts, and that they belong together."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.errors import DataError, UsageError
from trajscore.io.paths import for_arrow
from trajscore.schema import COLUMNS, IDENTITY
from trajscore.scores import Manifest, differences, part_paths, read_manifest, scan, scan_parts

Scores = str | Path | Sequence[str | Path] | pl.LazyFrame
"""Score folders, or a LazyFrame over such rows."""

UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError)
"""What is raised for files that cannot be read; polars panics for some that others wrote (of an unknown time zone, say)."""

OURS = "trajscore."
"""What names of our own columns begin with while metrics are computed, so that no column of a corpus is taken for one."""

_NEEDED = ("id", "prompt_id", "status")
_FOUND = ("teacher", "correct", "messages_from", "scored_messages")

_log = logging.getLogger("trajscore")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turns what polars says about scores that it cannot read into a message.

    Raises:
        DataError: in place of any error of polars or the operating system.
    """
    try:
        yield
    except UNREADABLE as error:
        raise DataError(
            f"the scores cannot be read ({error}).",
            "`trajscore verify` names a damaged part; delete it and run the same `trajscore score` command again.",
        ) from error


@dataclass(frozen=True)
class ScoreSource:
    """Scores, opened but not read.

    Attributes:
        frame: the rows, lazily, in input order.
        columns: types by name.
        paths: the Parquet parts in order; empty for a LazyFrame, whose files are unknown.
        folders: name and number of rows of each folder, in order; empty for a LazyFrame.
        input_columns: the corpus's own columns, in order.
        student: the manifests' `settings["student"]`; None where there is none.
        unfinished: a line for each folder whose scoring has not come to its end.
        renamed: columns that have another name here than in the corpus -> that name.
    """

    frame: pl.LazyFrame
    columns: pl.Schema
    paths: list[Path]
    folders: list[tuple[str, int]]
    input_columns: list[str]
    student: Any
    unfinished: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def part_rows(self) -> list[int]:
        """Number of rows of each part, as the part itself has it."""
        with reading():
            return [_height(path) for path in self.paths]

    def rows_of(self, paths: Sequence[Path]) -> pl.LazyFrame:
        """The rows of some parts, lazily, in order, with the columns and types of all parts together."""
        frames = []
        for _, part in itertools.groupby(paths, lambda path: path.parent):
            frame = scan_parts(list(part))
            present = frame.collect_schema()
            frames.append(frame.select(_fitted(name, dtype, present) for name, dtype in self.columns.items()))
        return pl.concat(frames) if frames else self.frame.clear()

    @property
    def student_name(self) -> str | None:
        """The student's name, None where it is unknown."""
        if isinstance(self.student, dict):
            name = self.student.get("name")
            return None if name is None else str(name)
        return self.student if isinstance(self.student, str) else None

    @property
    def output_columns(self) -> list[str]:
        """What a file of selected rows holds beside metrics: the corpus's columns, `id` and `prompt_id`, and what was found out
        about the rows as they were read: who wrote them, whether they are right, and the conversation that was scored."""
        found = [
            name for name in _FOUND if name in self.columns and (name != "teacher" or "messages_from" in self.columns)
        ]
        return list(dict.fromkeys([*self.input_columns, "id", "prompt_id", *found]))

    def metric_column(self, metric: str) -> str:
        """What a metric is called beside the corpus: its name, or `trajscore_NAME` where a column has that name.

        Token columns that scoring wrote do not count: the metric is their mean, and they are not written out.
        """
        token_column = metric in COLUMNS and COLUMNS[metric].axis != "row" and metric not in self.input_columns
        return f"trajscore_{metric}" if metric in self.columns and not token_column else metric


def _height(path: Path) -> int:
    with for_arrow(path) as source:
        return int(pq.read_metadata(source).num_rows)


def _fitted(name: str, dtype: pl.DataType, present: pl.Schema) -> pl.Expr:
    if present.get(name) == dtype:
        # Without a cast a condition on the column reaches the file's own statistics.
        return pl.col(name)
    return (pl.col(name) if name in present else pl.lit(None)).cast(dtype).alias(name)


def open_scores(scores: Scores) -> ScoreSource:
    """Open scores and check that they belong together.

    Args:
        scores: folders written by `trajscore score`, or a LazyFrame over such rows. In a LazyFrame every column that
            scoring does not write counts as the corpus's own, and so do `id`, `prompt_id` and `teacher`.

    Raises:
        UsageError: a folder holds no scores, folders hold the scores of different students, or the frame is no scores.
        DataError: a part is missing or unreadable.
    """
    if isinstance(scores, pl.LazyFrame):
        columns = _schema(scores)
        own = [name for name in columns if name not in COLUMNS or name in IDENTITY]
        return ScoreSource(scores, columns, [], [], own, None)
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    if not folders:
        raise UsageError("no scores were given.", "Name one or more folders that `trajscore score` wrote.")
    manifests = [read_manifest(folder) for folder in folders]
    _check_students(folders, manifests)
    unfinished = [
        _unfinished(str(folder), each) for folder, each in zip(folders, manifests, strict=True) if not each.complete
    ]
    for line in unfinished:
        _log.warning(line)
    frame = scan(folders)
    pairs = list(zip(folders, manifests, strict=True))
    return ScoreSource(
        frame=frame,
        columns=_schema(frame),
        paths=[path for folder, each in pairs for path in part_paths(folder, each)],
        folders=[(str(folder), each.rows) for folder, each in pairs],
        input_columns=list(dict.fromkeys(name for each in manifests for name in each.input_columns)),
        student=manifests[0].settings.get("student"),
        unfinished=tuple(unfinished),
        renamed={ours: own for each in manifests for own, ours in (each.settings.get("renamed_columns") or {}).items()},
    )


def open_by_student(scores: Scores) -> list[ScoreSource]:
    """Open scores of one or several students: one source each, in the order in which the students first appear.

    Raises:
        UsageError: as `open_scores`, and two students bear the same name but are not the same model.
    """
    if isinstance(scores, pl.LazyFrame):
        return [open_scores(scores)]
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    by_name: dict[str, list[str | Path]] = {}
    for folder in folders:
        student = read_manifest(folder).settings.get("student")
        name = student.get("name") if isinstance(student, dict) else student
        by_name.setdefault(str(name), []).append(folder)
    return [open_scores(each) for each in by_name.values()] if folders else [open_scores(folders)]


def _unfinished(folder: str, manifest: Manifest) -> str:
    of = "" if manifest.rows_in is None else f" of {manifest.rows_in}"
    return (
        f"{folder}: scoring has not finished, {manifest.rows} rows{of} are there; repeat the `trajscore score` command"
    )


def _check_students(folders: Sequence[str | Path], manifests: Sequence[Manifest]) -> None:
    first = manifests[0].settings.get("student")
    for folder, manifest in zip(folders, manifests, strict=True):
        student = manifest.settings.get("student")
        if student != first:
            lines = differences({"student": first}, {"student": student})
            raise UsageError(
                f"{folders[0]} and {folder} were not scored by the same student:\n  " + "\n  ".join(lines),
                "Such scores do not compare: give folders of one student.",
            )


def _schema(frame: pl.LazyFrame) -> pl.Schema:
    try:
        columns = frame.collect_schema()
    except UNREADABLE as error:
        raise DataError(
            f"the scores cannot be read together ({error}).",
            "`trajscore verify` names a damaged part; if there is none, give the folders one by one.",
        ) from error
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise UsageError(f"the rows have no column {missing[0]!r}.", "Give what `trajscore score` wrote.")
    ours = [name for name in columns if name.startswith(OURS)]
    if ours:
        raise UsageError(
            f"the rows have a column {ours[0]!r}: names that begin with {OURS!r} are ours while metrics are computed.",
            "Rename it in the corpus and score again, or pass a LazyFrame in which it is renamed.",
        )
    return columns
