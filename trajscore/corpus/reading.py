"""A corpus that was surveyed -> chunks of rows and trajectories, from any row on.

What one row cannot know (the schema, how its kind is read, which ids were met before) is given: `survey` found it out. A stream
is not surveyed, so the ids of its rows are told apart while it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.corpus.identity import digest, id_hash, value_at
from trajscore.corpus.kinds import Kind, may_hold_text, type_of
from trajscore.corpus.recognition import Reading, recognise
from trajscore.corpus.sources import Block, RowSource, SourceOptions, naming
from trajscore.corpus.trajectories import DUPLICATE_ID, RowNames, Trajectory, parts_of, read_trajectory
from trajscore.corpus.values import check_stored, fit_table, table_from_rows
from trajscore.errors import UsageError
from trajscore.schema import IDENTITY

logger = logging.getLogger("trajscore")

MAX_CHUNK_BYTES = 2**30
"""Most bytes of the rows of one chunk: the tokens and statistics of so much text take some twenty times as much."""


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


class SourceRows(NamedTuple):
    """A source and the number of its rows that belong to the corpus (None: all, unknown)."""

    source: RowSource
    rows: int | None


class Repeats(NamedTuple):
    """Rows whose id another row has too.

    Attributes:
        first: row -> the first row with this id, for rows that hold the same as that one.
        own: row -> its number among the rows with this id, and whether all of them have the same prompt.
    """

    first: Mapping[int, int]
    own: Mapping[int, tuple[int, bool]]


class RowReader:
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

    def held(self, row: Mapping[str, Any], name: str) -> tuple[str, str]:
        """Hashes of what a row holds: all of its trajectories, and their prompt."""
        found = [trajectory for _, trajectory in self.trajectories(row, name)]
        held = [
            [each.messages, each.text, each.tools, each.detail, each.tokens and each.tokens.ids_P.tolist()]
            for each in found
        ]
        return digest(held), found[0].prompt_id


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
        parts: Sequence[SourceRows],
        reader: RowReader,
        repeats: Repeats | None,
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
    def file_starts(self) -> list[int]:
        """The number of the first trajectory of each file or data set that holds one."""
        rows = np.cumsum([0, *(part.rows or 0 for part in self._parts[:-1])])
        starts = rows if self._ends is None else np.concatenate([[0], self._ends])[rows]
        return sorted(set(map(int, starts)))

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
                with naming(part.source, row):
                    yield self._piece(part.source, block, row, streamed)
                row += len(block)

    def _piece(
        self, source: RowSource, block: Block, row: int, streamed: _Seen | None
    ) -> tuple[pa.Table, list[Trajectory]]:
        rows = block.as_written()
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
            held = self._reader.held(row, name)
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
