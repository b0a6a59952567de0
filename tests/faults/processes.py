"""Running commands: started, watched, stopped, killed; whatever they write."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.helpers.paths import ROOT

_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRAJSCORE_ENGINE": "hf"}
_PATIENCE = 1800.0
"""Seconds after which only something that hangs is still not done."""


class Running:
    """A command on its way.

    Args:
        pid: of its process.
        log: file that takes its stdout and stderr.
        ended: where its exit status arrives; negative for a signal.
    """

    def __init__(self, pid: int, log: Path, ended: queue.Queue[int]) -> None:
        self.pid, self._log, self._ended = pid, log, ended
        self._status: int | None = None

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._log.read_text("utf-8", "replace")

    def has_ended(self) -> bool:
        """Whether it is over."""
        if self._status is None and not self._ended.empty():
            self._status = self._ended.get()
        return self._status is not None

    def wait(self, seconds: float = _PATIENCE) -> int:
        """Its exit status."""
        if self._status is None:
            try:
                self._status = self._ended.get(timeout=seconds)
            except queue.Empty:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.said}") from None
        return self._status

    def wait_at_most(self, seconds: float) -> bool:
        """Wait a while; whether it is over then."""
        if self._status is None:
            try:
                self._status = self._ended.get(timeout=max(seconds, 0))
            except queue.Empty:
                return False
        return True

    def freeze(self) -> None:
        """Stop it where it is, so that the folder holds still while somebody looks."""
        self._signal(signal.SIGSTOP)
        while not self.wait_at_most(0):
            try:
                if psutil.Process(self.pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                    return
            except psutil.NoSuchProcess:
                return
            time.sleep(0.0005)

    def send(self, number: int) -> None:
        """Send a signal to it alone, and let it go on if it was frozen."""
        self._signal(number)
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        try:
            if not self.has_ended():
                os.kill(self.pid, number)
        except ProcessLookupError:  # it has ended, and that is about to be told
            self.wait()

    def children(self) -> list[psutil.Process]:
        """Processes that it started, and theirs."""
        try:
            return list(psutil.Process(self.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def open_files(self) -> str:
        """Names of the files that it has open or mapped, in one text."""
        names = []
        for place in (f"/proc/{self.pid}/fd", f"/proc/{self.pid}/map_files"):
            try:
                names += [os.readlink(f"{place}/{name}") for name in os.listdir(place)]  # noqa: PTH208, PTH115
            except OSError:
                continue
        return "\n".join(names)


class Launcher:
    """Starts commands, from a process that has loaded the libraries or as the user's shell would.

    Args:
        folder: for logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._server: subprocess.Popen[bytes] | None = None
        self._pids: queue.Queue[int] = queue.Queue()
        self._ended: dict[int, queue.Queue[int]] = {}
        self._alive: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def ready(self) -> None:
        """Wait until the server has loaded the libraries."""
        if self._server is None:
            self._server = self._start()

    def fork(
        self,
        *arguments: str | Path,
        plain: bool = False,
        file_limit: int | None = None,
        clock: float = 0.0,
        locks: bool = True,
        contained: bool = False,
    ) -> Running:
        """Start `trajscore` with these arguments from the server.

        Args:
            arguments: of the command line.
            plain: whether permissions of files hold for it even if it is root's.
            file_limit: greatest size of a file, bytes.
            clock: by how many seconds its clock is fast.
            locks: whether the file system has locks.
            contained: whether it is process 1 of a namespace of its own, as in a container. SIGKILL ends it.
        """
        self.ready()
        log = self._log()
        request = {
            "arguments": [*map(str, arguments)], "log": str(log), "plain": plain, "file_limit": file_limit,
            "clock": clock, "locks": locks, "contained": contained,
        }  # fmt: skip
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        pid = self._pids.get(timeout=_PATIENCE)
        return Running(pid, log, self._ended[pid])

    def spawn(self, *arguments: str | Path, **environment: str) -> Running:
        """Start `python -m trajscore` with these arguments."""
        log = self._log()
        ended: queue.Queue[int] = queue.Queue()
        with log.open("ab") as handle:
            process = subprocess.Popen(
                [sys.executable, "-m", "trajscore", *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=handle, stderr=handle,
                env={**_ENVIRONMENT, **environment}, start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=lambda: ended.put(process.wait()), daemon=True).start()
        return Running(process.pid, log, ended)

    def run(self, *arguments: str | Path, **options: Any) -> Running:
        """Start a command from the server and wait for its end."""
        running = self.fork(*arguments, **options)
        running.wait()
        return running

    def _log(self) -> Path:
        path = self._folder / f"{next(self._numbers):05d}.log"
        path.touch()
        path.chmod(0o666)
        return path

    def _start(self) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_ENVIRONMENT, cwd=ROOT,
        )  # fmt: skip
        assert server.stdout is not None
        assert json.loads(server.stdout.readline()) == {"ready": True}
        threading.Thread(target=self._listen, args=(server.stdout,), daemon=True).start()
        return server

    def _listen(self, lines: Any) -> None:
        for line in lines:
            said = json.loads(line)
            if "status" in said:
                self._alive.discard(said["pid"])
                self._ended[said["pid"]].put(said["status"])
            else:
                self._alive.add(said["pid"])
                self._ended[said["pid"]] = queue.Queue()
                self._pids.put(said["pid"])

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in list(self._alive):  # after a failure, perhaps frozen
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._server is not None and self._server.stdin is not None:
            self._server.stdin.close()
            self._server.wait()


def said_clearly(running: Running, *words: str, status: Sequence[int] = (1,)) -> None:
    """Wait for a command and check that it ends with a message, not a traceback."""
    ended, said = running.wait(), running.said
    assert ended in status, (ended, said)
    assert "Traceback" not in said, said
    assert "panicked" not in said, said
    for word in words:
        assert word in said, (word, said)
