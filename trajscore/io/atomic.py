"""Files and folders that are replaced whole or not at all, whoever else writes them and whenever a process is killed.

What is being written lies beside its target, as `.NAME.MACHINE-RANDOM.tmp`, and is renamed when it is finished: the last rename
wins, and a reader sees the old file or the new one. A folder that is about to be replaced lies there as `.old` for a moment.
The writer holds a lock of the operating system on both, so that others can tell what a killed process left behind from what a
living one is writing, also where process numbers mean nothing (containers, other machines).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from trajscore.errors import TrajscoreError
from trajscore.io.paths import is_remote, reaching

try:
    import fcntl
except ImportError:  # Windows, whose locks forbid renaming
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"
"""Suffix of what is being written."""
ASIDE = ".old"
"""Suffix of a folder that is about to be replaced."""

_UNFINISHED = re.compile(rf"\.(.+)\.([0-9a-f]{{8}})-[0-9a-f]{{12}}({re.escape(TEMPORARY)}|{re.escape(ASIDE)})")
_DAY = 86_400.0
_SWAPS = 100


@functools.cache
def machine() -> str:
    """A few hexadecimal digits that tell machines apart, and two boots of one: no lock outlives either."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except OSError:
        name = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def unfinished_name(path: Path, suffix: str = TEMPORARY) -> Path:
    """A name beside `path` that nobody else has."""
    return path.with_name(f".{path.name}.{machine()}-{secrets.token_hex(6)}{suffix}")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A local file to write to. It is at `path`, whole, once the block has ended; if the block fails there is nothing.

    What was at `path` before stays until it is replaced in one step. A symbolic link there is replaced itself: in a folder that
    somebody sent it may point at any file.

    Raises:
        OSError: the file cannot be written.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="trajscore-") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            remote: Any = path
            with reaching(path):
                # An object is there as a whole or not at all.
                remote.fs.put_file(str(temporary), remote.path)
        return
    if path.exists() and not (path.is_symlink() or path.is_file()):
        raise FileExistsError(errno.EEXIST, "no regular file")  # a rename would put one in the place of a device
    with _claimed(path, Path.touch) as temporary:
        try:
            yield temporary
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        except BaseException:
            # Room for the next attempt.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file so that no reader ever sees half of it.

    Raises:
        OSError: the file cannot be written.
    """
    with new_file(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `new_file`, for a file that the user named: folders above it are made, and what killed processes left is removed.

    Where the user's name is a symbolic link, what it points to is replaced.

    Raises:
        TrajscoreError: the file cannot be written.
    """
    try:
        target = _target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target) as temporary:
            remove_unfinished(target)
            yield temporary
    except OSError as error:
        raise TrajscoreError(
            f"{path}: cannot be written ({error.strerror or error}).", "Check the path, permissions and free space."
        ) from error


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, for `swap_folder` or `move_files`; whatever is left of it vanishes with the block.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = _target(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _claimed(folder, Path.mkdir) as temporary:
        try:
            remove_unfinished(folder)
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def swap_folder(made: Path, folder: Path, own: Callable[[Path], Collection[str]]) -> None:
    """Put a folder at the place of another one, whole. Of several processes that do so, the last one wins.

    Args:
        made: see `new_folder`.
        folder: what is replaced, if it is there.
        own: says of the folder that is really replaced, which another process may just have put there, which files in it may
            go, relative to it. Others, that came in the meantime, are moved over.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = _target(folder)
    for _ in range(_SWAPS):
        aside = unfinished_name(folder, ASIDE)
        with contextlib.ExitStack() as claims:
            with contextlib.suppress(FileNotFoundError):
                _lock(claims.enter_context(_opened(folder)))
                folder.rename(aside)
            try:
                made.rename(folder)
            except OSError as error:
                if not folder.exists():
                    with contextlib.suppress(
                        OSError
                    ):  # another process has put its own there, or has put this one back
                        aside.rename(folder)
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    continue  # another process has put its own there
                raise
            finally:
                if folder.exists():
                    with contextlib.suppress(FileNotFoundError):  # another process has put it back
                        _empty(aside, folder, own(aside))
        return
    raise OSError(errno.EBUSY, "other processes replace it all the time")


def move_files(made: Path, folder: Path, own: Collection[str], last: str) -> None:
    """Put the files of a folder into another one, of which the files of others stay.

    Args:
        made: see `new_folder`.
        folder: where they go.
        own: files in it that are replaced, or removed where `made` has none of the name; relative to it.
        last: the file that says which ones are ours, moved after all others.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = _target(folder)
    files = files_in(made)
    for name in sorted(files, key=lambda name: name == last):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).replace(folder / name)
    for name in set(own) - set(files):
        _unlink(folder, name)


def files_in(folder: Path) -> list[str]:
    """All that lies below a folder and is no folder, relative to it, with slashes."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    )


def _empty(aside: Path, folder: Path, own: Collection[str]) -> None:
    """Remove what is ours of a folder that was replaced, and move the rest into the new one, where its name is free."""
    for name in own:
        _unlink(aside, name)
    for name in files_in(aside):
        with contextlib.suppress(OSError):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not (folder / name).exists():
                (aside / name).rename(folder / name)
    if not files_in(aside):
        shutil.rmtree(aside, ignore_errors=True)


def _unlink(folder: Path, name: str) -> None:
    """Remove a file, and the folders above it that are empty then."""
    with contextlib.suppress(OSError):
        (folder / name).unlink(missing_ok=True)
        for parent in list((folder / name).relative_to(folder).parents)[:-1]:
            (folder / parent).rmdir()


def remove_unfinished(path: Path, also: Callable[[str], bool] | None = None) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it.

    What one of them had put aside, to replace it, is put back if nothing has taken its place.

    Args:
        path: of a local file or folder.
        also: whether what was left of another name in that folder is removed too.
    """
    if is_remote(path) or not path.parent.is_dir():
        return
    for left in sorted(path.parent.iterdir()):
        match = _UNFINISHED.fullmatch(left.name)
        if match is None or not (match[1] == path.name or (also and also(match[1]))):
            continue
        with contextlib.suppress(FileNotFoundError), _abandoned(left, match[2]) as is_abandoned:
            original = path.with_name(match[1])
            if not is_abandoned:
                continue
            if match[3] == ASIDE and not original.exists():
                left.rename(original)
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def _claimed(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new file or folder beside `path`, which others do not take for abandoned, under whatever name it has meanwhile."""
    with contextlib.ExitStack() as claim:
        while True:
            temporary = unfinished_name(path)
            make(temporary)
            with contextlib.suppress(FileNotFoundError):
                free = _lock(claim.enter_context(_opened(temporary)))
                # Another process may have found it before it was locked, and be removing it.
                if free is not False and temporary.exists():
                    break
        yield temporary


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor to be locked; None where there are no locks."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int | None) -> bool | None:
    """Whether a lock was got, None where the file system has none. It ends with the descriptor."""
    if descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _abandoned(left: Path, made_on: str) -> Iterator[bool]:
    """Whether nobody writes it any more: its lock is free, and held here; or, where locks tell nothing, it is a day old."""
    with contextlib.ExitStack() as held:
        free = _lock(held.enter_context(_opened(left))) if made_on == machine() else None
        yield _is_old(left) if free is None else free


def _is_old(path: Path) -> bool:
    inside = path.rglob("*") if path.is_dir() else ()
    return bool(max(each.stat().st_mtime for each in (path, *inside)) < _clock(path.parent) - _DAY)


def _clock(folder: Path) -> float:
    """Seconds by the clock of the file system, which need not be that of this machine."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=TEMPORARY) as file:
        return os.fstat(file.fileno()).st_mtime


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
