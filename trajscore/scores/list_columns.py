"""Columns of lists as one flat array with lengths, and back: for what no polars expression does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Flat:
    """The lists of a column, one after the other.

    Attributes:
        lengths: elements of each row's list, 0 for a null list.
        values: all elements.
    """

    lengths: npt.NDArray[np.int64]
    values: Array

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """The row of each element."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def flatten(lists: pl.Series) -> Flat:
    """The flat form of a column of lists without null elements.

    >>> flatten(pl.Series([[1, 2], [], None, [3]])).values.tolist()
    [1, 2, 3]
    """
    lengths = lists.list.len().fill_null(0)
    values = lists.filter(lengths > 0).explode().to_numpy()
    return Flat(lengths.cast(pl.Int64).to_numpy(), values)


def unflatten(lengths: npt.NDArray[np.int64], values: Array) -> pl.Series:
    """The column of lists of these lengths.

    >>> unflatten(np.array([2, 0, 1]), np.array([1, 2, 3])).to_list()
    [[1, 2], [], [3]]
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))))
