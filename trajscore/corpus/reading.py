"""The corpus as chunks of rows and trajectories, after a survey that has read all of it once.

The survey settles what one row cannot know: a schema for all rows, how each kind of row is read, which ids were met before,
whether the columns make sense, and that every file can be read to its end. It keeps eight bytes per row, and reads rows that
hold several trajectories, or ids that repeat, a second time. A streamed hub data set is not surveyed.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from trajscore.corpus import layouts
from trajscore.corpus.columns import Observed, SchemaSurvey
from trajscore.corpus.hub import HubStream, HubTable
from trajscore.corpus.identity import FieldNames, canonical_json, digest, id_hash, value_at
from trajscore.corpus.locate import HubId, locate, split_of, teachers_by_path
from trajscore.corpus.recognition import (
    CONVERSATION,
    NOTHING,
    OPEN,
    REFERENCE,
    Kind,
    Kinds,
    Reading,
    may_hold_text,
    may_hold_turns,
    readings,
    recognise,
    type_of,
)
from trajscore.corpus.sources import Block, RowSource, SourceOptions, open_file
from trajscore.corpus.stored_names import stored_names
from trajscore.corpus.trajectories import (
    DUPLICATE_ID,
    KNOWN,
    RowNames,
    Trajectory,
    messages_in,
    parts_of,
    read_trajectory,
    unread_keys,
)
from trajscore.corpus.values import always_fits, check_stored, decoded_rows, fit_table, rows_as_written, table_from_rows
from trajscore.errors import DataError, UsageError
from trajscore.schema import IDENTITY

logger = logging.getLogger("trajscore")

MAX_CHUNK_BYTES = 2**30
"""Most bytes of the rows of one chunk: the tokens and statistics of so much text take some twenty times as much."""

_DEFAULTS = SourceOptions()


@dataclass(frozen=True)
class Chunk:
    """Consecutive trajectories of a corpus.

    Attributes:
        first_row: 0-based number of the first one in the corpus.
        table: the rows as they were read, all columns, with the corpus's schema; a row with several trajectories once for each,
            with the trajectory's own element in place of each list that goes with the responses.
        trajectories: in the same order.
        added_columns: columns of `schema.COLUMNS` that scores of this corpus hold beside the usual ones.
        renamed: see `Corpus.renamed`.
    """

    first_row: int
    table: pa.Table
    trajectories: list[Trajectory]
    added_columns: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """A source and the number of its rows that belong to the corpus (None: all, unknown)."""

    source: RowSource
    rows: int | None


@dataclass(frozen=True)
class _Repeats:
    """Rows whose id another row has too.

    Attributes:
        first: row -> the first row with this id, for rows that hold the same as that one.
        own: row -> its number among the rows with this id, and whether all of them have the same prompt.
    """

    first: Mapping[int, int]
    own: Mapping[int, tuple[int, bool]]


class _Reader:
    """Rows -> trajectories, each by the reading of its kind.

    Args:
        options: how the corpus is read.
        found: the reading of each kind that the survey met; others are settled when they are met.
        surveyed: whether there are no others.
    """

    def __init__(self, options: SourceOptions, found: Mapping[Kind, Reading], surveyed: bool = False) -> None:
        self._options, self._fields = options, options.fields
        self._found = dict(found)
        readings = list(found.values())
        # Of one reading for all rows no row's kind need be known.
        self._only = readings[0] if surveyed and readings and all(each == readings[0] for each in readings) else None
        self._names = RowNames(options.fields)
        self._text: dict[tuple[str, ...], list[tuple[str, str, bool]]] = {}
        self._kinds: dict[tuple[tuple[str, ...], tuple[str, ...]], Kind] = {}

    def kind(self, row: Mapping[str, Any]) -> Kind:
        """The kind of a row."""
        names = tuple(row)
        own = self._text.get(names)
        if own is None:
            paths = self._fields.paths()
            found = [name for name in names if may_hold_text(name.lower()) or name in paths]
            own = [(name, name.lower(), False) for name in found]
            own += [(path, path.lower(), True) for path in sorted(paths) if path not in names]
            self._text[names] = own
        types = []
        for name, lower, is_path in own:
            value = value_at(row, name) if is_path else row[name]
            types.append("" if value is None else type_of(lower, value))
        key = (names, tuple(types))
        kind = self._kinds.get(key)
        if kind is None:
            held = [(name, found) for (name, _, _), found in zip(own, types, strict=True) if found]
            kind = self._kinds[key] = frozenset(held)
        return kind

    def reading(self, row: Mapping[str, Any]) -> Reading:
        """How a row is read."""
        if self._only is not None:
            return self._only
        kind = self.kind(row)
        found = self._found.get(kind)
        if found is None:
            found = self._found[kind] = recognise(kind, row, self._fields)
        return found

    def name(self, row: Mapping[str, Any], source: RowSource) -> str:
        """The row's id."""
        name = self._names.of(row)
        return f"{source.name}:{name}" if self._options.id_from == "file" else name

    def id_columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """The columns that come first to name a row; empty where a hash does."""
        return next(iter(self._names.columns(tuple(names))), ())

    def trajectories(
        self, row: Mapping[str, Any], name: str, *, prompt_id: str = "", fault: str = ""
    ) -> Iterator[tuple[Mapping[str, Any], Trajectory]]:
        """Each trajectory of a row, with the row as it belongs to it."""
        reading = self.reading(row)
        several = bool(reading.exploded) or len(reading.branches) > 1
        for number, (part, branch) in enumerate(parts_of(row, reading)):
            own = number if several else None
            trajectory = read_trajectory(
                part,
                reading,
                branch,
                name=name,
                number=own,
                prompt_id=prompt_id,
                fault=fault,
                rendered=self._options.rendered == "accept",
                marks=self._options.marks,
            )
            if self._options.correct_at is not None and isinstance(trajectory.correct, float | bool):
                trajectory = replace(trajectory, correct=float(trajectory.correct) >= self._options.correct_at)
            yield part, trajectory


class Corpus:
    """Trajectories from files and hub data sets, one after the other.

    Attributes:
        schema: of the input columns, over all files; fields marked `encoding: json` hold JSON text.
        n_rows: number of trajectories after the limit; None for a streamed data set.
        rows_read: number of rows that hold them; None for a streamed data set.
        fingerprint: JSON-able; changes when any content that is read changes, and not with the folder it lies in.
        columns: one entry for each kind of row: how many rows, which columns became what, which were not read. JSON-able.
        renamed: columns that bear the name of one of ours, and do not mean the same -> their names in scores.
    """

    def __init__(
        self,
        *,
        schema: pa.Schema,
        n_rows: int | None,
        rows_read: int | None,
        fingerprint: dict[str, Any],
        columns: list[dict[str, Any]],
        parts: Sequence[_Part],
        reader: _Reader,
        repeats: _Repeats | None,
        ends: npt.NDArray[np.int64] | None = None,
        teachers: Mapping[str, str] | None = None,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.schema = schema
        self.n_rows, self.rows_read = n_rows, rows_read
        self.fingerprint, self.columns = fingerprint, columns
        self._parts = parts
        self._reader = reader
        self._repeats = repeats
        self._ends = ends
        self._teachers = teachers or {}
        self.renamed = dict(renamed or {})

    @property
    def added_columns(self) -> tuple[str, ...]:
        """Names of the columns that scores of this corpus hold beside the usual ones."""
        folded = {"system", "reasoning", "response"}
        spoken = [each for each in self.columns if "token_ids" not in each or "messages" in each or "prompt" in each]
        made = any(each.get("messages") != ["messages"] or each.keys() & folded for each in spoken)
        taken_over = "messages_from" in self.schema.names
        graded = any("correct" in each for each in self.columns)
        sampled = any("sampler_logprob" in each for each in self.columns)
        return (
            *(("correct",) if graded else ()),
            *(("messages_from", "scored_messages") if made or taken_over else ()),
            *(("sampler_logprob", "scaffold_sampler_logprob") if sampled else ()),
        )

    def say(self) -> None:
        """Log what `columns` says, a sentence for each kind of row."""
        for each in self.columns:
            logger.log(logging.WARNING if "note" in each else logging.INFO, "%s", described(each))
        for name, other in self.renamed.items():
            logger.info(
                "column %s has the name of one of ours: it is %s in the scores, and %s in what select writes",
                name,
                other,
                "stays so" if name in IDENTITY else f"{name} again",
            )

    def chunks(self, rows_per_chunk: int, start: int = 0) -> Iterator[Chunk]:
        """Chunks of `rows_per_chunk` trajectories (the last may be shorter), from number `start` on, across file borders.

        A row that repeats an earlier one, its id and its text (also one before `start`), comes with the refusal `duplicate_id`.
        Where a trajectory stands, and what is in it, depends neither on `rows_per_chunk` nor on `start`. Skipped rows are not
        parsed, except in a streamed data set, where their ids have to be seen.

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
        """Chunks with the given numbers, counted from 0, each of `rows_per_chunk` trajectories (the last may be shorter).

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
                yield self._chunk(first, whole.slice(0, rows_per_chunk), waiting[:rows_per_chunk])
                first += rows_per_chunk
                waiting, tables = waiting[rows_per_chunk:], [whole.slice(rows_per_chunk)]
            _check_size(sum(each.nbytes for each in tables), len(waiting), first, rows_per_chunk)
        if waiting:
            yield self._chunk(first, pa.concat_tables(tables), waiting)

    def _chunk(self, first: int, table: pa.Table, trajectories: list[Trajectory]) -> Chunk:
        return Chunk(first, table, trajectories, self.added_columns, self.renamed)

    def _pieces(self, start: int, stop: int | None) -> Iterator[tuple[pa.Table, list[Trajectory]]]:
        """Tables of the corpus's schema with their trajectories, from number `start` on, up to `stop` where it is given."""
        begin, unwanted = self._row_of(start)
        end, more = (None, 0) if stop is None else self._row_of(stop)
        wanted = None if stop is None else stop - start
        for table, trajectories in self._rows_between(begin, None if end is None else end + bool(more)):
            if unwanted >= len(trajectories):
                unwanted -= len(trajectories)
                continue
            last = len(trajectories) if wanted is None else min(len(trajectories), unwanted + wanted)
            if last <= unwanted:
                return
            yield table.slice(unwanted, last - unwanted), trajectories[unwanted:last]
            wanted = None if wanted is None else wanted - (last - unwanted)
            unwanted = 0

    def _row_of(self, number: int) -> tuple[int, int]:
        """The row that holds a trajectory, and how many of that row stand before it. In a stream, the row is the first one."""
        if self._repeats is None:
            return 0, number
        if self._ends is None:
            return number, 0
        row = int(np.searchsorted(self._ends, number, side="right"))
        return row, number - (int(self._ends[row - 1]) if row else 0)

    def _rows_between(self, start: int, stop: int | None) -> Iterator[tuple[pa.Table, list[Trajectory]]]:
        """Blocks of rows from row `start` on, up to row `stop`."""
        streamed = _Seen() if self._repeats is None else None
        stop = None if streamed else stop
        row = 0
        for part in self._parts:
            skip = 0 if part.rows is None else min(max(0, start - row), part.rows)
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
                    yield self._piece(part.source, block, row, streamed)
                row += len(block)

    def _piece(
        self, source: RowSource, block: Block, row: int, streamed: _Seen | None
    ) -> tuple[pa.Table, list[Trajectory]]:
        rows = _rows(block)
        expanded = list[Mapping[str, Any]]()
        trajectories = list[Trajectory]()
        for i, each in enumerate(rows):
            for part, trajectory in self._named(source, each, row + i, block.faults.get(i, ""), streamed):
                expanded.append(part)
                trajectories.append(trajectory)
        if isinstance(block.rows, pa.Table) and self._ends is None and len(expanded) == len(rows):
            return fit_table(block.rows, self.schema), trajectories
        table = table_from_rows(expanded, self.schema)
        if streamed and not isinstance(block.rows, pa.Table):
            check_stored(expanded, table)
        return table, trajectories

    def _named(
        self, source: RowSource, row: Mapping[str, Any], number: int, fault: str, streamed: _Seen | None
    ) -> Iterator[tuple[Mapping[str, Any], Trajectory]]:
        """The trajectories of a row under names that no other row has."""
        name, prompt_id, first = self._reader.name(row, source), "", None
        if streamed:
            held = _held(self._reader, row, name)
            first, own = streamed.met(name, held, number)
            name = f"{name}#{own}" if own else name
        elif self._repeats is not None:
            first = self._repeats.first.get(number)
            if (repeat := self._repeats.own.get(number)) is not None:
                prompt_id = name if repeat[1] else ""
                name = f"{name}#{repeat[0]}"
        teacher = self._teachers.get(source.name)
        for part, trajectory in self._reader.trajectories(row, name, prompt_id=prompt_id, fault=fault):
            named = replace(trajectory, teacher=teacher) if trajectory.teacher is None and teacher else trajectory
            yield part, named if first is None else _repeated(named, first)


def described(columns: Mapping[str, Any]) -> str:
    """One entry of `Corpus.columns` as a sentence.

    >>> described({"rows": 2, "prompt": ["question"], "response": ["attempt"], "not_read": ["solution"]})
    'rows of one kind: 2; prompt: question; response: attempt; text that was not read: solution'
    """
    names = {
        "token_ids": "token ids",
        "sampler_logprob": "sampler's log-probabilities",
        "teacher_messages": "the teacher's prompt",
        "exploded": "one trajectory for each element of",
        "not_read": "text that was not read",
        "prompt_id": "prompt id",
    }
    names |= {"unread_keys": "keys of turns that were not read", "note": "note"}
    said = [
        f"{names.get(role, role)}: {', '.join(value) if isinstance(value, list) else value}"
        for role, value in columns.items()
        if role != "rows"
    ]
    return "; ".join([f"rows of one kind: {columns['rows']:,}", *said])


def _held(reader: _Reader, row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Hashes of what a row holds: all of its trajectories, and their prompt."""
    found = [trajectory for _, trajectory in reader.trajectories(row, name)]
    held = [
        [each.messages, each.text, each.tools, each.detail, each.tokens and each.tokens.ids_P.tolist()]
        for each in found
    ]
    return digest(held), found[0].prompt_id


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
    """Ids met so far in a stream: the row that had each first, and hashes of what rows with it held."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[int, list[int]]] = {}

    def met(self, name: str, held: tuple[str, str], row: int) -> tuple[int | None, int]:
        """The row that held the same under this id before, if any; and which of different rows with this id it is, from 0."""
        first, known = self._first.setdefault(id_hash(name), (row, []))
        text = id_hash(held[0])
        if text in known:
            return first, known.index(text)
        known.append(text)
        return None, len(known) - 1


def _repeated(trajectory: Trajectory, earlier: int) -> Trajectory:
    detail = (
        f"The id {trajectory.id!r} belongs to row {earlier} (counted from 0) already; ids must be unique. A row without an id "
        "is named by its content, so two equal rows have one name: drop the copy, or give both an id."
    )
    return replace(trajectory, messages=None, text=None, tools=None, tokens=None, refusal=DUPLICATE_ID, detail=detail)


def _rows(block: Block) -> list[dict[str, Any]]:
    return block.rows if isinstance(block.rows, list) else rows_as_written(block.rows)


@contextmanager
def _located(source: RowSource, row: int) -> Iterator[None]:
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
        UsageError: a path that does not exist or comes twice, options that fit no row, a corpus without rows or without any
            row that has a known layout.
        DataError: a file that is broken; it names file and line.
        MissingExtraError: a hub id without `datasets` installed.
    """
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit is {options.limit}; it must be at least 1.")
    found = locate(data, options.split)
    if options.streaming and any(isinstance(source, HubId) for source in found):
        if len(found) > 1:
            raise UsageError("--streaming reads a single hub data set.", "Give it alone, or leave out --streaming.")
        return _open_stream(HubStream(str(getattr(found[0], "name", "")), options), options)
    sources = [HubTable(item.name, options) if isinstance(item, HubId) else open_file(item) for item in found]
    if not any(isinstance(source, HubTable) for source in sources):
        _warn_unused(options)
        if options.split and not any(split_of(source.name) for source in sources):
            logger.warning("--split says nothing about files whose names tell no split, and is not used")
    return _Survey(options).corpus(sources)


def _warn_unused(options: SourceOptions) -> None:
    flags = {"config_name": "config-name", "streaming": "streaming", "revision": "data-revision"}
    for name, flag in flags.items():
        if getattr(options, name) != getattr(_DEFAULTS, name):
            logger.warning("--%s says nothing about local files and is not used", flag)


def _open_stream(source: HubStream, options: SourceOptions) -> Corpus:
    seen = SchemaSurvey()
    first = next(source.blocks(0, options.limit), None)
    if first is None:
        raise UsageError(f"{source.label}: the data set has no rows.", "Check --split and --config-name.")
    seen.observe(first.rows)
    schema = source.declared or seen.schema()
    reader = _Reader(options, {})
    rows = _rows(first)
    kinds = Counter(reader.kind(row) for row in rows)
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    found = readings(kinds, columns, options.fields)
    # Whether a later row has a value cannot be known; a column that is there is taken to be used.
    _check_columns(schema.names, schema.names, options.fields)
    _check_readable(found, kinds, schema.names)
    is_truth = "correct" in schema.names and pa.types.is_boolean(schema.field("correct").type)
    return Corpus(
        schema=schema,
        n_rows=None,
        rows_read=None,
        fingerprint={"sources": [source.identity()], "limit": options.limit},
        columns=_described(found, kinds, seen, {}),
        parts=[_Part(source, options.limit)],
        reader=_Reader(options, found),
        repeats=None,
        renamed=stored_names(schema.names, _meant(found.values(), options, is_truth)),
    )


class _Survey:
    """One reading of all sources, in order, up to the limit."""

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self._schema = SchemaSurvey()
        self._hashes = array("Q")
        self._kinds: Counter[Kind] = Counter()
        self._reader = _Reader(options, {})
        self._arrow_kinds = Kinds(options.fields.paths())
        self._grades: dict[str, set[Any]] = defaultdict(set)
        self._parsed: dict[str, Observed] = defaultdict(Observed)

    def corpus(self, sources: Sequence[RowSource]) -> Corpus:
        """Reads the sources and makes the corpus of them."""
        parts, identities = [], []
        for source in sources:
            left = None if self._options.limit is None else self._options.limit - len(self._hashes)
            if left == 0:
                break
            hashed, before = hashlib.sha256(), len(self._hashes)
            for block in source.blocks(0, left, hashed):
                with _located(source, len(self._hashes)):
                    self._take(source, block)
            rows = len(self._hashes) - before
            parts.append(_Part(source, rows))
            identity = source.identity()
            identities.append(
                {**identity, "rows": rows} | ({"sha256": hashed.hexdigest()} if "file" in identity else {})
            )
        rows_read = len(self._hashes)
        if rows_read == 0:
            raise UsageError(f"{', '.join(source.label for source in sources)}: no rows.", "Give a corpus with rows.")
        names = list(self._schema.observed)
        filled = [name for name in names if self._schema.has_values(name)]
        _check_columns(names, filled, self._options.fields)
        fields = self._options.fields
        found = readings(self._kinds, filled, fields)
        _check_readable(found, self._kinds, names)
        found = self._graded(found)
        again = _SecondReading(parts, _Reader(self._options, found), self._repeated_rows())
        several = any(reading.exploded or len(reading.branches) > 1 for reading in found.values())
        if several or again.wanted:
            again.read(several)
            found = {kind: again.completed(reading) for kind, reading in found.items()}
        ends = np.cumsum(np.frombuffer(again.counts, np.uint32), dtype=np.int64) if several else None
        reader = _Reader(self._options, found, surveyed=True)
        corpus = Corpus(
            schema=again.schema(self._schema),
            n_rows=rows_read if ends is None else int(ends[-1]),
            rows_read=rows_read,
            fingerprint={"sources": identities, "rows": rows_read},
            columns=_described(found, self._kinds, self._schema, self._parsed),
            parts=parts,
            reader=reader,
            repeats=again.repeats,
            ends=ends,
            teachers=teachers_by_path([part.source.name for part in parts]) if self._options.teacher_from else None,
            renamed=stored_names(
                names, _meant(found.values(), self._options, self._says_truth()) | (IDENTITY - set(filled))
            ),
        )
        if all(reading.rank == CONVERSATION and not reading.branches for reading in found.values()):
            _refuse_prompts_alone(corpus, self._kinds, names)
        return corpus

    def _take(self, source: RowSource, block: Block) -> None:
        self._schema.observe(block.rows)
        for name, text in _messages_as_text(block.rows):
            self._parsed[name].observe(messages_in(text))
        dotted = any(path not in self._schema.observed for path in self._options.fields.paths())
        if isinstance(block.rows, pa.Table) and not dotted:
            self._kinds.update(dict(self._arrow_kinds.of(block.rows)))
            rows = self._needed(block)
        else:
            rows = _rows(block)
            self._kinds.update(map(self._reader.kind, rows))
        self._hashes.extend(id_hash(self._reader.name(row, source)) for row in rows)
        for name in self._grade_columns():
            if isinstance(block.rows, list):
                self._grades[name].update(_shown(value_at(row, name)) for row in rows)
            elif name in block.rows.column_names:
                self._grades[name].update(map(_shown, _distinct(block.rows.column(name))))
            if len(self._grades[name]) > 1000:
                self._grades[name] = set(list(self._grades[name])[:1000])

    def _says_truth(self) -> bool:
        """Whether the column `correct` holds nothing but what the one of scores does."""
        return all(value is None or value in (0, 1) for value in self._grades.get("correct", ()))

    def _grade_columns(self) -> list[str]:
        given = self._options.fields.correct
        return [given] if given else [name for name in self._schema.observed if name.lower() in layouts.CORRECT]

    def _needed(self, block: Block) -> list[dict[str, Any]]:
        """The block's rows, or only their ids where these are all there.

        Columns of which a value may not fit into Python are always read: it must not stop the run later.
        """
        if isinstance(block.rows, pa.Table):
            own = self._reader.id_columns(block.rows.column_names)
            if own and all(name in block.rows.column_names for name in own):
                doubtful = [field.name for field in block.rows.schema if not always_fits(field.type)]
                ids = decoded_rows(block.rows.select(list(dict.fromkeys([*own, *doubtful]))))
                if all(row[name] not in (None, "") for row in ids for name in own):
                    return ids
        return _rows(block)

    def _repeated_rows(self) -> npt.NDArray[np.int64]:
        """Numbers of the rows whose id another row has too."""
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        return np.flatnonzero(counts[inverse] > 1)

    def _graded(self, found: dict[Kind, Reading]) -> dict[Kind, Reading]:
        """The readings without columns whose numbers say no right and wrong."""
        if self._options.correct_at is not None:
            return found
        unclear = {
            name: bad for name, values in self._grades.items() if (bad := [v for v in values if not _is_grade(v)])
        }
        apart = {name for reading in found.values() for name in reading.exploded}
        for name, bad in unclear.items():
            if name in apart and bad == ["a list"]:
                continue
            if name.lower() == "correct" or name == self._options.fields.correct:
                raise UsageError(
                    f"The corpus has {repr(bad[0])[:80]} in its column {name!r}; true, false, 1, 0 and null are allowed.",
                    "For other numbers say from which on a trajectory is right: --correct-at 0.5; or leave the column out: "
                    f"--ignore-columns {name}.",
                )
            if bad[0] != "a list":
                logger.info("column %s is not taken for `correct`: it holds %r", name, bad[0])
        numbers = {name for name, bad in unclear.items() if bad != ["a list"]}
        return {
            kind: replace(reading, correct=tuple(name for name in reading.correct if name not in numbers))
            for kind, reading in found.items()
        }


_BEFORE_LIST = frozenset("[ \n\r\t")
"""How a text may begin that is a list."""


def _messages_as_text(rows: list[dict[str, Any]] | pa.Table) -> Iterator[tuple[str, str]]:
    """Texts that may be lists of messages, with their columns."""
    if isinstance(rows, list):
        names = dict.fromkeys(name for row in rows for name in row)
        for name in [name for name in names if may_hold_turns(name.lower())]:
            for row in rows:
                value = row.get(name)
                if type(value) is str and value[:1] in _BEFORE_LIST and value.lstrip()[:1] == "[":
                    yield name, value
        return
    for name in rows.column_names:
        column = rows.column(name)
        if may_hold_turns(name.lower()) and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            lists = column.filter(pc.match_substring_regex(column, r"^\s*\["))
            yield from ((name, text) for text in lists.to_pylist())


def _distinct(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(pc.unique(column).to_pylist())
    except pa.ArrowNotImplementedError:
        return list(column.slice(0, 100).to_pylist())


_PLAIN = frozenset({bool, int, float, str})


def _shown(value: Any) -> Any:
    """A value of `correct` as it is compared: lists and objects by their kind."""
    if value is None or type(value) in _PLAIN:
        return value
    return "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, Mapping) else value


def _is_grade(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int | float):
        return value in (0, 1, -1) or (isinstance(value, float) and isnan(value))
    return isinstance(value, str) and value not in ("a list", "an object")


class _SecondReading:
    """What takes a second look: how many trajectories each row holds, and what rows under one id differ in.

    Args:
        parts: the sources.
        reader: rows -> trajectories.
        wanted: numbers of rows whose ids repeat, ascending.

    Attributes:
        counts: trajectories of each row.
        repeats: what came of the repeated ids.
    """

    def __init__(self, parts: Sequence[_Part], reader: _Reader, wanted: npt.NDArray[np.int64]) -> None:
        self._parts, self._reader = parts, reader
        self.wanted = set(wanted.tolist())
        self.counts = array("I")
        self.repeats = _Repeats({}, {})
        self._exploded: dict[str, Observed] = {}
        self._uneven: set[str] = set()
        self._follow: set[str] = set()

    def read(self, several: bool) -> None:
        """Read all rows, or as many as it takes for those that were asked for."""
        row, held = 0, dict[str, list[tuple[int, str, str]]]()
        for part in self._parts:
            for block in part.source.blocks(0, part.rows):
                numbers = range(row, row + len(block))
                row = numbers.stop
                if not several and self.wanted.isdisjoint(numbers):
                    continue
                for number, each in zip(numbers, _rows(block), strict=True):
                    if several:
                        self._count(each)
                    if number in self.wanted:
                        name = self._reader.name(each, part.source)
                        held.setdefault(name, []).append((number, *_held(self._reader, each, name)))
        self.repeats = _told_apart(held)

    def _count(self, row: Mapping[str, Any]) -> None:
        reading = self._reader.reading(row)
        self.counts.append(sum(1 for _ in parts_of(row, reading)))
        counting = row.get(reading.exploded[0]) if reading.exploded else None
        if not isinstance(counting, list):
            return
        for name, value in row.items():
            if isinstance(value, list) and name not in self._uneven and name not in reading.used():
                if name not in reading.exploded and (
                    len(value) != len(counting) or any(isinstance(v, Mapping) for v in value)
                ):
                    self._uneven.add(name)
                    continue
                self._follow.add(name)
        for name in dict.fromkeys([*reading.exploded, *self._follow]):
            value = row.get(name)
            seen = self._exploded.setdefault(name, Observed())
            for item in value if isinstance(value, list) else [value]:
                seen.observe(item)

    def completed(self, reading: Reading) -> Reading:
        """The reading with every list that was as long as the responses in all rows."""
        if not reading.exploded:
            return reading
        return replace(
            reading, exploded=tuple(dict.fromkeys([*reading.exploded, *sorted(self._follow - self._uneven)]))
        )

    def schema(self, survey: SchemaSurvey) -> pa.Schema:
        """The schema of the rows, each with its own element of each list that was taken apart."""
        schema = survey.schema()
        for name in set(self._exploded) - self._uneven:
            place = schema.get_field_index(name)
            if place >= 0:
                schema = schema.set(place, self._exploded[name].field(name, name))
        return schema


def _told_apart(held: Mapping[str, Sequence[tuple[int, str, str]]]) -> _Repeats:
    """Rows under one id: copies of an earlier one, or different trajectories, each with a number of its own."""
    first, own = dict[int, int](), dict[int, tuple[int, bool]]()
    kinds = 0
    for rows in held.values():
        texts: dict[str, int] = {}
        same_prompt = len({prompt for _, _, prompt in rows}) == 1
        different = len({text for _, text, _ in rows}) > 1
        kinds += different
        for row, text, _ in rows:
            if text in texts:
                first[row] = texts[text]
            else:
                if different:
                    own[row] = (len(texts), same_prompt)
                texts[text] = row
    if kinds:
        logger.info(
            "%d ids stand for several different rows: they are taken for the prompt's, and the rows are named ID#0, ID#1, ...",
            kinds,
        )
    return _Repeats(first, own)


def _described(
    found: Mapping[Kind, Reading], kinds: Mapping[Kind, int], schema: SchemaSurvey, parsed: Mapping[str, Observed]
) -> list[dict[str, Any]]:
    """What `Corpus.columns` holds: readings with the numbers of rows and with text that nobody reads.

    Args:
        parsed: what texts hold that are lists of messages, by column.
    """
    known = {name for kind in kinds for name, _ in kind} | {"messages_from"}
    others = [name for name, seen in schema.observed.items() if name not in known and seen.holds_text()]
    rows: Counter[str] = Counter()
    alike: dict[str, Reading] = {}
    for kind, reading in found.items():
        said = canonical_json(reading.describe())
        rows[said] += kinds[kind]
        alike.setdefault(said, reading)
    entries = []
    for said, count in rows.most_common():
        reading = alike[said]
        entry = {"rows": count, **reading.describe()}
        entry["teacher"] = [name for name in entry.get("teacher", []) if "." not in name or _holds(schema, name)]
        if not entry["teacher"]:
            del entry["teacher"]
        read = {
            *reading.used(),
            *reading.exploded,
            *reading.teachers,
            *reading.correct,
            *"+".join(reading.id[:1]).split("+"),
            reading.prompt_id,
        }
        read |= {branch.correct for branch in reading.branches} | {layouts.TOOLS, layouts.TEMPLATE_KWARGS}
        left = [*entry.pop("not_read", []), *(name for name in others if name not in read)]
        if left:
            entry["not_read"] = left
        turns = (reading.messages, reading.history, *reading.prompt, *reading.response)
        seen = [each[name] for name in turns if name for each in (schema.observed, parsed) if name in each]
        keys = [key for each in seen for key in unread_keys(each)]
        for name in reading.exploded:
            inner = schema.observed[name].keys() if name in schema.observed else {}
            paths = {f"{name}.{key}": each for key, each in inner.items()}
            keys += [path for path, each in paths.items() if path not in read and each.holds_text()]
        if keys:
            entry["unread_keys"] = list(dict.fromkeys(keys))
        if reading.rank == REFERENCE:
            entry["note"] = f"no generated response was found, so the reference {reading.response[0]!r} is scored"
        entries.append(entry)
    return entries


def _holds(schema: SchemaSurvey, path: str) -> bool:
    """Whether a dotted path leads to a value; a column of that very name counts too."""
    first, *keys = path.split(".")
    seen = schema.observed.get(path) or schema.observed.get(first)
    for key in keys if path not in schema.observed else []:
        seen = seen.keys().get(key) if seen else None
    return bool(seen and seen.kinds)


def _refuse_prompts_alone(corpus: Corpus, kinds: Mapping[Kind, int], names: Sequence[str]) -> None:
    """Raises UsageError where no conversation of the corpus has a turn of the assistant."""
    if not all(
        kind_type == OPEN for kind in kinds for name, kind_type in kind if name in ("messages", "conversations")
    ):
        return
    prompts = 0
    for chunk in corpus.chunks(1000):
        for each in chunk.trajectories:
            if (
                each.text is not None
                or each.tokens is not None
                or any(turn["role"] == "assistant" for turn in each.messages or [])
            ):
                return
            prompts += not each.refusal
    if not prompts:
        return
    raise _no_response("Its conversations are prompts: none has a turn of the assistant.", names)


def _no_response(what: str, names: Sequence[str]) -> UsageError:
    return UsageError(
        f"The corpus holds no response. {what} Columns found: {', '.join(names)}.",
        "Prompts alone, as in data sets for reinforcement learning, cannot be scored: score what a model answered to them. "
        "If a column does hold the response, name it: --response-field COLUMN.",
    )


def _check_readable(found: Mapping[Kind, Reading], kinds: Mapping[Kind, int], names: Sequence[str]) -> None:
    """Raises UsageError unless some kind of row has something to score."""
    if any(reading.rank > NOTHING for reading in found.values()):
        return
    prompts = dict.fromkeys(name for reading in found.values() for name in reading.prompt)
    if prompts:
        raise _no_response(f"It has prompts ({', '.join(prompts)}) and nothing that a model answered to them.", names)
    raise UsageError(
        f"No row of the corpus has a layout that trajscore knows. Columns found: {', '.join(names)}.",
        f"Known layouts: {KNOWN}. --messages-field names a column of messages under another name; --prompt-field and "
        "--response-field name a prompt and its response.",
    )


def _check_columns(names: Sequence[str], filled: Sequence[str], fields: FieldNames) -> None:
    """Raises UsageError unless the columns that flags name are there."""
    found = f"Columns found: {', '.join(names)}."
    for flag, name in fields.given().items():
        if name not in filled and name.partition(".")[0] not in filled:
            raise UsageError(f"{flag} {name}: no row has a value in that column.", found)
    for name in fields.ignored:
        if name not in names:
            raise UsageError(f"--ignore-columns {name}: the corpus has no such column.", found)


def _meant(readings: Iterable[Reading], options: SourceOptions, is_truth: bool) -> set[str]:
    """Columns of the corpus that mean what ours of the same name do, which take their place in scores."""
    fields, found = options.fields, list(readings)
    meant = {"messages_from"} | ({"id"} if fields.id in (None, "id") else set())
    meant |= {"teacher"} if fields.teacher in (None, "teacher") else set()
    meant |= {"prompt_id"} & {str(reading.prompt_id) for reading in found}
    meant |= (
        {"input_ids"} if any(reading.tokens and reading.tokens.whole == "input_ids" for reading in found) else set()
    )
    graded = any("correct" in reading.correct for reading in found) and options.correct_at is None
    return (meant | ({"correct"} if graded and is_truth else set())) - set(fields.ignored)
