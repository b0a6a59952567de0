"""Hidden states that wait on disk while another model has the memory. It knows tensors and one file; no model.

The file is deleted when the store closes, and a leftover of a killed process when the next one opens.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from trajscore.errors import TrajscoreError

if TYPE_CHECKING:
    import torch

_NAME = ".hidden-states.tmp"


@dataclass(frozen=True)
class _Entry:
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class HiddenStore:
    """A file of tensors, written once each and read in any order.

    Args:
        folder: where the file is made; nothing is made before the first `put`.

    Attributes:
        size: bytes written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._path.unlink(missing_ok=True)
        self._file: BinaryIO | None = None
        self._entries: dict[Hashable, _Entry] = {}
        self.size = 0

    def put(self, key: Hashable, tensor: torch.Tensor) -> None:
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
        except OSError as error:
            raise TrajscoreError(
                f"{self._path}: hidden states cannot be written ({error.strerror or error}).",
                "Free some space or give a smaller --hidden-budget; finished parts are kept.",
            ) from error
        self._entries[key] = _Entry(self.size, tuple(data.shape), data.dtype)
        self.size += data.numel() * data.element_size()

    def get(self, key: Hashable) -> torch.Tensor:
        """Read a tensor, bit for bit as it was put, on the CPU.

        Raises:
            KeyError: nothing was put under that key.
        """
        import torch

        entry = self._entries[key]
        count = entry.dtype.itemsize
        for length in entry.shape:
            count *= length
        if self._file is None or not count:
            return torch.empty(entry.shape, dtype=entry.dtype)
        self._file.seek(entry.offset)
        raw = bytearray(self._file.read(count))
        return torch.frombuffer(raw, dtype=entry.dtype).reshape(entry.shape)

    def __enter__(self) -> HiddenStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)
