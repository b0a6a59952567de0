"""A file that keeps what a server answered, so that nothing is asked twice however often a run is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import orjson
from filelock import FileLock, Timeout

from trajscore.errors import DataError, TrajscoreError, UsageError

_WARNED = 5
_log = logging.getLogger("trajscore")


class _Place(NamedTuple):
    """Where a record lies: a descriptor, and its bytes there."""

    file: int
    begin: int
    length: int


class CallCache:
    """A file of answered calls, one JSON line each, only ever appended to.

    A line is written as soon as its answer is there; half a line at the end, left by a kill, is cut off when the file is
    opened again. A line that is no record is named in a warning and skipped: its call is made again. Two runs cannot use one
    file at a time. In memory is where each record lies, not the record, so that a server cannot fill it with long answers.

    Args:
        path: the file; None keeps answers for this run only.
        problem: what is wrong with a record, empty if nothing.
        write: False reads the file, if it is there, and touches nothing.

    Raises:
        UsageError: another run uses the file.
        DataError: no line of the file is a record: it is somebody else's and stays as it is.
        TrajscoreError: it cannot be written.
    """

    def __init__(
        self, path: str | Path | None, problem: Callable[[Mapping[str, Any]], str], write: bool = True
    ) -> None:
        self._path = None if path is None else Path(path)
        self._problem = problem
        self._write = write
        self._places: dict[str, _Place] = {}
        self._file = self._reading = -1
        self._end = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> CallCache:
        # What no later run may see.
        self._aside = self._stack.enter_context(tempfile.TemporaryFile())
        if self._path is None:
            return self
        try:
            if not self._write:
                if self._path.exists():
                    self._open_to_read(self._path)
                    self._read(self._path)
                return self
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._path.with_name(f".{self._path.name}.lock"), timeout=0)
            self._lock.acquire()
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._open_to_read(self._path)
            self._end = self._read(self._path)
            os.ftruncate(self._file, self._end)
        except Timeout as error:
            raise UsageError(
                f"{self._path}: another run is using it.", "Wait for it, or give another --cache."
            ) from error
        except OSError as error:
            raise TrajscoreError(f"{self._path}: cannot be written ({error.strerror or error}).") from error
        return self

    def _open_to_read(self, path: Path) -> None:
        self._reading = os.open(path, os.O_RDONLY)
        self._stack.callback(os.close, self._reading)

    def _read(self, path: Path) -> int:
        """Take the records over; how many bytes of the file are whole lines."""
        whole, ours, wrong = 0, 0, list[str]()
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if not line.endswith(b"\n"):
                    break
                begin, whole = whole, whole + len(line)
                record = _record(line)
                ours += record is not None
                problem = "no JSON object with a key" if record is None else self._problem(record)
                if record is not None and not problem:
                    self._places[record["key"]] = _Place(self._reading, begin, len(line))
                else:
                    wrong.append(f"{path}, line {number}: not an answered call ({problem})")
        if wrong and not ours:
            raise DataError(f"{wrong[0]}.", "Move the file away or give another --cache.")
        for each in wrong[:_WARNED]:
            _log.warning("%s; the line is skipped and its call made again", each)
        if len(wrong) > _WARNED:
            _log.warning("%s: %d lines are skipped in all", path, len(wrong))
        return whole

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._lock.release()
        self._stack.close()

    def drop(self, key: str, problem: str) -> None:
        """Forget a record that turned out to be none."""
        del self._places[key]
        _log.warning("%s: the answer to the call %s... is skipped: %s", self._path, key[:12], problem)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any]:
        """The record of a key.

        Raises:
            KeyError: there is none.
        """
        place = self._places[key]
        record: dict[str, Any] = orjson.loads(os.pread(place.file, place.length, place.begin))
        return record

    def add(self, records: Sequence[Mapping[str, Any]], keep: bool = True) -> None:
        """Remember records; with `keep` they are on disk when this returns, in one write."""
        lines = [orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records]
        kept = self._file >= 0 and keep
        place = self._end if kept else self._aside.seek(0, os.SEEK_END)
        for record, line in zip(records, lines, strict=True):
            self._places[record["key"]] = _Place(self._reading if kept else self._aside.fileno(), place, len(line))
            place += len(line)
        data = b"".join(lines)
        if not kept:
            self._aside.write(data)
            self._aside.flush()
        else:
            self._end = place
            try:
                while data:
                    data = data[os.write(self._file, data) :]
            except OSError as error:
                raise TrajscoreError(
                    f"{self._path}: cannot be written ({error.strerror or error}).",
                    "Free some space and run the same command again; answered calls are kept.",
                ) from error


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("key"), str) else None
