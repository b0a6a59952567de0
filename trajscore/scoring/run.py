"""`trajscore score`: a corpus and a student -> a folder of scores.

It joins reading, rendering, engine and files, each of which knows nothing of the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trajscore.corpus import Chunk, Corpus, open_corpus
from trajscore.errors import UsageError
from trajscore.io.folders import check_folder
from trajscore.io.paths import TEMPORARY, for_arrow, is_remote, place
from trajscore.scores import Manifest, ScoreFolder, Shard
from trajscore.scoring.models import Progress, Scoring, source_options, student_role
from trajscore.scoring.options import ScoreOptions, score_options
from trajscore.scoring.ray_workers import Job, score_on_ray

_LOG = logging.getLogger("trajscore")


@dataclass(frozen=True)
class ScoreSummary:
    """What a run of `score` did.

    Attributes:
        out: the folder.
        rows: rows of the corpus in finished parts, of this and earlier runs.
        scored: rows with statistics.
        refused: refused rows by status.
        null_columns: why a teacher or distilled model has null columns -> rows that this run left so.
        tokens: scored tokens.
        first_refused: refused rows by status: number (from 0) and id of the first one, and what was wrong with it.
        resumed_rows: rows that an earlier run had finished.
        seconds: time of this run, loading included.
        too_many_refused: whether more rows were refused than `max_refused` allows.
    """

    out: str
    rows: int
    scored: int
    refused: dict[str, int]
    first_refused: dict[str, str]
    null_columns: dict[str, int]
    tokens: int
    resumed_rows: int
    seconds: float
    too_many_refused: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return dataclasses.asdict(self)


def score(
    data: str | Path | Sequence[str | Path],
    student: str | Path,
    out: str | Path,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> ScoreSummary:
    """Add per-token statistics of a student to a corpus. Repeating a call continues where the last one stopped.

    Args:
        data: JSONL, JSON or Parquet files, folders, globs, or a hub data set.
        student: hub id or folder of a causal language model with safetensors weights.
        out: folder for the scores, local or remote (s3://, gs://).
        progress: told how far the run is.
        **options: fields of `ScoreOptions`.

    Returns:
        Row accounting: rows = scored + refused.

    Raises:
        UsageError: a wrong option, path, model, or a folder with scores of other settings.
        DataError: an input file is broken.
        EngineError: the model fails.

    Example:
        >>> import trajscore as ts
        >>> ts.score("data/trajectories.jsonl", student="data/models/student", out="scores")  # doctest: +SKIP
    """
    return _run(data, str(student), place(out), score_options("score", options), progress)


def _run(
    data: str | Path | Sequence[str | Path],
    student_name: str,
    out: Path,
    options: ScoreOptions,
    progress: Progress | None,
) -> ScoreSummary:
    began = time.monotonic()
    check_folder(out)
    shard = Shard.parse(options.shard) if options.shard else None
    if shard and options.ray:
        raise UsageError(
            "--shard and --ray cannot be used together.", "Ray divides the parts among its workers itself."
        )
    student = student_role(student_name, options)
    corpus = open_corpus(data, source_options(options))
    if corpus.n_rows is None and (shard or options.ray):
        flag = "--shard" if shard else "--ray"
        raise UsageError(f"--streaming and {flag} cannot be used together: the number of rows is not known.")
    if options.ray:
        job = Job(student_name, options, corpus, out, str(Path.cwd()))
        manifest, null_columns, done = score_on_ray(job, progress)
        _warn(null_columns)
        return _summary(out, manifest, null_columns, done, time.monotonic() - began, options)
    with scratch_file(out, shard) as scratch:
        scoring = Scoring(student, corpus, options, scratch)
        try:
            with ScoreFolder(out, scoring.manifest(), options.overwrite, shard) as folder:
                done = folder.finished_rows
                folder.keep_tokenizer(scoring.tokenizer_json)
                if done:
                    _LOG.info("continuing after %d finished rows", done)
                if progress:
                    progress.start(folder.rows_of(corpus.n_rows), done)
                scoring.run(
                    _chunks(corpus, folder, options),
                    lambda number, table: folder.write_part(table, number),
                    progress.advance if progress else None,
                )
                folder.finish()
                if not done and not shard:
                    for name in scoring.passes.unnamed():
                        _LOG.warning("--teacher %s=...: no row has that teacher", name)
                null_columns = scoring.passes.null_columns()
                _warn(null_columns)
                return _summary(out, folder.manifest, null_columns, done, time.monotonic() - began, options)
        finally:
            scoring.close()


def _chunks(corpus: Corpus, folder: ScoreFolder, options: ScoreOptions) -> Iterator[Chunk]:
    if corpus.n_rows is None:
        return corpus.chunks(options.part_rows, start=folder.finished_rows)
    return corpus.parts(options.part_rows, folder.missing(corpus.n_rows))


@contextlib.contextmanager
def scratch_file(out: Path, shard: Shard | None = None) -> Iterator[Path]:
    """A file in which hidden states may wait: in the folder of the scores, or on this machine if that is remote."""
    name = f".hidden-states{f'-{shard.index:05d}' if shard else ''}{TEMPORARY}"
    if not is_remote(out):
        yield out / name
        return
    with tempfile.TemporaryDirectory(prefix="trajscore-") as folder:
        yield Path(folder) / name


def _warn(null_columns: dict[str, int]) -> None:
    for reason, count in null_columns.items():
        _LOG.warning("%d rows have null columns: %s", count, reason)


def _summary(
    out: Path,
    manifest: Manifest,
    null_columns: dict[str, int],
    resumed: int,
    seconds: float,
    options: ScoreOptions,
) -> ScoreSummary:
    totals = manifest.totals
    return ScoreSummary(
        out=str(out),
        rows=totals["rows"],
        scored=totals["scored"],
        refused=totals["refused_by_reason"],
        first_refused=_first_refused(out, manifest),
        null_columns=null_columns,
        tokens=totals["tokens"],
        resumed_rows=resumed,
        seconds=seconds,
        too_many_refused=totals["refused"] > options.max_refused * totals["rows"],
    )


def _first_refused(out: Path, manifest: Manifest) -> dict[str, str]:
    """The first refused row of each status."""
    wanted, found = set(manifest.refused), dict[str, str]()
    for part in manifest.parts:
        if not wanted & part.refused.keys():
            continue
        with for_arrow(out / part.file) as source:
            rows = pq.read_table(source, columns=["id", "status", "status_detail"]).to_pylist()
        for number, row in enumerate(rows, part.first_row):
            if row["status"] in wanted:
                wanted.remove(row["status"])
                found[row["status"]] = f"row {number}, id {row['id']!r}: {row['status_detail']}"
    return found
