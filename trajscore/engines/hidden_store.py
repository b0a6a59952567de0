"""Rows of one model that wait on disk for another: hidden states, or most probable entries.

The file is deleted when the store closes, and a leftover of a killed process when the next one opens.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from trajscore.engines.reductions import StoredRows
from trajscore.errors import TrajscoreError

if TYPE_CHECKING:
    from torch import Tensor


class HiddenStore:
    """A file of tensors, written once each and read in any order.

    Args:
        path: the file; nothing is made before the first `put`.

    Attributes:
        size: bytes written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._delete()
        self._file: BinaryIO | None = None
        self._entries: dict[Hashable, StoredRows] = {}
        self.size = 0

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Write a tensor of any device and dtype.

        Raises:
            TrajscoreError: the file cannot be written.
        """
        import torch

        data = tensor.detach().cpu().contiguous()
        try:
            if self._file is None:
                self._file = self._path.open("w+b")
            self._file.seek(self.size)
            self._file.write(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
            # Another process may read the file by its name.
            self._file.flush()
        except OSError as error:
            raise TrajscoreError(
                f"{self._path}: hidden states cannot be written ({error.strerror or error}).",
                "Free some space or give a smaller --hidden-budget; finished parts are kept.",
            ) from error
        dtype = str(data.dtype).removeprefix("torch.")
        self._entries[key] = StoredRows(str(self._path), self.size, tuple(data.shape), dtype)
        self.size += data.numel() * data.element_size()

    @property
    def beginning(self) -> Path:
        """What the names of files begin with that others write for this store."""
        return self._path

    def adopt(self, key: Hashable, rows: StoredRows) -> None:
        """Take over rows that a worker wrote into a file of its own, which is deleted with the others."""
        import torch

        self._entries[key] = rows
        self.size += int(np.prod(rows.shape)) * getattr(torch, rows.dtype).itemsize

    def locate(self, key: Hashable) -> StoredRows:
        """Where a tensor lies; its `read` gives it back bit for bit.

        Raises:
            KeyError: nothing was put under that key.
        """
        return self._entries[key]

    def __enter__(self) -> HiddenStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            # On a full disk closing fails too, and what was written is not needed any more.
            with contextlib.suppress(OSError):
                self._file.close()
        self._delete()

    def _delete(self) -> None:
        for path in (self._path, *self._path.parent.glob(f"{glob.escape(self._path.name)}.*")):
            path.unlink(missing_ok=True)
