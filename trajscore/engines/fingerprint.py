"""Checksums that tell whether two runs read the same model."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trajscore.engines.checkpoint import weight_files
from trajscore.errors import UsageError


def model_identity(model: str, revision: str | None = None) -> dict[str, Any]:
    """What identifies a model that was loaded: its name, the hub commit if any, and a checksum of its weights.

    Args:
        model: folder, or hub id whose files are in the local cache already.
        revision: hub revision that was asked for.

    Returns:
        `name` (folder name or hub id), `revision` (commit hash, None for a folder) and `weights_sha256` over config.json and
        every file that holds its weights.

    Raises:
        UsageError: see `weight_files`.
    """
    folder = folder_of(model, revision)
    name, commit = (folder.resolve().name, None) if Path(model).is_dir() else (model, folder.name)
    digest = hashlib.sha256()
    paths = [folder / "config.json", *weight_files(folder)]
    with ThreadPoolExecutor(min(len(paths), os.cpu_count() or 1)) as pool:
        for path, checksum in zip(paths, pool.map(_checksum, paths), strict=True):
            digest.update(path.name.encode() + checksum)
    return {"name": name, "revision": commit, "weights_sha256": digest.hexdigest()}


def _checksum(path: Path) -> bytes:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def folder_of(model: str, revision: str | None) -> Path:
    """Where a model's files lie: the folder itself, or the hub's snapshot in the local cache.

    Raises:
        UsageError: it is not there.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return Path(model)
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise UsageError(f"{model}: not found in the local cache of hub files.")
    return Path(cached).parent
