"""`select --explain ID`: why one row was kept or dropped, beside the rows that it competed with."""

from __future__ import annotations

from typing import Any

import polars as pl

from trajscore.errors import UsageError, nearest_values
from trajscore.options import flag
from trajscore.schema import REFUSED
from trajscore.selection.budgets import QUOTA, quota_column
from trajscore.selection.decide import COMBINED, DRAWS, KEPT, SAMPLE_WEIGHT
from trajscore.selection.policy import Policy
from trajscore.selection.stat_draws import STAT_STEPS

_NEAR_IDS = 2000


def explain_row(table: pl.DataFrame, trajectory: str, options: Policy) -> dict[str, Any]:
    """Why a row was kept or dropped.

    Args:
        table: what `decide` returned.
        trajectory: the row's id. A refused duplicate may share it with a scored row: that row is explained, and both are
            among the candidates.
        options: the settings that decided.

    Returns:
        `id`, `row`, `prompt_id`, `teacher`, `kept`, `step`, `reason` (a sentence), `numbers` (by name, None where
        undefined), `candidates` (all rows of the prompt, ranked ones first, each with its numbers) and `cut` (the last kept
        row overall and the best one that the budget or a quota dropped; empty where the row did not reach that step).

    Raises:
        UsageError: no row has this id; the message names near ones.
    """
    rows = table.filter(pl.col("id") == trajectory).sort(pl.col("step").str.starts_with(REFUSED), "row")
    if rows.is_empty():
        raise UsageError(f"--explain {trajectory!r}: no row has this id.", _near(table, trajectory))
    row = rows.row(0, named=True)
    prompt = table.filter(pl.col("prompt_id").eq_missing(row["prompt_id"])).sort("prompt_rank", "row", nulls_last=True)
    return {
        **{name: row[name] for name in ("id", "row", "prompt_id", "teacher", "kept", "step")},
        "reason": _reason(row, table, prompt, options),
        "numbers": _numbers(row, options),
        "candidates": [_line(each, options) for each in prompt.iter_rows(named=True)],
        "cut": _cut(table, row, options),
    }


def _near(table: pl.DataFrame, trajectory: str) -> str:
    """Near ids: those that hold the text or begin alike first, for a corpus may have too many to compare them all."""
    ids = table.select(pl.col("id").drop_nulls().unique().sort()).to_series()
    alike = ids.filter(ids.str.contains(trajectory, literal=True) | ids.str.starts_with(trajectory[:3]))
    return nearest_values(trajectory, pl.concat([alike, ids]).unique(maintain_order=True).head(_NEAR_IDS))


def _numbers(row: dict[str, Any], options: Policy) -> dict[str, Any]:
    names = (*options.metrics, COMBINED, "n_tokens", "prompt_rank", "overall_rank", DRAWS, SAMPLE_WEIGHT)
    return {name: row[name] for name in names if name in row}


def _line(row: dict[str, Any], options: Policy) -> dict[str, Any]:
    facts = {name: row[name] for name in ("id", "teacher", "kept", "step")}
    return {**facts, **_numbers(row, options)}


def _cut(table: pl.DataFrame, row: dict[str, Any], options: Policy) -> dict[str, Any]:
    if row["overall_rank"] is None or (options.budget is None and not options.quotas):
        return {}
    reached = table.filter(pl.col("overall_rank").is_not_null()).sort("overall_rank")
    ends = {"last_kept": reached.filter("kept").tail(1), "first_dropped": reached.filter(~pl.col("kept")).head(1)}
    return {name: _line(end.row(0, named=True), options) for name, end in ends.items() if end.height}


def _reason(row: dict[str, Any], table: pl.DataFrame, prompt: pl.DataFrame, options: Policy) -> str:
    step = row["step"]
    if step.startswith(REFUSED):
        detail = row.get("status_detail")
        return f"it could not be scored: {step.removeprefix(REFUSED)}" + (f" ({detail})" if detail else "")
    if step == "exclude":
        return "its prompt shares a run of words with an evaluation set (--exclude)"
    if step == "undefined_metric":
        missing = [name for name in options.ranking if row[name] is None]
        return f"{' and '.join(missing)} is undefined for it, so it cannot be ranked"
    if step == "where":
        return f"--where {options.where!r} is {'null' if row['where'] is None else 'false'} for it"
    ranked = prompt["prompt_rank"].count()
    if step == "prefer":
        right = prompt.filter(pl.col("correct") & pl.col("prompt_rank").is_not_null()).height
        told = "not known to be correct" if row["correct"] is None else "incorrect"
        return f"it is {told}, and {right} candidates of its prompt are correct (--prefer correct)"
    place = f"rank {row['prompt_rank']} of {ranked} candidates of its prompt"
    if step == "per_prompt":
        return f"{place}, of which --per-prompt {options.per_prompt} keeps the best"
    if step in STAT_STEPS or (step == KEPT and DRAWS in row):
        return _drawn(row, table, place, options)
    overall = f"rank {row['overall_rank']} of {table['overall_rank'].count()} rows that reached the budget"
    better = table.filter("kept", pl.col("overall_rank") < row["overall_rank"])
    if step == QUOTA:
        return f"{overall}; {_full_quotas(row, better, table, options)}"
    if step == KEPT:
        return f"{place}; {overall}"
    tokens = (
        f" with {better['n_tokens'].cast(pl.Int64).sum()} tokens; it has {row['n_tokens']}"
        if step == "max_tokens"
        else ""
    )
    return f"{overall}; {flag(step)} {getattr(options, step)} left no room after {better.height} better rows{tokens}"


def _drawn(row: dict[str, Any], table: pl.DataFrame, place: str, options: Policy) -> str:
    """The reason of STAT-Sel's steps, or why it kept a row."""
    if row["step"] == "not_drawn":
        return f"{place}; its question was not drawn for any missing skill"
    drawn = f"its question was drawn {row[DRAWS]:.0f} times; {place}"
    if row["step"] == "answers":
        return f"{drawn}, of which --answers {options.per_prompt} keeps the best"
    if row["step"] == KEPT:
        return drawn
    reached = table["step"].is_in([KEPT, "total"]).sum()
    return f"{drawn}; --total left it out at random: it keeps {table['kept'].sum()} of {reached} rows"


def _full_quotas(row: dict[str, Any], better: pl.DataFrame, table: pl.DataFrame, options: Policy) -> str:
    kept = int(table["kept"].sum())
    for number, quota in enumerate(options.quotas):
        value = row[quota_column(number)]
        same = better.filter(pl.col(quota_column(number)).eq_missing(value)).height
        if quota.value in (None, value) and same >= quota.cap(kept):
            shown = "null" if value is None else repr(value)
            return f"--quota {quota.text} allows {quota.cap(kept)} of {kept} rows, and {same} better ones have {shown}"
    return f"the quotas allow {kept} rows together"
