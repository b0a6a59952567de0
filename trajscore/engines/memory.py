"""Running out of memory: which errors mean it, and what gives some back. It knows torch; no model."""

from __future__ import annotations

import gc

import torch


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
