"""`trajscore score`: a corpus and a student -> a folder of scores.

Read top to bottom: the corpus is opened, the models are described, the folder is opened, `pipeline.score_parts` renders the
missing rows, lets the models read them and writes a part for every `part_rows` of them, and the parts are summed up. Ray does
the same in many workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow.parquet as pq

from trajscore.corpus import Chunk, Corpus, FieldNames, SourceOptions, open_corpus
from trajscore.display.charts import Axis, bars
from trajscore.display.notebook import Shown
from trajscore.errors import UsageError
from trajscore.io.atomic import TEMPORARY
from trajscore.io.outputs import check_folder, spare_inputs_of
from trajscore.io.paths import as_path, for_arrow, is_remote
from trajscore.options import keywords_of
from trajscore.scores import Manifest, ScoreFolder, Shard, refuse_foreign, scan
from trajscore.scoring.models import RoleModel
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import Finished, open_passes, saying_what_is_kept, score_parts
from trajscore.scoring.ray_workers import RayRun, score_on_ray
from trajscore.scoring.reuse import OlderScores, naming, open_older
from trajscore.scoring.settings import run_manifest

_LOG = logging.getLogger("trajscore")


@dataclass(frozen=True, repr=False)
class ScoreSummary(Shown):
    """What a run of `score` did.

    Attributes:
        out: the folder.
        rows: rows of the corpus in finished parts, of this and earlier runs.
        scored: rows with statistics.
        refused: refused rows by status.
        null_columns: why a teacher or distilled model has null columns -> rows that this run left so.
        other_texts: rows of this run with token ids that say something else than the text beside them.
        tokens: scored tokens.
        first_refused: refused rows by status: number (from 0) and id of the first one, and what was wrong with it.
        resumed_rows: rows that an earlier run had finished.
        copied_rows: rows that were copied from older scores, of this and earlier runs.
        seconds: time of this run, loading included.
        too_many_refused: whether more rows were refused than `max_refused` allows.
        columns: for each kind of row which columns became what, and which were not read; see `corpus.Corpus.columns`.
    """

    out: str
    rows: int
    scored: int
    refused: dict[str, int]
    first_refused: dict[str, str]
    null_columns: dict[str, int]
    other_texts: int
    tokens: int
    resumed_rows: int
    copied_rows: int
    seconds: float
    too_many_refused: bool
    columns: list[dict[str, Any]]

    @property
    def frame(self) -> pl.LazyFrame:
        """The scores, lazily, as `ts.scan` gives them."""
        return scan(self.out)

    @property
    def line(self) -> str:
        """Rows scored and refused, tokens, time, and where the scores are."""
        refused = sum(self.refused.values())
        reasons = ", ".join(f"{count:,} {status}" for status, count in self.refused.items())
        copied = f", {self.copied_rows:,} rows copied" if self.copied_rows else ""
        return (
            f"{self.rows:,} rows = {self.scored:,} scored + {refused:,} refused{f' ({reasons})' if reasons else ''}, "
            f"{self.tokens:,} tokens{copied}, {self.seconds:.1f} s -> {self.out}"
        )

    def lines(self) -> list[str]:
        """The line that the command prints, and the first refused row of each status."""
        first = (f"{status}: {self.refused[status]:,}, first {row}" for status, row in self.first_refused.items())
        return [f"Scores: {self.line}", *first]

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """`rows`: how many were scored, and refused by status."""
        return {"rows": self._draw_rows}

    def _draw_rows(self) -> Any:
        counts = {"scored": self.scored, **self.refused}
        rows = [{"name": name, "value": count, "low": None, "high": None} for name, count in counts.items()]
        axis = Axis(0.0, max(1.0, *counts.values()), "rows", whole=True)
        return bars(rows, axis, "Rows of the corpus, scored and refused")

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return dataclasses.asdict(self)


@keywords_of(ScoreOptions)
def score(options: ScoreOptions) -> ScoreSummary:
    """Add per-token statistics of a student to a corpus. Repeating a call continues where the last one stopped.

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
    began = time.monotonic()
    folder, model, corpus = open_run(options)
    corpus.say()
    if options.ray:
        finished = score_on_ray(
            RayRun(options.replaced(progress=None), corpus, folder, str(Path.cwd())), options.progress
        )
    else:
        finished = _score_here(model, corpus, folder, options)
    for reason, count in finished.null_columns.items():
        _LOG.warning("%d rows have null columns: %s", count, reason)
    if finished.other_texts and not options.strict_text:
        _LOG.warning(
            "%d rows have text that is not what their token ids say; the ids were scored, and status_detail marks the rows",
            finished.other_texts,
        )
    return _summary(folder, finished, time.monotonic() - began, options.max_refused)


class OpenRun(NamedTuple):
    """Where scores go, the student, not loaded yet, and the corpus."""

    folder: Path
    student: RoleModel
    corpus: Corpus


def open_run(options: ScoreOptions) -> OpenRun:
    """What every run begins with; nothing is written or loaded.

    Raises:
        UsageError, DataError: as `score` says, but for what only the models can tell.
    """
    spare_inputs_of(options)
    folder = as_path(options.out)
    check_folder(folder)
    refuse_foreign(folder, options.overwrite, options.keep_foreign)
    if options.shard:
        Shard.parse(options.shard)
    student = RoleModel("student", str(options.student), options)
    corpus = open_corpus(options.data, _source_options(options, student))
    if corpus.n_rows is None and (options.shard or options.ray):
        flag = "--shard" if options.shard else "--ray"
        raise UsageError(f"--streaming and {flag} cannot be used together: the number of rows is not known.")
    return OpenRun(folder, student, corpus)


def _score_here(student: RoleModel, corpus: Corpus, out: Path, options: ScoreOptions) -> Finished:
    """Score what is missing in a folder, or one shard of it, with the models in this process."""
    progress = options.progress
    shard = Shard.parse(options.shard) if options.shard else None
    replies = None if is_remote(out) else out / f".server-replies{_of_shard(shard)}"
    with (
        scratch_file(out, shard) as scratch,
        contextlib.closing(open_passes(student, corpus, options, scratch, replies)) as passes,
        _open_folder(out, corpus, passes, shard) as (folder, older),
    ):
        done = folder.finished_rows
        folder.keep_tokenizer(student.renderer.tokenizer_json)
        if options.overwrite and not done:
            passes.forget_replies()
        if done:
            _LOG.info("continuing after %d finished rows", done)
        if progress:
            progress.start(folder.rows_of(corpus.n_rows), done)
        with saying_what_is_kept(folder, folder.rows_of(corpus.n_rows)):
            score_parts(
                _missing_chunks(corpus, folder, options.part_rows),
                passes,
                lambda number, table: folder.write_part(table, number),
                progress.advance if progress else None,
                older,
            )
        folder.finish()
        passes.forget_replies()
        if not done and not shard:
            for name in passes.authors_not_met():
                _LOG.warning("--teacher %s=...: no row has that teacher", name)
        return Finished(folder.manifest, passes.null_columns(), passes.other_texts, done)


@contextlib.contextmanager
def _open_folder(
    out: Path, corpus: Corpus, passes: Passes, shard: Shard | None
) -> Iterator[tuple[ScoreFolder, OlderScores | None]]:
    """The folder to write, and the older one from which rows are copied, which the manifest names."""
    options, manifest = passes.options, run_manifest(corpus, passes)
    older = open_older(options, manifest, passes.made_by_models())
    with ScoreFolder(out, naming(manifest, older), options.overwrite, shard, options.break_lock) as folder:
        yield folder, older


def _missing_chunks(corpus: Corpus, folder: ScoreFolder, part_rows: int) -> Iterator[Chunk]:
    """The rows of each part that is still to be written."""
    if corpus.n_rows is None:
        return corpus.chunks(part_rows, start=folder.finished_rows)
    return corpus.parts(part_rows, folder.missing(corpus.n_rows))


def _source_options(options: ScoreOptions, student: RoleModel) -> SourceOptions:
    """How the corpus is read."""
    fields = FieldNames(
        **{name: getattr(options, f"{name}_field") for name in FieldNames.COLUMNS},
        ignored=tuple(name for name in (options.ignore_columns or "").split(",") if name),
        prompt_by=options.prompt_by,
    )
    return SourceOptions(
        fields=fields,
        limit=options.limit,
        split=options.split,
        config_name=options.config_name,
        streaming=options.streaming,
        revision=options.data_revision,
        teacher_from=options.teacher_from,
        id_from=options.id_from,
        correct_at=options.correct_at,
        rendered=options.rendered,
        marks=student.renderer.rendered_marks(),
    )


@contextlib.contextmanager
def scratch_file(out: Path, shard: Shard | None = None) -> Iterator[Path]:
    """A file in which hidden states may wait: in the folder of the scores, or on this machine if that is remote."""
    name = f".hidden-states{_of_shard(shard)}{TEMPORARY}"
    if not is_remote(out):
        yield out / name
        return
    with tempfile.TemporaryDirectory(prefix="trajscore-") as folder:
        yield Path(folder) / name


def _of_shard(shard: Shard | None) -> str:
    return f"-{shard.index:05d}" if shard else ""


def _summary(out: Path, finished: Finished, seconds: float, max_refused: float) -> ScoreSummary:
    totals = finished.manifest.totals
    return ScoreSummary(
        out=str(out),
        rows=totals["rows"],
        scored=totals["scored"],
        refused=totals["refused_by_reason"],
        first_refused=_first_refused(out, finished.manifest),
        null_columns=finished.null_columns,
        other_texts=finished.other_texts,
        tokens=totals["tokens"],
        resumed_rows=finished.resumed_rows,
        copied_rows=totals["copied"],
        seconds=seconds,
        too_many_refused=totals["refused"] > max_refused * totals["rows"],
        columns=finished.manifest.settings.get("columns", []),
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
