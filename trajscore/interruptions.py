"""Ctrl-C and polite kills (SIGINT, SIGTERM, SIGHUP, SIGQUIT) of the command line: one message and exit code 130, whenever they
come.

Before a command runs there is nothing to clean up: the process ends at once. While it runs, the first signal raises
KeyboardInterrupt, which removes unfinished files on its way; later ones of the same burst are the same wish. After it has ended
its exit code stands, and the first signal changes nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

EXIT_INTERRUPTED = 130
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
_PATIENCE = 10.0
"""Seconds for cleaning up, after which another signal ends the process at once."""

_process = 0
_running = _ended = _lost = _held = False
_struck_at: float | None = None


def stop_on_signals() -> None:
    """Take the signals, in the main thread of a process that is a command. Those that are ignored stay so (nohup, `&`)."""
    global _process  # noqa: PLW0603 - signals are the process's, and so is what is known of them
    _process = os.getpid()
    sys.unraisablehook = _unraisable
    atexit.register(_ignore)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _strike)


def is_command() -> bool:
    """Whether this process is a command's, which nobody else uses: not a notebook, not a test."""
    return _process == os.getpid()


def command_runs() -> None:
    """From now on a signal raises KeyboardInterrupt."""
    global _running  # noqa: PLW0603
    _running = True


def command_has_ended() -> None:
    """From now on the command's own exit code stands."""
    global _ended  # noqa: PLW0603
    _ended = True


def interrupted() -> bool:
    """Whether a signal came while the command ran: some libraries turn KeyboardInterrupt into errors of their own."""
    return _struck_at is not None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """A signal that comes within the block raises after it: for what takes signals of its own, and ends within seconds."""
    global _held  # noqa: PLW0603
    _held = True
    try:
        yield
    finally:
        _held = False


def _strike(number: int, frame: FrameType | None) -> None:
    global _struck_at, _lost  # noqa: PLW0603
    if os.getpid() != _process:  # a forked child: it ends as any process would
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    if not _running or (_struck_at is not None and time.monotonic() - _struck_at > _PATIENCE):
        os.write(2, b"interrupted\n")
        os._exit(EXIT_INTERRUPTED)
    first = _struck_at is None or _lost
    _lost = False
    _struck_at = _struck_at or time.monotonic()
    if not first or _ended:
        return
    if _held or (_called_by_rust(frame) and time.monotonic() - _struck_at < 1):
        _again()
    else:
        raise KeyboardInterrupt


def _called_by_rust(frame: FrameType | None) -> bool:
    """Whether an exception would rise where polars expects none of its own Python code, and ends in a panic."""
    file = "" if frame is None else frame.f_code.co_filename.replace(os.sep, "/")
    return any(part in file for part in ("/polars/datatypes/", "/polars/_utils/", "/polars/exceptions"))


def _again() -> None:
    """Another signal to this process in a moment."""
    global _lost  # noqa: PLW0603
    _lost = True
    for number in _taken()[:1]:
        again = threading.Timer(0.01, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()


def end_interrupted() -> NoReturn:
    """End the process with the exit code of an interruption: what was to be done at exit is, Python's own end is left out.

    Python kills itself with SIGINT at its end where KeyboardInterrupt once passed through C code that runs Python text, even
    if it was caught since.
    """
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(EXIT_INTERRUPTED)


def _ignore() -> None:
    """The last thing before Python takes itself apart, and with it our handlers: a signal then would end it by default."""
    for number in _taken():
        signal.signal(number, signal.SIG_IGN)


def _unraisable(what: Any) -> None:
    """Where the exception rose in a destructor or a callback Python drops it: it is raised anew, a moment later."""
    if _struck_at is None or not isinstance(what.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(what)
    else:
        _again()


def _taken() -> list[int]:
    return [number for number in _SIGNALS if signal.getsignal(number) is _strike]
