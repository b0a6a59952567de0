"""The command `trace`: attributes every sentence to the model it comes from.

The sentences' columns are read once for the counts; files are written in a second pass, the only one that decodes text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from trajscore.display.notebook import Shown, picture_name
from trajscore.errors import UsageError, did_you_mean
from trajscore.io.atomic import replacing
from trajscore.io.frames import write_frames
from trajscore.io.outputs import check_suffix, spare_inputs_of
from trajscore.io.paths import as_path
from trajscore.metrics.measure import boolean_correct, measure
from trajscore.metrics.sentence_classes import (
    FOUR_WAY,
    THREE_WAY,
    UNDEFINED,
    classify,
    sentence_sizes,
)
from trajscore.options import keywords_of
from trajscore.rendering.decoding import TOKENIZER, Decoder
from trajscore.schema import COLUMNS, OK, REFUSED
from trajscore.scores import read_manifest
from trajscore.scores.reading_parts import ROW as _ROW
from trajscore.scores.reading_parts import numbered, numbered_parts
from trajscore.scores.sound_rows import first_undefined
from trajscore.scores.source import ScoreSource, open_scores, reading
from trajscore.viewing.options import TraceOptions
from trajscore.viewing.trace_page import profile_chart, trace_page

TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
TRACE_SUFFIXES = (*TABLE_SUFFIXES, ".html")
GROUPS = ("all", "correct", "incorrect", "unknown")
_ROLES = ("student", "teacher", "distilled")
_COLUMNS = ("id", "prompt_id", "teacher", "correct", "sentence", "n_tokens", "p_student", "p_teacher")
_TRACED = pl.col("reason").is_null()


@dataclass(frozen=True, repr=False)
class Tracing(Shown):
    """Where the sentences come from.

    Attributes:
        alpha: probability difference up to which three models agree.
        beta: probability difference above which teacher and student differ.
        classes: the classes, `undefined` not among them.
        rows_in: rows of the scores.
        rows_traced: rows whose sentences were classified; `rows_in == rows_traced + sum(dropped.values())`.
        dropped: the other rows by reason: `refused:STATUS`, or `undefined:COLUMN` where the row lacks a column.
        counts: sentences of each class, `undefined` last.
        tokens: scored tokens of each class.
        profile: one line per group (`all`; `correct`, `incorrect` and `unknown` where rows say) and sentence index: `group`,
            `sentence` (from 0), `sentences` at this index, how many of each class and of `undefined`, and `share_CLASS` among
            those that are defined (null where none is).
        frame: one line per sentence, lazily: `id`, `prompt_id`, `teacher`, `correct`, `sentence`, `n_tokens`, `p_student`,
            `p_teacher`, `p_distilled` (null before training), `class`, and `text` unless it is left out.
        notes: what a reader should know.
    """

    alpha: float
    beta: float
    classes: tuple[str, ...]
    rows_in: int
    rows_traced: int
    dropped: dict[str, int]
    counts: dict[str, int]
    tokens: dict[str, int]
    profile: pl.DataFrame
    frame: pl.LazyFrame
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Rows and sentences by class."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        return [f"Tracing: {self.rows_traced:,} of {self.rows_in:,} rows; sentences: {counts}"]

    def preview(self) -> pl.DataFrame:
        """The profile."""
        return self.profile

    def plot(self, name: str | None = None, group: str = "all") -> Any:
        """The share of each class by the sentence's place: an Altair chart, which notebooks show and whose `save` writes SVG,
        PDF, PNG or HTML.

        Args:
            name: `profile`, the only one.
            group: `all`, `correct`, `incorrect` or `unknown`.

        Raises:
            UsageError: there is no such picture or group, or fewer than two places have a share.
        """
        groups = self.profile["group"].unique(maintain_order=True).to_list()
        picture_name(name, ["profile"])
        if group not in groups:
            raise UsageError(f"the profile has no group {group!r}.", did_you_mean(group, groups))
        chart = profile_chart(self.profile.filter(pl.col("group") == group).to_dicts())
        if chart is None:
            raise UsageError(f"fewer than two places of {group!r} have a share.", "`profile` has what there is.")
        return chart

    def to_dict(self) -> dict[str, Any]:
        """Everything but the sentences as JSON values."""
        defined = sum(self.counts[name] for name in self.classes)
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "rows_in": self.rows_in,
            "rows_traced": self.rows_traced,
            "rows_dropped": sum(self.dropped.values()),
            "dropped": self.dropped,
            "sentences": sum(self.counts.values()),
            "classes": {
                name: {
                    "sentences": self.counts[name],
                    "tokens": self.tokens[name],
                    "share": self.counts[name] / defined if defined and name != UNDEFINED else None,
                }
                for name in (*self.classes, UNDEFINED)
            },
            "profile": self.profile.to_dicts(),
            "notes": list(self.notes),
        }


@keywords_of(TraceOptions)
def trace(options: TraceOptions) -> Tracing:
    """Attribute every sentence to the model it comes from.

    With `distilled_sentence_logprob` in the scores (of what the distilled model wrote) the classes are shared, teacher, student
    and boosted; without, common, teacher and student.

    Returns:
        Counts, profile, and the sentences as a LazyFrame.

    Raises:
        UsageError: a setting, column, suffix or combination of folders is wrong. Nothing was written.
        DataError: the scores or the tokenizer cannot be read.
        TrajscoreError: the file cannot be written.

    Source: arXiv 2512.20908.

    >>> row = {"id": ["a"], "prompt_id": ["p"], "status": ["ok"], "input_ids": [[7, 8, 9]], "positions": [[1, 2]],
    ...        "sentence": [[0, 1]], "student_sentence_logprob": [[-1.0, -1.0]], "teacher_sentence_logprob": [[-1.0, 0.0]]}
    >>> trace(pl.LazyFrame(row)).counts
    {'common': 1, 'teacher': 1, 'student': 0, 'undefined': 0}
    """
    spare_inputs_of(options)
    alpha, beta = options.alpha, options.beta
    margins = {"alpha": alpha, "beta": beta}
    source = open_scores(options.scores)
    target = None if options.out is None else check_suffix(options.out, TRACE_SUFFIXES, "--out")
    roles = _roles(source)
    decoder = _decoder(source, target, options.text, options.tokenizer)
    plan, notes = _plan(source)
    scored = _rows(numbered(source), roles, plan)
    with reading():
        dropped = _dropped(plan, scored)
        rows = scored.filter(_TRACED)
        classes = FOUR_WAY if "distilled" in roles else THREE_WAY
        profile, tokens = _profile(_sentences(rows, roles, margins), classes)
    whole = profile.filter(group=GROUPS[0])
    tracing = Tracing(
        alpha=alpha,
        beta=beta,
        classes=classes,
        rows_in=plan.height,
        rows_traced=plan.height - sum(dropped.values()),
        dropped=dropped,
        counts={name: int(whole[name].sum()) for name in (*classes, UNDEFINED)},
        tokens=tokens,
        profile=profile,
        frame=_sentences(rows, roles, margins, decoder),
        notes=(*source.unfinished, *notes),
    )
    if target is not None:
        with reading():
            if target.suffix == ".html":
                shown = _sentences(rows.head(options.show), roles, margins, decoder).collect(engine="streaming")
                with replacing(target) as temporary:
                    temporary.write_text(trace_page(tracing.to_dict(), shown), "utf-8")
            else:
                parts = (_rows(part, roles, plan).filter(_TRACED) for part in numbered_parts(source))
                lines = (_sentences(part, roles, margins, decoder).collect(engine="streaming") for part in parts)
                write_frames(lines, _schema(margins, options.text), target)
    return tracing


def _roles(source: ScoreSource) -> tuple[str, ...]:
    """The models whose sentence probabilities are there."""
    for column in ("input_ids", "positions", "sentence", "student_sentence_logprob", "teacher_sentence_logprob"):
        if column not in source.columns:
            raise UsageError(
                f"trace reads the column {column!r}, which these scores do not hold.",
                f"Score the corpus again, with `trajscore score ... {COLUMNS[column].flag or '--student MODEL --engine hf'}`.",
            )
    return tuple(role for role in _ROLES if f"{role}_sentence_logprob" in source.columns)


def _decoder(source: ScoreSource, target: Path | None, text: bool, tokenizer: str | Path | None) -> Decoder | None:
    """What reads ids as text; None where no text is asked for."""
    page = target is not None and target.suffix == ".html"
    if not text:
        if page:
            raise UsageError(f"--out {target}: a page shows text.", "Leave --no-text out, or write a table.")
        return None
    folders = [name for name, _ in source.folders] if tokenizer is None else [str(tokenizer)]
    if not folders:
        if target is None:
            return None
        raise UsageError("a LazyFrame has no tokenizer, so no text.", "Give tokenizer=FOLDER, or text=False.")
    known = [(read_manifest(folder).settings.get("rendering") or {}).get("tokenizer_sha256") for folder in folders]
    for folder, each in zip(folders, known, strict=True):
        if each != known[0]:
            raise UsageError(f"{folders[0]} and {folder} have different tokenizers.", "Trace these folders one by one.")
    # The counts alone need no text, and folders of an earlier version have no tokenizer.
    return None if target is None and not (as_path(folders[0]) / TOKENIZER).is_file() else Decoder(folders[0])


def _plan(source: ScoreSource) -> tuple[pl.DataFrame, list[str]]:
    """Row number, status and `correct` of each row, and notes."""
    table, notes = measure(source, []), []
    correct = pl.Series([None] * table.height, dtype=pl.Boolean)
    if "correct" in table.columns:
        try:
            correct = boolean_correct(table["correct"])
        except UsageError as doubt:
            notes.append(f"{doubt.problem} {doubt.hint} The profile is not split by it.")
    status = pl.col("status").fill_null("unknown")
    return table.select(pl.col("row").alias(_ROW), status.alias("status"), correct.alias("correct")), notes


def _rows(numbered_rows: pl.LazyFrame, roles: tuple[str, ...], plan: pl.DataFrame) -> pl.LazyFrame:
    """The scored rows with what is read of them, and the column they lack as `reason` (null where they lack none)."""
    logprobs = [f"{role}_sentence_logprob" for role in roles]
    names = ("id", "prompt_id", "input_ids", "positions", "sentence", *logprobs)
    teacher = pl.col("teacher") if "teacher" in numbered_rows.collect_schema() else pl.lit(None, pl.String)
    scored = plan.filter(status=OK).select(_ROW, "correct")
    rows = numbered_rows.select(_ROW, *names, teacher=teacher)
    rows = rows.join(scored.lazy(), on=_ROW, how="inner", maintain_order="left")
    return rows.with_columns(reason=first_undefined([*logprobs, "sentence"]))


def _dropped(plan: pl.DataFrame, rows: pl.LazyFrame) -> dict[str, int]:
    """How many rows are not traced, by reason."""
    refused = Counter(REFUSED + status for status in plan["status"] if status != OK)
    reasons = rows.select("reason").collect(engine="streaming")["reason"]
    if len(reasons) + refused.total() != plan.height:
        raise RuntimeError(f"{plan.height} rows in, {len(reasons)} scored, {dict(refused)}: rows went missing")
    lacking = Counter(f"undefined:{name}" for name in reasons.drop_nulls())
    return dict(refused.most_common()) | dict(lacking.most_common())


def _sentences(
    rows: pl.LazyFrame, roles: tuple[str, ...], margins: Mapping[str, float], decoder: Decoder | None = None
) -> pl.LazyFrame:
    """One line per sentence."""
    logprobs = {f"p_{role}": pl.col(f"{role}_sentence_logprob") for role in roles}
    lists = {"n_tokens": sentence_sizes(), **logprobs} | ({"text": _texts(decoder)} if decoder else {})
    count = pl.col("student_sentence_logprob").list.len()
    lines = rows.select(
        "id", "prompt_id", "teacher", "correct", sentence=pl.int_ranges(0, count, dtype=pl.UInt32), **lists
    ).explode("sentence", *lists)
    # A response without a single sentence would leave a line of nulls.
    lines = lines.filter(pl.col("sentence").is_not_null())
    lines = lines.with_columns(pl.col(name).cast(pl.Float64).exp() for name in logprobs)
    distilled = pl.col("p_distilled") if "distilled" in roles else None
    found = classify(pl.col("p_student"), pl.col("p_teacher"), distilled, **margins)
    third = pl.lit(None, pl.Float64) if distilled is None else distilled
    return lines.select(*_COLUMNS, third.alias("p_distilled"), found.alias("class"), *(["text"] if decoder else []))


def _texts(decoder: Decoder) -> pl.Expr:
    """The text of each sentence of each row; joined, the text that was scored."""

    def texts(rows: pl.Series) -> pl.Series:
        found = []
        for row in rows:
            parts: list[list[str]] = [[] for _ in range(row["of"])]
            tokens = decoder.texts(row["input_ids"])
            for position, sentence in zip(row["positions"], row["sentence"], strict=True):
                parts[sentence].append(tokens[position])
            found.append(["".join(part) for part in parts])
        return pl.Series(found, dtype=pl.List(pl.String))

    count = pl.col("student_sentence_logprob").list.len()
    columns = pl.struct("input_ids", "positions", "sentence", of=count)
    return columns.map_batches(texts, return_dtype=pl.List(pl.String), is_elementwise=True)


def _profile(sentences: pl.LazyFrame, classes: tuple[str, ...]) -> tuple[pl.DataFrame, dict[str, int]]:
    """How many sentences of each class stand at each index, by correctness; and the tokens of each class."""
    names = (*classes, UNDEFINED)
    is_class = {name: pl.col("class") == name for name in names}
    tokens = {f"tokens:{name}": pl.col("n_tokens").cast(pl.Int64).filter(each).sum() for name, each in is_class.items()}
    counts = {name: each.sum().cast(pl.Int64) for name, each in is_class.items()}
    found = sentences.group_by("correct", "sentence").agg(**counts, **tokens).collect(engine="streaming")
    group = pl.when(pl.col("correct")).then(pl.lit("correct")).when(~pl.col("correct")).then(pl.lit("incorrect"))
    split = found.select(group.otherwise(pl.lit("unknown")).alias("group"), "sentence", *names)
    whole = (
        split.group_by("sentence").agg(pl.col(names).sum()).select(pl.lit(GROUPS[0]).alias("group"), "sentence", *names)
    )
    # Where no row says whether it is correct, the one group is all there is.
    parts = [whole] if (split["group"] == "unknown").all() else [whole, split]
    defined = pl.sum_horizontal(classes)
    shares = [pl.when(defined > 0).then(pl.col(name) / defined).alias(f"share_{name}") for name in classes]
    profile = pl.concat(parts).sort(pl.col("group").cast(pl.Enum(GROUPS)), "sentence")
    profile = profile.select("group", "sentence", pl.sum_horizontal(names).alias("sentences"), *names, *shares)
    return profile, {name: int(found[f"tokens:{name}"].sum()) for name in names}


def _schema(margins: Mapping[str, float], text: bool) -> pa.Schema:
    """The layout of a table of sentences."""
    kinds = {"correct": pa.bool_(), "sentence": pa.uint32(), "n_tokens": pa.uint32()}
    kinds |= dict.fromkeys(("p_student", "p_teacher", "p_distilled"), pa.float64())
    names = [*_COLUMNS, "p_distilled", "class", *(["text"] if text else [])]
    made = orjson.dumps(margins).decode()
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names], metadata={"trajscore.trace": made})
