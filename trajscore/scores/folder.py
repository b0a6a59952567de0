"""A score folder open for writing: what is finished, what is missing, and how a part is added."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from trajscore.errors import TrajscoreError, UsageError
from trajscore.io.atomic import remove_unfinished, write_whole
from trajscore.io.ours import MANIFEST, as_manifest, is_part
from trajscore.io.outputs import writing
from trajscore.io.paths import as_path, is_remote, make_folder, sha256_of
from trajscore.rendering.decoding import TOKENIZER
from trajscore.scores.lock import LOCK, FolderLock
from trajscore.scores.manifest import (
    RECORDS,
    Manifest,
    Part,
    Shard,
    changed_settings,
    read_manifest,
    remove_records,
    shards_in,
    write_records,
)
from trajscore.scores.part_files import PART_FILES, changed, number_of, write_part, written_part

_LOG = logging.getLogger("trajscore")
_START_SECONDS = 60.0
"""How long a shard waits for the start of another one."""


class ScoreFolder:
    """A score folder open for writing, held by one process; or one shard of it, each held by a process of its own.

    Args:
        folder: where parts go; made if missing.
        manifest: settings and input columns of this run, without parts.
        overwrite: start anew, deleting the parts of an earlier run.
        shard: write only the parts of this shard, and a manifest of its own.
        break_lock: take the folder from a process of which it is not known that it runs.

    Raises:
        UsageError: the folder holds the scores of other settings, or something that is not ours.
        DataError: a finished part was changed.
        TrajscoreError: the folder cannot be written, or another process holds it.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Manifest,
        overwrite: bool = False,
        shard: Shard | None = None,
        break_lock: bool = False,
    ) -> None:
        self.folder = as_path(folder)
        self._shard = shard
        self._path = self.folder / (shard.manifest if shard else MANIFEST)
        self._parts: dict[int, Part] = {}
        self._joined = 0
        self._waiting: list[Part] = []
        with writing(self.folder):
            make_folder(self.folder)
            start = FolderLock(self.folder, LOCK, _START_SECONDS if shard else 0, break_lock)
            self._lock = FolderLock(self.folder, shard.lock, take_over=break_lock) if shard else start
        try:
            try:
                with writing(self.folder):
                    self._begin(replace(manifest, shard=str(shard) if shard else None), overwrite)
            finally:
                if start is not self._lock:
                    start.release()
            # Checksums of all parts take minutes in a large folder: other shards must not wait for them.
            with writing(self.folder):
                self._take_up()
        except BaseException:
            self._lock.release()
            raise

    @property
    def manifest(self) -> Manifest:
        """What is finished by now."""
        return replace(self._about, parts=[self._parts[row] for row in sorted(self._parts)])

    def _begin(self, manifest: Manifest, overwrite: bool) -> None:
        self._about = manifest
        self._refuse_other_shards()
        if overwrite:
            self._delete_parts()
        elif (earlier := goes_on_from(self.folder, manifest, self._shard)) is not None:
            self._parts = {part.first_row: part for part in earlier.parts}
            rows_in = earlier.rows_in or manifest.rows_in
            reused = {**earlier.reused, **manifest.reused}
            self._about = replace(manifest, rows_in=rows_in, complete=earlier.complete, reused=reused)
            return
        elif not shards_in(self.folder) and any(path.suffix == ".parquet" for path in self.folder.iterdir()):
            raise UsageError(
                f"{self.folder}: holds Parquet files but no {MANIFEST}.",
                "Choose an empty folder for --out, or --overwrite if these are earlier scores.",
            )
        self.manifest.write(self._path)

    def _take_up(self) -> None:
        """Check the parts that an earlier run finished, and enter those that it did not come to enter."""
        whole = {row: part for row, part in self._parts.items() if self._is_whole(part)}
        complete = self._about.complete and len(whole) == len(self._parts)
        self._about, self._parts = replace(self._about, complete=complete), whole
        self._adopt()
        self._join()

    def _join(self) -> None:
        """Write the manifest with all parts, and remove the records beside it."""
        self.manifest.write(self._path)
        remove_records(self._path)
        self._joined, self._waiting = len(self._parts), []

    def _refuse_other_shards(self) -> None:
        others = [shard for shard in shards_in(self.folder) if self._shard is None or shard.of != self._shard.of]
        if others:
            raise UsageError(
                f"{self.folder}: was begun with --shard I/{others[0].of}.",
                f"Finish those shards and run `trajscore merge {self.folder}`, or choose another --out.",
            )
        if self._shard is not None and (self.folder / MANIFEST).exists():
            raise UsageError(
                f"{self.folder}: holds scores that are not divided into shards.",
                "Continue them without --shard, or choose another --out.",
            )

    def _delete_parts(self) -> None:
        parts = sorted(path for path in self.folder.glob(PART_FILES) if self._owns(path.name))
        _refuse_foreign_files(self._path, parts)
        # The manifest goes before the parts: a kill in between must not leave one that names deleted ones. The tokenizer goes
        # before it, because without either nothing says that it is ours.
        if self._shard is None and self._path.exists():
            (self.folder / TOKENIZER).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        remove_records(self._path)
        for path in parts:
            path.unlink()

    def _owns(self, name: str) -> bool:
        """Whether a file is a part of the folder, or of the shard that is written."""
        number = number_of(name)
        return number is not None and (self._shard is None or self._shard.has(number))

    def _is_whole(self, part: Part) -> bool:
        """Whether a part is there as it was written; a missing one is scored again.

        Raises:
            DataError: it was changed.
        """
        path = self.folder / part.file
        if not path.is_file():
            _LOG.warning("%s is missing and is scored again", path)
            return False
        # Remote storage keeps checksums of its own; reading all parts again would cost as much as scoring some.
        if path.stat().st_size != part.bytes or (not is_remote(path) and sha256_of(path) != part.sha256):
            raise changed(path)
        return True

    def _adopt(self) -> None:
        """Enter parts that were renamed into place before a kill kept the manifest from learning of them."""
        # Another shard may be writing the tokenizer, which is for all of them; `merge` removes what it left.
        whole = () if self._shard else (TOKENIZER,)
        records = f"{self._path.stem}.parts-"
        remove_unfinished(self._path, lambda name: name in whole or name.startswith(records) or self._owns(name))
        known, run, size = {part.file for part in self._parts.values()}, self._about.run, self._about.part_rows
        for path in sorted(self.folder.glob(PART_FILES)):
            number = number_of(path.name)
            if number is None or path.name in known or not self._owns(path.name):
                continue
            part = written_part(self.folder, number, number * size, run)
            if part is not None:
                self._parts[part.first_row] = part

    @property
    def finished_rows(self) -> int:
        """Rows in finished parts."""
        return self.manifest.rows

    def missing(self, rows: int | None) -> Iterator[int]:
        """Numbers of the parts that are still to be written, in order.

        Args:
            rows: of the corpus. None while unknown: then there is always another part after the last one.
        """
        size = self._about.part_rows
        done = {row // size for row in list(self._parts)}
        number = 0
        while rows is None or number * size < rows:
            if number not in done and (self._shard is None or self._shard.has(number)):
                yield number
            number += 1

    def rows_of(self, rows: int | None) -> int | None:
        """How many of the corpus's rows belong here: all, or those of the shard; None while unknown."""
        if rows is None or self._shard is None:
            return rows
        size = self._about.part_rows
        numbers = range(self._shard.index, -(-rows // size), self._shard.of)
        return sum(min(size, rows - number * size) for number in numbers)

    def write_part(self, table: pa.Table, number: int | None = None) -> Part:
        """Write one part, then enter it in the manifest.

        Args:
            table: input columns followed by the columns of `schema.score_fields`.
            number: of the part, from 0; the first missing one by default.
        """
        number = next(self.missing(None)) if number is None else number
        self._lock.check()
        part = write_part(self.folder, number, number * self._about.part_rows, table, self._about.run)
        self.enter(part)
        return part

    def enter(self, part: Part) -> None:
        """Let readers know of a part that was written. What that costs does not grow with the number of parts."""
        self._lock.check()
        with writing(self.folder):
            self._parts[part.first_row] = part
            if len(self._parts) <= RECORDS or len(self._parts) >= 2 * self._joined:
                return self._join()
            self._waiting.append(part)
            number = (len(self._waiting) - 1) // RECORDS
            write_records(self._path, number, self._about.run, self._waiting[number * RECORDS :])

    def keep_tokenizer(self, state: str) -> None:
        """Put the student's tokenizer beside the parts, so that token ids can be read as text anywhere.

        Args:
            state: the tokenizer as JSON, as the `tokenizers` library writes it.
        """
        with writing(self.folder):
            write_whole(self.folder / TOKENIZER, state.encode())

    def finish(self) -> None:
        """Record that the corpus, or this shard of it, was scored to its end."""
        self._lock.check()
        with writing(self.folder):
            rows_in = self.manifest.rows if self._about.rows_in is None else self._about.rows_in
            self._about = replace(self._about, rows_in=rows_in, complete=True)
            self._join()

    def close(self) -> None:
        """Let other processes use the folder."""
        try:
            if self._waiting:
                self._lock.check()
                self._join()
        except (TrajscoreError, OSError) as error:
            # The records stay, and say the same.
            _LOG.debug("%s: records were not joined (%s)", self.folder, error)
        finally:
            self._lock.release()

    def __enter__(self) -> ScoreFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def goes_on_from(folder: Path, now: Manifest, shard: Shard | None = None) -> Manifest | None:
    """What a run finds finished in its folder; None where there are no scores yet.

    Args:
        folder: where parts go.
        now: settings of the run.
        shard: the part of it that is written.

    Raises:
        UsageError: the folder holds the scores of other settings.
    """
    if not (folder / (shard.manifest if shard else MANIFEST)).exists():
        return None
    earlier = read_manifest(folder, shard)
    if lines := changed_settings(earlier, now):
        raise UsageError(
            f"{folder}: holds scores made with other settings:\n  " + "\n  ".join(lines),
            "Repeat the earlier command to continue it, choose another --out, or --overwrite to start anew.",
        )
    return earlier


def refuse_foreign(folder: str | Path, overwrite: bool, keep_foreign: bool = False) -> None:
    """Refuse to begin scores in a folder that holds files of others, before anything is read.

    Hidden files do not count. Scores that are continued replace nothing.

    Args:
        folder: for the scores.
        overwrite: start anew where there are scores.
        keep_foreign: leave files of others where they are; those that bear the names of ours are still refused, and so are
            Parquet files, which readers of the folder would take for scores.

    Raises:
        UsageError: there are such files.
    """
    where = as_path(folder)
    with writing(where):
        if not where.is_dir():
            return
        manifests = {path.name: as_manifest(path) for path in where.glob("manifest*.json")}
        said = [each for each in manifests.values() if each is not None]
        if said and not overwrite:
            return
        theirs = sorted(
            path.name for path in where.iterdir() if not path.name.startswith(".") and not _is_ours(path, said)
        )
    if keep_foreign:
        theirs = [name for name in theirs if name in (MANIFEST, TOKENIZER) or name.endswith(".parquet")]
    if theirs:
        raise UsageError(
            f"--out {folder}: holds files that `trajscore score` did not write: {theirs[0]} ({len(theirs)} such).",
            "Choose an empty or a new folder, or move them away."
            + ("" if keep_foreign else " --keep-foreign leaves them where they are."),
        )


def _is_ours(path: Path, manifests: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a file in a score folder is one of ours, by the folder's manifests or by what it says of itself."""
    if path.name == TOKENIZER:
        return bool(manifests) or any(is_part(part) for part in path.parent.glob(PART_FILES))
    if number_of(path.name) is not None:
        return path.name in _named(manifests) or is_part(path)
    if path.name.startswith("manifest") and path.suffix == ".json":
        return as_manifest(path) is not None or (bool(manifests) and ".parts-" in path.name)
    return False


def _named(manifests: Sequence[Mapping[str, Any]]) -> set[Any]:
    lists = [each["parts"] for each in manifests if isinstance(each.get("parts"), list)]
    names = (part.get("file") for parts in lists for part in parts if isinstance(part, dict))
    return {name for name in names if isinstance(name, str)}


def _refuse_foreign_files(manifest: Path, parts: Sequence[Path]) -> None:
    """Refuse to delete what another program wrote: such call their files part-00000.parquet too, and a corpus may lie here.

    Raises:
        UsageError: one of the files that bear the names of our parts is not ours, or the manifest is not.
    """
    said = as_manifest(manifest)
    named = _named([said] if said else [])
    theirs = [path for path in parts if path.name not in named and not is_part(path)]
    if manifest.exists() and said is None and len(theirs) == len(parts):
        theirs.insert(0, manifest)
    if theirs:
        raise UsageError(
            f"{theirs[0]}: was not written by trajscore, so --overwrite does not delete it.",
            "Choose another --out, or move the file away.",
        )
