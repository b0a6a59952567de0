"""Rows of any data set as JSON values, without a layout: what is no corpus of trajectories yet (questions, evaluation sets)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajscore.corpus import layouts
from trajscore.corpus.hub import HubTable
from trajscore.corpus.identity import name_text
from trajscore.corpus.locate import HubId, locate, teachers_by_path
from trajscore.corpus.sources import SourceOptions, open_file
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
    found = locate(data, options.split)
    teachers = teachers_by_path([each.name for each in found]) if options.teacher_from else {}
    for each in found:
        source = HubTable(each.name, options) if isinstance(each, HubId) else open_file(each)
        for block in source.blocks(0, left):
            rows = block.as_written()
            yield from (_named(row, source.name, teachers, options) for row in rows)
            left = None if left is None else left - len(rows)
        if left == 0:
            return


def _named(row: dict[str, Any], file: str, teachers: Mapping[str, str], options: SourceOptions) -> dict[str, Any]:
    """The row with its teacher and its id by the file that it comes from, where this is asked for."""
    named = {}
    if teachers and all(row.get(name) is None for name in layouts.TEACHERS):
        named["teacher"] = teachers[file]
    if options.id_from == "file" and row.get("id") is not None:
        named["id"] = f"{file}:{name_text(row['id'])}"
    return {**row, **named}
