"""Score folders -> the rows of their parts as one LazyFrame of polars, in input order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from trajscore.errors import DataError, UsageError
from trajscore.io.paths import as_path, is_remote
from trajscore.scores.manifest import Manifest, read_manifest
from trajscore.scores.part_files import changed


def scan(scores: str | Path | Sequence[str | Path]) -> pl.LazyFrame:
    """The rows of one or several score folders, lazily, in input order.

    Only parts that the manifest names are read. Columns that only some folders have are null for the others.

    Args:
        scores: folder or folders written by `trajscore score`, local or remote (s3://, gs://).

    Raises:
        UsageError: a folder holds no scores, or not a single finished part.
        DataError: a part that the manifest names is missing or of another size.
    """
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    frames = [scan_parts(_existing(as_path(folder))) for folder in folders]
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")


def scan_parts(paths: Sequence[Path]) -> pl.LazyFrame:
    """The rows of some parts of one folder, lazily."""
    # polars reads remote storage by itself, many requests at a time.
    return pl.scan_parquet([str(path) for path in paths], glob=False)


def part_paths(folder: str | Path, manifest: Manifest) -> list[Path]:
    """Where the parts that a manifest names lie, in input order."""
    return [as_path(folder) / part.file for part in manifest.parts]


def _existing(folder: Path) -> list[Path]:
    manifest = read_manifest(folder)
    paths = part_paths(folder, manifest)
    if not paths:
        raise UsageError(f"{folder}: no finished part yet.", "Run the same `trajscore score` command to its end.")
    if is_remote(folder):
        return paths
    for path, part in zip(paths, manifest.parts, strict=True):
        if not path.is_file():
            raise DataError(
                f"{path}: named by the manifest but missing.", "Run the same `trajscore score` command again."
            )
        # Of a file whose bits were flipped only `verify` knows: checksums take about as long as reading.
        if path.stat().st_size != part.bytes:
            raise changed(path)
    return paths
