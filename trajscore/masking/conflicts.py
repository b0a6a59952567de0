"""Where a correct and a wrong trajectory of one prompt say the same: the runs at their beginnings and ends.

N scored tokens of one trajectory, aligned by their number from the start, or from the end. A token is in conflict if a
trajectory of the same prompt with the opposite outcome has the same token at the same place; only the unbroken run from either
end counts (GTPO, arXiv 2508.03772).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from trajscore.scores.list_columns import flatten, unflatten

LEADING, TRAILING, RIGHT = "trajscore.leading", "trajscore.trailing", "trajscore.right"
"""Columns that the rule reads: lengths of the two runs, and whether the row is correct (null where that is unknown)."""

_CORRECT_WEIGHT, _WRONG_WEIGHT = 2.0, 0.0

Tokens = npt.NDArray[np.int32]


def conflict_runs(table: pl.DataFrame, parts: Iterable[pl.LazyFrame], row: str) -> pl.DataFrame:
    """The runs of each row.

    Args:
        table: the rows to be masked: their number, `prompt_id`, and `correct` (bool, null where it is unknown).
        parts: the rows' `input_ids` and `positions`, with their number, in any number of frames; the tokens of all prompts that
            have both outcomes are held at once.
        row: name of the column with the number.

    Returns:
        The number, and the columns `LEADING`, `TRAILING` and `RIGHT`; runs are 0 for a prompt with one outcome only.
    """
    both = (pl.col("correct").any() & (~pl.col("correct")).any()).over("prompt_id")
    disputed = table.filter(pl.col("correct").is_not_null() & both)
    tokens: dict[int, Tokens] = {}
    for part in parts:
        own = part.join(disputed.select(row).lazy(), on=row, how="semi")
        found = own.select(row, pl.col("input_ids").list.gather(pl.col("positions"))).collect(engine="streaming")
        tokens.update((number, np.array(ids or [], np.int32)) for number, ids in found.iter_rows())
    runs: dict[int, tuple[int, int]] = {}
    for group in disputed.partition_by("prompt_id"):
        right, wrong = ([tokens[number] for number in group.filter(correct=truth)[row]] for truth in (True, False))
        for number, truth in group.select(row, "correct").iter_rows():
            others = wrong if truth else right
            backwards = [each[::-1] for each in others]
            runs[number] = (run(tokens[number], others), run(tokens[number][::-1], backwards))
    numbers = table[row].to_list()
    return pl.DataFrame(
        {
            row: table[row],
            LEADING: pl.Series([runs.get(number, (0, 0))[0] for number in numbers], dtype=pl.UInt32),
            TRAILING: pl.Series([runs.get(number, (0, 0))[1] for number in numbers], dtype=pl.UInt32),
            RIGHT: table["correct"],
        }
    )


def run(own_N: Tokens, others: Sequence[Tokens]) -> int:
    """How many tokens from the start stand at their place in one of the others, each in whichever.

    >>> run(np.array([1, 2, 3, 4]), [np.array([1, 9, 3]), np.array([7, 2])])
    3
    """
    same = np.zeros(len(own_N), bool)
    for other in others:
        shared = min(len(own_N), len(other))
        same[:shared] |= own_N[:shared] == other[:shared]
    return int(same.argmin()) if not same.all() else len(same)


def conflict_weights() -> pl.Expr:
    """2 in a run of a correct row, 0 in one of a wrong row, 1 elsewhere; where both runs meet, the factors multiply."""
    columns = pl.struct("positions", LEADING, TRAILING, RIGHT)
    return columns.map_batches(_weights, pl.List(pl.Float64), is_elementwise=True)


def _weights(rows: pl.Series) -> pl.Series:
    lengths = flatten(rows.struct.field("positions")).lengths
    of = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    leading, trailing = (rows.struct.field(name).to_numpy()[of] for name in (LEADING, TRAILING))
    factor = np.where(rows.struct.field(RIGHT).fill_null(True).to_numpy(), _CORRECT_WEIGHT, _WRONG_WEIGHT)[of]
    first, last = np.where(place < leading, factor, 1.0), np.where(place >= lengths[of] - trailing, factor, 1.0)
    return unflatten(lengths, first * last)
