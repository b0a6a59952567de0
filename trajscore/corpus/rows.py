"""Rows of any data set as JSON values, without a layout: what is no corpus of trajectories yet (questions, evaluation sets)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trajscore.corpus.hub import HubTable
from trajscore.corpus.locate import HubId, locate
from trajscore.corpus.sources import SourceOptions, open_file
from trajscore.corpus.values import rows_as_written
from trajscore.errors import UsageError


def read_rows(
    data: Sequence[str | Path] | str | Path, options: SourceOptions | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of files, folders, globs or a hub data set, as JSON values, in order; what cannot be stored is replaced.

    Raises:
        UsageError: a path does not exist, or an option is out of range.
        DataError: a file is broken.
    """
    options = options or SourceOptions()
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1.")
    left = options.limit
    for found in locate(data, options.split):
        source = HubTable(found.name, options) if isinstance(found, HubId) else open_file(found)
        for block in source.blocks(0, left):
            rows = block.rows if isinstance(block.rows, list) else rows_as_written(block.rows)
            yield from rows
            left = None if left is None else left - len(rows)
        if left == 0:
            return
