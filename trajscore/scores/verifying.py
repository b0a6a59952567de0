"""Whether a score folder is what it says: files, checksums, schema, bounds, rows. Nothing is changed.

Axis: N scored tokens of a row.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajscore.errors import first_line
from trajscore.io.ours import MANIFEST
from trajscore.io.paths import as_path, for_arrow, reaching, sha256_of
from trajscore.rendering.decoding import TOKENIZER
from trajscore.schema import COLUMNS, NOT_SERVED, OK, STATUSES
from trajscore.scores.manifest import Manifest, Part, Shard, differences, read_joined, read_manifest, shards_in
from trajscore.scores.part_files import RUN_KEY, number_of, written_part

_ROWS_AT_A_TIME = 256


@dataclass
class Verification:
    """What was found in a score folder.

    Attributes:
        folder: which.
        parts: parts that were read.
        rows: their rows.
        tokens: their scored tokens.
        complete: whether the manifest says that the corpus was scored to its end.
        problems: a sentence each, with file, row and column; empty for a sound folder.
        notes: what is no error but worth knowing.
    """

    folder: str
    parts: int = 0
    rows: int = 0
    tokens: int = 0
    complete: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """As JSON for `--json`."""
        return {**asdict(self), "sound": self.sound}


def verify(folder: str | Path) -> Verification:
    """Read a whole score folder and check it against its manifest and the schema.

    Checked are: every part's presence, size, SHA-256 and Parquet pages; its columns; that its rows follow those of the part
    before; per row that statuses are known, refused rows have null statistics, lists of one axis are equally long, positions
    rise within `input_ids`, and values are numbers within the bounds of their column; that ids are unique; and the totals.
    Memory: some rows at a time, and sixteen bytes per row for the ids.

    Args:
        folder: written by `trajscore score`; shards that are not merged yet are checked too.

    Raises:
        UsageError: the folder holds no scores.
        DataError: the manifest cannot be read.
    """
    where = as_path(folder)
    shards: list[Shard | None] = [*shards_in(where)] if not (where / MANIFEST).is_file() else [None]
    shards = shards or [None]
    manifests = [read_manifest(where, shard) for shard in shards]
    found = Verification(str(folder), complete=all(each.complete for each in manifests))
    if shards != [None]:
        found.notes.append(
            f"{len(shards)} shards that are not merged: run `trajscore merge {folder}` once all are finished"
        )
    check = _FolderCheck(where, found)
    for shard, manifest in zip(shards, manifests, strict=True):
        check.summary(shard)
        check.manifest(manifest)
    check.ids()
    check.files(manifests)
    return found


class _FolderCheck:
    """Goes through one folder and notes what is wrong."""

    def __init__(self, folder: Path, found: Verification) -> None:
        self._folder, self._found = folder, found
        self._schema: pa.Schema | None = None
        self._settings: dict[str, Any] | None = None
        self._ids, self._numbers = array("q"), array("q")

    def summary(self, shard: Shard | None) -> None:
        """That a manifest says of itself what follows from its settings and parts."""
        name = shard.manifest if shard else MANIFEST
        said, joined = orjson.loads((self._folder / name).read_bytes()), read_joined(self._folder, shard)
        for key, value in (("run", joined.run), ("totals", joined.totals)):
            if said.get(key) != value:
                self._wrong(f"{name}, {key}: {said.get(key)}, its settings and parts give {value}")

    def manifest(self, manifest: Manifest) -> None:
        if self._settings is not None and (lines := differences(self._settings, manifest.settings)):
            self._wrong(f"the shards were made with other settings: {'; '.join(lines)}")
        self._settings = manifest.settings
        for part in manifest.parts:
            self._part(part, manifest)
        self._rows(manifest)

    def files(self, manifests: list[Manifest]) -> None:
        """What lies beside the parts that are named."""
        known = {part.file for manifest in manifests for part in manifest.parts}
        for path in sorted(self._folder.glob("*.parquet")):
            if path.name in known:
                continue
            number = number_of(path.name)
            if number is not None and any(_awaits(path, number, manifest) for manifest in manifests):
                self._found.notes.append(f"{path.name} is in no manifest yet: the same command enters it")
            else:
                self._wrong(f"{path.name}: is in no manifest, but whoever reads *.parquet reads it; move it away")
        if not (self._folder / TOKENIZER).is_file():
            self._wrong(f"{TOKENIZER} is missing: tokens cannot be shown as text")

    def _wrong(self, problem: str) -> None:
        self._found.problems.append(problem)

    def _rows(self, manifest: Manifest) -> None:
        """That the parts follow one another, to the end where the manifest says so."""
        shard = Shard.parse(manifest.shard) if manifest.shard else None
        size, expected = manifest.part_rows, 0
        for part in manifest.parts:
            while shard and not shard.has(expected // size):
                expected += size
            if part.first_row != expected:
                message = f"{MANIFEST}: rows {expected} to {part.first_row - 1} are in no part"
                self._wrong(message) if manifest.complete else self._found.notes.append(f"{message} yet")
            if part.rows != size and part is not manifest.parts[-1]:
                self._wrong(f"{part.file}: has {part.rows} rows, every part but the last has {size}")
            expected = part.first_row + size
        if manifest.complete and shard is None and manifest.rows != manifest.rows_in:
            self._wrong(f"{MANIFEST}: {manifest.rows} rows in parts, {manifest.rows_in} rows in the corpus")
        if not manifest.complete:
            of = "" if manifest.rows_in is None else f" of {manifest.rows_in}"
            name = f"shard {manifest.shard}" if manifest.shard else "scoring"
            self._found.notes.append(f"{name} has not finished: {manifest.rows} rows{of}; repeat the same command")

    def _part(self, part: Part, manifest: Manifest) -> None:
        path = self._folder / part.file
        if not path.is_file():
            return self._wrong(f"{part.file}: missing")
        try:
            with reaching(path):
                if path.stat().st_size != part.bytes:
                    self._wrong(f"{part.file}: {path.stat().st_size} bytes, the manifest says {part.bytes}")
                elif sha256_of(path) != part.sha256:
                    self._wrong(f"{part.file}: its SHA-256 is not that of the manifest")
                with for_arrow(path) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
                    self._parquet(part, manifest, file)
        except (pa.ArrowException, OSError, ValueError) as error:
            self._wrong(f"{part.file}: cannot be read: {first_line(error)}")

    def _parquet(self, part: Part, manifest: Manifest, file: pq.ParquetFile) -> None:
        schema = file.schema_arrow
        said = orjson.loads((schema.metadata or {}).get(RUN_KEY, b"{}"))
        named = said if isinstance(said, dict) else {}
        if named != {"run": manifest.run, "first_row": part.first_row}:
            self._wrong(f"{part.file}: belongs to run {named.get('run')}, row {named.get('first_row')}, not here")
        if self._schema is None:
            self._schema = schema
        if not schema.equals(self._schema):
            self._wrong(f"{part.file}: its columns are not those of the first part")
        missing = [name for name in manifest.input_columns if name not in schema.names]
        for name in missing:
            self._wrong(f"{part.file}: the corpus's column {name!r} is missing")
        for name in sorted(name for name, times in Counter(schema.names).items() if times > 1):
            self._wrong(f"{part.file}, {name}: several columns have this name")
        ours = [(field.name, field.type, COLUMNS[field.name].dtype) for field in schema if field.name in COLUMNS]
        for name, found, wanted in ours:
            if not found.equals(wanted):
                self._wrong(f"{part.file}, {name}: is {found}, not {wanted}")
        student = manifest.settings.get("student")
        served = isinstance(student, dict) and student.get("engine") == "server"
        for name, column in COLUMNS.items():
            if name not in schema.names and not column.flag and not (served and name in NOT_SERVED):
                self._wrong(f"{part.file}, {name}: missing")
        rows = tokens = 0
        refused: Counter[str] = Counter()
        # Bounds and lengths of what is of another type, or there twice, have no meaning.
        names = [name for name, found, wanted in ours if found.equals(wanted) and schema.names.count(name) == 1]
        for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=names):
            for problem in _wrong_rows(batch, rows):
                self._wrong(f"{part.file}, {problem}")
            self._keep_ids(batch, part.first_row + rows)
            statuses = batch["status"].to_pylist() if "status" in names else []
            refused.update(status for status in statuses if status != OK)
            tokens += (pc.sum(batch["n_tokens"]).as_py() or 0) if "n_tokens" in names else 0
            rows += batch.num_rows
        if (rows, tokens, dict(refused)) != (part.rows, part.tokens, part.refused):
            self._wrong(
                f"{part.file}: {rows} rows, {tokens} tokens, refused {dict(refused)}; the manifest says {part.rows}, "
                f"{part.tokens}, {part.refused}"
            )
        self._found.parts += 1
        self._found.rows += rows
        self._found.tokens += tokens

    def _keep_ids(self, batch: pa.RecordBatch, first_row: int) -> None:
        """Ids of scored rows, as hashes, with their row in the corpus."""
        if not {"id", "status"} <= set(batch.schema.names):
            return
        for row, (name, status) in enumerate(zip(batch["id"].to_pylist(), batch["status"].to_pylist(), strict=True)):
            if status == OK:
                self._ids.append(hash(name))
                self._numbers.append(first_row + row)

    def ids(self) -> None:
        """That no two scored rows have the same id."""
        hashes, numbers = np.frombuffer(self._ids, dtype=np.int64), np.frombuffer(self._numbers, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        (same,) = np.nonzero(hashes[order[1:]] == hashes[order[:-1]])
        if len(same):
            self._wrong(
                f"rows {numbers[order[same[0]]]} and {numbers[order[same[0] + 1]]} of the corpus have the same id "
                f"({len(same)} such pairs)"
            )


def _awaits(path: Path, number: int, manifest: Manifest) -> bool:
    """Whether a file is a part of an unfinished run that it has not come to enter."""
    shard = Shard.parse(manifest.shard) if manifest.shard else None
    if manifest.complete or not (shard is None or shard.has(number)):
        return False
    return written_part(path.parent, number, number * manifest.part_rows, manifest.run) is not None


def _wrong_rows(batch: pa.RecordBatch, before: int) -> Iterator[str]:
    """What is wrong with some rows of a part, of which `before` rows precede them: at most a few sentences per column."""
    names = batch.schema.names
    if not {"status", "n_tokens"} <= set(names):
        return
    status = batch["status"].to_pylist()
    for value in sorted({str(each) for each in status} - STATUSES.keys()):
        yield f"status: {value!r} is not known"
    scored = np.array([each == OK for each in status])
    n_tokens = batch["n_tokens"].fill_null(0).to_numpy(zero_copy_only=False)
    if np.any(scored & (n_tokens == 0)):
        yield f"row {before + _first(scored & (n_tokens == 0))}: scored, and without a token"
    for name in names:
        column = COLUMNS[name]
        values = batch[name]
        if pa.types.is_list(values.type):
            yield from (f"{name}: {problem}" for problem in _wrong_lists(name, values, scored, n_tokens, before))
        elif column.lower is not None:
            numbers = np.asarray(values.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
            yield from (f"{name}: {problem}" for problem in _out_of_bounds(numbers, column.lower, column.upper))
    if {"positions", "input_ids"} <= set(names):
        yield from _wrong_positions("positions", batch["positions"], batch["input_ids"], before)
    if {"scaffold_positions", "input_ids"} <= set(names):
        yield from _wrong_positions("scaffold_positions", batch["scaffold_positions"], batch["input_ids"], before)
        yield from _wrong_scaffold(batch, before)


def _wrong_lists(
    name: str, lists: pa.ListArray, scored: npt.NDArray[np.bool_], n_tokens: npt.NDArray[Any], before: int
) -> Iterator[str]:
    column = COLUMNS[name]
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    if np.any(there & ~scored):
        yield f"row {before + _first(there & ~scored)} was refused and has values"
    if not column.flag and np.any(scored & ~there):
        yield f"row {before + _first(scored & ~there)} was scored and has none"
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    if column.axis == "scored token" and np.any(there & scored & (lengths != n_tokens)):
        row = _first(there & scored & (lengths != n_tokens))
        yield f"row {before + row} has {lengths[row]} values for {n_tokens[row]} scored tokens"
    inner = lists.flatten()
    inner = inner.flatten() if pa.types.is_list(inner.type) else inner
    values = np.asarray(inner.drop_null().to_numpy(zero_copy_only=False), dtype=np.float64)
    yield from _out_of_bounds(values[values > -np.inf] if column.impossible else values, column.lower, column.upper)


def _out_of_bounds(values: npt.NDArray[np.float64], lower: float | None, upper: float | None) -> Iterator[str]:
    if np.any(~np.isfinite(values)):
        yield "holds NaN or infinity"
    elif len(values) and lower is not None and upper is not None and not lower <= values.min() <= values.max() <= upper:
        yield f"has values from {values.min():g} to {values.max():g}, allowed are {lower:g} to {upper:g}"


def _wrong_scaffold(batch: pa.RecordBatch, before: int) -> Iterator[str]:
    """Lists over scaffold tokens are as long as the list of their positions."""
    wanted = pc.list_value_length(batch["scaffold_positions"])
    for name in batch.schema.names:
        if COLUMNS[name].axis == "scaffold token":
            lengths = pc.list_value_length(batch[name])
            apart = pc.not_equal(lengths, wanted).fill_null(False).to_numpy(zero_copy_only=False)
            if apart.any():
                row = _first(apart)
                yield f"{name}: row {before + row} has {lengths[row]} values for {wanted[row]} scaffold tokens"


def _wrong_positions(name: str, positions: pa.ListArray, input_ids: pa.ListArray, before: int) -> Iterator[str]:
    """Positions rise within a row and lie inside its `input_ids`."""
    lengths = pc.list_value_length(positions).fill_null(0).to_numpy(zero_copy_only=False)
    limits = pc.list_value_length(input_ids).fill_null(0).to_numpy(zero_copy_only=False)
    values = positions.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    rising = (np.diff(values) > 0) | (np.diff(row) > 0)
    if not rising.all():
        yield f"{name}: row {before + row[1:][~rising][0]} does not rise"
    if np.any(values >= limits[row]):
        yield f"{name}: row {before + row[values >= limits[row]][0]} points outside input_ids"


def _first(which: npt.NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(which)[0])
