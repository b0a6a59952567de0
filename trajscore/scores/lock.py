"""One writer per folder.

A local folder is held by a lock of the operating system, which ends with the process. Remote storage has no such locks: there
the last one to come holds the folder, and one that came before stops at its next part.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import filelock

from trajscore.errors import TrajscoreError
from trajscore.io.paths import is_remote, reaching

LOCK = ".lock"


class FolderLock:
    """Keeps other processes from writing into a folder, or into one shard of it.

    Args:
        folder: which exists, if it is local.
        name: of the lock file.
        patience: seconds to wait for a process that is about to let go.

    Raises:
        TrajscoreError: another process holds it.
    """

    def __init__(self, folder: Path, name: str = LOCK, patience: float = 0) -> None:
        self._folder = folder
        self._path = folder / name
        self._lock: filelock.BaseFileLock | None = None
        self._token = secrets.token_hex(8).encode()
        if is_remote(folder):
            with reaching(folder):
                self._path.write_bytes(self._token)
            return
        self._lock = filelock.FileLock(self._path)
        try:
            self._lock.acquire(timeout=patience)
        except filelock.Timeout as error:
            raise TrajscoreError(
                f"{folder}: another process is scoring into this folder.", "Wait for it, or choose another --out."
            ) from error

    def check(self) -> None:
        """Make sure that the folder is still held; to be called before anything is written.

        Raises:
            TrajscoreError: another process has taken it over.
        """
        if self._lock is not None:
            return
        with reaching(self._folder):
            held = self._path.is_file() and self._path.read_bytes() == self._token
        if not held:
            raise TrajscoreError(
                f"{self._folder}: another process has begun to score into this folder, so this one stops.",
                "Wait for it, or choose another --out. Finished parts are kept.",
            )

    def release(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()
