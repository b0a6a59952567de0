"""Labels and loss weights as long as the input, from what a rule keeps: the last step before the file of `mask`.

Axes: P input tokens and N scored tokens of one row. Labels are unshifted: the label of the token at index p stands at index p.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from trajscore.errors import UsageError
from trajscore.schema import NO_LOSS, SCAFFOLD_KINDS, SCAFFOLD_MARKER, topk_columns
from trajscore.scores.list_columns import flatten, unflatten

SCAFFOLDS: dict[str, tuple[int, ...]] = {
    "none": (),
    "marker": (SCAFFOLD_MARKER,),
    "trainer": (*range(len(SCAFFOLD_KINDS)),),
}
"""Which kinds of scaffold get a label, by the value of `--scaffold`."""


def labels(kept: str, scaffold: str = "none") -> pl.Expr:
    """`input_ids` at the kept tokens and scaffold, -100 elsewhere: `input_ids` [P], `positions` [N], kept [N] -> [P], int32.

    Args:
        kept: name of a column of booleans.
        scaffold: a key of `SCAFFOLDS`; all but `none` read `scaffold_positions` and `scaffold_kind`.

    >>> row = pl.DataFrame({"input_ids": [[7, 8, 9]], "positions": [[1, 2]], "k": [[False, True]]})
    >>> row.select(labels("k")).item().to_list()
    [-100, -100, 9]
    """
    columns = _columns(pl.col(kept).alias("kept"), scaffold)
    found = columns.map_batches(lambda rows: _labels(rows, scaffold), pl.List(pl.Int32), is_elementwise=True)
    return found.alias("labels")


def loss_weights(weight: str, scaffold: str = "none", scaffold_weight: str | None = None) -> pl.Expr:
    """Weights of tokens at their places, 0 where there are none: `input_ids` [P], `positions` [N] -> [P], float32.

    Args:
        weight: name of a column of weights of the scored tokens.
        scaffold: a key of `SCAFFOLDS`; all but `none` read `scaffold_positions` and `scaffold_kind`.
        scaffold_weight: name of a column of weights of the scaffold tokens; None gives them the weight 1.
    """
    columns = _columns(pl.col(weight).alias("weight"), scaffold, scaffold_weight)
    found = columns.map_batches(lambda rows: _weights(rows, scaffold), pl.List(pl.Float32), is_elementwise=True)
    return found.alias("loss_weight")


def soft_targets(kept: str, scaffold: str = "none") -> list[pl.Expr]:
    """A teacher's best entries at the tokens that have a label: ids [P][K], ln p [P][K] and ln of the rest [P].

    Elsewhere the first two are empty and the third is null. Reads `teacher_topk_ids` and its neighbours, those of scaffold
    tokens too if these have labels.

    Args:
        kept: name of a column of booleans.
        scaffold: a key of `SCAFFOLDS`.
    """
    kinds = (pl.List(pl.List(pl.Int32)), pl.List(pl.List(pl.Float32)), pl.List(pl.Float32))
    found = []
    for name, other, kind in zip(topk_columns("teacher"), topk_columns("teacher", scaffold=True), kinds, strict=True):
        own = [pl.col(name).alias("own"), *([pl.col(other).alias("scaffold")] if SCAFFOLDS[scaffold] else [])]
        columns = pl.struct(
            "input_ids",
            "positions",
            pl.col(kept).alias("kept"),
            *own,
            *(("scaffold_positions", "scaffold_kind") if SCAFFOLDS[scaffold] else ()),
        )
        spread = columns.map_batches(lambda rows: _spread(rows, scaffold), kind, is_elementwise=True)
        found.append(spread.alias(name))
    return found


def _spread(rows: pl.Series, scaffold: str) -> pl.Series:
    """Values of tokens with labels, at their places among the input tokens."""
    kept = flatten(rows.struct.field("kept")).values.astype(bool)
    values = _values(rows.struct.field("own"))[kept]
    places = _places(rows)[kept]
    if SCAFFOLDS[scaffold]:
        others = _values(rows.struct.field("scaffold"))[_labelled(rows, scaffold)]
        if len(others):
            values = np.concatenate([values, others]) if len(values) else others
        places = np.concatenate([places, _scaffold(rows, scaffold)])
    order = np.argsort(places)
    values, places = values[order], places[order]
    lengths = _lengths(rows.struct.field("input_ids"))
    total = int(lengths.sum())
    if values.ndim == 1:
        whole, missing = np.zeros(total, values.dtype), np.ones(total, bool)
        whole[places], missing[places] = values, False
        inner = pa.array(whole, pa.float32(), mask=missing)
    else:
        sizes = np.zeros(total, np.int64)
        sizes[places] = values.shape[1]
        ends = pa.array(np.concatenate([[0], np.cumsum(sizes)]))
        inner = pa.LargeListArray.from_arrays(ends, pa.array(values.reshape(-1)))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]))
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(offsets, inner)))


def _values(lists: pl.Series) -> npt.NDArray[Any]:
    """Elements of all rows' lists: numbers, or lists of one length as rows of an array."""
    elements = lists.filter(lists.list.len() > 0).explode()
    if elements.dtype != pl.List:
        return np.asarray(elements.to_numpy(), np.float32)
    kind = np.int32 if elements.dtype == pl.List(pl.Int32) else np.float32
    sizes = elements.list.len().unique().to_list()
    if len(sizes) > 1:
        raise UsageError(
            f"the scores keep {' and '.join(map(str, sorted(sizes)))} best entries a token.",
            "Mask folders of one K together.",
        )
    flat = np.asarray(elements.explode().to_numpy(), kind)
    return flat.reshape(len(elements), sizes[0]) if sizes else np.empty((0, 0), kind)


def _columns(own: pl.Expr, scaffold: str, weight: str | None = None) -> pl.Expr:
    names = ("scaffold_positions", "scaffold_kind") if SCAFFOLDS[scaffold] else ()
    more = [pl.col(weight).alias("scaffold_weight")] if weight is not None and names else []
    return pl.struct("input_ids", "positions", own, *names, *more)


def _scaffold(rows: pl.Series, scaffold: str) -> npt.NDArray[np.int64]:
    """Index of each scaffold token that gets a label among the input tokens of all rows."""
    if not SCAFFOLDS[scaffold]:
        return np.empty(0, np.int64)
    return _places(rows, "scaffold_positions")[_labelled(rows, scaffold)]


def _labelled(rows: pl.Series, scaffold: str) -> npt.NDArray[np.bool_]:
    """Which scaffold tokens of all rows get a label."""
    return np.isin(flatten(rows.struct.field("scaffold_kind")).values, SCAFFOLDS[scaffold])


def _places(rows: pl.Series, name: str = "positions") -> npt.NDArray[np.int64]:
    """Index of each scored token, or of each scaffold token, among the input tokens of all rows."""
    positions = flatten(rows.struct.field(name))
    lengths = _lengths(rows.struct.field("input_ids"))
    places: npt.NDArray[np.int64] = (np.cumsum(lengths) - lengths)[positions.rows] + positions.values
    return places


def _lengths(lists: pl.Series) -> npt.NDArray[np.int64]:
    return lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()


def _labels(rows: pl.Series, scaffold: str) -> pl.Series:
    inputs = flatten(rows.struct.field("input_ids"))
    places = np.concatenate([_places(rows)[flatten(rows.struct.field("kept")).values], _scaffold(rows, scaffold)])
    values = np.full(len(inputs.values), NO_LOSS, np.int32)
    values[places] = inputs.values[places]
    return unflatten(inputs.lengths, values)


def _weights(rows: pl.Series, scaffold: str) -> pl.Series:
    lengths = _lengths(rows.struct.field("input_ids"))
    values = np.zeros(int(lengths.sum()), np.float32)
    values[_places(rows)] = flatten(rows.struct.field("weight")).values
    own = "scaffold_weight" in rows.struct.fields
    weight = flatten(rows.struct.field("scaffold_weight")).values[_labelled(rows, scaffold)] if own else 1.0
    values[_scaffold(rows, scaffold)] = weight
    return unflatten(lengths, values)
