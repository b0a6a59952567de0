"""`trajscore score`: a corpus and a student -> a folder of scores.

It joins reading, rendering, engine and files, each of which knows nothing of the others.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from trajscore import __version__
from trajscore.corpus import Chunk, Corpus, FieldNames, SourceOptions, open_corpus
from trajscore.errors import UsageError, did_you_mean
from trajscore.folders import check_folder
from trajscore.rendering import Renderer
from trajscore.schema import OK
from trajscore.shards import Manifest, ScoreFolder, scan
from trajscore.tables import part_table
from trajscore.workflows.passes import Passes, PassOptions, render
from trajscore.workflows.pipeline import Behind, ahead
from trajscore.workflows.roles import RoleModel, WaitingRow
from trajscore.workflows.score_options import ScoreOptions

_LOG = logging.getLogger("trajscore")


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total: int | None, done: int) -> None:
        """The corpus has `total` rows (None when unknown), of which an earlier run finished `done`."""

    def advance(self, rows: int, tokens: int) -> None:
        """The student has read that many more rows and scored tokens; they are kept once their part is written."""


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
        out: folder for the scores.
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
    unknown = sorted(set(options) - {option.name for option in dataclasses.fields(ScoreOptions)})
    if unknown:
        known = [option.name for option in dataclasses.fields(ScoreOptions)]
        raise UsageError(f"score() has no option {unknown[0]!r}.", did_you_mean(unknown[0], known))
    return _run(data, str(student), Path(out), ScoreOptions(**options), progress)


def _run(
    data: str | Path | Sequence[str | Path],
    student_name: str,
    out: Path,
    options: ScoreOptions,
    progress: Progress | None,
) -> ScoreSummary:
    began = time.monotonic()
    check_folder(out)
    student = _role("student", student_name, options)
    corpus = open_corpus(data, _source_options(options))
    _check_logprobs_field(corpus, options.teacher_logprobs)
    _try_first_row(corpus, student.renderer)
    passes = _passes(student, options, out)
    try:
        with ScoreFolder(out, _manifest(passes, options, corpus), overwrite=options.overwrite) as folder:
            done = folder.next_row
            folder.keep_tokenizer(student.renderer.tokenizer_json)
            if done:
                _LOG.info("continuing after %d finished rows", done)
            if progress:
                progress.start(corpus.n_rows, done)
            extra = [*passes.columns(), *(f"student_{name}" for name in options.extra)]
            groups = _groups(corpus.chunks(options.part_rows, start=done), passes, options)
            with Behind() as behind:
                for group in ahead(groups):
                    passes.run([row for _, rows in group for row in rows], progress.advance if progress else None)
                    for chunk, rows in group:
                        behind(_write, folder, chunk, rows, extra, options.storage)
            folder.finish()
            if not done:
                for name in passes.unnamed():
                    _LOG.warning("--teacher %s=...: no row has that teacher", name)
            for reason, count in passes.null_columns().items():
                _LOG.warning("%d rows have null columns: %s", count, reason)
            return _summary(folder, passes, done, time.monotonic() - began, options)
    finally:
        passes.close()


def _write(folder: ScoreFolder, chunk: Chunk, rows: list[WaitingRow], extra: list[str], storage: str) -> None:
    folder.write_part(part_table(chunk.table, [row.finished() for row in rows], extra, storage))


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


def _passes(student: RoleModel, options: ScoreOptions, out: Path) -> Passes:
    teachers = _teachers(options.teacher)
    others = [_role("teacher", name, options, writes, student.renderer) for writes, name in teachers]
    if options.distilled:
        others.append(_role("distilled", options.distilled, options, None, student.renderer))
    budget = int(options.hidden_budget * 2**30)
    what = PassOptions(options.divergence, options.align, options.swap_models, budget, options.unconditional)
    return Passes(student, others, what, out, api_logprobs=options.teacher_logprobs is not None)


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


_Group = list[tuple[Chunk, list[WaitingRow]]]

_ROUND_TOKENS = 20_000_000
"""Tokens whose rows are held in memory while models take turns: some hundred MB."""


def _groups(chunks: Iterator[Chunk], passes: Passes, options: ScoreOptions) -> Iterator[_Group]:
    """Chunks that go through the models together: one, or as many as may leave hidden states on disk."""
    group: _Group = []
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
        if group and (waiting + added > passes.options.hidden_budget or held > _ROUND_TOKENS):
            yield group
            group, waiting, held = [], 0, 0
        group.append((chunk, rows))
        waiting += added
        held += sum(len(row.rendered.input_ids_P) for row in rows)
    if group:
        yield group


def _manifest(passes: Passes, options: ScoreOptions, corpus: Corpus) -> Manifest:
    student = passes.student
    settings: dict[str, Any] = {
        "trajscore": __version__,
        "input": corpus.fingerprint,
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
        settings=settings, environment=environment, input_columns=corpus.schema.names, rows_in=corpus.n_rows
    )


def _source_options(options: ScoreOptions) -> SourceOptions:
    return SourceOptions(
        fields=FieldNames(options.id_field, options.prompt_field, options.teacher_field, options.messages_field),
        limit=options.limit,
        split=options.split,
        config_name=options.config_name,
        streaming=options.streaming,
        revision=options.data_revision,
    )


def _summary(folder: ScoreFolder, passes: Passes, resumed: int, seconds: float, options: ScoreOptions) -> ScoreSummary:
    totals = folder.manifest.totals
    return ScoreSummary(
        out=str(folder.folder),
        rows=totals["rows"],
        scored=totals["scored"],
        refused=totals["refused_by_reason"],
        first_refused=_first_refused(folder.folder) if totals["refused"] else {},
        null_columns=passes.null_columns(),
        tokens=totals["tokens"],
        resumed_rows=resumed,
        seconds=seconds,
        too_many_refused=totals["refused"] > options.max_refused * totals["rows"],
    )


def _first_refused(folder: Path) -> dict[str, str]:
    rows = (
        scan(folder).with_row_index("row").select("row", "id", "status", "status_detail").filter(pl.col("status") != OK)
    )
    first = rows.group_by("status", maintain_order=True).first().collect()
    return {row["status"]: f"row {row['row']}, id {row['id']!r}: {row['status_detail']}" for row in first.to_dicts()}
