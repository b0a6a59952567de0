"""The command `mask`: reads score folders part by part, applies the rule to each row, and writes labels and loss weights.

The rows pass by part by part, once, and up to twice more for each column that is normalised over the corpus.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from trajscore.display.charts import Axis, bars
from trajscore.display.notebook import Shown
from trajscore.errors import UsageError
from trajscore.io.frames import write_frames
from trajscore.io.outputs import ROW_SUFFIXES, check_suffix, spare_inputs_of
from trajscore.masking.conflicts import conflict_runs
from trajscore.masking.labels import labels, loss_weights, soft_targets
from trajscore.masking.normalising import ColumnRange, corpus_range
from trajscore.masking.options import MaskOptions
from trajscore.masking.presets import expand_mask
from trajscore.masking.rules import Ranges, RuleSettings
from trajscore.masking.schedule import NOT_SCHEDULED, STAGE, VALUE, Schedule
from trajscore.masking.selected import read_selected
from trajscore.metrics.measure import boolean_correct, measure
from trajscore.options import as_flags, flag, keywords_of, parse_named
from trajscore.schema import COLUMNS, NO_LOSS, OK, REFUSED, SCAFFOLD_MARKER, mask_schema
from trajscore.scores import differences, read_manifest
from trajscore.scores.reading_parts import ROW as _ROW
from trajscore.scores.reading_parts import numbered, planned_parts
from trajscore.scores.sound_rows import first_undefined
from trajscore.scores.source import ScoreSource, open_scores, reading

NOT_SELECTED = "not_selected"
NOTHING_KEPT = "nothing_kept"
UNDEFINED = "undefined:"
_BATCH_TOKENS = 2**21

_PARAMETERS = ("by", "tau", "beta", "low", "high", "bound", "signed", "decay", "importance")
"""Options that are parameters of the rule, too."""

_P = "trajscore."
_ORDER, _KEPT, _WEIGHT, _SCAFFOLD_WEIGHT = (_P + name for name in ("order", "kept", "weight", "scaffold_weight"))
_REASON = pl.col(_P + "reason")
_SCAFFOLD = {"scaffold_positions": pl.List(pl.UInt32), "scaffold_kind": pl.List(pl.UInt8)}
_FLOATS = pl.List(pl.Float32)
_COUNTS = (
    _REASON,
    pl.col(_KEPT).list.len().cast(pl.Int64).alias(_P + "tokens"),
    pl.col(_KEPT).list.sum().cast(pl.Int64).alias(_P + "tokens_kept"),
    pl.col(_WEIGHT).cast(pl.List(pl.Float64)).list.sum().alias(_P + "weight_sum"),
    pl.col("scaffold_kind").list.contains(SCAFFOLD_MARKER).cast(pl.Int64).alias(_P + "markers"),
)

_NO_END = (
    "end-of-turn markers have no label, so training on these masks does not teach the model to stop: "
    "the scores hold none, as the chat template writes none or its generation marks leave them out"
)

_TENTHS = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Masking(Shown):
    """What was masked, and what became of the other rows.

    Attributes:
        options: the rule and its settings.
        rows_in: rows of the scores.
        rows_masked: rows with labels; `rows_in == rows_masked + sum(dropped.values())`.
        dropped: the other rows by reason: `refused:STATUS`, `not_selected`, `not_scheduled` (of no stage), `undefined:COLUMN`
            (the row lacks what the rule reads), `nothing_kept` (the rule keeps no token of the row).
        tokens: scored tokens of the masked rows.
        tokens_kept: those with a label.
        weight_sum: sum of the loss weights; None unless the rule is soft.
        ranges: the corpus's range of each normalised column; empty with other rules and scopes.
        metadata: what a Parquet file carries under `trajscore.mask`.
        frame: the masked rows, lazily: `id`, `prompt_id`, `teacher`, `input_ids`, `labels`, and where they apply `loss_weight`,
            `sample_weight` and `stage`, by which they are in order then.
        unfinished: a line for each folder whose scoring has not come to its end.
        stages: with `schedule` a line for each stage: its value, rows and tokens with a label, and file; else None.
    """

    options: RuleSettings
    rows_in: int
    rows_masked: int
    dropped: dict[str, int]
    tokens: int
    tokens_kept: int
    weight_sum: float | None
    ranges: Ranges
    metadata: dict[str, Any]
    frame: pl.LazyFrame
    unfinished: tuple[str, ...] = ()
    stages: list[dict[str, Any]] | None = None

    def lines(self) -> list[str]:
        """Rows and tokens with a label."""
        counts = f"{self.rows_masked:,} of {self.rows_in:,} rows, {self.tokens_kept:,} of {self.tokens:,} tokens have a label"
        return [f"Masking by {self.options.rule}: {counts}"]

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """`positions`: the share of tokens with a label along a conversation, tenth by tenth."""
        return {"positions": self._draw_positions}

    def _draw_positions(self) -> Any:
        labels, tenth = pl.col("labels"), pl.int_range(pl.len()) * _TENTHS // pl.len()
        tokens = self.frame.select(labels).filter(labels.list.len() > 0).with_row_index("row").explode("labels")
        found = (
            tokens.select(tenth.over("row").alias("tenth"), has=labels != NO_LOSS)
            .group_by("tenth")
            .agg(pl.col("has").mean())
            .sort("tenth")
            .collect()
        )
        if found.is_empty():
            return None
        rows = [
            {"name": f"{place + 1}. tenth", "value": share, "low": None, "high": None}
            for place, share in found.iter_rows()
        ]
        return bars(rows, Axis(0.0, 1.0, "share of tokens with a label"), "Where labels stand in a conversation")

    def to_dict(self) -> dict[str, Any]:
        """The counts and settings as JSON values; rows are left out."""
        return {
            "rows_in": self.rows_in,
            "rows_masked": self.rows_masked,
            "rows_dropped": sum(self.dropped.values()),
            "dropped": self.dropped,
            "tokens": self.tokens,
            "tokens_kept": self.tokens_kept,
            "weight_sum": self.weight_sum,
            "ranges": {name: asdict(each) for name, each in self.ranges.items()},
            "unfinished": list(self.unfinished),
            "stages": self.stages,
            **{name: self.metadata[name] for name in ("rule", "options", "keep", "seed", "scope", "scaffold")},
        }


@keywords_of(MaskOptions)
def mask(options: MaskOptions) -> Masking:
    """Decide which tokens are trained on, and write them as labels.

    Rules that keep a share keep exactly max(1, floor(keep * N)) of a trajectory's N scored tokens; among equal values the
    earlier token wins. Besides scored tokens the end-of-turn markers of the scored turns have a label. A selection whose
    order is not that of the scores is made in memory, so it takes room for all rows. With `schedule` the rows of each stage go
    into a file of their own; what a rule normalises is still the corpus, all stages together.

    Returns:
        Counts, the ranges, and the masked rows as a LazyFrame.

    Raises:
        UsageError: a setting, column, suffix or combination of folders is wrong. Nothing was written.
        DataError: the scores or the selection cannot be read.
        TrajscoreError: the file cannot be written.

    >>> row = {"id": ["a"], "prompt_id": ["p"], "status": ["ok"], "input_ids": [[7, 8, 9]], "positions": [[1, 2]],
    ...        "student_entropy": [[0.5, 2.0]]}
    >>> mask(pl.LazyFrame(row), "entropy", keep=0.5).frame.collect()["labels"].to_list()
    [[-100, -100, 9]]
    """
    spare_inputs_of(options)
    settings = RuleSettings(
        seed=options.seed,
        scope=options.scope,
        scaffold=options.scaffold,
        soft_targets=options.soft_targets,
        **_settled(options),
    )
    source = open_scores(options.scores)
    target = None if options.out is None else check_suffix(options.out, ROW_SUFFIXES, "--out")
    _require(source, settings)
    rendering = _rendering(source)
    chosen = None if options.selected is None else read_selected(options.selected)
    schedule = options.stages
    table, reached = _measured(source, schedule), list[tuple[int, int, Path | None]]()
    plan, dropped = _plan(table, chosen)
    with reading():
        if settings.definition.compares:
            plan = plan.join(_runs(source, table, plan), on=_ROW, how="left", maintain_order="left")
        plans = [plan] if schedule is None else _by_stage(table, plan, schedule, dropped)
        parts = [[_wanted(part, settings, rows) for part, rows in planned_parts(source, each)] for each in plans]
        ranges = _ranges([part for own in parts for part in own], settings)
        outputs = _outputs(settings, weighted="sample_weight" in plan.columns)
        tally = _Tally(table.height, dropped)
        metadata = {**_metadata(source, settings, rendering, ranges), "given": options.recorded()}
        schema = mask_schema([column.meta.output_name() for column in outputs], metadata)
        targets = [target] if schedule is None else [None] * len(plans) if target is None else schedule.files(target)
        stages = []
        for own, each, file in zip(parts, plans, targets, strict=True):
            ruled = [_ruled(part, settings, ranges) for part in own]
            whole = _ruled(_wanted(numbered(source), settings, each), settings, ranges)
            stages.append(_Stage(ruled, whole, each[_ORDER].is_sorted(), file))
        for stage in stages:
            stage.make(outputs, schema, tally, _batch_rows(table), last=stage is stages[-1])
            reached.append((tally.masked, tally.kept, stage.file))
        tally.check()
    _warn(settings, tally)
    return Masking(
        options=settings,
        rows_in=table.height,
        rows_masked=tally.masked,
        dropped=dict(tally.dropped),
        tokens=tally.tokens,
        tokens_kept=tally.kept,
        weight_sum=math.fsum(tally.weights) if settings.definition.soft else None,
        ranges=ranges,
        metadata=metadata,
        frame=_frame([stage.whole for stage in stages], outputs, staged=schedule is not None),
        unfinished=source.unfinished,
        stages=None if schedule is None else _stage_lines(schedule, reached),
    )


class _Stage(NamedTuple):
    """The rows of one stage of a schedule, or all rows where there is none.

    Attributes:
        parts: under the rule, part by part of the scores.
        whole: the same as one query, in the order of the output.
        in_order: whether the parts are in that order.
        file: what is written; None where tokens are only counted.
    """

    parts: list[pl.LazyFrame]
    whole: pl.LazyFrame
    in_order: bool
    file: Path | None

    def make(
        self, outputs: Sequence[pl.Expr], schema: pa.Schema, tally: _Tally, batch_rows: int, *, last: bool
    ) -> None:
        """Write the file, and count what is in it; the count is checked before the `last` file takes its name."""
        if self.file is None:
            for part in self.parts:
                tally.count(part.select(_COUNTS).collect(engine="streaming"))
            return
        queries = (part.select(*_COUNTS, *outputs) for part in (self.parts if self.in_order else [self.whole]))
        write_frames(tally.stream(queries, batch_rows, last), schema, self.file)


def _warn(settings: RuleSettings, tally: _Tally) -> None:
    if settings.definition.caution:
        _log.warning("%s: %s", settings.rule, settings.definition.caution)
    if tally.masked and settings.scaffold != "none" and not tally.markers:
        _log.warning(_NO_END)
    if tally.masked == 0:
        _log.warning("no row was masked of %d", tally.rows)


def _measured(source: ScoreSource, schedule: Schedule | None) -> pl.DataFrame:
    """The small table, with each row's number where there is a schedule."""
    if schedule is None:
        return measure(source, [])
    schedule.check(source)
    return measure(source, [], None, {VALUE: schedule.column})


def _by_stage(table: pl.DataFrame, plan: pl.DataFrame, schedule: Schedule, dropped: Counter[str]) -> list[pl.DataFrame]:
    """The plan of each stage, in its order; what is of none is counted as dropped.

    Raises:
        UsageError: no row is left of a stage.
    """
    stages = table.select(pl.col("row").alias(_ROW), schedule.stages(table[VALUE]))
    staged = plan.join(stages, on=_ROW, how="left", maintain_order="left")
    if outside := staged[STAGE].null_count():
        dropped[NOT_SCHEDULED] = outside
    plans = [staged.filter(pl.col(STAGE) == number + 1).drop(STAGE) for number in range(len(schedule.values))]
    for value, each in zip(schedule.values, plans, strict=True):
        if each.is_empty():
            there = table[VALUE].drop_nulls().unique().sort().head(10).to_list()
            raise UsageError(
                f"--schedule: no row to be masked has {value:g} in the column {schedule.column!r}.",
                f"It holds {', '.join(f'{number:g}' for number in there) or 'no number'}.",
            )
    return plans


def _frame(ruled: Sequence[pl.LazyFrame], outputs: Sequence[pl.Expr], *, staged: bool) -> pl.LazyFrame:
    """The masked rows, stage after stage."""
    rows = [each.filter(_REASON.is_null()).select(outputs) for each in ruled]
    if not staged:
        return rows[0]
    return pl.concat(each.with_columns(pl.lit(number, pl.UInt8).alias(STAGE)) for number, each in enumerate(rows, 1))


def _stage_lines(schedule: Schedule, reached: Sequence[tuple[int, int, Path | None]]) -> list[dict[str, Any]]:
    """What became of each stage, from the totals after each."""
    found, before = list[dict[str, Any]](), (0, 0)
    for value, (rows, kept, file) in zip(schedule.values, reached, strict=True):
        out = None if file is None else str(file)
        found.append({"value": value, "rows": rows - before[0], "tokens_kept": kept - before[1], "out": out})
        before = rows, kept
    return found


def _settled(options: MaskOptions) -> dict[str, Any]:
    """What was given, over what the preset says, which is logged: the rule's name, its parameters, and `keep`."""
    settings = {name: getattr(options, name) for name in ("rule", "keep", "schedule", *_PARAMETERS)}
    if options.preset is not None:
        settings = expand_mask(options.preset, settings)
        logging.getLogger("trajscore").info("preset %s: %s", options.preset, as_flags(settings))
    elif options.rule is None:
        raise UsageError("no rule is given.", "Give --rule or --preset; see `trajscore list rules` and `list presets`.")
    named = parse_named("--rule", settings["rule"])
    if named.number is not None:
        raise UsageError(f"--rule {settings['rule']!r}: a rule has no weight.", "Write NAME or NAME,KEY=VALUE.")
    flags = {name: settings[name] for name in _PARAMETERS if settings.get(name) is not None}
    for name in flags.keys() & named.given.keys():
        raise UsageError(f"{flag(name)} and {name} in --rule {settings['rule']!r}.", "Give one of them.")
    return {"rule": named.name, "keep": settings.get("keep"), "given": {**flags, **named.given}}


def _runs(source: ScoreSource, table: pl.DataFrame, plan: pl.DataFrame) -> pl.DataFrame:
    """Which tokens of the rows to be masked are in conflict with those of their prompts' other rows."""
    if "correct" not in table.columns:
        raise UsageError(
            "the rule compares correct and wrong rows by the column 'correct', which these scores do not hold.",
            "Add it to the corpus, by hand or with `trajscore grade`, and score again.",
        )
    known = table.with_columns(boolean_correct(table["correct"]).alias("correct"), pl.col("row").alias(_ROW))
    rows = plan.select(_ROW).join(
        known.select(_ROW, "prompt_id", "correct"), on=_ROW, how="left", maintain_order="left"
    )
    return conflict_runs(rows, (part for part, _ in planned_parts(source, rows)), _ROW)


def _require(source: ScoreSource, options: RuleSettings) -> None:
    scaffold = options.scaffold_columns if "scaffold_positions" in source.columns else ()
    for column in ("input_ids", "positions", *options.columns, *scaffold):
        if column not in source.columns:
            flag = COLUMNS[column].flag if column in COLUMNS else ""
            raise UsageError(
                f"rule {options.rule!r} reads the column {column!r}, which these scores do not hold.",
                f"Score the corpus again, with `trajscore score ... {flag or '--student MODEL --engine hf'}`.",
            )


def _rendering(source: ScoreSource) -> Any:
    """How the rows were put into tokens, which has to be the same for all rows of a training set."""
    found = [read_manifest(folder).settings.get("rendering") for folder, _ in source.folders]
    for (folder, _), each in zip(source.folders, found, strict=True):
        if each != found[0]:
            lines = differences({"rendering": found[0]}, {"rendering": each})
            raise UsageError(
                f"{source.folders[0][0]} and {folder} were not put into tokens alike:\n  " + "\n  ".join(lines),
                "Mask these folders one by one.",
            )
    return found[0] if found else None


def _plan(table: pl.DataFrame, chosen: pl.DataFrame | None) -> tuple[pl.DataFrame, Counter[str]]:
    """The rows to mask (`trajscore.row`, `trajscore.order`, maybe `sample_weight`), and why the others are not."""
    status = pl.col("status").fill_null("unknown")
    refused = table.filter(status != OK).select(reason=REFUSED + status)["reason"]
    dropped = Counter(dict(refused.value_counts().sort("count", "reason", descending=[True, False]).iter_rows()))
    scored = table.filter(status == OK).select("id", pl.col("row").alias(_ROW))
    if chosen is None:
        return scored.select(_ROW, pl.col(_ROW).cast(pl.Int64).alias(_ORDER)), dropped
    unknown = chosen.join(table, on="id", how="anti")["id"]
    if not unknown.is_empty():
        raise UsageError(
            f"--selected names {len(unknown)} rows that the scores do not hold, such as {unknown[0]!r}.",
            "Give the scores that the selection was made from.",
        )
    plan = scored.join(chosen.rename({"order": _ORDER}), on="id", how="inner", maintain_order="left").drop("id")
    if plan.height < scored.height:
        dropped[NOT_SELECTED] = scored.height - plan.height
    return plan, dropped


def _wanted(numbered_rows: pl.LazyFrame, options: RuleSettings, plan: pl.DataFrame) -> pl.LazyFrame:
    """The rows to mask, in their order, with the columns that are read."""
    names = dict.fromkeys(("id", "prompt_id", "input_ids", "positions", *options.columns))
    known = numbered_rows.collect_schema()
    teacher = pl.col("teacher") if "teacher" in known else pl.lit(None, pl.String)
    there = {"scaffold_positions", "scaffold_kind"} <= set(known)
    kinds = {**_SCAFFOLD, **{name: _polars_type(name) for name in options.scaffold_columns}}
    scaffold = [pl.col(n) if there else pl.lit([], t).alias(n) for n, t in kinds.items()]
    rows = numbered_rows.select(_ROW, *names, *scaffold, teacher=teacher)
    rows = rows.join(plan.lazy(), on=_ROW, how="inner", maintain_order="left")
    return rows if plan[_ORDER].is_sorted() else rows.sort(_ORDER)


def _polars_type(column: str) -> pl.DataType:
    """The type of a column of scores as polars reads it."""
    return pl.DataFrame(pa.table({column: pa.array([], COLUMNS[column].dtype)})).schema[column]


def _ranges(parts: Sequence[pl.LazyFrame], options: RuleSettings) -> dict[str, ColumnRange]:
    """The corpus's range of each column that the rule normalises, over rows that hold all the rule reads."""
    sound = [rows.filter(first_undefined(options.columns).is_null()) for rows in parts]
    ranges = {column: corpus_range(sound, column, options.quantile(column)) for column in options.clipped}
    # Without a single token there is nothing to normalise, and any range will do.
    return {column: each or ColumnRange(0.0, 0.0) for column, each in ranges.items()}


def _ruled(rows: pl.LazyFrame, options: RuleSettings, ranges: Ranges) -> pl.LazyFrame:
    """What the rule says of each row: which tokens are kept, their weights, and why a row is left out (null if it is not)."""
    read = (*options.columns, *options.scaffold_columns)
    lists = dict.fromkeys(("input_ids", "positions", *_SCAFFOLD, *read))
    weight = options.weight(ranges) if options.definition.soft else pl.lit(None, _FLOATS)
    scaffold = options.scaffold_weight()
    if scaffold is None:
        scaffold = pl.lit(None, _FLOATS)
    return (
        rows.with_columns((pl.lit(UNDEFINED) + first_undefined(read)).alias(_P + "reason"))
        # Lists that do not go together would stop the arithmetic of all rows.
        .with_columns(pl.when(_REASON.is_null()).then(pl.col(name)).alias(name) for name in lists)
        .with_columns(options.kept(ranges).alias(_KEPT), weight.alias(_WEIGHT), scaffold.alias(_SCAFFOLD_WEIGHT))
        .with_columns(pl.coalesce(_REASON, pl.when(~pl.col(_KEPT).list.any()).then(pl.lit(NOTHING_KEPT))))
    )


def _outputs(options: RuleSettings, weighted: bool) -> list[pl.Expr]:
    """The columns of the result."""
    outputs = [*map(pl.col, ("id", "prompt_id", "teacher", "input_ids")), labels(_KEPT, options.scaffold)]
    own = None if options.scaffold_weight() is None else _SCAFFOLD_WEIGHT
    outputs += [loss_weights(_WEIGHT, options.scaffold, own)] if options.definition.soft else []
    outputs += soft_targets(_KEPT, options.scaffold) if options.soft_targets else []
    return outputs + ([pl.col("sample_weight")] if weighted else [])


def _metadata(source: ScoreSource, options: RuleSettings, rendering: Any, ranges: Ranges) -> dict[str, Any]:
    rule = options.definition
    return {
        "rule": rule.name,
        "options": options.options,
        "keep": options.keep,
        "seed": options.seed if rule.kind == "draw" else None,
        "scope": options.scope if rule.clipped else None,
        "scaffold": options.scaffold,
        "signed": options.may_be_negative,
        "ranges": {name: asdict(each) for name, each in ranges.items()},
        "student": source.student,
        "rendering": rendering,
    }


def _batch_rows(table: pl.DataFrame) -> int:
    """So many rows that a batch holds some two million tokens, by the mean length."""
    mean = table["n_tokens"].mean() if "n_tokens" in table.columns else None
    return max(1, min(4096, int(_BATCH_TOKENS / max(1.0, float(mean or 1024)))))  # type: ignore[arg-type]


@dataclass
class _Tally:
    """Counts rows by what becomes of them."""

    rows: int
    dropped: Counter[str]
    masked: int = 0
    tokens: int = 0
    kept: int = 0
    markers: int = 0
    weights: list[float] = field(default_factory=list)

    def count(self, batch: pl.DataFrame) -> None:
        self.dropped.update(batch[_P + "reason"].drop_nulls().to_list())
        masked = batch.filter(_REASON.is_null())
        self.masked += masked.height
        self.tokens += int(masked[_P + "tokens"].sum())
        self.kept += int(masked[_P + "tokens_kept"].sum())
        self.markers += int(masked[_P + "markers"].sum())
        self.weights += masked[_P + "weight_sum"].drop_nulls().to_list()

    def stream(self, queries: Iterable[pl.LazyFrame], batch_rows: int, last: bool) -> Iterator[pl.DataFrame]:
        """Masked rows, batch by batch; the count is checked before the last file takes its name."""
        for query in queries:
            for batch in query.collect_batches(chunk_size=batch_rows, maintain_order=True, engine="streaming"):
                self.count(batch)
                yield batch.filter(_REASON.is_null())
        if last:
            self.check()

    def check(self) -> None:
        """Nothing disappears."""
        if self.rows != self.masked + sum(self.dropped.values()):
            raise RuntimeError(f"{self.rows} rows in, {self.masked} masked, {dict(self.dropped)}: rows went missing")
