"""`trajscore select`: from scores to the rows worth training on. It joins the small table of metrics, the policy that
decides, and the copy of the kept rows; formulas, decisions and file formats live in those.

Two passes: metrics of all rows first (token lists in, a few numbers out), then the kept rows' own columns.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from trajscore.errors import UsageError, did_you_mean, nearest_values
from trajscore.metrics import Metric, dataset_value, find
from trajscore.policies.presets import as_flags, expand
from trajscore.policies.select_options import SelectOptions, parse_metric, parse_quota
from trajscore.policies.selection import COMBINED, KEPT, RESERVED, SAMPLE_WEIGHT, STEPS, decide, needed_columns
from trajscore.workflows.explanation import explain_row
from trajscore.workflows.kept_rows import ROW_SUFFIXES, check_suffix, replacing, write_rows
from trajscore.workflows.metric_table import Scores, Source, boolean_correct, measure, open_scores

DECISION_SUFFIXES = (".jsonl", ".parquet", ".csv")
UNKNOWN_TEACHER = "(unknown)"

_ADDED = {
    COMBINED: "mean of the metrics' standings in their group; higher is better",
    SAMPLE_WEIGHT: "how much the row counts in training; mean 1 over the kept rows",
}

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
        decisions: one line per input row: `row`, `id`, `prompt_id`, `teacher`, `kept`, `step`, `prompt_rank`,
            `overall_rank`, metrics, `combined` and `sample_weight` where asked for.
        frame: the kept rows, lazily, in input order: the corpus's columns, `id`, `prompt_id`, metrics, `combined` and
            `sample_weight`.
        table: the small table that decided, for `explain`.
        unfinished: a line for each folder whose scoring has not come to its end.
        explanation: what `explain` gives for the row that was asked about; None where none was.
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
    table: pl.DataFrame = field(repr=False)
    unfinished: tuple[str, ...] = ()
    explanation: dict[str, Any] | None = None

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
            "explanation": self.explanation,
        }

    def explain(self, trajectory: str) -> dict[str, Any]:
        """Why a row was kept or dropped, with its numbers and those of the candidates that it competed with.

        Args:
            trajectory: the row's id.

        Returns:
            JSON values: see `trajscore.workflows.explanation.explain_row`.

        Raises:
            UsageError: no row has this id; the message names near ones.
        """
        return explain_row(self.table, trajectory, self.options)


def select(
    scores: Scores,
    metric: str | Sequence[str] | None = None,
    *,
    preset: str | None = None,
    combine: str | None = None,
    combine_within: str | None = None,
    per_prompt: int | None = None,
    top: int | None = None,
    fraction: float | None = None,
    max_tokens: int | None = None,
    quota: str | Sequence[str] | None = None,
    where: str | None = None,
    prefer: str | None = None,
    order: str | None = None,
    weight: str | None = None,
    weight_within: str | None = None,
    temperature: float | None = None,
    weight_column: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    decisions: str | Path | None = None,
    explain: str | None = None,
) -> Selection:
    """Keep the trajectories that suit the student best.

    Steps, in order: status ok, metric defined, where, prefer, per prompt, global budget with quotas. The first metric
    ranks, by its own direction unless `order` is given, or all do with `combine`; ties go to the lower id in string order.

    Args:
        scores: folders that `trajscore score` wrote, or a LazyFrame over such rows.
        metric: one or several names; all are computed and written, the first ranks. `rsr` unless given. With `combine`
            `NAME:WEIGHT` gives a metric a weight; a negative one turns its direction around.
        preset: a published selection by name; its settings hold where none is given here.
        combine: `rank` or `zscore`: ranks by the weighted mean of the metrics' standings, see `policies.combination`.
            A row that lacks one of the metrics is dropped as `undefined_metric`.
        combine_within: `corpus` (unless given) or `prompt`: the rows that compete, after `where` and `prefer`.
        per_prompt: best rows kept of each prompt.
        top: best rows kept over all prompts. One of `top`, `fraction` and `max_tokens` at most.
        fraction: share kept of the rows that reached this step, in (0, 1]; rounded down, at least one row.
        max_tokens: longest prefix of the ranked rows whose scored tokens sum to at most this.
        quota: `COLUMN=LIMIT` or `COLUMN:VALUE=LIMIT`, once or several times: the most kept rows with one value, as a
            share of the kept rows (0.3) or a number of rows (200). All hold at once; see `policies.budgets`.
        where: SQL condition on columns and metrics; null counts as false. Evaluated row by row, on all rows.
        prefer: `correct` drops a prompt's incorrect rows if it has a correct one (`correct` null counts as incorrect).
        order: `ascending` or `descending` in place of the metric's direction; `random` ranks by a draw from seed and id.
        weight: `softmax`, `rank`, `lark` or `paced`: adds `sample_weight`, mean 1; see `policies.weights`.
        weight_within: `corpus` (unless given) or `prompt`: the kept rows among which `softmax` and `rank` weigh.
        temperature: of `softmax`, in the unit of the ranking value; 1 unless given.
        weight_column: the column with the student's pass rates for `paced`; `pass_rate` unless given.
        seed: of the order `random`.
        out: `.parquet` or `.jsonl` file for the kept rows, replaced whole.
        decisions: `.jsonl`, `.parquet` or `.csv` file with one line per input row.
        explain: id of a row to explain, see `Selection.explanation`; `Selection.explain` does the same afterwards.

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
    given: dict[str, Any] = {
        "metric": metric,
        "combine": combine,
        "combine_within": combine_within,
        "per_prompt": per_prompt,
        "top": top,
        "fraction": fraction,
        "max_tokens": max_tokens,
        "quota": quota,
        "where": where,
        "prefer": prefer,
        "order": order,
        "weight": weight,
        "weight_within": weight_within,
        "temperature": temperature,
        "weight_column": weight_column,
    }
    settings = _settings(given, preset)
    source = open_scores(scores)
    options = _options(settings, source, seed, preset)
    metrics = find(options.metrics)
    _check_names(metrics)
    targets = _targets(source, out, decisions)
    table = _prepared(source, options, metrics)
    decided = decide(table, options, {each.name: each.direction for each in metrics})
    selection = _summary(source, options, decided)
    if explain is not None:
        selection = replace(selection, explanation=selection.explain(explain))
    _write(source, selection, metrics, *targets)
    return selection


def _settings(given: Mapping[str, Any], preset: str | None) -> dict[str, Any]:
    """What was given, over what the preset says."""
    if preset is None:
        return {name: value for name, value in given.items() if value is not None}
    settings = expand(preset, given)
    _log.info("preset %s: %s", preset, as_flags(settings))
    return settings


def _options(settings: Mapping[str, Any], source: Source, seed: int, preset: str | None) -> SelectOptions:
    own = dict(settings)
    spelt = own.pop("metric", "rsr")
    parsed = [parse_metric(each) for each in ([spelt] if isinstance(spelt, str) else spelt)]
    weights = dict(parsed)
    named = any(number is not None for number in weights.values())
    quotas = own.pop("quota", ())
    return SelectOptions(
        metrics=tuple(weights),
        metric_weights=tuple(1.0 if number is None else number for number in weights.values()) if named else (),
        quotas=tuple(parse_quota(each, source.columns) for each in ([quotas] if isinstance(quotas, str) else quotas)),
        seed=seed,
        preset=preset,
        **own,
    )


def _check_names(metrics: Sequence[Metric]) -> None:
    for metric in metrics:
        if metric.name in RESERVED:
            raise UsageError(f"metric {metric.name!r}: a selection has a column of that name.", "Rename the metric.")


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


def _prepared(source: Source, options: SelectOptions, metrics: Sequence[Metric]) -> pl.DataFrame:
    """The small table with what the steps read."""
    if options.prefer == "correct":
        _check_correct(source)
    if options.max_tokens is not None and "n_tokens" not in source.columns:
        raise UsageError("--max-tokens reads the column 'n_tokens', which is missing.", "Give what `score` wrote.")
    columns = needed_columns(options)
    _check_columns(columns, source)
    for name in (*options.metrics, *_added(options)):
        column = source.metric_column(name)
        if column != name:
            _log.warning("the rows have a column %r already: ours is called %r", name, column)
    table = measure(source, metrics, options.where, columns)
    table = table.with_columns(pl.col(name).cast(pl.String) for name in columns if name.startswith("quota:"))
    _check_quota_values(table, options)
    if options.prefer == "correct":
        table = table.with_columns(boolean_correct(table["correct"]).alias("correct"))
    if "teacher" not in table.columns:
        table = table.with_columns(teacher=pl.lit(None, pl.String))
    return table


def _added(options: SelectOptions) -> list[str]:
    """Columns beside the metrics that this selection writes."""
    return [name for name, asked in ((COMBINED, options.combine), (SAMPLE_WEIGHT, options.weight)) if asked]


def _check_columns(columns: Mapping[str, str], source: Source) -> None:
    for use, name in columns.items():
        if name not in source.columns:
            raise UsageError(
                f"--weight reads the column {name!r}, which these scores do not hold.",
                f"Name another with --weight-column. {did_you_mean(name, source.columns)}",
            )
        kind = source.columns[name]
        if use.startswith("quota:") and (kind.is_nested() or kind == pl.Binary):
            raise UsageError(
                f"--quota: the column {name!r} is {kind}.", "Name a column of text, numbers or truth values."
            )
        if use == "weight_value" and not (kind.is_numeric() or kind == pl.Null):
            raise UsageError(f"--weight: the column {name!r} is {kind}.", "Name a column of numbers.")


def _check_quota_values(table: pl.DataFrame, options: SelectOptions) -> None:
    """A value that no row has is a slip of the pen, and its quota would silently limit nothing."""
    for number, quota in enumerate(options.quotas):
        values = table[f"quota:{number}"].drop_nulls()
        if quota.value is not None and table.height and not (values == quota.value).any():
            near = nearest_values(quota.value, values.unique().sort().head(1000))
            raise UsageError(f"--quota {quota.text!r}: no row has this value in the column {quota.column!r}.", near)


def _check_correct(source: Source) -> None:
    if "correct" not in source.columns:
        raise UsageError(
            "--prefer correct reads the column 'correct', which these scores do not hold.",
            "Add a boolean `correct` to the corpus and score it again, or leave --prefer out.",
        )


def _summary(source: Source, options: SelectOptions, decided: pl.DataFrame) -> Selection:
    kept = decided.filter("kept")
    counts = {step: rows for step, rows in decided["step"].value_counts().iter_rows() if step != KEPT}
    dropped = {step: counts[step] for step in sorted(counts, key=_step_order)}
    rows_in = sum(rows for _, rows in source.folders) if source.folders else decided.height
    if rows_in != kept.height + sum(dropped.values()):
        raise RuntimeError(f"{rows_in} rows in, {kept.height} kept, dropped {dropped}: rows went missing")
    teachers = kept.group_by(pl.col("teacher").fill_null(UNKNOWN_TEACHER)).len()
    teachers = teachers.sort("len", "teacher", descending=[True, False])
    columns = ["row", "id", "prompt_id", "teacher", "kept", "step", "prompt_rank", "overall_rank"]
    columns += [*options.metrics, *_added(options)]
    return Selection(
        options=options,
        rows_in=rows_in,
        rows_kept=kept.height,
        dropped=dropped,
        kept_per_teacher=dict(teachers.iter_rows()),
        before=_dataset_values(decided, options),
        after=_dataset_values(kept, options),
        decisions=decided.select(columns),
        frame=_kept_frame(source, kept, options),
        table=decided,
        unfinished=source.unfinished,
    )


def _step_order(step: str) -> tuple[int, str]:
    return (STEPS.index(step) if step in STEPS else -1, step)


def _dataset_values(rows: pl.DataFrame, options: SelectOptions) -> dict[str, float | None]:
    return {name: dataset_value(rows[f"{name}:numerator"], rows[f"{name}:denominator"]) for name in options.metrics}


def _kept_metrics(source: Source, kept: pl.DataFrame, options: SelectOptions) -> pl.DataFrame:
    names = [*options.metrics, *_added(options)]
    return kept.select("row", *(pl.col(name).alias(source.metric_column(name)) for name in names))


def _kept_frame(source: Source, kept: pl.DataFrame, options: SelectOptions) -> pl.LazyFrame:
    # Not "row": a corpus may have a column of that name.
    number = "trajscore.row"
    metrics = _kept_metrics(source, kept, options).rename({"row": number})
    columns = source.frame.select(source.output_columns).with_row_index(number)
    return columns.join(metrics.lazy(), on=number, how="inner", maintain_order="left").drop(number)


def _write(
    source: Source, selection: Selection, metrics: Sequence[Metric], out: Path | None, decisions: Path | None
) -> None:
    if selection.rows_kept == 0:
        _log.warning("no row was kept of %d", selection.rows_in)
    if out is not None:
        rows = _write_kept(source, selection, metrics, out)
        if rows != selection.rows_kept:
            raise RuntimeError(f"{rows} rows written to {out}, {selection.rows_kept} were kept")
    if decisions is not None:
        with replacing(decisions) as temporary:
            write = {".jsonl": "write_ndjson", ".parquet": "write_parquet", ".csv": "write_csv"}[decisions.suffix]
            getattr(selection.decisions, write)(temporary)


def _write_kept(source: Source, selection: Selection, metrics: Sequence[Metric], out: Path) -> int:
    kept = _kept_metrics(source, selection.decisions.filter("kept"), selection.options)
    schema = _metric_schema(source, metrics, selection.options)
    if source.paths:
        return write_rows(source.paths, source.output_columns, kept, schema, out)
    # A LazyFrame has no parts to copy from: its kept rows become one, which then takes the same way.
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "rows.parquet"
        selection.frame.sink_parquet(part)
        renumbered = kept.with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))
        return write_rows([part], source.output_columns, renumbered, schema, out)


def _metric_schema(source: Source, metrics: Sequence[Metric], options: SelectOptions) -> pa.Schema:
    facts = {each.name: {"unit": each.unit, "meaning": each.meaning, "direction": each.direction} for each in metrics}
    facts |= {name: {"unit": "", "meaning": _ADDED[name]} for name in _added(options)}
    fields = [pa.field(source.metric_column(name), pa.float64(), metadata=fact) for name, fact in facts.items()]
    return pa.schema(fields, metadata={"trajscore.selection": orjson.dumps(asdict(options)).decode()})
