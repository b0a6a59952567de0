"""A file in any of the formats -> blocks of rows, and what identifies its content; data sets of the hub are in `hub`.

The rows of a block are a list of parsed JSON objects or an Arrow table; nothing here decides a schema or reads a layout.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.corpus.identity import USUAL_NAMES, FieldNames
from trajscore.corpus.jsonfiles import Hash, LineMarks, Row, holds_array, read_array, read_lines
from trajscore.corpus.locate import Located, suffix_of
from trajscore.corpus.storable import readable
from trajscore.corpus.values import rows_as_written
from trajscore.errors import DataError, UsageError
from trajscore.io.parquet import open_pages
from trajscore.io.paths import for_arrow, is_remote, reaching
from trajscore.rendering.rendered_text import NO_MARKS, RenderedMarks

BLOCK_ROWS = 512
"""Rows per block: enough to make Arrow's fixed costs small, few enough that long trajectories fit in memory."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source.

    Attributes:
        rows: the rows as they can be stored.
        faults: number of a row in the block -> what of it could not be stored.
    """

    rows: list[dict[str, Any]] | pa.Table
    faults: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def as_written(self) -> list[dict[str, Any]]:
        """The rows as Python values."""
        return self.rows if isinstance(self.rows, list) else rows_as_written(self.rows)


@dataclass(frozen=True)
class SourceOptions:
    """How a corpus is read.

    Attributes:
        fields: remapped columns.
        limit: only the first that many rows of the whole corpus; None reads all.
        split: split of a hub data set (None: train), or of a folder with files of several.
        config_name: configuration of a hub data set.
        streaming: read a hub data set while it is being downloaded, once, without a survey.
        revision: branch, tag or commit of a hub data set.
        teacher_from: `path` for the name of the file or folder as the teacher of rows that name none.
        id_from: `file` for ids that begin with the file's name.
        correct_at: from which number on a trajectory is correct.
        rendered: `refuse`, or `accept` for text to which a chat template was applied already.
        marks: what shows that one was applied.
    """

    fields: FieldNames = USUAL_NAMES
    limit: int | None = None
    split: str | None = None
    config_name: str | None = None
    streaming: bool = False
    revision: str | None = None
    teacher_from: str | None = None
    id_from: str | None = None
    correct_at: float | None = None
    rendered: str = "refuse"
    marks: RenderedMarks = NO_MARKS


class RowSource(Protocol):
    """Something that yields rows, the same ones in the same order each time."""

    @property
    def label(self) -> str:
        """Its name in messages."""

    @property
    def name(self) -> str:
        """Its path below what was given, or its id: it stays when a folder is moved."""

    def blocks(self, skip: int = 0, limit: int | None = None, hashed: Hash | None = None) -> Iterator[Block]:
        """Blocks of at most `BLOCK_ROWS` rows: those after the first `skip` ones, at most `limit`.

        `hashed` gets the bytes that were read (the whole file, when all of it is read), where there are bytes.
        """

    def identity(self) -> dict[str, Any]:
        """What identifies it in the fingerprint, beside the hash of its bytes."""


@contextmanager
def naming(source: RowSource, row: int) -> Iterator[None]:
    """Adds to an error where the rows came from: the source, and the number of the first one in the corpus."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{source.label}, row {row} of the corpus (counted from 0) or soon after: {error.problem}", error.hint
        ) from None


def open_file(located: Located) -> RowSource:
    """The source for a file that exists.

    Raises:
        UsageError, DataError: if it cannot be opened as what its name says.
    """
    kinds: dict[str, type[ParquetFile | ArrowFile | CsvFile]] = {
        ".parquet": ParquetFile,
        ".arrow": ArrowFile,
        ".csv": CsvFile,
    }
    return kinds.get(suffix_of(located.path), JsonFile)(located)


class _File:
    """What files have in common: a name, a size, and having to stay as they were surveyed."""

    def __init__(self, located: Located) -> None:
        self.path = located.path
        self.name = located.name
        self._state = self._stat()

    def _stat(self) -> tuple[int, Any]:
        stat: Any = self.path.stat()
        return stat.st_size, stat.st_mtime if is_remote(self.path) else stat.st_mtime_ns

    @property
    def label(self) -> str:
        return str(self.path)

    def check_unchanged(self) -> None:
        if not self.path.is_file() or self._stat() != self._state:
            raise DataError(f"{self.path}: was changed while it was being read.", "Start again when it is complete.")

    def identity(self) -> dict[str, Any]:
        return {"file": self.name, "bytes": self._state[0]}


class JsonFile(_File):
    """A file of JSON Lines, or a `.json` file with one list."""

    def __init__(self, located: Located) -> None:
        super().__init__(located)
        is_json = suffix_of(self.path).startswith(".json") and not suffix_of(self.path).startswith(".jsonl")
        # A file of lines can be entered in the middle, once it was read; a list cannot.
        self._marks = None if is_json and holds_array(self.path) else LineMarks(BLOCK_ROWS)

    def blocks(self, skip: int = 0, limit: int | None = None, hashed: Hash | None = None) -> Iterator[Block]:
        self.check_unchanged()
        rows = read_lines(self.path, hashed, skip, self._marks) if self._marks else read_array(self.path, hashed, skip)
        for block in blocks_of(itertools.islice(rows, limit)):
            self.check_unchanged()
            yield block
        self.check_unchanged()  # a file that was cut short ends early


def blocks_of(rows: Iterator[Row]) -> Iterator[Block]:
    """Rows, with what is wrong with each, in blocks."""
    while taken := list(itertools.islice(rows, BLOCK_ROWS)):
        yield Block([row for row, _ in taken], {i: fault for i, (_, fault) in enumerate(taken) if fault})


class ParquetFile(_File):
    """A Parquet file, read row group by row group."""

    def __init__(self, located: Located) -> None:
        super().__init__(located)
        with self._errors(), self._open() as file:
            schema = file.schema_arrow
        _refuse_doubled(self.path, schema.names)
        if b"trajscore.schema_version" in (schema.metadata or {}):
            raise UsageError(
                f"{self.path}: holds scores already, and their columns would collide with new ones.",
                "Give the corpus that was scored.",
            )

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        with for_arrow(self.path) as source, open_pages(source) as file:
            yield file

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with reaching(self.path):
                yield
        # A ValueError is about the name: Arrow takes only UTF-8.
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: cannot be read as Parquet: {error}", "Fetch the file again, or write it anew."
            ) from None

    def blocks(self, skip: int = 0, limit: int | None = None, hashed: Hash | None = None) -> Iterator[Block]:
        self.check_unchanged()
        if hashed:
            _hash_file(self.path, hashed)
        with self._errors(), self._open() as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            first = 0
            while first < len(sizes) and sizes[first] <= skip:
                skip -= sizes[first]
                first += 1
            groups = list(range(first, len(sizes)))
            for batch in file.iter_batches(batch_size=BLOCK_ROWS, row_groups=groups) if groups else ():
                self.check_unchanged()
                table = pa.Table.from_batches([batch]).slice(skip, limit)
                skip = max(0, skip - batch.num_rows)
                limit = None if limit is None else limit - table.num_rows
                if table.num_rows:
                    yield Block(*readable(table))
                if limit == 0:
                    return


class _TableFile(_File):
    """A file of Arrow record batches, one after the other."""

    kind: ClassVar[str]

    @contextmanager
    def _batches(self) -> Iterator[Iterator[pa.RecordBatch]]:
        raise NotImplementedError

    def blocks(self, skip: int = 0, limit: int | None = None, hashed: Hash | None = None) -> Iterator[Block]:
        self.check_unchanged()
        if hashed:
            _hash_file(self.path, hashed)
        try:
            with reaching(self.path), self._batches() as batches:
                for batch in batches:
                    self.check_unchanged()
                    _refuse_doubled(self.path, batch.schema.names)
                    table = pa.Table.from_batches([batch]).slice(skip, limit)
                    skip = max(0, skip - batch.num_rows)
                    limit = None if limit is None else limit - table.num_rows
                    for start in range(0, table.num_rows, BLOCK_ROWS):
                        yield Block(*readable(table.slice(start, BLOCK_ROWS)))
                    if limit == 0:
                        return
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}: cannot be read as {self.kind}: {error}", "Fetch the file again, or write it anew."
            ) from None


class ArrowFile(_TableFile):
    """An Arrow file or stream, as `Dataset.save_to_disk` writes it."""

    kind = "Arrow"

    @contextmanager
    def _batches(self) -> Iterator[Iterator[pa.RecordBatch]]:
        with self.path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            source = pa.PythonFile(file, "r")
            if is_file:
                reader = pa.ipc.open_file(source)
                yield (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                yield iter(pa.ipc.open_stream(source))


class CsvFile(_TableFile):
    """A file of comma-separated values with a header; fields may hold line breaks inside quotes."""

    kind = "CSV"

    @contextmanager
    def _batches(self) -> Iterator[Iterator[pa.RecordBatch]]:
        from pyarrow import csv

        with self.path.open("rb") as file:
            names = csv.open_csv(
                pa.PythonFile(file, "r"), parse_options=csv.ParseOptions(newlines_in_values=True)
            ).schema.names
        # Text stays text: a prompt that reads 007 must not become a number in one block and a string in the next.
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        )
        with self.path.open("rb") as file:
            read = csv.ReadOptions(block_size=16 * 2**20)
            parse = csv.ParseOptions(newlines_in_values=True)
            yield iter(csv.open_csv(pa.PythonFile(file, "r"), read, parse, convert))


def _refuse_doubled(path: Path, names: Sequence[str]) -> None:
    doubled = next((name for name, times in Counter(names).items() if times > 1), None)
    if doubled is not None:
        raise DataError(f"{path}: has two columns named {doubled!r}.", "Rename or drop one of them.")


def _hash_file(path: Path, hashed: Hash) -> None:
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            hashed.update(block)
