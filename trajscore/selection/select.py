"""The command `select`: measures all rows, lets `decide` choose, and copies the kept rows into a file.

Two passes: metrics of all rows first (token lists in, a few numbers out), then the kept rows' own columns.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from trajscore.display.formatting import share
from trajscore.display.notebook import Shown
from trajscore.errors import UsageError
from trajscore.io.atomic import replacing
from trajscore.io.frames import write_frames
from trajscore.io.outputs import ROW_SUFFIXES, check_suffix, spare_inputs_of
from trajscore.metrics import Metric, coefficients_of, dataset_value, known_metrics
from trajscore.metrics.measure import named_in, on_all_rows
from trajscore.options import keywords_of
from trajscore.schema import SELECTION_METADATA
from trajscore.scores.source import ScoreSource, open_scores
from trajscore.selection.card import CARD, card, is_foreign
from trajscore.selection.contamination import EvaluationSet, find_contamination
from trajscore.selection.conversations import MESSAGES, SCORED, ScoredConversations
from trajscore.selection.decide import COMBINED, DRAWS, KEPT, SAMPLE_WEIGHT, STEPS, decide
from trajscore.selection.explain import explain_row
from trajscore.selection.inputs import added_columns, check_names, prepared, read_policy, settled
from trajscore.selection.kept_rows import read_kept, write_rows
from trajscore.selection.options import SelectOptions
from trajscore.selection.pairs import find_pairs, pair_rows, ranking_column
from trajscore.selection.policy import Policy
from trajscore.selection.stat_sel import STAT, open_stat
from trajscore.selection.summary import draw_shares, summarise

DECISION_SUFFIXES = (".jsonl", ".parquet", ".csv")

_ADDED = {
    COMBINED: "mean of the metrics' standings in their group; higher is better",
    DRAWS: "how many draws of STAT-Sel hit the row's question",
    SAMPLE_WEIGHT: "how much the row counts in training; mean 1 over the kept rows",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Selection(Shown):
    """What was kept, and what became of the rest.

    Attributes:
        options: the settings.
        rows_in: rows of the scores.
        rows_kept: rows kept; `rows_in == rows_kept + sum(dropped.values())`.
        dropped: dropped rows by step, in the order of the steps; steps that dropped nothing are left out.
        kept_per_teacher: kept rows by teacher, most first; `(unknown)` where the row names none.
        before: each metric's dataset value over all scored rows, None where undefined. Rows that `where` drops by their stored
            columns alone have no metrics, see `trajscore.metrics.measure.measure`, and are left out.
        after: the same over the kept rows.
        decisions: one line per input row: `row`, `id`, `prompt_id`, `teacher`, `kept`, `step`, `prompt_rank`,
            `overall_rank`, metrics, `combined` and `sample_weight` where asked for.
        frame: the kept rows, lazily, in input order: the corpus's columns, `id`, `prompt_id`, metrics, `combined` and
            `sample_weight`.
        summary: what the selection did to correctness, tokens, teachers and loops, see
            `trajscore.selection.summary.summarise`.
        table: the small table that decided, for `explain`.
        added: columns beside the metrics.
        pairs: number of pairs, and of prompts without one by reason; None unless asked for.
        stat: files and numbers of STAT-Sel; None without it.
        given: the options that can change the outcome, as they were given.
        coefficients: of metrics that are fitted on all rows, by metric.
        unfinished: a line for each folder whose scoring has not come to its end.
        explanation: what `explain` gives for the row that was asked about; None where none was.
    """

    options: Policy
    rows_in: int
    rows_kept: int
    dropped: dict[str, int]
    kept_per_teacher: dict[str, int]
    before: dict[str, float | None]
    after: dict[str, float | None]
    decisions: pl.DataFrame
    frame: pl.LazyFrame
    summary: dict[str, Any]
    table: pl.DataFrame = field(repr=False)
    added: tuple[str, ...] = ()
    stat: dict[str, Any] | None = None
    pairs: dict[str, int] | None = None
    given: dict[str, Any] = field(default_factory=dict)
    coefficients: dict[str, dict[str, float | None]] = field(default_factory=dict)
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
            "summary": self.summary,
            "metrics": {name: {"before": self.before[name], "after": self.after[name]} for name in self.before},
            "coefficients": self.coefficients,
            "unfinished": list(self.unfinished),
            "options": {**asdict(self.options), "stat": self.stat},
            "explanation": self.explanation,
            "pairs": self.pairs,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decided, as JSON values; the kept rows' Parquet file holds it too."""
        return {**asdict(self.options), "stat": self.stat, "coefficients": self.coefficients, "given": self.given}

    def lines(self) -> list[str]:
        """Rows, tokens and correctness before and after, and what speaks against it."""
        before, after = self.summary["before"], self.summary["after"]
        tokens = "" if after["tokens"] is None else f", {after['tokens']:,} of {before['tokens']:,} tokens"
        right = (
            "" if after["correct"] is None else f", {share(after['correct'])} correct after {share(before['correct'])}"
        )
        return [f"Selection: {self.rows_kept:,} of {self.rows_in:,} rows{tokens}{right}", *self.summary["notes"]]

    def preview(self) -> pl.DataFrame:
        """The kept rows' decisions, best first."""
        return self.decisions.filter("kept").sort("overall_rank").drop("row", "kept", "step")

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """`teachers`: each one's share of the scored rows and of the kept ones."""
        before, after = (
            {name: each["share"] for name, each in self.summary[when]["teachers"].items()}
            for when in ("before", "after")
        )
        title = "Each teacher's share of the rows, scored and kept"
        return {"teachers": lambda: draw_shares(before, after, ("scored", "kept"), title)}

    def explain(self, trajectory: str) -> dict[str, Any]:
        """Why a row was kept or dropped, with its numbers and those of the candidates that it competed with.

        Args:
            trajectory: the row's id.

        Returns:
            JSON values: see `trajscore.selection.explain.explain_row`.

        Raises:
            UsageError: no row has this id; the message names near ones.
        """
        return explain_row(self.table, trajectory, self.options)


@keywords_of(SelectOptions)
def select(options: SelectOptions) -> Selection:
    """Keep the trajectories that suit the student best.

    Steps, in order: status ok, prompt not in an evaluation set (`exclude`), metric defined, where, prefer, per prompt, global
    budget with quotas. The first metric ranks, by its own direction unless `order` is given, or all do with `combine`; ties go
    to the lower id in string order. The metric `stat` keeps the best answers of the questions drawn, after the other steps and
    in place of `per_prompt` and the budgets; its weights are the draws.

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
    spare_inputs_of(options)
    settings, drawing = open_stat(settled(options), options)
    known = known_metrics(options.metrics_file)
    source = open_scores(options.scores)
    read = read_policy(settings, source, options, known)
    policy, metrics = read.policy, read.metrics
    check_names(metrics)
    targets = (
        None if options.out is None else check_suffix(options.out, ROW_SUFFIXES, "--out"),
        None if options.decisions is None else check_suffix(options.decisions, DECISION_SUFFIXES, "--decisions"),
    )
    _check_outputs(options)
    mentioned = [] if policy.where is None else named_in(policy.where, source, known)
    every = on_all_rows(list({each.name: each for each in (*metrics, *mentioned)}.values()), source)
    known = {**known, **{each.name: each for each in every}}
    metrics = tuple(known[each.name] for each in metrics)
    table = prepared(source, policy, metrics, known)
    contamination = None
    if options.exclude:
        contamination = find_contamination(source, table, EvaluationSet(options.exclude, options.exclude_ngram))
        table = contamination.marked(table)
    decided = decide(table, policy, {each.name: each.direction or "higher" for each in metrics})
    if policy.combine and decided["combined"].drop_nulls().n_unique() == 1 < decided["combined"].count():
        _log.warning("every row has the same combined value: the ids decide (has each prompt one candidate only?)")
    added = added_columns(policy)
    if drawing is not None:
        decided, added = drawing.decide(decided), [*added, *drawing.added]
    selection = replace(
        _summary(source, policy, decided, tuple(added)), given=options.recorded(), coefficients=coefficients_of(every)
    )
    if contamination is not None:
        notes = [*selection.summary["notes"], *contamination.notes()]
        selection = replace(selection, summary={**selection.summary, "notes": notes})
    if drawing is not None:
        files = {"profile": str(options.profile), "skill_map": str(options.skill_map)}
        selection = replace(selection, stat={**files, **asdict(drawing.options)})
    if options.explain is not None:
        selection = replace(selection, explanation=selection.explain(options.explain))
    if options.pairs is not None and targets[0] is not None:
        selection = replace(selection, pairs=_write_pairs(source, selection, options.pairs, targets[0]))
        targets = (None, targets[1])
    _write(source, selection, metrics, *targets)
    if options.card and options.out is not None:
        with replacing(Path(options.out).with_name(CARD)) as temporary:
            text = card(selection.to_dict(), source.student_name, Path(options.out).name)
            temporary.write_text(text, "utf-8")
    return selection


def _check_outputs(options: SelectOptions) -> None:
    """What goes with --out only, checked before anything is computed."""
    for name in ("pairs", "card"):
        if getattr(options, name) not in (None, False) and options.out is None:
            raise UsageError(f"--{name} needs --out.", "Name the file that it belongs to.")
    if options.pairs is not None and Path(str(options.out)).suffix != ".jsonl":
        raise UsageError(f"--pairs writes JSON lines, and --out is {options.out}.", "End its name in .jsonl.")
    if options.pairs is not None and STAT in (options.metric or ()):
        raise UsageError("--pairs does not go with --metric stat.", "Leave one of them out.")
    if options.card and is_foreign(Path(str(options.out)).with_name(CARD)):
        raise UsageError(
            f"--card: {Path(str(options.out)).with_name(CARD)} is there and was not written by --card.",
            "Write --out into a folder of its own, or move that file.",
        )


def _write_pairs(source: ScoreSource, selection: Selection, gap: float, out: Path) -> dict[str, int]:
    """Write the pairs, and count them and the prompts that give none, by reason."""
    ranking = ranking_column(selection.options.metrics, selection.options.combine)
    pairs, without = find_pairs(selection.table, ranking, gap)
    with replacing(out) as temporary, temporary.open("wb") as handle:
        for row in pair_rows(source, pairs, ranking):
            handle.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    if pairs.is_empty():
        _log.warning(
            "no pair was written: %s", ", ".join(f"{count} prompts with {why}" for why, count in without.items())
        )
    return {"pairs": pairs.height, **without}


def _summary(source: ScoreSource, options: Policy, decided: pl.DataFrame, added: tuple[str, ...]) -> Selection:
    kept = decided.filter("kept")
    counts = {step: rows for step, rows in decided["step"].value_counts().iter_rows() if step != KEPT}
    dropped = {step: counts[step] for step in sorted(counts, key=_step_order)}
    rows_in = sum(rows for _, rows in source.folders) if source.folders else decided.height
    if rows_in != kept.height + sum(dropped.values()):
        raise RuntimeError(f"{rows_in} rows in, {kept.height} kept, dropped {dropped}: rows went missing")
    summary = summarise(decided, options)
    columns = ["row", "id", "prompt_id", "teacher", "kept", "step", "prompt_rank", "overall_rank"]
    columns += [*options.metrics, *added]
    return Selection(
        options=options,
        rows_in=rows_in,
        rows_kept=kept.height,
        dropped=dropped,
        kept_per_teacher={name: each["rows"] for name, each in summary["after"]["teachers"].items()},
        before=_dataset_values(decided, options),
        after=_dataset_values(kept, options),
        decisions=decided.select(columns),
        frame=_kept_frame(source, kept, [*options.metrics, *added]),
        summary=summary,
        table=decided,
        added=added,
        unfinished=source.unfinished,
    )


def _step_order(step: str) -> tuple[int, str]:
    return (STEPS.index(step) if step in STEPS else -1, step)


def _dataset_values(rows: pl.DataFrame, options: Policy) -> dict[str, float | None]:
    return {name: dataset_value(rows[f"{name}:numerator"], rows[f"{name}:denominator"]) for name in options.metrics}


def _kept_values(source: ScoreSource, kept: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    return kept.select("row", *(pl.col(name).alias(source.metric_column(name)) for name in names))


def _kept_frame(source: ScoreSource, kept: pl.DataFrame, names: Sequence[str]) -> pl.LazyFrame:
    # Not "row": a corpus may have a column of that name.
    number = "trajscore.row"
    metrics = _kept_values(source, kept, names).rename({"row": number})
    columns = source.frame.select(source.output_columns).with_row_index(number)
    frame = columns.join(metrics.lazy(), on=number, how="inner", maintain_order="left").drop(number)
    taken = {*source.output_columns, *metrics.columns} - {number}
    return frame.rename({ours: own for ours, own in source.renamed.items() if own not in taken}, strict=False)


def _write(
    source: ScoreSource, selection: Selection, metrics: Sequence[Metric], out: Path | None, decisions: Path | None
) -> None:
    if selection.rows_kept == 0:
        _log.warning("no row was kept of %d", selection.rows_in)
    for note in selection.summary["notes"]:
        _log.warning(note)
    if out is not None:
        rows = _write_kept(source, selection, metrics, out)
        if rows != selection.rows_kept:
            raise RuntimeError(f"{rows} rows written to {out}, {selection.rows_kept} were kept")
    if decisions is not None:
        lines = selection.decisions
        write_frames([lines], lines.to_arrow().schema, decisions)


def _write_kept(source: ScoreSource, selection: Selection, metrics: Sequence[Metric], out: Path) -> int:
    names = [*selection.options.metrics, *selection.added]
    kept = _kept_values(source, selection.decisions.filter("kept"), names)
    schema = _metric_schema(source, metrics, selection)
    if source.paths:
        return _copy(source.paths, source.output_columns, kept, schema, out)
    # A LazyFrame has no parts to copy from: its kept rows become one, which then takes the same way.
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "rows.parquet"
        selection.frame.sink_parquet(part)
        renumbered = kept.with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))
        return _copy([part], source.output_columns, renumbered, schema, out)


def _copy(paths: Sequence[Path], columns: Sequence[str], kept: pl.DataFrame, metrics: pa.Schema, out: Path) -> int:
    """Copy kept rows, with the conversations that were scored where the corpus had another layout."""
    if SCORED not in columns:
        return write_rows(paths, columns, kept, metrics, out)
    conversations = ScoredConversations(
        read_kept(paths, [name for name in columns if name in (MESSAGES, SCORED)], kept)
    )
    return write_rows(paths, columns, kept, metrics, out, conversations)


def _metric_schema(source: ScoreSource, metrics: Sequence[Metric], selection: Selection) -> pa.Schema:
    facts = {
        each.name: {"unit": each.unit, "meaning": each.meaning, "direction": each.direction or "none"}
        for each in metrics
    }
    facts |= {name: {"unit": "", "meaning": _ADDED[name]} for name in selection.added}
    fields = [pa.field(source.metric_column(name), pa.float64(), metadata=fact) for name, fact in facts.items()]
    return pa.schema(fields, metadata={SELECTION_METADATA: orjson.dumps(selection.settings).decode()})
