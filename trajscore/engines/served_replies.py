"""What a server gave for each sequence, kept on disk until its row lies in a part: a killed run asks for nothing twice.

Axes: N scored tokens of one sequence, K best entries.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trajscore.errors import TrajscoreError

_HEAD = struct.Struct("<32sIII")
"""Key, N, K and the CRC-32 of the values."""


class ServedReply(NamedTuple):
    """Numbers of one sequence.

    Attributes:
        logprob_N: float32, ln p of each scored token, nats; minus infinity where it is impossible.
        ids_NK: int32, the K best entries, from the most probable on, ties by the lower id.
        logprobs_NK: float32, ln p of these.
    """

    logprob_N: npt.NDArray[np.float32]
    ids_NK: npt.NDArray[np.int32]
    logprobs_NK: npt.NDArray[np.float32]


class ReplyFile:
    """Replies by key, appended one after the other; only their places are in memory.

    A reply is on disk when `put` returns; another thread may read meanwhile. What a kill left of one at the end is cut off when
    the file is opened again.

    Args:
        path: the file; nothing is made before the first `put`. A link in its place, which may point at somebody's file, is
            removed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._size = 0
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            path.unlink()
        if path.is_file():
            self._file = os.open(path, os.O_RDWR)
            self._read()

    def _read(self) -> None:
        while len(head := os.pread(self._file, _HEAD.size, self._size)) == _HEAD.size:
            key, n, k, crc = _HEAD.unpack(head)
            size = _bytes(n, k)
            values = os.pread(self._file, size, self._size + _HEAD.size)
            if len(values) < size or zlib.crc32(values) != crc:
                break
            self._places[key] = (self._size + _HEAD.size, n, k)
            self._size += _HEAD.size + size
        os.ftruncate(self._file, self._size)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def get(self, key: bytes) -> ServedReply:
        """The reply of a key.

        Raises:
            KeyError: there is none.
        """
        offset, n, k = self._places[key]
        values = os.pread(self._file, _bytes(n, k), offset)
        return ServedReply(
            np.frombuffer(values, np.float32, n),
            np.frombuffer(values, np.int32, n * k, 4 * n).reshape(n, k),
            np.frombuffer(values, np.float32, n * k, 4 * n * (k + 1)).reshape(n, k),
        )

    def put(self, key: bytes, reply: ServedReply) -> None:
        """Keep a reply.

        Raises:
            TrajscoreError: the file cannot be written.
        """
        values = b"".join(np.ascontiguousarray(each).tobytes() for each in reply)
        n, k = reply.ids_NK.shape
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            data, place = memoryview(_HEAD.pack(key, n, k, zlib.crc32(values)) + values), self._size
            while data:
                written = os.pwrite(self._file, data, place)
                data, place = data[written:], place + written
        except OSError as error:
            raise TrajscoreError(
                f"{self._path}: the server's replies cannot be written ({error.strerror or error}).",
                "Free some space and run the same command again; finished parts and earlier replies are kept.",
            ) from error
        self._places[key] = (self._size + _HEAD.size, n, k)
        self._size += _HEAD.size + len(values)

    def clear(self) -> None:
        """Forget all replies."""
        self._places.clear()
        self._size = 0
        if self._file >= 0:
            os.ftruncate(self._file, 0)

    def close(self, *, delete: bool = False) -> None:
        """Close the file, and delete it if it is needed no more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if delete:
            self._path.unlink(missing_ok=True)


def _bytes(n: int, k: int) -> int:
    return 4 * n * (1 + 2 * k)
