"""Which rows are kept and which step drops the others. It knows one small line per row; no files, no tokens, no models.

The steps, each seeing only what the earlier ones left: status ok, metric defined, where, prefer, per prompt, global
budget. Rows are ranked by the first metric, then by id in string order, then by row number: nothing is left to chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from trajscore.errors import UsageError
from trajscore.schema import OK

KEPT = "kept"
REFUSED = "refused:"
STEPS = ("undefined_metric", "where", "prefer", "per_prompt", "top", "fraction", "max_tokens")
"""The steps that can drop a scored row, in order. A refused row's step is `refused:` and its status."""

_ORDERS = {"ascending": False, "asc": False, "descending": True, "desc": True}
_BUDGETS = ("top", "fraction", "max_tokens")


@dataclass(frozen=True)
class SelectOptions:
    """What to keep.

    Attributes:
        metrics: names of metrics; the first ranks, all are written.
        per_prompt: best rows kept of each prompt; None keeps all.
        top: best rows kept over all prompts.
        fraction: share of the rows that reach the budget that is kept, in (0, 1]: rounded down, but at least one row.
        max_tokens: the longest prefix of the ranked rows whose scored tokens sum to at most this.
        where: SQL expression over columns and metrics; rows where it is false or null are dropped.
        prefer: `correct` drops the incorrect rows of each prompt that has a correct one.
        order: `ascending` or `descending` in place of the first metric's direction.
        seed: for steps that draw at random; none of these does.

    Raises:
        UsageError: a value is out of range, or two of the three budgets are given.
    """

    metrics: tuple[str, ...] = ("rsr",)
    per_prompt: int | None = None
    top: int | None = None
    fraction: float | None = None
    max_tokens: int | None = None
    where: str | None = None
    prefer: str | None = None
    order: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.metrics:
            raise UsageError("no metric was given.", "Name one, for example --metric rsr.")
        for name in ("per_prompt", "top", "max_tokens"):
            _check_count(name, getattr(self, name))
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UsageError(f"{_flag('fraction')} is {self.fraction}.", "Give a number above 0 and at most 1.")
        given = [_flag(name) for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other.", "Give one of them.")
        if self.prefer not in (None, "correct"):
            raise UsageError(f"--prefer {self.prefer!r} is unknown.", "Known: correct.")
        if self.order is not None and self.order not in _ORDERS:
            raise UsageError(f"--order {self.order!r} is unknown.", "Give ascending or descending.")

    @property
    def budget(self) -> str | None:
        """Name of the global budget in force, None without one."""
        return next((name for name in _BUDGETS if getattr(self, name) is not None), None)

    @property
    def ranking(self) -> str:
        """The metric that ranks."""
        return self.metrics[0]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UsageError(f"{_flag(name)} is {value!r}.", "Give a whole number of at least 1.")


def decide(rows: pl.DataFrame, options: SelectOptions, directions: Mapping[str, str]) -> pl.DataFrame:
    """The decision on each row.

    Args:
        rows: one line per row with `row` (unique), `id`, `prompt_id`, `status` and a column per metric; `where` (bool)
            with `options.where`, `correct` (bool) with `options.prefer`, `n_tokens` with `options.max_tokens`.
        options: what to keep.
        directions: `higher` or `lower` of each metric in `options.metrics`.

    Returns:
        `rows`, in the same order, with `kept` (bool), `step` (`kept`, or what dropped the row) and `prompt_rank` (1 is
        the best of its prompt among the rows that reached the per-prompt step; null for the others).

    >>> rows = pl.DataFrame({"row": [0, 1], "id": ["a", "b"], "prompt_id": ["p", "p"], "status": ["ok", "ok"],
    ...                      "rsr": [3.0, 2.0]})
    >>> decide(rows, SelectOptions(per_prompt=1), {"rsr": "lower"})["step"].to_list()
    ['per_prompt', 'kept']
    """
    decided = rows.with_columns(step=_row_step(options))
    if options.prefer == "correct":
        decided = decided.with_columns(step=_prefer_step())
    descending = directions[options.ranking] == "higher" if options.order is None else _ORDERS[options.order]
    columns = ["row", "id", "prompt_id", options.ranking, *_weights(options)]
    ranked = (
        decided.filter(pl.col("step").is_null())
        .select(columns)
        .sort(options.ranking, "id", "row", descending=[descending, False, False])
    )
    ranked = ranked.with_columns(prompt_rank=pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over("prompt_id"))
    dropped = _rank_steps(ranked, options)
    return (
        decided.join(dropped, on="row", how="left", maintain_order="left")
        .with_columns(step=pl.coalesce("step", "rank_step", pl.lit(KEPT)))
        .with_columns(kept=pl.col("step") == KEPT)
        .drop("rank_step")
    )


def _weights(options: SelectOptions) -> list[str]:
    return ["n_tokens"] if options.max_tokens is not None else []


def _row_step(options: SelectOptions) -> pl.Expr:
    """The first step that drops a row by itself, null if none does."""
    status = pl.col("status").fill_null("unknown")
    steps = [
        pl.when(status != OK).then(REFUSED + status),
        pl.when(pl.col(options.ranking).is_null()).then(pl.lit("undefined_metric")),
    ]
    if options.where is not None:
        steps.append(pl.when(~pl.col("where").fill_null(False)).then(pl.lit("where")))
    return pl.coalesce(steps)


def _prefer_step() -> pl.Expr:
    alive = pl.col("step").is_null()
    correct = pl.col("correct").fill_null(False)
    drop = alive & ~correct & (alive & correct).any().over("prompt_id")
    return pl.when(drop).then(pl.lit("prefer")).otherwise("step")


def _rank_steps(ranked: pl.DataFrame, options: SelectOptions) -> pl.DataFrame:
    """Rank-dependent steps on rows sorted best first: `row`, `prompt_rank`, `rank_step` (null where kept)."""
    in_prompt = pl.lit(True) if options.per_prompt is None else pl.col("prompt_rank") <= options.per_prompt
    ranked = ranked.with_columns(in_prompt=in_prompt)
    reached = ranked.filter("in_prompt")
    within = reached.filter(_within_budget(reached.height, options))["row"]
    step = pl.coalesce(
        pl.when(~pl.col("in_prompt")).then(pl.lit("per_prompt")),
        pl.when(~pl.col("row").is_in(within.implode())).then(pl.lit(options.budget or KEPT)),
    )
    return ranked.select("row", "prompt_rank", rank_step=step)


def _within_budget(reached: int, options: SelectOptions) -> pl.Expr:
    """Whether a row, counted from the best of those that reached the budget, is within it."""
    number = pl.int_range(pl.len())
    if options.top is not None:
        return number < options.top
    if options.fraction is not None:
        # Through the decimal text: 0.29 * 100 is 28.999999999999996 in binary floating point, and 29 is meant.
        return number < max(1, int(Fraction(str(options.fraction)) * reached))
    if options.max_tokens is not None:
        # Int64 first: a cumulative sum of uint32 could wrap around.
        return pl.col("n_tokens").cast(pl.Int64).cum_sum() <= options.max_tokens
    return pl.lit(True)
