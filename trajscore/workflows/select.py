"""`trajscore select`: from scores to the rows worth training on. It joins the small table of metrics, the policy that
decides, and the copy of the kept rows; formulas, decisions and file formats live in those.

Two passes: metrics of all rows first (token lists in, a few numbers out), then the kept rows' own columns.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from trajscore.errors import UsageError
from trajscore.metrics import dataset_value, find
from trajscore.policies.selection import KEPT, STEPS, SelectOptions, decide
from trajscore.workflows.kept_rows import ROW_SUFFIXES, check_suffix, replacing, write_rows
from trajscore.workflows.metric_table import Scores, Source, boolean_correct, measure, open_scores
from trajscore.workflows.select_stat import StatSettings, open_stat

DECISION_SUFFIXES = (".jsonl", ".parquet", ".csv")
UNKNOWN_TEACHER = "(unknown)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What was kept, and what became of the rest.

    Attributes:
        options: the settings.
        rows_in: rows of the scores.
        rows_kept: rows kept; `rows_in == rows_kept + sum(dropped.values())`.
        dropped: dropped rows by step, in the order of the steps; steps that dropped nothing are left out.
        kept_per_teacher: kept rows by teacher, most first; `(unknown)` where the row names none.
        before: each metric's dataset value over all scored rows, None where undefined.
        after: the same over the kept rows.
        decisions: one line per input row: `row`, `id`, `prompt_id`, `teacher`, `kept`, `step`, `prompt_rank`, metrics.
        frame: the kept rows, lazily, in input order: the corpus's columns, `id`, `prompt_id` and metrics.
        unfinished: a line for each folder whose scoring has not come to its end.
        added: columns beside the metrics.
    """

    options: SelectOptions
    rows_in: int
    rows_kept: int
    dropped: dict[str, int]
    kept_per_teacher: dict[str, int]
    before: dict[str, float | None]
    after: dict[str, float | None]
    decisions: pl.DataFrame
    frame: pl.LazyFrame
    unfinished: tuple[str, ...] = ()
    added: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The counts and settings as JSON values; rows and decisions are left out."""
        return {
            "rows_in": self.rows_in,
            "rows_kept": self.rows_kept,
            "rows_dropped": sum(self.dropped.values()),
            "dropped": self.dropped,
            "kept_per_teacher": self.kept_per_teacher,
            "metrics": {name: {"before": self.before[name], "after": self.after[name]} for name in self.before},
            "unfinished": list(self.unfinished),
            "options": asdict(self.options),
        }


def select(
    scores: Scores,
    metric: str | Sequence[str] = "rsr",
    *,
    per_prompt: int | None = None,
    top: int | None = None,
    fraction: float | None = None,
    max_tokens: int | None = None,
    where: str | None = None,
    prefer: str | None = None,
    order: str | None = None,
    seed: int = 0,
    stat: StatSettings | None = None,
    out: str | Path | None = None,
    decisions: str | Path | None = None,
) -> Selection:
    """Keep the trajectories that suit the student best.

    Steps, in order: status ok, metric defined, where, prefer, per prompt, global budget. The first metric ranks, by its
    own direction unless `order` is given; ties go to the lower id in string order.

    Args:
        scores: folders that `trajscore score` wrote, or a LazyFrame over such rows.
        metric: one or several names; all are computed and written, the first ranks.
        per_prompt: best rows kept of each prompt.
        top: best rows kept over all prompts. One of `top`, `fraction` and `max_tokens` at most.
        fraction: share kept of the rows that reached this step, in (0, 1]; rounded down, at least one row.
        max_tokens: longest prefix of the ranked rows whose scored tokens sum to at most this.
        where: SQL condition on columns and metrics; null counts as false. Evaluated row by row, on all rows.
        prefer: `correct` drops a prompt's incorrect rows if it has a correct one (`correct` null counts as incorrect).
        order: `ascending` or `descending` in place of the metric's direction.
        seed: of the draws of `stat`; no other step draws at random.
        stat: what the metric `stat` (STAT-Sel, arXiv 2510.10023) reads; it keeps the best answers of questions drawn for the
            student's missing skills, after the other steps and in place of `per_prompt` and the budgets.
        out: `.parquet` or `.jsonl` file for the kept rows, replaced whole.
        decisions: `.jsonl`, `.parquet` or `.csv` file with one line per input row.

    Returns:
        Counts, dataset values before and after, the decisions, and the kept rows as a LazyFrame.

    Raises:
        UsageError: a setting, metric, column, suffix or combination of folders is wrong. Nothing was written.
        DataError: the scores cannot be read.
        TrajscoreError: a file cannot be written.

    Source: per-prompt argmin and the preference for correct rows: arXiv 2601.14249, section 5.

    >>> rows = pl.LazyFrame({"id": ["a", "b"], "prompt_id": ["p", "p"], "status": ["ok", "ok"], "n_tokens": [7, 9]})
    >>> select(rows, "length", per_prompt=1).frame.collect().to_dicts()
    [{'id': 'b', 'prompt_id': 'p', 'length': 9.0}]
    """
    named = (metric,) if isinstance(metric, str) else tuple(dict.fromkeys(metric))
    others = {"--per-prompt": per_prompt, "--top": top, "--fraction": fraction, "--max-tokens": max_tokens}
    ranking, drawing = open_stat(named, stat or StatSettings(), seed, others)
    options = SelectOptions(
        metrics=ranking,
        per_prompt=per_prompt if drawing is None else drawing.options.answers,
        top=top,
        fraction=fraction,
        max_tokens=max_tokens,
        where=where,
        prefer=prefer,
        order=order,
        seed=seed,
    )
    source = open_scores(scores)
    targets = _targets(source, out, decisions)
    table = _prepared(source, options)
    decided = decide(table, options)
    added: tuple[str, ...] = ()
    if drawing is not None:
        decided, added = drawing.decide(decided), drawing.added
    selection = _summary(source, options, decided, added)
    _write(source, selection, *targets)
    return selection


def _targets(source: Source, out: str | Path | None, decisions: str | Path | None) -> tuple[Path | None, Path | None]:
    """The files to write, checked before anything is computed."""
    rows = None if out is None else check_suffix(out, ROW_SUFFIXES, "--out")
    lines = None if decisions is None else check_suffix(decisions, DECISION_SUFFIXES, "--decisions")
    folders = {Path(name).resolve() for name, _ in source.folders}
    for flag, path in (("--out", rows), ("--decisions", lines)):
        if path is not None and path.resolve().parent in folders:
            raise UsageError(f"{flag} {path}: lies in a folder of scores.", "Write beside the folder, not into it.")
    if rows is not None and lines is not None and rows.resolve() == lines.resolve():
        raise UsageError(f"--out and --decisions are both {rows}.", "Give two names.")
    return rows, lines


def _prepared(source: Source, options: SelectOptions) -> pl.DataFrame:
    if options.prefer == "correct":
        _check_correct(source)
    if options.max_tokens is not None and "n_tokens" not in source.columns:
        raise UsageError("--max-tokens reads the column 'n_tokens', which is missing.", "Give what `score` wrote.")
    for name in options.metrics:
        column = source.metric_column(name)
        if column != name:
            _log.warning("the rows have a column %r already: the metric is called %r", name, column)
    table = measure(source, find(options.metrics), options.where)
    if options.prefer == "correct":
        table = table.with_columns(boolean_correct(table["correct"]).alias("correct"))
    if "teacher" not in table.columns:
        table = table.with_columns(teacher=pl.lit(None, pl.String))
    return table


def _check_correct(source: Source) -> None:
    if "correct" not in source.columns:
        raise UsageError(
            "--prefer correct reads the column 'correct', which these scores do not hold.",
            "Add a boolean `correct` to the corpus and score it again, or leave --prefer out.",
        )


def _summary(source: Source, options: SelectOptions, decided: pl.DataFrame, added: tuple[str, ...]) -> Selection:
    kept = decided.filter("kept")
    counts = {step: rows for step, rows in decided["step"].value_counts().iter_rows() if step != KEPT}
    dropped = {step: counts[step] for step in sorted(counts, key=_step_order)}
    rows_in = sum(rows for _, rows in source.folders) if source.folders else decided.height
    if rows_in != kept.height + sum(dropped.values()):
        raise RuntimeError(f"{rows_in} rows in, {kept.height} kept, dropped {dropped}: rows went missing")
    teachers = kept.group_by(pl.col("teacher").fill_null(UNKNOWN_TEACHER)).len()
    teachers = teachers.sort("len", "teacher", descending=[True, False])
    columns = ["row", "id", "prompt_id", "teacher", "kept", "step", "prompt_rank", *options.metrics, *added]
    return Selection(
        options=options,
        rows_in=rows_in,
        rows_kept=kept.height,
        dropped=dropped,
        kept_per_teacher=dict(teachers.iter_rows()),
        before=_dataset_values(decided, options),
        after=_dataset_values(kept, options),
        decisions=decided.select(columns),
        frame=_kept_frame(source, kept, options, added),
        added=added,
        unfinished=source.unfinished,
    )


def _step_order(step: str) -> tuple[int, str]:
    return (STEPS.index(step) if step in STEPS else -1, step)


def _dataset_values(rows: pl.DataFrame, options: SelectOptions) -> dict[str, float | None]:
    return {name: dataset_value(rows[f"{name}:numerator"], rows[f"{name}:denominator"]) for name in options.metrics}


def _kept_metrics(source: Source, kept: pl.DataFrame, options: SelectOptions, added: tuple[str, ...]) -> pl.DataFrame:
    names = [*options.metrics, *added]
    return kept.select("row", *(pl.col(name).cast(pl.Float64).alias(source.metric_column(name)) for name in names))


def _kept_frame(source: Source, kept: pl.DataFrame, options: SelectOptions, added: tuple[str, ...]) -> pl.LazyFrame:
    # Not "row": a corpus may have a column of that name.
    number = "trajscore.row"
    metrics = _kept_metrics(source, kept, options, added).rename({"row": number})
    columns = source.frame.select(source.output_columns).with_row_index(number)
    return columns.join(metrics.lazy(), on=number, how="inner", maintain_order="left").drop(number)


def _write(source: Source, selection: Selection, out: Path | None, decisions: Path | None) -> None:
    if selection.rows_kept == 0:
        _log.warning("no row was kept of %d", selection.rows_in)
    if out is not None:
        rows = _write_kept(source, selection, out)
        if rows != selection.rows_kept:
            raise RuntimeError(f"{rows} rows written to {out}, {selection.rows_kept} were kept")
    if decisions is not None:
        with replacing(decisions) as temporary:
            write = {".jsonl": "write_ndjson", ".parquet": "write_parquet", ".csv": "write_csv"}[decisions.suffix]
            getattr(selection.decisions, write)(temporary)


def _write_kept(source: Source, selection: Selection, out: Path) -> int:
    kept = _kept_metrics(source, selection.decisions.filter("kept"), selection.options, selection.added)
    schema = _metric_schema(source, selection.options, selection.added)
    if source.paths:
        return write_rows(source.paths, source.output_columns, kept, schema, out)
    # A LazyFrame has no parts to copy from: its kept rows become one, which then takes the same way.
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "rows.parquet"
        selection.frame.sink_parquet(part)
        renumbered = kept.with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))
        return write_rows([part], source.output_columns, renumbered, schema, out)


def _metric_schema(source: Source, options: SelectOptions, added: tuple[str, ...]) -> pa.Schema:
    fields = [
        pa.field(
            source.metric_column(metric.name),
            pa.float64(),
            metadata={"unit": metric.unit, "meaning": metric.meaning, "direction": metric.direction},
        )
        for metric in find(options.metrics)
    ]
    fields += [pa.field(source.metric_column(name), pa.float64()) for name in added]
    return pa.schema(fields, metadata={"trajscore.selection": orjson.dumps(asdict(options)).decode()})
