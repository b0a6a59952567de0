"""Labels and loss weights as long as the input, from what a rule keeps: the last step before the file of `mask`.

Axes: P input tokens and N scored tokens of one row. Labels are unshifted: the label of the token at index p stands at index p.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from trajscore.schema import NO_LOSS
from trajscore.scores.list_columns import flatten, unflatten


def labels(kept: str) -> pl.Expr:
    """`input_ids` at the kept tokens, -100 elsewhere: `input_ids` [P], `positions` [N], kept [N] -> [P], int32.

    Args:
        kept: name of a column of booleans.

    >>> row = pl.DataFrame({"input_ids": [[7, 8, 9]], "positions": [[1, 2]], "k": [[False, True]]})
    >>> row.select(labels("k")).item().to_list()
    [-100, -100, 9]
    """
    columns = pl.struct(input_ids="input_ids", positions="positions", kept=kept)
    return columns.map_batches(_labels, return_dtype=pl.List(pl.Int32), is_elementwise=True).alias("labels")


def loss_weights(weight: str) -> pl.Expr:
    """Weights of scored tokens at their places, 0 elsewhere: `input_ids` [P], `positions` [N], weight [N] -> [P], float32.

    Args:
        weight: name of a column of weights.
    """
    columns = pl.struct(input_ids="input_ids", positions="positions", weight=weight)
    return columns.map_batches(_weights, return_dtype=pl.List(pl.Float32), is_elementwise=True).alias("loss_weight")


def _places(rows: pl.Series) -> npt.NDArray[np.int64]:
    """Index of each scored token among the input tokens of all rows."""
    positions = flatten(rows.struct.field("positions"))
    lengths = _lengths(rows.struct.field("input_ids"))
    places: npt.NDArray[np.int64] = (np.cumsum(lengths) - lengths)[positions.rows] + positions.values
    return places


def _lengths(lists: pl.Series) -> npt.NDArray[np.int64]:
    return lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def _labels(rows: pl.Series) -> pl.Series:
    inputs = flatten(rows.struct.field("input_ids"))
    places = _places(rows)[flatten(rows.struct.field("kept")).values]
    values = np.full(len(inputs.values), NO_LOSS, np.int32)
    values[places] = inputs.values[places]
    return unflatten(inputs.lengths, values)


def _weights(rows: pl.Series) -> pl.Series:
    lengths = _lengths(rows.struct.field("input_ids"))
    values = np.zeros(int(lengths.sum()), np.float32)
    values[_places(rows)] = flatten(rows.struct.field("weight")).values
    return unflatten(lengths, values)
