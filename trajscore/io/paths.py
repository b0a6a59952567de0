"""Local paths, and URLs such as s3://bucket/folder through fsspec, used alike."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from trajscore.errors import MissingExtraError, TrajscoreError, UsageError, first_line

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL_BEGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(where: str | Path) -> bool:
    """Whether a text names remote storage.

    >>> is_url("s3://bucket/scores"), is_url("data/rows.jsonl"), is_url("C:\\\\data")
    (True, False, False)
    """
    return bool(_URL.match(os.fspath(where) if isinstance(where, Path) else str(where)))


def local_path(where: str | Path, flag: str) -> Path:
    """A path for a file or folder that only local storage can hold.

    Raises:
        UsageError: it is a URL, also one that went through `Path`, which makes s3:/bucket of s3://bucket.
    """
    if _URL_BEGIN.match(os.fspath(where)):
        raise UsageError(
            f"{flag} {where}: must be a local path.",
            "Only corpora and score folders may lie on s3://, gs:// and the like.",
        )
    return Path(where)


def as_path(where: str | Path) -> Path:
    """A path for what the user typed: `pathlib.Path`, or for a URL an object with the same methods.

    Raises:
        UsageError: nothing that is installed reads such URLs.
    """
    if not is_url(where):
        return Path(where)
    scheme = str(where).partition("://")[0].lower()
    try:
        from upath import UPath

        # What other processes write shows at once.
        found = UPath(where, use_listings_cache=False)
        _ = found.fs  # imports the library that speaks the protocol
    except ImportError as error:
        if scheme in _EXTRAS:
            raise MissingExtraError(f"A library for {scheme}:// URLs", _EXTRAS[scheme]) from error
        raise UsageError(
            f"{where}: {first_line(error)}.", "Install the fsspec library that reads such URLs."
        ) from error
    except ValueError as error:
        raise UsageError(f"{where}: {first_line(error)}.", "Give a local path, or s3://..., gs://....") from error
    return cast("Path", found)


def is_remote(path: Path) -> bool:
    """Whether a path is not in this machine's file system."""
    return not isinstance(path, Path)


def make_folder(path: Path) -> None:
    """Make a folder, if it is missing, and those above it. Object stores have no folders: to make one would make its bucket."""
    if not (is_remote(path) and cast("Any", path).protocol in _EXTRAS):
        path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """Turns what goes wrong with remote storage, whose libraries have errors of their own, into OSError.

    Raises:
        OSError: the storage cannot be reached, or refuses.
    """
    try:
        yield
    except (OSError, TrajscoreError):
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        raise OSError(first_line(error)) from error


@contextlib.contextmanager
def for_arrow(path: Path) -> Iterator[Path | IO[bytes]]:
    """What pyarrow reads a file by: its path where it is local, which is fastest, else an open file."""
    if not is_remote(path):
        yield path
        return
    with path.open("rb") as handle:
        yield handle


def small_bytes(path: Path, most: int = 1 << 26) -> bytes:
    """All of a file that a user named and that is read whole. A pipe may be named, too; of a device without end
    no more than `most` is read.

    Raises:
        OSError: it cannot be read, or has more bytes than `most`.
    """
    with path.open("rb") as handle:
        data = handle.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes")
    return data


def sha256_of(path: Path) -> str:
    """Checksum of a file's bytes, hexadecimal."""
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
