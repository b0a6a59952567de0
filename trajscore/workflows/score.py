"""`trajscore score`: a corpus and a student -> a folder of scores.

It joins reading, rendering, engine and files, each of which knows nothing of the others.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from trajscore import __version__
from trajscore.corpus import Chunk, Corpus, FieldNames, SourceOptions, Trajectory, open_corpus
from trajscore.engines import ENGINES, Engine, EngineOptions, ModelSource, TokenScores, TokenSequence, load_engine
from trajscore.errors import UsageError, did_you_mean
from trajscore.fingerprint import model_identity
from trajscore.folders import check_folder
from trajscore.rendering import Rendered, Renderer, RenderOptions, refused
from trajscore.schema import OK
from trajscore.shards import Manifest, ScoreFolder, scan
from trajscore.tables import ScoredRow, part_table

_LOG = logging.getLogger("trajscore")


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total: int | None, done: int) -> None:
        """The corpus has `total` rows (None when unknown), of which an earlier run finished `done`."""

    def advance(self, rows: int, tokens: int) -> None:
        """A part of that many rows and scored tokens is finished."""


@dataclass(frozen=True)
class ScoreOptions(EngineOptions, RenderOptions):
    """Everything `score` can be told besides data, student and folder: how the model runs (`engines.EngineOptions`), how
    conversations become tokens (`rendering.RenderOptions`), and the following. Defaults are those of the command line.

    Attributes:
        engine: `auto` or a name of `engines.ENGINES`.
        revision: hub revision of the student.
        extra: optional columns to write: `collision`.
        part_rows: rows per part.
        overwrite: start anew in a folder that holds scores.
        max_refused: share of refused rows above which the run counts as finished badly (exit code 3).
        limit: score only the first rows.
        split: split of a hub data set.
        config_name: configuration of a hub data set.
        data_revision: revision of a hub data set.
        streaming: do not download a hub data set first.
        id_field: column used for `id`.
        prompt_field: column that identifies the prompt.
        teacher_field: column used for `teacher`.
        messages_field: column used for `messages`.
    """

    engine: str = "auto"
    revision: str | None = None
    extra: Sequence[str] = ()
    part_rows: int = 500
    overwrite: bool = False
    max_refused: float = 0.05
    limit: int | None = None
    split: str = "train"
    config_name: str | None = None
    data_revision: str | None = None
    streaming: bool = False
    id_field: str | None = None
    prompt_field: str | None = None
    teacher_field: str | None = None
    messages_field: str | None = None

    def __post_init__(self) -> None:
        _allow("--turns", self.turns, ("all", "last"))
        _allow("--on-overlong", self.on_overlong, ("refuse", "truncate"))
        _allow("--on-lost-text", self.on_lost_text, ("refuse", "accept"))
        _allow("--dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        for name in self.extra:
            _allow("--extra", name, ("collision",))
        for name in ("part_rows", "max_num_batched_tokens", "max_model_len", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1.")
        _allow("--engine", self.engine, ("auto", *ENGINES))
        if not 0 <= self.max_refused <= 1:
            raise UsageError(f"--max-refused {self.max_refused}: a share between 0 and 1 is needed.")


@dataclass(frozen=True)
class ScoreSummary:
    """What a run of `score` did.

    Attributes:
        out: the folder.
        rows: rows of the corpus in finished parts, of this and earlier runs.
        scored: rows with statistics.
        refused: refused rows by status.
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
        progress: told how far the run is, part by part.
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
    student: str,
    out: Path,
    options: ScoreOptions,
    progress: Progress | None,
) -> ScoreSummary:
    began = time.monotonic()
    check_folder(out)
    renderer = Renderer(student, options, revision=options.revision, trust_remote_code=options.trust_remote_code)
    corpus = open_corpus(data, _source_options(options))
    _try_first_row(corpus, renderer)
    model = ModelSource(student, renderer.vocabulary, options.revision)
    name, engine = load_engine(options.engine, model, options)
    try:
        _limit_length(student, renderer, engine)
        manifest = _manifest(model, options, corpus, renderer, name, engine)
        with ScoreFolder(out, manifest, overwrite=options.overwrite) as folder:
            done = folder.next_row
            if done:
                _LOG.info("continuing after %d finished rows", done)
            if progress:
                progress.start(corpus.n_rows, done)
            for chunk in corpus.chunks(options.part_rows, start=done):
                part = folder.write_part(_score_chunk(chunk, renderer, engine, options.extra))
                if progress:
                    progress.advance(part.rows, part.tokens)
            folder.finish()
            return _summary(folder, done, time.monotonic() - began, options)
    finally:
        engine.close()


def _try_first_row(corpus: Corpus, renderer: Renderer) -> None:
    """Render one row, so that a tokenizer without a chat template stops the run before the model is loaded."""
    for chunk in corpus.chunks(1):
        _render(chunk.trajectories[0], renderer)
        return


def _score_chunk(chunk: Chunk, renderer: Renderer, engine: Engine, extra: Sequence[str]) -> pa.Table:
    from trajscore.engines.reductions import token_scores

    rendered = [_render(trajectory, renderer) for trajectory in chunk.trajectories]
    to_score = [index for index, row in enumerate(rendered) if row.status == OK]
    sequences = [TokenSequence(rendered[index].input_ids_P, rendered[index].positions_N) for index in to_score]
    scores: list[TokenScores | None] = [None] * len(rendered)
    for index, found in engine.run(sequences, token_scores):
        if found.finite:
            scores[to_score[index]] = found
        else:
            rendered[to_score[index]] = refused("non_finite", "the model gave NaN or infinity; try another --dtype.")
    rows = [ScoredRow(*row) for row in zip(chunk.trajectories, rendered, scores, strict=True)]
    return part_table(chunk.table, rows, extra)


def _render(trajectory: Trajectory, renderer: Renderer) -> Rendered:
    if trajectory.refusal:
        return refused(trajectory.refusal, trajectory.detail)
    if trajectory.messages is None:
        return renderer.render_text(trajectory.text or "")
    return renderer.render_messages(trajectory.messages, trajectory.tools)


def _limit_length(student: str, renderer: Renderer, engine: Engine) -> None:
    asked, possible = renderer.max_model_len, engine.max_model_len
    if asked and possible and asked > possible:
        raise UsageError(
            f"--max-model-len {asked}: {student} was made for {possible} tokens.", f"Give at most {possible}."
        )
    renderer.max_model_len = asked or possible


def _manifest(
    model: ModelSource, options: ScoreOptions, corpus: Corpus, renderer: Renderer, engine_name: str, engine: Engine
) -> Manifest:
    settings = {
        "trajscore": __version__,
        "input": corpus.fingerprint,
        "limit": options.limit,
        "student": {**model_identity(model.name, model.revision), **engine.describe()},
        "engine": engine_name,
        "rendering": renderer.describe(),
        "fields": {name: getattr(options, f"{name}_field") for name in ("id", "prompt", "teacher", "messages")},
        "extra": list(options.extra),
        "part_rows": options.part_rows,
    }
    environment = {"python": platform.python_version(), "machine": platform.platform(), **engine.environment()}
    return Manifest(settings=settings, environment=environment, input_columns=corpus.schema.names)


def _source_options(options: ScoreOptions) -> SourceOptions:
    return SourceOptions(
        fields=FieldNames(options.id_field, options.prompt_field, options.teacher_field, options.messages_field),
        limit=options.limit,
        split=options.split,
        config_name=options.config_name,
        streaming=options.streaming,
        revision=options.data_revision,
    )


def _summary(folder: ScoreFolder, resumed: int, seconds: float, options: ScoreOptions) -> ScoreSummary:
    totals = folder.manifest.totals
    return ScoreSummary(
        out=str(folder.folder),
        rows=totals["rows"],
        scored=totals["scored"],
        refused=totals["refused_by_reason"],
        first_refused=_first_refused(folder.folder) if totals["refused"] else {},
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


def _allow(flag: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag} {value}: not known.", f"Allowed: {', '.join(allowed)}.")
