"""Whether a scored row holds what is to be read of it: one finite value per scored token or sentence."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl
import pyarrow as pa

from trajscore.schema import COLUMNS

_VALUE = pl.element()


def first_undefined(columns: Iterable[str]) -> pl.Expr:
    """Name of the first column that a row cannot be masked by, null where there is none.

    `input_ids` and `positions` are always checked. A token column must hold one finite number per scored token, or per scaffold
    token; a sentence column one value per sentence of `student_sentence_logprob`, which may be null.

    Args:
        columns: names of token, scaffold and sentence columns.
    """
    places = ~pl.col("positions").list.eval(_VALUE.is_null()).list.any()
    places &= (pl.col("positions").list.max() < pl.col("input_ids").list.len()).fill_null(True)
    checks = {"input_ids": pl.col("input_ids").is_not_null(), "positions": places}
    checks |= {name: _defined(name) for name in columns}
    return pl.coalesce(pl.when(~sound.fill_null(False)).then(pl.lit(name)) for name, sound in checks.items())


def _defined(column: str) -> pl.Expr:
    values = pl.col(column).list
    axis = COLUMNS[column].axis if column in COLUMNS else ""
    if axis == "sentence":
        return values.len() == pl.col("student_sentence_logprob").list.len()
    places = "scaffold_positions" if axis == "scaffold token" else "positions"
    sound = values.len() == pl.col(places).list.len()
    known = COLUMNS.get(column)
    if known is not None and (known.impossible or pa.types.is_list(known.dtype.value_type)):
        # Minus infinity is a value, so is a list.
        return sound & ~values.eval(_VALUE.is_null()).list.any()
    sound &= values.eval(_VALUE.is_finite().fill_null(False)).list.all()
    if column == "sentence":
        sound &= (values.max() < pl.col("student_sentence_logprob").list.len()).fill_null(True)
    return sound
