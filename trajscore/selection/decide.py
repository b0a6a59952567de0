"""The steps of a selection: which rows are kept, which step drops the others, and where weights are given.

Everything here works on the small table, one line per row, see `trajscore.metrics.measure`. The steps, each seeing only what
the earlier ones left: status ok, no words of an evaluation set, metric defined, where, prefer, per prompt, global budget with
quotas (`budgets`). What of where the stored columns decide comes before the metrics, which are not computed for rows that it
drops. Rows are ranked by their merit (the first metric, or several combined among the rows that the steps up to prefer left),
then by id in string order, then by row number: the order of the rows never matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

import polars as pl

from trajscore.schema import OK, REFUSED
from trajscore.selection.budgets import QUOTA, budget_steps, quota_column
from trajscore.selection.combination import combined, oriented
from trajscore.selection.policy import BUDGETS, ORDERS, RANDOM, Policy
from trajscore.selection.weights import MERIT, WEIGHTS, WeightInputs, sample_weights

KEPT = "kept"
STEPS = ("exclude", "undefined_metric", "where", "prefer", "per_prompt", QUOTA, *BUDGETS)
"""The steps that can drop a scored row, in order. A refused row's step is `refused:` and its status."""

COMBINED = "combined"
SAMPLE_WEIGHT = "sample_weight"
DRAWS = "draws"
RESERVED = frozenset(
    {"row", "id", "prompt_id", "teacher", "status", "detail", "kept", "step", "prompt_rank", "overall_rank"}
    | {"where", "excluded", "contaminated", "stored", "folder", "correct", "n_tokens", "rank_step", "weight_value"}
    | {MERIT, COMBINED, SAMPLE_WEIGHT, DRAWS}
)
"""Names that a metric cannot have, because a selection has a column of that name."""


def decide(rows: pl.DataFrame, options: Policy, directions: Mapping[str, str]) -> pl.DataFrame:
    """The decision on each row.

    Args:
        rows: one line per row with `row` (unique), `id`, `prompt_id`, `status` and a column per metric; `contaminated` (bool)
            where evaluation sets were given; `where` (bool) with `options.where`, and `excluded` (bool) where it dropped rows
            before their metrics were computed; `correct` (bool) with `options.prefer`, `n_tokens` with `options.max_tokens`,
            `quota:0`, ... (text) with `options.quotas`, `weight_value` where `options.weight` reads a column.
        options: what to keep.
        directions: `higher` or `lower` of each metric in `options.metrics`; of one without a direction `higher`, which the
            order or the sign of its weight then turns.

    Returns:
        `rows`, in the same order, with `kept` (bool), `step` (`kept`, or what dropped the row), `prompt_rank` (1 is the
        best of its prompt among the rows that reached the per-prompt step; null for the others), `overall_rank` (1 is the
        best of the rows that reached the budget), `combined` with `options.combine` (higher is better, null where the row
        was not ranked), and `sample_weight` with `options.weight` (null where the row was dropped).

    Raises:
        UsageError: quotas that nothing can hold to, or weights that cannot be given.

    >>> rows = pl.DataFrame({"row": [0, 1], "id": ["a", "b"], "prompt_id": ["p", "p"], "status": ["ok", "ok"],
    ...                      "rsr": [3.0, 2.0]})
    >>> decide(rows, Policy(per_prompt=1), {"rsr": "lower"})["step"].to_list()
    ['per_prompt', 'kept']
    """
    decided = rows.with_columns(step=_row_step(options, rows.columns))
    if options.prefer == "correct":
        decided = decided.with_columns(step=_prefer_step())
    ranked = _ranked(decided.filter(pl.col("step").is_null()).drop("step"), options, directions)
    outcome = _with_rank_steps(ranked, options)
    decided = (
        decided.join(outcome, on="row", how="left", maintain_order="left")
        .with_columns(step=pl.coalesce("step", "rank_step", pl.lit(KEPT)))
        .with_columns(kept=pl.col("step") == KEPT)
        .drop("rank_step")
    )
    return decided if options.weight is None else _with_weights(decided, ranked, options)


def _row_step(options: Policy, columns: Collection[str]) -> pl.Expr:
    """The first step that drops a row by itself, null if none does."""
    status = pl.col("status").fill_null("unknown")
    undefined = pl.any_horizontal(pl.col(name).is_null() for name in options.ranking)
    steps = [
        pl.when(status != OK).then(REFUSED + status),
        *([pl.when(pl.col("contaminated")).then(pl.lit("exclude"))] if "contaminated" in columns else []),
        *([pl.when(pl.col("excluded")).then(pl.lit("where"))] if "excluded" in columns else []),
        pl.when(undefined).then(pl.lit("undefined_metric")),
    ]
    if options.where is not None:
        steps.append(pl.when(~pl.col("where").fill_null(False)).then(pl.lit("where")))
    return pl.coalesce(steps)


def _prefer_step() -> pl.Expr:
    alive = pl.col("step").is_null()
    correct = pl.col("correct").fill_null(False)
    drop = alive & ~correct & (alive & correct).any().over("prompt_id")
    return pl.when(drop).then(pl.lit("prefer")).otherwise("step")


def _ranked(rows: pl.DataFrame, options: Policy, directions: Mapping[str, str]) -> pl.DataFrame:
    """The rows best first, with `merit` (higher is better) and `prompt_rank`."""
    # By id before anything is summed: sums of floats depend on the order, and the rows' order must not show.
    rows = rows.sort("id", "row").rechunk()
    if options.order == RANDOM:
        rows = rows.with_columns(draws(rows["id"], options.seed).alias(MERIT))
    else:
        rows = rows.with_columns(_merit(options, directions).alias(MERIT))
    rows = rows.sort(MERIT, "id", "row", descending=[True, False, False])
    return rows.with_columns(prompt_rank=pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("prompt_id"))


def _merit(options: Policy, directions: Mapping[str, str]) -> pl.Expr:
    name = options.metrics[0]
    if options.order is not None:
        return oriented(name, "higher" if ORDERS[options.order] == "descending" else "lower")
    if options.combine is None:
        return oriented(name, directions[name])
    within = "prompt_id" if options.combine_within == "prompt" else None
    better = {each: directions[each] for each in options.metrics}
    return combined(better, options.combine, options.metric_weights, within)


def draws(ids: pl.Series, seed: int) -> pl.Series:
    """A number in [0, 1) per id, from a hash of seed and id: it depends on neither the other rows nor their order.

    >>> draws(pl.Series(["a", "b"]), 0).round(4).to_list()
    [0.7417, 0.383]
    """
    hashes = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in ids]
    return pl.Series([(int.from_bytes(each) >> 11) * 2.0**-53 for each in hashes], dtype=pl.Float64)


def _with_rank_steps(ranked: pl.DataFrame, options: Policy) -> pl.DataFrame:
    """`row`, `prompt_rank`, `overall_rank`, `rank_step` (null where kept) and `combined`, if asked for."""
    in_prompt = pl.lit(True) if options.per_prompt is None else pl.col("prompt_rank") <= options.per_prompt
    reached = ranked.filter(in_prompt)
    reached = reached.select(
        "row",
        overall_rank=pl.int_range(1, pl.len() + 1, dtype=pl.UInt32),
        rank_step=budget_steps(reached, options),
        reached=pl.lit(True),
    )
    names = {COMBINED: MERIT} if options.combine else {}
    return (
        ranked.select("row", "prompt_rank", **{name: pl.col(column) for name, column in names.items()})
        .join(reached, on="row", how="left", maintain_order="left")
        .with_columns(rank_step=pl.when(pl.col("reached")).then("rank_step").otherwise(pl.lit("per_prompt")))
        .drop("reached")
    )


def _with_weights(decided: pl.DataFrame, ranked: pl.DataFrame, options: Policy) -> pl.DataFrame:
    kept = decided.filter("kept")["row"]
    inputs = WeightInputs(
        ranked=ranked.with_columns(kept=pl.col("row").is_in(kept.implode())),
        within=options.weight_within,
        temperature=options.temperature,
        column=options.weight_column,
    )
    weights = sample_weights(str(options.weight), inputs)
    return decided.join(weights, on="row", how="left", maintain_order="left")


def needed_columns(options: Policy) -> dict[str, str]:
    """Columns of the scores that a selection reads beside metrics: by the name in the small table, the column's name."""
    columns = {quota_column(number): quota.column for number, quota in enumerate(options.quotas)}
    if options.weight is not None and WEIGHTS[options.weight].reads_column:
        columns["weight_value"] = options.weight_column
    return columns
