"""The manifests of shards -> the manifest of the folder. Parts stay where they are: they bear their final names already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trajscore.errors import TrajscoreError, UsageError
from trajscore.io.atomic import remove_unfinished
from trajscore.io.ours import MANIFEST
from trajscore.io.outputs import writing
from trajscore.io.paths import as_path
from trajscore.rendering.decoding import TOKENIZER
from trajscore.scores.lock import FolderLock
from trajscore.scores.manifest import Manifest, Shard, differences, read_manifest, remove_records, shards_in
from trajscore.scores.part_files import PART_FILES


def merge(folder: str | Path) -> Manifest:
    """Join the shards of a score folder; afterwards it is as if one process had written it.

    Merging again changes nothing. A kill in between leaves the shards as they were, or the merged folder with shard manifests
    that the next merge removes.

    Args:
        folder: into which every shard was scored.

    Returns:
        The manifest of the whole.

    Raises:
        UsageError: there are no shards, or not all of them, or shards of different settings.
        TrajscoreError: a shard is not finished, lacks a part or is still being written, or the folder cannot be written.
    """
    where = as_path(folder)
    shards = shards_in(where)
    if not shards:
        if (where / MANIFEST).is_file():
            return read_manifest(where)
        raise UsageError(f"{folder}: no shards here.", "Give the --out folder of `trajscore score --shard I/N`.")
    with writing(where):
        locks = [FolderLock(where)]
        try:
            for shard in shards:
                locks.append(FolderLock(where, shard.lock))
            remove_unfinished(where / MANIFEST)  # by a merge that was killed
            merged = _merged(where, shards)
            merged.write(where / MANIFEST)
            remove_unfinished(where / TOKENIZER)
            for shard, lock in zip(shards, locks[1:], strict=True):
                # The lock first: the next merge looks for manifests.
                lock.release()
                (where / shard.lock).unlink(missing_ok=True)
                remove_records(where / shard.manifest)
                (where / shard.manifest).unlink(missing_ok=True)
        finally:
            for lock in locks:
                lock.release()
    return merged


def _merged(folder: Path, shards: list[Shard]) -> Manifest:
    if (folder / MANIFEST).is_file():  # merged, and killed before the shards' manifests were gone
        return read_manifest(folder)
    missing = sorted({*(Shard(index, shards[0].of) for index in range(shards[0].of))} - {*shards})
    if missing:
        raise UsageError(
            f"{folder}: shards {_listed(missing)} have not begun.", "Run `trajscore score` with each of them first."
        )
    manifests = [read_manifest(folder, shard) for shard in shards]
    unfinished = [shard for shard, manifest in zip(shards, manifests, strict=True) if not manifest.complete]
    if unfinished:
        raise TrajscoreError(
            f"{folder}: shards {_listed(unfinished)} are not finished.", "Run the same command for each of them again."
        )
    for shard, manifest in zip(shards, manifests, strict=True):
        lines = differences(manifests[0].settings, manifest.settings)
        if lines:
            raise UsageError(
                f"{folder}: shards {shards[0]} and {shard} were made with other settings:\n  " + "\n  ".join(lines),
                "Run one of them again with --overwrite and the settings of the other.",
            )
    parts = sorted((part for manifest in manifests for part in manifest.parts), key=lambda part: part.first_row)
    there = {path.name for path in folder.glob(PART_FILES)}
    if lost := [part for part in parts if part.file not in there]:
        owners = [
            shard for shard in shards if any(shard.has(part.first_row // manifests[0].part_rows) for part in lost)
        ]
        raise TrajscoreError(
            f"{folder}: {lost[0].file} is missing ({len(lost)} such).",
            f"Run the same command again for shards {_listed(owners)}: missing parts are scored again.",
        )
    reused = {run: folder for manifest in manifests for run, folder in manifest.reused.items()}
    merged = replace(manifests[0], parts=parts, shard=None, reused=reused)
    if merged.rows != merged.rows_in or [part.first_row for part in parts] != [
        number * merged.part_rows for number in range(len(parts))
    ]:
        raise TrajscoreError(
            f"{folder}: the shards hold {merged.rows} of {merged.rows_in} rows.",
            f"Run `trajscore verify {folder}`, and the same commands again.",
        )
    return merged


def _listed(shards: list[Shard]) -> str:
    shown = ", ".join(str(shard) for shard in shards[:10])
    return f"{shown} and {len(shards) - 10} more" if len(shards) > 10 else shown
