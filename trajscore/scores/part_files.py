"""One part as a Parquet file: written whole or not at all, and recognised again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajscore.errors import DataError
from trajscore.io.atomic import new_file
from trajscore.io.outputs import writing
from trajscore.io.parquet import write_table
from trajscore.io.paths import for_arrow, sha256_of
from trajscore.schema import OK, file_metadata
from trajscore.scores.manifest import Part

RUN_KEY = b"trajscore.run"
"""Key of a part's metadata that names its run and its first row."""
ROWS_KEY = b"trajscore.rows"
"""Key of a part's metadata by which `score --reuse` finds its rows: 16 bytes for each, in base64."""
COPIED_KEY = b"trajscore.copied"
"""Key of a part's metadata that says how many of its rows were copied from an older folder; absent where none were."""
PART_FILES = "part-*.parquet"


def part_path(folder: Path, number: int) -> Path:
    """Where a part, counted from 0, lies."""
    return folder / f"part-{number:05d}.parquet"


def number_of(name: str) -> int | None:
    """The number of a part by the name of its file; None for other files.

    >>> number_of("part-00012.parquet"), number_of("part-x.parquet")
    (12, None)
    """
    digits = name.removeprefix("part-").removesuffix(".parquet")
    return int(digits) if name == f"part-{digits}.parquet" and digits.isdecimal() else None


def write_part(folder: Path, number: int, first_row: int, table: pa.Table, run: str) -> Part:
    """Write a part; it is there as a whole or not at all.

    Args:
        folder: the score folder, local or remote.
        number: of the part, from 0.
        first_row: 0-based number of its first row in the corpus.
        table: input columns followed by the columns of `schema.score_fields`.
        run: name of the run, `Manifest.run`.

    Returns:
        What the manifest says of it.

    Raises:
        TrajscoreError: the folder cannot be written.
    """
    path = part_path(folder, number)
    metadata = {**(table.schema.metadata or {}), **file_metadata({"run": run, "first_row": first_row})}
    with writing(folder), new_file(path) as temporary:
        write_table(table.replace_schema_metadata(metadata), temporary)
        return _entry(path.name, temporary, first_row, table)


def written_part(folder: Path, number: int, first_row: int, run: str) -> Part | None:
    """The entry of a part that a run wrote but did not enter; None where there is none, or not a whole one of that run."""
    path = part_path(folder, number)
    try:
        if not path.is_file():
            return None
        with for_arrow(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            said = orjson.loads((file.schema_arrow.metadata or {}).get(RUN_KEY, b"{}"))
            if said != {"run": run, "first_row": first_row}:
                return None
            for _ in file.iter_batches(batch_size=64):  # all pages, for their checksums
                pass
            table = file.read(["status", "n_tokens"])
            return _entry(path.name, path, first_row, table.replace_schema_metadata(file.schema_arrow.metadata))
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None


def changed(path: Path) -> DataError:
    """What is said of a part that is not as it was written."""
    return DataError(
        f"{path}: changed since it was written.",
        "Restore the file, or delete it and run the same `trajscore score` command again: it is scored again. "
        f"`trajscore verify {path.parent}` names every such file.",
    )


def _entry(name: str, path: Path, first_row: int, table: pa.Table) -> Part:
    statuses = Counter(table["status"].to_pylist())
    statuses.pop(OK, None)
    return Part(
        file=name,
        first_row=first_row,
        rows=table.num_rows,
        tokens=pc.sum(table["n_tokens"]).as_py() or 0,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        refused=dict(statuses),
        copied=int((table.schema.metadata or {}).get(COPIED_KEY, 0)),
    )
