"""One writer per folder: who holds it, and what to do when the holder is no more.

A local folder is held by a lock of the operating system, which ends with the process. The lock file says who holds it (host,
process, since when), for messages and for `--break-lock`. File systems without such locks get a second file, `.held`, that only
one process can make; one that is left by a process that died on this machine is taken over, one from elsewhere is not, because
nobody can tell from here whether that process still runs. Remote storage has no locks at all: there the last one to come holds
the folder, and one that came before stops at its next part. So does one whose lock was broken.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import socket
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from trajscore.errors import TrajscoreError
from trajscore.io.atomic import machine
from trajscore.io.paths import is_remote, reaching

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HELD = ".held"
"""What is appended to a lock's name where the file system has no locks."""
_EVERY_SECONDS = 0.05
_CAREFULLY = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class LockHolder:
    """Who holds a folder.

    Attributes:
        token: a random name, by which a holder knows its own lock.
        host: name of the machine.
        pid: number of the process.
        since: date and time, UTC.
        machine: `io.atomic.machine` of it.
        processes: what numbers of processes are counted in; containers of one machine have their own.
        started: when the process started, so that a later one of the same number is told from it.
    """

    token: str
    host: str
    pid: int
    since: str
    machine: str
    processes: str
    started: str

    @classmethod
    def me(cls) -> LockHolder:
        """This process, with a new token."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), pid, now, machine(), _processes(), _started(pid))

    @classmethod
    def of(cls, path: Path) -> LockHolder | None:
        """Who holds a lock by its file, None where it does not say."""
        try:
            raw: Any = orjson.loads(path.read_bytes())
            return cls(**{**raw, "pid": int(raw["pid"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @property
    def runs(self) -> bool | None:
        """Whether it runs; None where that cannot be told from here."""
        if (self.machine, self.processes) != (machine(), _processes()) or os.name != "posix":
            return None
        with contextlib.suppress(PermissionError):
            try:
                os.kill(self.pid, 0)
            except (ProcessLookupError, OverflowError):
                return False
        return self.started == _started(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class FolderLock:
    """Keeps other processes from writing into a folder, or into one shard of it.

    Args:
        folder: which exists, if it is local.
        name: of the lock file.
        patience: seconds to wait for a process that is about to let go.
        take_over: break the lock of a holder of whom it is not known that it runs.

    Raises:
        TrajscoreError: another process holds it, or what lies in the place of the lock file is another file under this name.
    """

    def __init__(self, folder: Path, name: str = LOCK, patience: float = 0, take_over: bool = False) -> None:
        self._folder = folder
        self._path = folder / name
        self._held = folder / f"{name}{HELD}"
        self._descriptor: int | None = None
        self._me = LockHolder.me()
        said = orjson.dumps(asdict(self._me))
        if is_remote(folder):
            with reaching(folder):
                self._path.write_bytes(said)
            return
        until = time.monotonic() + patience
        while not self._get(said, take_over):
            if time.monotonic() >= until:
                self._refuse()
            time.sleep(_EVERY_SECONDS)

    def _get(self, said: bytes, take_over: bool) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o644)
        except OSError as error:
            if os.path.lexists(self._path) and (self._path.is_symlink() or not self._path.is_file()):
                raise self._no_lock_file() from error
            raise
        try:
            found = os.fstat(descriptor)
            # What is written into another name of a file is written into the file: somebody else's, maybe.
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise self._no_lock_file()
            got = self._lock(descriptor)
            if got is False:
                if not take_over or _surely_runs(self._path):
                    return False
                self._path.unlink(missing_ok=True)
            if not self._is_at_path(descriptor):
                return self._get(said, take_over=False)
            if not self._held_is_free(take_over):
                return False
            if got is None:
                if not _make(self._held, said):
                    return False
                self._path = self._held
                return True
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, said, 0)
            self._descriptor, descriptor = descriptor, -1
            return True
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _no_lock_file(self) -> TrajscoreError:
        return TrajscoreError(
            f"{self._path}: is a link or no regular file, and what lies there would be written over.",
            "Remove it, and run the same command again.",
        )

    @staticmethod
    def _lock(descriptor: int) -> bool | None:
        """Whether the lock was got, None where the file system has none."""
        if fcntl is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def _is_at_path(self, descriptor: int) -> bool:
        """Whether the file is still the one at the path: another process may have broken it meanwhile."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _held_is_free(self, take_over: bool) -> bool:
        """Whether nobody holds the folder by the file that stands in for locks, or nobody any more."""
        if not self._held.exists():
            return True
        holder = LockHolder.of(self._held)
        if (holder is not None and holder.runs is False) or (take_over and not _surely_runs(self._held)):
            # By a rename, so that of several who find it one takes it away.
            broken = self._held.with_name(f"{self._held.name}.{secrets.token_hex(6)}")
            with contextlib.suppress(FileNotFoundError):
                self._held.rename(broken)
                broken.unlink()
        return not self._held.exists()

    def _refuse(self) -> None:
        holder = LockHolder.of(self._held) or LockHolder.of(self._path)
        said = "another process" if holder is None else f"another process ({holder})"
        sure = holder is not None and holder.runs
        raise TrajscoreError(
            f"{self._folder}: {said} is scoring into this folder.",
            "Wait for it, or choose another --out."
            + ("" if sure else " If it has died with its machine, run the same command with --break-lock."),
        )

    def check(self) -> None:
        """Make sure that the folder is still held; to be called before anything is written.

        Raises:
            TrajscoreError: another process has taken it over.
        """
        with reaching(self._folder):
            try:
                holder = LockHolder.of(self._path) if self._path.read_bytes() else None
                held = holder is not None and holder.token == self._me.token
            except FileNotFoundError:
                # Whoever removed the file of a lock of the operating system has not begun to write.
                holder, held = None, self._descriptor is not None
        if not held:
            who = "another process" if holder is None else f"another process ({holder})"
            raise TrajscoreError(
                f"{self._folder}: {who} has begun to score into this folder, so this one stops.",
                "Wait for it, or choose another --out. Finished parts are kept.",
            )

    def release(self) -> None:
        """Let other processes use the folder."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk, say: the lock ends all the same
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
        elif self._path == self._held:
            holder = LockHolder.of(self._held)
            if holder is not None and holder.token == self._me.token:
                self._held.unlink(missing_ok=True)


def _surely_runs(path: Path) -> bool:
    holder = LockHolder.of(path)
    return bool(holder and holder.runs)


def _make(path: Path, said: bytes) -> bool:
    """Whether a file was made: of several processes that try, one does."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, said)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _processes() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the clock ticks of its machine; empty where nobody says."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return said.rpartition(")")[2].split()[19]
