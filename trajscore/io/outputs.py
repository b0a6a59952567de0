"""What may be written where: suffixes that name a format, folders that can be made, inputs that no output may touch."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trajscore.errors import TrajscoreError, UsageError
from trajscore.io.paths import as_path, is_remote, local_path, reaching

ROW_SUFFIXES = (".parquet", ".jsonl")


def check_suffix(path: str | Path, allowed: Sequence[str], flag: str) -> Path:
    """The path, if its suffix says a format that can be written.

    Raises:
        UsageError: it does not, or it is a URL.

    >>> check_suffix("kept.jsonl", ROW_SUFFIXES, "--out").name
    'kept.jsonl'
    """
    path = local_path(path, flag)
    if path.suffix not in allowed:
        raise UsageError(
            f"{flag} {path}: the suffix {path.suffix!r} names no format that can be written.",
            f"End the name in {' or '.join(allowed)}.",
        )
    return path


def check_folder(folder: str | Path) -> None:
    """Refuse a path at which no folder can be written, before a model is loaded for nothing.

    Raises:
        UsageError: it is a file, or lies below one, or its name is not UTF-8.
        TrajscoreError: it cannot be written.
    """
    path = as_path(folder)
    if is_remote(path):
        return  # whether it can be written shows when it is
    if str(path) != str(path).encode("utf-8", "replace").decode():
        raise UsageError(
            f"--out {folder}: its name is not UTF-8, and no Parquet file can be written there.", "Name another."
        )
    with writing(path):
        nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not nearest.is_dir():
            raise UsageError(
                f"--out {folder}: {nearest} is a file, not a folder.", "Give a folder; it is made if it does not exist."
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write into {nearest}")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the operating system says about writing into a message.

    Raises:
        TrajscoreError: in place of any OSError.
    """
    try:
        with reaching(folder):
            yield
    except OSError as error:
        raise TrajscoreError(
            f"{folder}: cannot be written ({error.strerror or error}).",
            "Check the path, its permissions and the free space, then run the same command again; finished parts are kept.",
        ) from error
