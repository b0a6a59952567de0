"""JSON Lines and JSON arrays, plain or packed (.gz, .zst) -> parsed objects, one at a time.

Lines end at LF only: U+2028 and U+0085 are ordinary characters inside JSON strings. What Python's json reads and
orjson does not (NaN, whole numbers beyond 64 bits) is read. A row comes with what is wrong with it, if a value of it cannot
be stored (see `storable`). Text that is not JSON or not UTF-8, and anything that is not an object, means a broken file: an
error that names the file and the line.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias, cast

import orjson

from trajscore.corpus.identity import MAX_DEPTH
from trajscore.corpus.storable import ExactDecoder
from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.io.paths import is_remote, reaching

Row: TypeAlias = "tuple[dict[str, Any], str]"
"""An object as it can be stored, and what of it could not; the latter is mostly empty."""

_BOM = codecs.BOM_UTF8
_BLOCK = 1 << 20
_WHOLE_OBJECT = 16 << 20
LONGEST_ROW = 256 << 20
"""Bytes of a row. A packed file of megabytes can hold one of terabytes, which no memory does."""
_BLANK = re.compile(r"[ \t\n\r]*")
_ONE_LIST = "A .json file is one list of objects, or one object per line."
_ONE_PER_LINE = "A row is one JSON object on one line."


class Hash(Protocol):
    """The part of a hashlib object that is used here."""

    def update(self, data: bytes, /) -> None:
        """Takes in more bytes."""


def open_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The file's bytes, unpacked if its name ends in .gz or .zst.

    Raises:
        UsageError: if the file cannot be opened.
    """
    try:
        with reaching(path):
            if path.suffix.lower() == ".zst":
                import pyarrow as pa

                unpacked = pa.CompressedInputStream(pa.PythonFile(path.open("rb"), "r"), "zstd")
                return cast("IO[bytes]", io.BufferedReader(unpacked, _BLOCK))
            if not is_remote(path):
                return gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
            # fsspec's own file reads a line to its end, however long.
            file = io.BufferedReader(cast("io.RawIOBase", path.open("rb")), _BLOCK)
            return gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else cast("IO[bytes]", file)
    except OSError as error:
        raise UsageError(f"{path}: cannot be opened: {error.strerror}.", "Check path and permissions.") from None


def holds_array(path: Path) -> bool:
    """Whether the first character of a `.json` file opens a list; false for an empty file.

    Raises:
        DataError: if the first character opens neither a list nor an object.
    """
    with open_bytes(path) as handle:
        for block in _blocks(path, handle, None):
            text = block.removeprefix(_BOM).lstrip(b" \t\r\n")
            if text:
                break
        else:
            return False
    if text[:1] in (b"[", b"{"):
        return text[:1] == b"["
    start = text[:20].decode("utf-8", "replace")
    raise DataError(f"{path}: begins with {start!r}; a .json file begins with [ or {{.", _ONE_PER_LINE)


class LineMarks:
    """Where some rows of a JSON Lines file begin: noted when it is read first, so that it can be entered there later.

    Args:
        every: a row is noted, of so many.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._offsets, self._lines = array("Q"), array("Q")

    def note(self, row: int, offset: int, line: int) -> None:
        """Row `row`, counted from 0, begins at that byte, in that line, counted from 1."""
        if row == len(self._offsets) * self._every:
            self._offsets.append(offset)
            self._lines.append(line)

    def before(self, row: int) -> tuple[int, int, int]:
        """The last noted row that is not after `row`, with its byte and its line."""
        if not self._offsets:
            return 0, 0, 1
        place = min(row // self._every, len(self._offsets) - 1)
        return place * self._every, self._offsets[place], self._lines[place]


def read_lines(path: Path, hashed: Hash | None = None, skip: int = 0, marks: LineMarks | None = None) -> Iterator[Row]:
    """The objects of a JSON Lines file.

    Args:
        path: the file.
        hashed: gets all bytes that were read; the file is then read from its beginning.
        skip: number of rows to pass over without parsing them.
        marks: where rows begin, of this file; noted here, and used if the file is not packed.

    Raises:
        DataError: naming file and line, for broken JSON, text that is not UTF-8, or a value that is no object.
    """
    can_enter = marks is not None and not hashed and path.suffix.lower() not in (".gz", ".zst")
    row, offset, number = marks.before(skip) if marks and can_enter else (0, 0, 1)
    for begin, line_number, line in _lines(path, hashed, offset, number):
        if marks:
            marks.note(row, begin, line_number)
        if row >= skip:
            yield parse_row(path, line_number, line, row == 0)
        row += 1


def _lines(path: Path, hashed: Hash | None, offset: int, number: int) -> Iterator[tuple[int, int, bytes]]:
    """Byte and number of each line that is not empty, and its text, from a line on."""
    with open_bytes(path) as handle:
        if offset:
            _guarded_seek(path, handle, offset)
        while True:
            begin = offset
            line = _guarded(path, handle.readline, LONGEST_ROW + 1)
            if not line:
                return
            if len(line) > LONGEST_ROW:
                raise _too_long(f"{path}, line {number}")
            offset += len(line)
            if hashed:
                hashed.update(line)
            if begin == 0:
                line = line.removeprefix(_BOM)
            line = line.strip(b" \t\r\n")
            if line:
                yield begin, number, line
            number += 1


def _guarded_seek(path: Path, handle: IO[bytes] | gzip.GzipFile, offset: int) -> None:
    try:
        with reaching(path):
            handle.seek(offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read from byte {offset} on: {error}", "Fetch the file again.") from None


def _guarded(path: Path, read: Any, *size: int) -> bytes:
    try:
        with reaching(path):
            return bytes(read(*size))
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}", "Fetch or pack the file again.") from None


def _blocks(path: Path, handle: IO[bytes] | gzip.GzipFile, hashed: Hash | None) -> Iterator[bytes]:
    while block := _guarded(path, handle.read, _BLOCK):
        if hashed:
            hashed.update(block)
        yield block


def parse_row(path: Path, number: int, line: bytes, first: bool = False) -> Row:
    """One line as an object.

    Args:
        path: for the messages.
        number: 1-based line number, for the messages.
        line: its bytes.
        first: whether it is the file's first row, where a file of another kind shows.

    Raises:
        DataError: see `read_lines`.
    """
    where = f"{path}, line {number}"
    try:
        value = orjson.loads(line)
        fault = ""
        # orjson reads whole numbers beyond 64 bits as floats and loses their digits.
        exact = _is_plain(value)
    except orjson.JSONDecodeError:
        exact = False
    if not exact:
        value, fault = _parse_slowly(path, where, line, first)
    return checked(value, where, f"{_ONE_PER_LINE} If {path.name} holds one list of objects, name it .json."), fault


def checked(value: Any, where: str, hint: str) -> dict[str, Any]:
    """Makes sure that a parsed value is a row.

    Raises:
        DataError: if it is no object.
    """
    if type(value) is dict:
        return value
    raise DataError(f"{where}: holds {str(value)[:40]!r} ({type(value).__name__}), not an object.", hint)


def _is_plain(value: Any) -> bool:
    """Whether a value is no deeper than `MAX_DEPTH` and holds no float that may have been a whole number beyond 64 bits."""
    depth, level = 1, [value] if type(value) is dict else []
    while level:
        if depth > MAX_DEPTH:
            return False
        depth += 1
        below: list[Any] = []
        for holder in level:
            for item in holder.values() if type(holder) is dict else holder:
                kind = type(item)
                if kind is dict or kind is list:
                    below.append(item)
                elif kind is float and not -(2.0**63) < item < 2.0**63:
                    return False
        level = below
    return True


def _parse_slowly(path: Path, where: str, line: bytes, first: bool) -> tuple[Any, str]:
    try:
        text = line.decode("utf-8")
        value, fault, end = ExactDecoder().decode(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        raise _not_utf8(where, line[error.start], error.start + 1) from None
    except json.JSONDecodeError as error:
        hint = _whole_file_hint(path) if first else _ONE_PER_LINE
        raise DataError(f"{where}: not valid JSON: {_reason(error)}.", hint) from None
    return value, fault


def _too_long(where: str) -> DataError:
    return DataError(
        f"{where}: a row of more than {LONGEST_ROW:,} bytes.", "Cut or remove it; no model reads such a text."
    )


def _not_utf8(where: str, byte: int, column: int) -> DataError:
    return DataError(
        f"{where}: byte 0x{byte:02x} at column {column} is not UTF-8.",
        "Convert the file first, e.g. iconv -f latin1 -t utf-8 (if latin1 is what it is).",
    )


def _reason(error: json.JSONDecodeError) -> str:
    text = error.doc[max(0, error.pos - 20) : error.pos + 40]
    return f"{error.msg}, near {text!r}"


def _whole_file_hint(path: Path) -> str:
    """What to say when already the first row cannot be parsed: perhaps the file is one value over many lines."""
    with open_bytes(path) as handle:
        data = _guarded(path, handle.read, _WHOLE_OBJECT)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return _ONE_PER_LINE
    if isinstance(value, list):
        return f"The file is one list over many lines; name it .json. {_ONE_PER_LINE}"
    return f"The file is a single object over many lines; put its rows into a list, or one per line. {_ONE_PER_LINE}"


def read_array(path: Path, hashed: Hash | None = None, skip: int = 0) -> Iterator[Row]:
    """The objects of a file that is one JSON list, parsed one after the other in memory of the largest of them.

    Args:
        path: the file.
        hashed: gets all bytes that were read.
        skip: number of rows to pass over.

    Raises:
        DataError: naming file and line, see `read_lines`.
    """
    with open_bytes(path) as handle:
        text = _Text(path, _blocks(path, handle, hashed))
        text.take("[")
        row = 0
        while text.peek() != "]":
            where = f"{path}, line {text.line} (row {row + 1} of the list)"
            value, fault = text.value()
            row += 1
            value = checked(value, where, "Every element of the list is one row, a JSON object.")
            if row > skip:
                yield value, fault
            if text.peek() != "]":
                text.take(",")
                if text.peek() == "]":
                    raise text.broken("a comma stands before the closing ]")
        text.take("]")
        if text.peek():
            raise text.broken("text follows the closing ]")


class _Text:
    """A window on a file's text that grows as far as the value being parsed needs."""

    def __init__(self, path: Path, blocks: Iterator[bytes]) -> None:
        self._path = path
        self._blocks = blocks
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._buffer = ""
        self._at = 0
        self._counted = 0
        self._lines = 1
        self._json = ExactDecoder()

    @property
    def line(self) -> int:
        """1-based number of the line that is being read."""
        self._lines += self._buffer.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._lines

    def _grow(self) -> bool:
        """Appends the next block; false at the end of the file."""
        lines = self.line
        self._buffer, self._at, self._counted = self._buffer[self._at :], 0, 0
        size = len(self._buffer)
        if size > LONGEST_ROW:
            raise _too_long(f"{self._path}, line {lines}")
        # Doubling keeps the work linear when one value is larger than many blocks.
        while len(self._buffer) <= 2 * size:
            block = next(self._blocks, b"")
            try:
                self._buffer += self._decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                good = self._buffer + bytes(error.object[: error.start]).decode("utf-8")
                where = f"{self._path}, line {lines + good.count(chr(10))}"
                column = len(good.rpartition("\n")[2].encode()) + 1
                raise _not_utf8(where, error.object[error.start], column) from None
            if not block:
                break
        return len(self._buffer) > size

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            match = _BLANK.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._grow():
                return ""

    def take(self, char: str) -> None:
        """Steps over the character that must come next."""
        found = self.peek()
        if found != char:
            raise self.broken(f"expected {char!r}, found {found!r}" if found else "the file ends inside the list")
        self._at += 1

    def broken(self, what: str) -> DataError:
        """The error for the place that was reached."""
        return DataError(f"{self._path}, line {self.line}: not valid JSON: {what}.", _ONE_LIST)

    def value(self) -> tuple[Any, str]:
        """The value that starts here, and what of it cannot be stored."""
        self.peek()
        while True:
            try:
                value, fault, self._at = self._json.decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # Growing moves the window, and with it the place that the error speaks of.
                failure = self._broken_at(error)
                cut = len(self._buffer) - error.pos < 64 or error.msg.startswith("Unterminated")
                if cut and self._grow():
                    continue
                raise failure from None
            return value, fault

    def _broken_at(self, error: json.JSONDecodeError) -> TrajscoreError:
        line = self.line + self._buffer.count("\n", self._at, error.pos)
        return DataError(f"{self._path}, line {line}: not valid JSON: {_reason(error)}.", _ONE_LIST)
