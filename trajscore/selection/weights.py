"""`sample_weight`: how much each kept row counts in training.

Every weight is finite, at least 0, and has mean 1 over the kept rows, so that the learning rate keeps its meaning. To
add one: a function and a line in `WEIGHTS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from trajscore.errors import UsageError

MERIT = "merit"
"""The column with the ranking value, oriented: higher is better."""

_TINY = 1e-12


@dataclass(frozen=True)
class WeightInputs:
    """What a weight may read.

    Attributes:
        ranked: every row that was ranked, best first: `row`, `id`, `prompt_id`, `merit`, `prompt_rank`, `kept` (bool) and,
            for weights that read a column, `weight_value`.
        within: `corpus` or `prompt`.
        temperature: of the softmax, in the unit of the merit.
        column: name of the column that `weight_value` comes from.
    """

    ranked: pl.DataFrame
    within: str
    temperature: float
    column: str

    @property
    def kept(self) -> pl.DataFrame:
        """The kept rows, best first."""
        return self.ranked.filter("kept")

    def grouped(self, value: pl.Expr) -> pl.Expr:
        """An expression within the scope."""
        return value.over("prompt_id") if self.within == "prompt" else value


@dataclass(frozen=True)
class Weight:
    """One kind of weight.

    Attributes:
        values: one number per kept row, in their order; only ratios matter, see `sample_weights`.
        meaning: one sentence for tables.
        source: arXiv id, or empty.
        reads_column: whether it reads a column in place of the merit.
    """

    values: Callable[[WeightInputs], pl.Series]
    meaning: str
    source: str = ""
    reads_column: bool = False


def softmax(inputs: WeightInputs) -> pl.Series:
    """exp(merit / temperature), with mean 1 in the scope. It cannot overflow; far below the best it is 0."""
    merit = pl.col(MERIT)
    weight = ((merit - inputs.grouped(merit.max())) / inputs.temperature).exp()
    return inputs.kept.select(weight / inputs.grouped(weight.mean())).to_series()


def rank(inputs: WeightInputs) -> pl.Series:
    """2 (n - r + 1) / (n + 1), with r the average rank among the n kept rows of the scope, 1 the best.

    The best weighs n times as much as the worst; all 1 where all are tied.
    """
    standing = 2 * pl.col(MERIT).rank("average") / (pl.len() + 1)
    return inputs.kept.select(inputs.grouped(standing)).to_series()


def lark(inputs: WeightInputs) -> pl.Series:
    """LARK's chi-square tempered weights: within each prompt (merit - t) / sum of (merit - t), whatever the scope.

    The threshold t is the best merit of the prompt's candidates below its worst kept row. Where nothing was cut there is none,
    and the weights are uniform (the authors' code takes the worst kept merit less 1e-8, which leaves that row next to no
    weight); so they are where the denominator is at most 1e-12. The weights of a prompt sum to the same number for every
    prompt, as in the source.

    Source: arXiv 2605.30651 and its code; there the merit is g, the metric `lark`.
    """
    worst = pl.col("prompt_rank").filter(pl.col("kept")).max().over("prompt_id")
    below = pl.col(MERIT).filter(pl.col("prompt_rank") > pl.col("worst")).max().over("prompt_id")
    rows = inputs.ranked.with_columns(worst=worst).with_columns(below=below).filter("kept")
    rows = rows.with_columns(excess=pl.col(MERIT) - pl.col("below"))
    total = pl.col("excess").sum().over("prompt_id")
    share = pl.when(total > _TINY).then(pl.col("excess") / total).otherwise(1.0 / pl.len().over("prompt_id"))
    return rows.select(share).to_series()


def paced(inputs: WeightInputs) -> pl.Series:
    """p (1 - p), with p the student's pass rate on the prompt, read from a column; 0 where it always or never passes.

    Raises:
        UsageError: a kept row has no pass rate, or one outside [0, 1].

    Source: arXiv 2603.11178.
    """
    rate = pl.col("weight_value").cast(pl.Float64, strict=False)
    rows = inputs.kept.with_columns(rate=rate)
    wrong = rows.filter(~pl.col("rate").is_between(0, 1).fill_null(False))
    if wrong.height:
        value = wrong["weight_value"][0]
        raise UsageError(
            f"--weight paced: the column {inputs.column!r} is {value!r} in the row {wrong['id'][0]!r}.",
            f"It is the student's pass rate on the prompt, in [0, 1]; leave rows without one out, "
            f'for example --where "{inputs.column} IS NOT NULL".',
        )
    return rows.select(pl.col("rate") * (1 - pl.col("rate"))).to_series()


WEIGHTS: dict[str, Weight] = {
    "softmax": Weight(softmax, "exp(ranking value / temperature)"),
    "rank": Weight(rank, "linear in the rank: the best of n weighs n times as much as the worst"),
    "lark": Weight(
        lark,
        "excess over the best candidate not kept; uniform where all were kept",
        "arXiv 2605.30651",
    ),
    "paced": Weight(paced, "p (1 - p) of the student's pass rate p on the prompt", "arXiv 2603.11178", True),
}
"""Every weight by name."""


def sample_weights(name: str, inputs: WeightInputs) -> pl.DataFrame:
    """The weights of the kept rows.

    Args:
        name: a name in `WEIGHTS`.
        inputs: what it reads.

    Returns:
        `row` and `sample_weight` (float64, finite, >= 0, mean 1) of each kept row.

    Raises:
        UsageError: every weight is zero, or the weight's own column is wrong.
    """
    values = WEIGHTS[name].values(inputs)
    total = math.fsum(values.to_list())
    if len(values) and not total > 0:
        raise UsageError(
            f"--weight {name}: every kept row weighs 0.", "Keep rows that weigh something, or leave --weight out."
        )
    scaled = values * (len(values) / total) if len(values) else values.cast(pl.Float64)
    return pl.DataFrame({"row": inputs.kept["row"], "sample_weight": scaled})
