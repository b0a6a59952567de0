"""The corpus as chunks of rows and trajectories, after a survey that has read all of it once.

The survey settles what one row cannot know: a schema for all rows, which ids were met before, whether the columns
make sense, and that every file can be read to its end. It keeps eight bytes per row. A streamed hub data set is not
surveyed.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trajscore.corpus.columns import SchemaSurvey
from trajscore.corpus.hub import HubStream, HubTable
from trajscore.corpus.identity import FieldNames, id_hash, row_id
from trajscore.corpus.layouts import DUPLICATE_ID, LAYOUTS, Trajectory, recognise, trajectory_from_row
from trajscore.corpus.locate import HubId, locate
from trajscore.corpus.sources import Block, Source, SourceOptions, open_file
from trajscore.corpus.values import always_fits, check_stored, decoded_rows, fit_table, rows_as_written, table_from_rows
from trajscore.errors import DataError, UsageError
from trajscore.schema import COLUMNS

logger = logging.getLogger("trajscore")

MAX_CHUNK_BYTES = 2**30
"""Most bytes of the rows of one chunk: the tokens and statistics of so much text take some twenty times as much."""

_DEFAULTS = SourceOptions()
_TAKEN_OVER = ("id", "prompt_id", "teacher")
_RESERVED = "trajscore."


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a corpus.

    Attributes:
        first_row: 0-based number of the first one in the corpus.
        table: the rows as they were read, all columns, with the corpus's schema.
        trajectories: the same rows as trajectories, in the same order.
    """

    first_row: int
    table: pa.Table
    trajectories: list[Trajectory]


@dataclass(frozen=True)
class _Part:
    """A source and the number of its rows that belong to the corpus (None: all, unknown)."""

    source: Source
    rows: int | None


class Corpus:
    """Rows from files and hub data sets, one after the other.

    Attributes:
        schema: of the input columns, over all files; fields marked `encoding: json` hold JSON text.
        n_rows: number of rows after the limit; None for a streamed data set.
        fingerprint: JSON-able; changes when any content that is read changes, and not with the folder it lies in.
    """

    def __init__(
        self,
        *,
        schema: pa.Schema,
        n_rows: int | None,
        fingerprint: dict[str, Any],
        parts: Sequence[_Part],
        fields: FieldNames,
        repeats: Mapping[int, int] | None,
    ) -> None:
        self.schema = schema
        self.n_rows = n_rows
        self.fingerprint = fingerprint
        self._parts = parts
        self._fields = fields
        self._repeats = repeats

    def chunks(self, rows_per_chunk: int, start: int = 0) -> Iterator[Chunk]:
        """Chunks of `rows_per_chunk` rows (the last may be shorter), from row `start` on, across file borders.

        A row whose id an earlier row has (also one before `start`) comes with the refusal `duplicate_id`. Where a row
        stands, and what is in it, depends neither on `rows_per_chunk` nor on `start`. Skipped rows are not parsed,
        except in a streamed data set, where their ids have to be seen.

        Raises:
            UsageError: if `rows_per_chunk` or `start` is out of range.
            DataError: if a file was changed since the survey.
        """
        if rows_per_chunk < 1:
            raise UsageError(f"rows_per_chunk is {rows_per_chunk}; it must be at least 1.")
        if start < 0 or (self.n_rows is not None and start > self.n_rows):
            raise UsageError(f"start is {start}; the corpus has rows 0 to {self.n_rows}.")
        return self._chunks(rows_per_chunk, start, self.n_rows)

    def parts(self, rows_per_chunk: int, numbers: Iterable[int]) -> Iterator[Chunk]:
        """Chunks with the given numbers, counted from 0, each of `rows_per_chunk` rows (the corpus's last may be shorter).

        Neighbours are read in one go. A file of JSON Lines and a Parquet file are entered where the next chunk begins; a file
        that is packed or one JSON list is read from its beginning each time.

        Args:
            rows_per_chunk: at least 1.
            numbers: rising.
        """
        for begin, stop in _runs(numbers):
            yield from self._chunks(rows_per_chunk, begin * rows_per_chunk, stop * rows_per_chunk)

    def _chunks(self, rows_per_chunk: int, start: int, stop: int | None) -> Iterator[Chunk]:
        first, waiting, tables = start, list[Trajectory](), list[pa.Table]()
        for table, trajectories in self._pieces(start, stop):
            tables.append(table)
            waiting.extend(trajectories)
            while len(waiting) >= rows_per_chunk:
                whole = pa.concat_tables(tables)
                yield Chunk(first, whole.slice(0, rows_per_chunk), waiting[:rows_per_chunk])
                first += rows_per_chunk
                waiting, tables = waiting[rows_per_chunk:], [whole.slice(rows_per_chunk)]
            _check_size(sum(each.nbytes for each in tables), len(waiting), first, rows_per_chunk)
        if waiting:
            yield Chunk(first, pa.concat_tables(tables), waiting)

    def _pieces(self, start: int, stop: int | None) -> Iterator[tuple[pa.Table, list[Trajectory]]]:
        """Tables of the corpus's schema with their trajectories, from row `start` on, up to row `stop` where one is given."""
        streamed = _Seen() if self._repeats is None else None
        row = 0
        for part in self._parts:
            skip = 0 if streamed or part.rows is None else min(max(0, start - row), part.rows)
            row += skip
            if stop is not None and row >= stop:
                return
            left = None if part.rows is None else part.rows - skip
            if left is not None and stop is not None:
                left = min(left, stop - row)
            if left == 0:
                continue
            for block in part.source.blocks(skip, left):
                with _located(part.source, row):
                    table, trajectories = self._piece(block, row, streamed)
                unwanted = max(0, start - row)
                row += len(trajectories)
                if unwanted < len(trajectories):
                    yield table.slice(unwanted), trajectories[unwanted:]

    def _piece(self, block: Block, row: int, streamed: _Seen | None) -> tuple[pa.Table, list[Trajectory]]:
        rows = _rows(block)
        trajectories = [trajectory_from_row(each, self._fields, block.faults.get(i, "")) for i, each in enumerate(rows)]
        for i, trajectory in enumerate(trajectories):
            earlier = streamed.met(trajectory.id, row + i) if streamed else (self._repeats or {}).get(row + i)
            if earlier is not None:
                trajectories[i] = _repeated(trajectory, earlier)
        if not isinstance(block.rows, list):
            return fit_table(block.rows, self.schema), trajectories
        table = table_from_rows(rows, self.schema)
        if streamed:
            check_stored(rows, table)
        return table, trajectories


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as (first, one past the last) of those that follow one another.

    >>> list(_runs([0, 1, 2, 5, 7, 8]))
    [(0, 3), (5, 6), (7, 9)]
    """
    begin = stop = None
    for number in numbers:
        if begin is None or number != stop:
            if begin is not None and stop is not None:
                yield begin, stop
            begin = number
        stop = number + 1
    if begin is not None and stop is not None:
        yield begin, stop


def _check_size(size: int, rows: int, first: int, wanted: int) -> None:
    """Raises UsageError when a chunk that is still being gathered is too much to be held, long before it is."""
    if size > MAX_CHUNK_BYTES:
        raise UsageError(
            f"--part-rows {wanted}: the {rows} rows from row {first} on (counted from 0) hold {size / 2**20:,.0f} MiB already, "
            f"and a part is made in memory, of {MAX_CHUNK_BYTES / 2**20:,.0f} MiB of rows at most.",
            f"Give --part-rows {max(1, rows // 2)} or fewer, with --overwrite or a new --out if parts were written.",
        )


class _Seen:
    """Ids met so far in a stream, as 64-bit hashes, with the row that had each first."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def met(self, name: str, row: int) -> int | None:
        first = self._first.setdefault(id_hash(name), row)
        return None if first == row else first


def _repeated(trajectory: Trajectory, earlier: int) -> Trajectory:
    detail = (
        f"The id {trajectory.id!r} belongs to row {earlier} (counted from 0) already; ids must be unique. A row without an id "
        "is named by its content, so two equal rows have one name: drop the copy, or give both an id."
    )
    return replace(trajectory, messages=None, text=None, tools=None, refusal=DUPLICATE_ID, detail=detail)


def _rows(block: Block) -> list[dict[str, Any]]:
    return block.rows if isinstance(block.rows, list) else rows_as_written(block.rows)


@contextmanager
def _located(source: Source, row: int) -> Iterator[None]:
    """Adds to an error where the rows came from."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{source.label}, row {row} of the corpus (counted from 0) or soon after: {error.problem}", error.hint
        ) from None


def open_corpus(data: Sequence[str | Path] | str | Path, options: SourceOptions = _DEFAULTS) -> Corpus:
    """Opens a corpus and surveys it: everything that would stop a run because of the data is found here.

    Args:
        data: files, folders, globs and hub ids, one or several.
        options: remapped columns, limit, and what hub ids need.

    Raises:
        UsageError: a path that does not exist or comes twice, options that fit no row, columns that trajscore writes
        itself,
            a corpus without rows or without any row that has a known layout.
        DataError: a file that is broken; it names file and line.
        MissingExtraError: a hub id without `datasets` installed.
    """
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1.")
    found = locate(data)
    if options.streaming and any(isinstance(source, HubId) for source in found):
        if len(found) > 1:
            raise UsageError("--streaming reads a single hub data set.", "Give it alone, or leave out --streaming.")
        return _open_stream(HubStream(str(getattr(found[0], "name", "")), options), options)
    sources = [HubTable(item.name, options) if isinstance(item, HubId) else open_file(item) for item in found]
    if not any(isinstance(source, HubTable) for source in sources):
        _warn_unused(options)
    return _Survey(options).corpus(sources)


def _warn_unused(options: SourceOptions) -> None:
    flags = {"split": "split", "config_name": "config-name", "streaming": "streaming", "revision": "data-revision"}
    for name, flag in flags.items():
        if getattr(options, name) != getattr(_DEFAULTS, name):
            logger.warning("--%s says nothing about local files and is not used", flag)


def _open_stream(source: HubStream, options: SourceOptions) -> Corpus:
    seen = SchemaSurvey()
    first = next(source.blocks(0, options.limit), None)
    if first is None:
        raise UsageError(f"{source.label}: the data set has no rows.", "Check --split and --config-name.")
    seen.observe(first.rows)
    known = any(recognise(row, options.fields) for row in _rows(first))
    schema = source.declared or seen.schema()
    # Whether a later row has a value cannot be known; a column that is there is taken to be used.
    _check_columns(schema.names, schema.names, options.fields, known)
    fingerprint = {"sources": [source.identity()], "limit": options.limit}
    return Corpus(
        schema=schema,
        n_rows=None,
        fingerprint=fingerprint,
        parts=[_Part(source, options.limit)],
        fields=options.fields,
        repeats=None,
    )


class _Survey:
    """One reading of all sources, in order, up to the limit."""

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self._columns = SchemaSurvey()
        self._hashes = array("Q")
        self._known = False

    def corpus(self, sources: Sequence[Source]) -> Corpus:
        """Reads the sources and makes the corpus of them."""
        parts, identities = [], []
        for source in sources:
            left = None if self._options.limit is None else self._options.limit - len(self._hashes)
            if left == 0:
                break
            hashed, before = hashlib.sha256(), len(self._hashes)
            for block in source.blocks(0, left, hashed):
                with _located(source, len(self._hashes)):
                    self._take(block)
            rows = len(self._hashes) - before
            parts.append(_Part(source, rows))
            identity = source.identity()
            identities.append(
                {**identity, "rows": rows} | ({"sha256": hashed.hexdigest()} if "file" in identity else {})
            )
        n_rows = len(self._hashes)
        if n_rows == 0:
            raise UsageError(f"{', '.join(source.label for source in sources)}: no rows.", "Give a corpus with rows.")
        names = list(self._columns.shapes)
        filled = [name for name in names if self._columns.has_values(name)]
        _check_columns(names, filled, self._options.fields, self._known)
        return Corpus(
            schema=self._columns.schema(),
            n_rows=n_rows,
            fingerprint={"sources": identities, "rows": n_rows},
            parts=parts,
            fields=self._options.fields,
            repeats=self._repeats(),
        )

    def _take(self, block: Block) -> None:
        fields = self._options.fields
        self._columns.observe(block.rows)
        rows = self._needed(block)
        self._known = self._known or any(recognise(row, fields) for row in rows)
        self._hashes.extend(id_hash(row_id(row, fields)) for row in rows)

    def _needed(self, block: Block) -> list[dict[str, Any]]:
        """The block's rows, or only their ids where these are all there and nothing else is asked.

        Columns of which a value may not fit into Python are always read: it must not stop the run later.
        """
        name = self._options.fields.id or "id"
        if not isinstance(block.rows, list) and self._known and name in block.rows.column_names:
            doubtful = [field.name for field in block.rows.schema if not always_fits(field.type)]
            ids = decoded_rows(block.rows.select(list(dict.fromkeys([name, *doubtful]))))
            if all(row[name] not in (None, "") for row in ids):
                return ids
        return _rows(block)

    def _repeats(self) -> dict[int, int]:
        """Row number of every row whose id came before -> the first row that had it."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        same = np.concatenate(([False], hashes[order[1:]] == hashes[order[:-1]]))
        repeats: dict[int, int] = {}
        first = 0
        for position in np.flatnonzero(same):
            if not same[position - 1]:
                first = int(order[position - 1])
            repeats[int(order[position])] = first
        return repeats


def _check_columns(names: Sequence[str], filled: Sequence[str], fields: FieldNames, known: bool) -> None:
    """Raises UsageError unless remapped columns exist, no column is one trajscore writes, and some row has a layout."""
    found = f"Columns found: {', '.join(names)}."
    for flag, name in fields.given().items():
        if name not in filled:
            raise UsageError(f"{flag} {name}: no row has a value in that column.", found)
    remapped = {"id": fields.id, "prompt_id": fields.prompt, "teacher": fields.teacher}
    for canonical, other in remapped.items():
        if other not in (None, canonical) and canonical in names:
            flag = f"--{canonical.removesuffix('_id')}-field"
            raise UsageError(
                f"{flag} {other}: the corpus also has a column {canonical!r}, and the output could not keep both.",
                f"Rename or drop {canonical!r}, or leave out {flag}.",
            )
    for name in names:
        if name in COLUMNS and name not in _TAKEN_OVER:
            raise UsageError(
                f"The corpus has a column {name!r}, which is the name of a column that trajscore writes.",
                "Rename or drop it.",
            )
        if name.startswith(_RESERVED):
            raise UsageError(
                f"The corpus has a column {name!r}; names that begin with {_RESERVED!r} are kept for columns that trajscore "
                "makes while it selects and reports.",
                "Rename or drop it.",
            )
    if not known:
        raise UsageError(
            f"No row of the corpus has a layout that trajscore knows. {found}",
            f"Known layouts: {LAYOUTS}. --messages-field names a column of messages under another name.",
        )
