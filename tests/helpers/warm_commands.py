"""A program `trajscore` that starts at once: each call is a process of its own, forked from one that has loaded the libraries.

Loading torch and transformers takes most of a short command's time. Arguments, environment, working directory and the three
streams are the caller's. It is for tests of what a command does; where starts, signals or deaths are tested, use the real one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.abc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT

_PROGRAM = f"""#!{sys.executable} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({{address!r}})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.recv(16)))
"""


@cache
def warm_program(*without: str) -> Path:
    """The program, in a folder of its own that can stand first on PATH. Its server ends with this process.

    Args:
        without: libraries whose import fails in it, as where they are not installed; those that run models are not loaded then.
    """
    folder = Path(tempfile.mkdtemp(prefix="trajscore-warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program, address = folder / "trajscore", str(folder / "socket")
    program.write_text(_PROGRAM.format(address=address))
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.warm_commands", address, *without],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return program


_LIGHT = ("openai", "polars", "pyarrow.parquet", "trajscore.ranking.report", "trajscore.selection.select")
_WITH_MODELS = ("transformers.models.qwen3.modeling_qwen3", "trajscore.engines.hf", "trajscore.exporters.export")


class _Missing(importlib.abc.MetaPathFinder):
    """Libraries that are not installed, as it were."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _load(without: Sequence[str]) -> None:
    """What commands import on their way; nothing that starts a thread."""
    sys.meta_path.insert(0, _Missing(without))
    for name in (*_LIGHT, *(() if without else _WITH_MODELS)):
        with contextlib.suppress(ModuleNotFoundError):  # an extra that is not installed here
            importlib.import_module(name)
    _one_thread()


def _one_thread() -> None:
    """Also after a fork, which breaks torch's pool of threads: two threads that begin to compute at once would meet it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    wanted, data = int.from_bytes(head, "big"), b""
    while len(data) < wanted:
        data += connection.recv(65536)
    return json.loads(data), descriptors


def _answer(connection: socket.socket) -> None:
    """Run the command in a child, and tell its caller how it ended."""
    (arguments, folder, environment), descriptors = _receive(connection)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
        os._exit(0)
    connection.close()
    for target, source in enumerate(descriptors):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _one_thread()
    sys.argv = ["trajscore", *arguments]
    from trajscore._start import main

    main()


def _serve(address: str, *without: str) -> None:
    _load(without)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:  # the process that started this one has ended, however that was
                return
            connection, _ = listener.accept()
            if os.fork() == 0:
                _answer(connection)
                return
            connection.close()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
