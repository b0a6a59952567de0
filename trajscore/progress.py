"""One progress line on stderr: rows, tokens per second and time left."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from types import TracebackType
from typing import Protocol, TextIO


class Progress(Protocol):
    """Told how far a run is."""

    def start(self, total: int | None, done: int) -> None:
        """There are `total` rows (None when unknown), of which an earlier run finished `done`."""

    def advance(self, rows: int, tokens: int) -> None:
        """That many more rows and their tokens are done."""


class ProgressLine:
    """Shows how far a run is: rewritten in place on a terminal, else a plain line every few seconds.

    Args:
        stream: where to write, stderr by default.
        every: seconds between two lines when the stream is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 5.0) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._every = 0.2 if self._terminal else every
        self.start(None, 0)

    def start(self, total: int | None, done: int) -> None:
        """Begin to count.

        Args:
            total: rows in all, None when unknown.
            done: rows that an earlier run finished.
        """
        self._total = total
        self._first = self._rows = done
        self._tokens = 0
        self._began = self._shown = time.monotonic()

    def advance(self, rows: int, tokens: int) -> None:
        """Count finished rows and their scored tokens."""
        self._rows += rows
        self._tokens += tokens
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def line(self) -> str:
        """The text shown."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = (self._rows - self._first) / seconds
        rows = f"{self._rows:,}" if self._total is None else f"{self._rows:,} of {self._total:,}"
        text = f"{rows} rows, {self._tokens / seconds:,.0f} tokens/s"
        if self._total is not None and speed > 0:
            text += f", {duration((self._total - self._rows) / speed)} left"
        return text

    def _show(self) -> None:
        self._shown = time.monotonic()
        text = f"\r\x1b[K{self.line()}" if self._terminal else f"{self.line()}\n"
        # A full disk under the log is no reason to stop.
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal and self._shown > self._began:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """A rough time.

    >>> duration(42), duration(4000), duration(200000)
    ('42 s', '1 h 06 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
