"""Forks trajscore commands from a process that has loaded the libraries, which takes most of a run's start.

Every command is a process of its own, in a session of its own. One line of JSON in: `arguments`, `log`, and the circumstances
`plain`, `file_limit`, `clock`, `locks` and `contained` of `processes.Launcher.fork`.
One line out, `{"pid": ...}` at once and `{"pid": ..., "status": ...}` when the command has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

from trajscore._start import main


def _load() -> None:
    """What commands import on their way."""
    import altair  # noqa: F401
    import openai.types.chat  # noqa: F401
    import polars  # noqa: F401
    import pyarrow.pandas_compat
    import pyarrow.parquet  # noqa: F401
    import rich.logging
    import rich.table  # noqa: F401
    import torch
    from transformers.models.auto import tokenization_auto  # noqa: F401
    from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

    import trajscore.cli
    import trajscore.engines.hf
    import trajscore.engines.hidden_store
    import trajscore.engines.server
    import trajscore.exporters.export
    import trajscore.masking.mask
    import trajscore.ranking.report
    import trajscore.scoring.run
    import trajscore.selection.select
    import trajscore.skills.commands.annotator
    import trajscore.skills.server
    import trajscore.viewing.inspect
    import trajscore.viewing.trace  # noqa: F401

    with contextlib.suppress(ImportError):  # transformers and pyarrow look for it
        importlib.import_module("pandas")
    torch.set_num_threads(1)


def _become(request: Mapping[str, Any]) -> None:
    os.setsid()
    if request["contained"]:
        _contain()
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, source in enumerate((null, log, log)):
        os.dup2(source, target)
    if request["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    if not request["locks"]:
        fcntl.flock = _no_locks
    if request["clock"]:
        _set_clock(request["clock"])
    if request["plain"]:
        _drop_privileges()
    sys.modules["torch"].set_num_threads(1)  # fork breaks its pool: two threads that begin at once would meet it
    sys.argv = ["trajscore", *request["arguments"]]


def _command() -> None:
    """Run the command and end, without taking the libraries apart, which would cost ten times as much as most commands."""
    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(end.code if isinstance(end.code, int) else end.code is not None)


def _contain() -> None:
    """Go on as process 1 of a namespace of its own, as the first process of a container; this process waits for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_processes, new_mounts, private = 0x20000000, 0x00020000, 0x00040000 | 0x00004000
    if libc.unshare(new_processes | new_mounts) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    inner = os.fork()
    if inner:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda number, _: os.kill(inner, number))
        while True:
            with contextlib.suppress(InterruptedError):
                _, status = os.waitpid(inner, 0)
                os._exit(max(os.waitstatus_to_exitcode(status), 0))
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    libc.mount(b"none", b"/", None, private, None)
    if libc.mount(b"proc", b"/proc", b"proc", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")


def _no_locks(*_: Any) -> None:
    """What many network file systems say to flock."""
    raise OSError(errno.ENOLCK, "No locks available")


def _set_clock(seconds: float) -> None:
    """A clock that is fast by so many seconds, as that of another machine may be."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


def _drop_privileges() -> None:
    """Obey the permissions of files even as root."""
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _say(**values: Any) -> None:
    os.write(1, json.dumps(values).encode() + b"\n")


def serve() -> None:
    """Answer requests until there are no more."""
    _load()
    gc.freeze()
    ended, end = os.pipe()
    os.set_blocking(end, False)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # of a child that is struck before it has become a command
    waiting = b""
    _say(ready=True)
    while True:
        ready, _, _ = select.select([0, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _reap()
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                child = os.fork()
                if child == 0:
                    _become(json.loads(line))
                    _command()
                _say(pid=child)


def _reap() -> None:
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        _say(pid=child, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    serve()
