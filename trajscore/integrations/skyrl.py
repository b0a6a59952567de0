"""SkyRL's own way from an exported file to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skyrl.train.dataset.pretokenized import load_from_pretokenized


def load(folder: Path, max_length: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Input ids, and the mask of every token, of each row, in order.

    Args:
        folder: with `train.parquet`.
        max_length: what the trainer is told.
    """
    rows = load_from_pretokenized(str(folder / "train.parquet"), max_length=max_length)
    for index in range(len(rows)):
        row = rows[index]
        ids_P = np.asarray(row["input_ids"], np.int64)
        # What SkyRL keeps is the end of the mask, from its first 1 on.
        mask_P = np.zeros(len(ids_P))
        mask_P[len(ids_P) - int(row["num_actions"]) :] = row["loss_mask"]
        yield ids_P, mask_P
