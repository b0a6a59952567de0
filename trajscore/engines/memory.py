"""Memory of a device: how much there is, how much is used, which errors mean that it ran out."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: torch says so in several ways, on CPUs as a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory", "ALLOC_FAILED"))


def free_memory() -> None:
    """Give back what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available_memory(device: str) -> int:
    """Bytes that are free: of a GPU, of all GPUs for `balanced`, else of the machine, or of what this container may use."""
    if torch.cuda.is_available() and device != "cpu":
        gpus = range(torch.cuda.device_count()) if device == "balanced" else [torch.device(_gpu(device))]
        return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(_CGROUP.read_text()) - used_memory())
    except (OSError, ValueError):  # no such limit
        return free


def used_memory() -> int:
    """Bytes that this process holds in main memory."""
    return int(psutil.Process().memory_info().rss)


def _gpu(device: str) -> str:
    return device if device.startswith("cuda") else "cuda"
