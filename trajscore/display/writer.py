"""Everything that reaches a terminal goes through here: lines, tables, JSON, logs, and what libraries write themselves.

Names and texts come from data sets, manifests, servers and paths; a control character among them could move the cursor, turn
the text around or speak to the clipboard. So no command writes to stdout or stderr: `OUT` and `ERR` do, which show such
characters as escapes whatever they are given, and the streams themselves are guarded for all that goes past them (tracebacks,
warnings, messages of libraries).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO, cast

from trajscore.display.formatting import visible_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderHook

# What colours text, and what progress bars move the cursor by; kept where the stream is a terminal.
_COLOURS_AND_BARS = re.compile(r"(\x1b\[[0-9;]*[mKA]|\r)")


class Terminal:
    """One of the two streams. It is looked up anew for each use, since tests and notebooks replace it."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def _stream(self) -> TextIO:
        return cast("TextIO", getattr(sys, self._name))

    def line(self, text: str) -> None:
        """Write a line, or several."""
        self._stream.write(f"{visible_lines(text)}\n")

    def parts(self, parts: Iterable[RenderableType]) -> None:
        """Write tables and texts, one after the other."""
        console = self.console()
        for part in parts:
            console.print(part)

    def json(self, value: Mapping[str, Any]) -> None:
        """Write one JSON object; what no terminal shows is written as JSON's own escapes, and so reads back as it was."""
        import orjson

        text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
        self._stream.write("\n".join(map(_json_visible, text.split("\n"))) + "\n")
        self._stream.flush()

    def flush(self) -> None:
        """Hand over what is buffered."""
        self._stream.flush()

    def discard(self) -> None:
        """Throw away what the stream still holds and gets, so that nothing is written again when Python exits."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def console(self) -> Console:
        """A console of rich whose every text is made visible after it is laid out and before it is coloured."""
        from rich.console import Console

        # Markup and highlighting off: text of data sets goes through here.
        console = Console(stderr=self._name == "stderr", markup=False, highlight=False, emoji=False, soft_wrap=False)
        console.push_render_hook(cast("RenderHook", _VisibleHook()))
        return console

    def log_here(self, name: str) -> None:
        """Show the log of that name, from INFO on. Once only: a second command in one process must not double each line."""
        from rich.logging import RichHandler

        log = logging.getLogger(name)
        for handler in [each for each in log.handlers if isinstance(each, RichHandler)]:
            log.removeHandler(handler)
        log.addHandler(RichHandler(console=self.console(), show_time=False, show_path=False, markup=False))
        log.setLevel(logging.INFO)


OUT = Terminal("stdout")
"""A command's product."""
ERR = Terminal("stderr")
"""Logs, warnings, errors."""


class _VisibleHook:
    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Visible(each) for each in renderables]


class _Visible:
    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.segment import Segment

        for segment in console.render(self._inside, options):
            yield segment if segment.control else Segment(visible_lines(segment.text), segment.style)


def _json_visible(line: str) -> str:
    """A line of JSON text: what is not printable stands inside a string, where it may be an escape.

    >>> _json_visible('"\x9b\u202e"')
    '"\\\\u009b\\\\u202e"'
    """
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else _json_escape(letter) for letter in line)


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))


class _Guarded:
    """A stream that writes control characters as escapes. Colours and progress bars pass where it is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty() or bool(os.environ.get("FORCE_COLOR"))

    def write(self, text: str) -> int:
        self._stream.write(text if text.isprintable() else self._clean(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _clean(self, text: str) -> str:
        text = text.replace("\r\n", "\n")
        if not self._terminal:
            return _with_tabs(text.replace("\r", "\n"))
        pieces = _COLOURS_AND_BARS.split(text)
        return "".join(piece if place % 2 else _with_tabs(piece) for place, piece in enumerate(pieces))


def _with_tabs(text: str) -> str:
    return "\t".join(map(visible_lines, text.split("\t")))


def guard_streams() -> None:
    """Guard stdout and stderr, for good; once, however often it is called."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """The same for a block."""
    before = sys.stdout, sys.stderr
    guard_streams()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
