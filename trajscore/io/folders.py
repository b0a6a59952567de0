"""What may be written to, and deleted from, the folder that a user gave. It knows paths; nothing of scores or settings."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.errors import TrajscoreError, UsageError
from trajscore.io.paths import TEMPORARY, for_arrow, is_remote, place, reaching

ASIDE = ".old"
"""Suffix of what is about to be replaced."""
_UNFINISHED = re.compile(rf"(\d+)({re.escape(TEMPORARY)}|{re.escape(ASIDE)})")


def check_folder(folder: str | Path) -> None:
    """Refuse a place where no folder can be written, before a model is loaded for nothing.

    Raises:
        UsageError: it is a file, or lies below one, or its name is not UTF-8.
        TrajscoreError: it cannot be written.
    """
    path = place(folder)
    if is_remote(path):
        return  # whether it can be written shows when it is
    if str(path) != str(path).encode("utf-8", "replace").decode():
        raise UsageError(
            f"--out {folder}: its name is not UTF-8, and no Parquet file can be written there.", "Name another."
        )
    with writing(path):
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not nearest.is_dir():
            raise UsageError(
                f"--out {folder}: {nearest} is a file, not a folder.", "Give a folder; it is made if it does not exist."
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write into {nearest}")


def refuse_foreign_files(manifest: Path, parts: Sequence[Path]) -> None:
    """Refuse to delete what another program wrote.

    Other programs call their files part-00000.parquet too, and a corpus may lie in the folder that was given.

    Args:
        manifest: where our manifest would be.
        parts: files that bear the names of our parts.

    Raises:
        UsageError: one of them is not ours.
    """
    named = _named_parts(manifest)
    theirs = [path for path in parts if path.name not in (named or ()) and not _is_ours(path)]
    if manifest.exists() and named is None and len(theirs) == len(parts):
        theirs.insert(0, manifest)
    if theirs:
        raise UsageError(
            f"{theirs[0]}: was not written by trajscore, so --overwrite does not delete it.",
            "Choose another --out, or move the file away.",
        )


def unfinished_name(path: Path, suffix: str = TEMPORARY) -> Path:
    """The name beside `path` under which this process keeps what is not at `path` yet, or no longer."""
    return path.with_name(f".{path.name}.{os.getpid()}{suffix}")


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed while they wrote `path` left beside it.

    What one of them had put aside, to replace it, is put back if nothing has taken its place.
    """
    if not path.parent.is_dir():
        return
    begin = f".{path.name}."
    for left in sorted(path.parent.iterdir()):
        match = _UNFINISHED.fullmatch(left.name.removeprefix(begin)) if left.name.startswith(begin) else None
        if match is None or _runs(int(match[1])):
            continue
        if match[2] == ASIDE and not path.exists():
            left.rename(path)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process of this number may be running. In containers, numbers come again and again."""
    if pid == os.getpid():
        return False
    if os.name != "posix":
        return True  # there, to ask would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


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


def _named_parts(manifest: Path) -> list[str] | None:
    """Files that a manifest of ours names, of whatever schema version; None when there is no such manifest."""
    try:
        raw = orjson.loads(manifest.read_bytes())
        return [str(part["file"]) for part in raw["parts"]] if {"schema_version", "settings"} <= raw.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_ours(path: Path) -> bool:
    try:
        with for_arrow(path) as source:
            return b"trajscore.schema_version" in (pq.read_schema(source).metadata or {})
    except (pa.ArrowException, OSError):
        return False
