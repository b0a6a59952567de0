"""A folder of scores written again with more columns, which count as the corpus's own from then on.

The new folder is of settings of its own: it is continued after a kill, verified and read as any other, and never mistaken for
the one that it was made of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.errors import DataError, UsageError, first_line
from trajscore.io.outputs import check_folder
from trajscore.io.paths import as_path, for_arrow, reaching
from trajscore.rendering.decoding import TOKENIZER
from trajscore.schema import file_metadata
from trajscore.scores.folder import ScoreFolder, refuse_foreign
from trajscore.scores.manifest import Manifest, read_manifest
from trajscore.scores.scanning import scan

ADDED = "added_columns"
"""Name of the setting that says what was added, and from what."""


def add_columns(
    folder: str | Path,
    out: str | Path,
    fields: Sequence[pa.Field],
    values: Callable[[pa.Table], Sequence[Sequence[Any]]],
    said: Mapping[str, Any],
    overwrite: bool = False,
) -> Manifest:
    """Write a folder of scores again with more columns.

    Args:
        folder: finished scores, which stay as they are.
        out: the new folder; one that holds the same already is left as it is.
        fields: what is added.
        values: of each field for the rows of a part, of which it is given the columns id, prompt_id and status.
        said: what the settings record of where they come from.
        overwrite: start anew where `out` holds other scores.

    Returns:
        The manifest of the new folder.

    Raises:
        UsageError: the scores are not finished, hold a column of such a name already, or `out` holds something else.
        DataError: a part cannot be read.
        TrajscoreError: the new folder cannot be written.
    """
    where, before = as_path(folder), read_manifest(folder)
    names = [field.name for field in fields]
    if not before.complete:
        raise UsageError(
            f"{folder}: scoring has not finished.", "Repeat the `trajscore score` command to its end first."
        )
    if clash := [name for name in names if name in scan(folder).collect_schema()]:
        raise UsageError(
            f"{folder}: has a column {clash[0]!r} already.", "Give the scores as they were before it was added."
        )
    check_folder(out)
    refuse_foreign(out, overwrite)
    settings = {**before.settings, ADDED: {**(before.settings.get(ADDED) or {}), **dict.fromkeys(names, said)}}
    manifest = replace(
        before, settings=settings, input_columns=[*before.input_columns, *names], parts=[], complete=False
    )
    with ScoreFolder(out, manifest, overwrite) as target:
        for number in target.missing(before.rows):
            table = _read(where / before.parts[number].file)
            added = values(table.select(["id", "prompt_id", "status"]))
            for field, column in zip(fields, added, strict=True):
                table = table.append_column(field, pa.array(column, field.type))
            target.write_part(table, number)
        with reaching(where):
            tokenizer = where / TOKENIZER
            if tokenizer.is_file():
                target.keep_tokenizer(tokenizer.read_text("utf-8"))
        target.finish()
        return target.manifest


def _read(path: Path) -> pa.Table:
    """A part, without what its metadata says of its run.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with for_arrow(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as part:
            table = part.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read ({first_line(error)}).", "Run the same `trajscore score` command again."
        ) from error
    own = {key.encode() for key in file_metadata({})}
    return table.replace_schema_metadata(
        {key: each for key, each in (table.schema.metadata or {}).items() if key not in own}
    )
