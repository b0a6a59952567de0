"""What a selection did to the corpus, for the person who trains on it: correctness, tokens, teachers, loops, prompts, and
notes.

`summarise` counts on the small table that decided; `in_words` says what each step means. Both are printed after every
selection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from trajscore.display.charts import axis_of, two_dots
from trajscore.errors import UsageError
from trajscore.metrics.measure import boolean_correct
from trajscore.metrics.repetition import LOOP_LIMITS
from trajscore.schema import OK, REFUSED
from trajscore.selection.policy import Policy

UNKNOWN_TEACHER = "(unknown)"
NO_LOOPS = '--where "loop = 0"'
"""The flag that drops rows that look like loops."""

_WORDS = {
    "exclude": "the prompt shares words with an evaluation set",
    "undefined_metric": "a metric that ranks is undefined",
    "where": "--where is not true",
    "prefer": "wrong, and the prompt has a correct answer",
    "per_prompt": "the prompt has better ones",
    "quota": "a quota was full",
    "top": "worse than the best that --top keeps",
    "fraction": "worse than the share that --fraction keeps",
    "max_tokens": "no room left under --max-tokens",
    "not_drawn": "the question was not drawn for any missing skill",
    "answers": "the question has better answers",
    "total": "left out at random by --total",
}


def in_words(step: str) -> str:
    """What dropped a row, in words.

    >>> in_words("prefer"), in_words("refused:too_long")
    ('wrong, and the prompt has a correct answer', 'could not be scored (too_long)')
    """
    status = step.removeprefix(REFUSED)
    return f"could not be scored ({status})" if status != step else _WORDS.get(step, step)


def summarise(table: pl.DataFrame, options: Policy) -> dict[str, Any]:
    """What a selection did.

    Args:
        table: what `decide` returned; `correct`, `n_tokens` and the columns of `LOOP_LIMITS` are read where they are there.
        options: the settings that decided.

    Returns:
        JSON values. `before` is over all scored rows, `after` over the kept ones: `rows`, `tokens`, `prompts`, share
        `correct` of the rows that say so (None where none does), `loops` (rows, None where the scores do not tell),
        `teachers` (rows and share by name, most rows before first). `one_candidate`: prompts with one ranked row, hence no
        choice; `ranked_prompts`: all of them. `notes`: sentences that speak against training on it as it is.
    """
    scored = table.filter(pl.col("status") == OK)
    kept = table.filter("kept")
    ranked = table.filter(pl.col("prompt_rank").is_not_null()).group_by("prompt_id").len()["len"]
    summary: dict[str, Any] = {"before": _facts(scored), "after": _facts(kept)}
    summary |= {"one_candidate": int((ranked == 1).sum()), "ranked_prompts": len(ranked)}
    summary["loop_limits"] = {name: limit for name, limit in LOOP_LIMITS.items() if name in table.columns}
    summary["notes"] = _notes(summary, table, options)
    return summary


def _facts(rows: pl.DataFrame) -> dict[str, Any]:
    teachers = rows.group_by(pl.col("teacher").fill_null(UNKNOWN_TEACHER)).len()
    teachers = teachers.sort("len", "teacher", descending=[True, False])
    tokens = int(rows["n_tokens"].cast(pl.Int64).sum()) if "n_tokens" in rows.columns else None
    return {
        "rows": rows.height,
        "tokens": tokens,
        "prompts": rows["prompt_id"].n_unique(),
        "correct": _share_correct(rows),
        "loops": _loops(rows),
        "teachers": {name: {"rows": count, "share": count / rows.height} for name, count in teachers.iter_rows()},
    }


def _share_correct(rows: pl.DataFrame) -> float | None:
    if "correct" not in rows.columns:
        return None
    try:
        return boolean_correct(rows["correct"]).cast(pl.Float64).mean()  # type: ignore[return-value]
    except UsageError:
        return None


def _loops(rows: pl.DataFrame) -> int | None:
    there = {name: limit for name, limit in LOOP_LIMITS.items() if name in rows.columns}
    if not there:
        return None
    above = pl.any_horizontal(pl.col(name).fill_nan(None) > limit for name, limit in there.items())
    return int(rows.select(above.fill_null(False).sum()).item())


def _uncut(table: pl.DataFrame) -> int:
    """Prompts with several ranked candidates that were all kept."""
    ranked = table.filter(pl.col("prompt_rank").is_not_null()).group_by("prompt_id").agg(pl.len(), pl.col("kept").all())
    return ranked.filter(pl.col("kept") & (pl.col("len") > 1)).height


def _notes(summary: Mapping[str, Any], table: pl.DataFrame, options: Policy) -> list[str]:
    before, after = summary["before"], summary["after"]
    notes = []
    if before["rows"] > 1 and before["rows"] == before["prompts"] and _compares_within_prompts(options):
        notes.append(
            "no prompt has two candidates, so there was nothing to choose within prompts. If rows of one question should "
            "compete, score again with --prompt-by user (leaves system prompts out) or name the question with --prompt-field"
        )
    if options.weight == "lark" and (uncut := _uncut(table)):
        kept_all = "prompt kept all its candidates" if uncut == 1 else "prompts kept all their candidates"
        notes.append(f"{uncut:,} {kept_all}: with nothing cut, LARK's weights are uniform there")
    if options.top is not None and after["rows"] < options.top:
        notes.append(f"{after['rows']:,} of {options.top:,}: {_shortfall(summary, options)}")
    if after["loops"]:
        of = "row looks like a loop" if after["loops"] == 1 else "rows look like loops"
        notes.append(f"{after['loops']:,} kept {of} (repeated text); {NO_LOOPS} drops them")
    if None not in (before["correct"], after["correct"]) and after["correct"] < before["correct"]:
        notes.append(
            f"fewer rows are correct than before ({100 * after['correct']:.0f} % after {100 * before['correct']:.0f} %); "
            "--prefer correct drops a prompt's wrong rows where it has a correct one"
        )
    return notes


def _compares_within_prompts(options: Policy) -> bool:
    within = "prompt" in (
        options.combine_within if options.combine else "",
        options.weight_within if options.weight else "",
    )
    return within or options.per_prompt is not None or options.prefer is not None


def _shortfall(summary: Mapping[str, Any], options: Policy) -> str:
    prompts = f"only {summary['ranked_prompts']:,} prompts"
    if options.quotas:
        return "the quotas allow no more"
    if options.per_prompt is None:
        return f"only {summary['after']['rows']:,} rows passed the steps before"
    return prompts if options.per_prompt == 1 else f"{prompts}, at most {options.per_prompt} rows of each"


def draw_shares(first: Mapping[str, float], second: Mapping[str, float], series: tuple[str, str], title: str) -> Any:
    """Each teacher's share of the rows of two corpora, as a chart; None without a teacher.

    Args:
        first: shares by teacher; who is in one of the two only has none of the other.
        second: the same.
        series: what the two are called.
        title: what the chart shows, for who cannot see it.
    """
    names = dict.fromkeys([*first, *second])
    axis = axis_of([*first.values(), *second.values()], "share of the rows", zero=True, log=False)
    if axis is None:
        return None
    rows = [{"name": name, series[0]: first.get(name, 0.0), series[1]: second.get(name, 0.0)} for name in names]
    return two_dots(rows, series, replace(axis, low=-axis.high / 50), title)
