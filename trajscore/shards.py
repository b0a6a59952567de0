"""The score folder: Parquet parts beside a manifest. It knows files, checksums and settings; nothing of models or metrics.

A part becomes visible by a rename, and only then the manifest learns of it, by a rename too. Killing the process at any
moment therefore leaves whole parts and a manifest that tells the truth about those it names; a part that was renamed but not
yet entered is adopted on the next start if it carries the same run in its metadata.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trajscore.decoding import TOKENIZER
from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.folders import refuse_foreign_files, writing
from trajscore.parquet_files import row_group_rows
from trajscore.schema import OK, SCHEMA_VERSION, file_metadata

MANIFEST = "manifest.json"
LOCK = ".lock"
_RUN_KEY = b"trajscore.run"


@dataclass(frozen=True)
class Part:
    """One finished part, as the manifest records it.

    Attributes:
        file: name inside the folder.
        first_row: 0-based number of its first row in the corpus.
        rows: its rows, refused ones included.
        tokens: its scored tokens.
        sha256: checksum of the file's bytes.
        refused: refused rows by status.
    """

    file: str
    first_row: int
    rows: int
    tokens: int
    sha256: str
    refused: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        settings: everything that can change a number or the parts' layout; a continued run must have the same.
        environment: versions and machine, recorded and not compared.
        input_columns: names of the corpus's own columns, in order.
        parts: the finished parts, in order.
        rows_in: rows of the corpus, None while unknown (a streamed data set that has not ended).
        complete: whether the corpus was scored to its end.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    input_columns: list[str]
    parts: list[Part] = field(default_factory=list)
    rows_in: int | None = None
    complete: bool = False
    schema_version: int = SCHEMA_VERSION

    @property
    def run(self) -> str:
        """Name of this run: a hash of the settings."""
        text = orjson.dumps([self.schema_version, self.settings], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def rows(self) -> int:
        """Rows in finished parts."""
        return sum(part.rows for part in self.parts)

    @property
    def tokens(self) -> int:
        """Scored tokens in finished parts."""
        return sum(part.tokens for part in self.parts)

    @property
    def refused(self) -> dict[str, int]:
        """Refused rows by status, most frequent first."""
        counts: Counter[str] = Counter()
        for part in self.parts:
            counts.update(part.refused)
        return dict(counts.most_common())

    @property
    def totals(self) -> dict[str, Any]:
        """Row accounting: rows = scored + refused."""
        refused = self.refused
        return {
            "rows": self.rows,
            "scored": self.rows - sum(refused.values()),
            "refused": sum(refused.values()),
            "refused_by_reason": refused,
            "tokens": self.tokens,
        }


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a score folder.

    Raises:
        UsageError: the folder does not exist or holds no scores, or its schema version is not ours.
        DataError: the manifest is not readable.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{folder}: no scores here ({MANIFEST} is missing).", "Give a folder that `trajscore score --out` wrote."
        )
    try:
        raw = orjson.loads(path.read_bytes())
        version = raw["schema_version"]
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path}: schema version {version}, this trajscore reads {SCHEMA_VERSION}.", "Score the corpus again."
            )
        parts = [Part(**part) for part in raw.pop("parts")]
        raw.pop("totals", None)
        raw.pop("run", None)
        return Manifest(parts=parts, **raw)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a manifest of trajscore ({error}).", "Restore it or score into a new folder."
        ) from error


def scan(scores: str | Path | Sequence[str | Path]) -> pl.LazyFrame:
    """The rows of one or several score folders, lazily, in input order.

    Only parts that the manifest names are read. Columns that only some folders have are null for the others.

    Args:
        scores: folder or folders written by `trajscore score`.

    Raises:
        UsageError: a folder holds no scores, or not a single finished part.
        DataError: a part that the manifest names is missing.
    """
    folders = [scores] if isinstance(scores, str | Path) else list(scores)
    frames = []
    for folder in folders:
        manifest = read_manifest(folder)
        paths = [Path(folder) / part.file for part in manifest.parts]
        for path in paths:
            if not path.is_file():
                raise DataError(
                    f"{path}: named by the manifest but missing.", "Run the same `trajscore score` command again."
                )
        if not paths:
            raise UsageError(f"{folder}: no finished part yet.", "Run the same `trajscore score` command to its end.")
        frames.append(pl.scan_parquet(paths, glob=False))
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")


class ScoreFolder:
    """A score folder open for writing, held by one process.

    Args:
        folder: where parts go; made if missing.
        manifest: settings and input columns of this run, without parts.
        overwrite: start anew, deleting the parts of an earlier run.

    Raises:
        UsageError: the folder holds the scores of other settings, or something that is not ours.
        TrajscoreError: the folder cannot be written, or another process holds it.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / LOCK)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise TrajscoreError(
                    f"{self.folder}: another process is scoring into this folder.",
                    "Wait for it, or choose another --out.",
                ) from error
        try:
            with writing(self.folder):
                self.manifest = self._start(manifest, overwrite)
        except BaseException:
            self.close()
            raise

    def _start(self, manifest: Manifest, overwrite: bool) -> Manifest:
        if overwrite:
            self._delete_parts()
        elif (self.folder / MANIFEST).exists():
            earlier = read_manifest(self.folder)
            _refuse_other_settings(self.folder, earlier, manifest)
            manifest = replace(manifest, parts=earlier.parts, rows_in=earlier.rows_in, complete=earlier.complete)
            self._check_parts(manifest)
        elif any(path.suffix == ".parquet" for path in self.folder.iterdir()):
            raise UsageError(
                f"{self.folder}: holds Parquet files but no {MANIFEST}.",
                "Choose an empty folder for --out, or --overwrite if these are earlier scores.",
            )
        ours = [self.folder / f"{name}.tmp" for name in (MANIFEST, TOKENIZER)]
        for leftover in (*self.folder.glob("part-*.parquet.tmp"), *ours):
            leftover.unlink(missing_ok=True)
        self.manifest = manifest
        self._adopt()
        self._write_manifest()
        return self.manifest

    def _delete_parts(self) -> None:
        parts = sorted(self.folder.glob("part-*.parquet"))
        manifest = self.folder / MANIFEST
        refuse_foreign_files(manifest, parts)
        # The manifest goes first: a kill in between must not leave one that names deleted parts.
        manifest.unlink(missing_ok=True)
        for path in parts:
            path.unlink()
        (self.folder / TOKENIZER).unlink(missing_ok=True)

    def _check_parts(self, manifest: Manifest) -> None:
        for part in manifest.parts:
            path = self.folder / part.file
            if not path.is_file() or _sha256(path) != part.sha256:
                raise DataError(
                    f"{path}: missing or changed since it was written.",
                    "Restore the file, or score anew with --overwrite.",
                )

    def _adopt(self) -> None:
        """Enter a part that was renamed into place before a kill kept the manifest from learning of it."""
        path = self._next_path()
        if not path.is_file():
            return
        with contextlib.suppress(pa.ArrowInvalid, OSError):
            metadata = pq.read_schema(path).metadata or {}
            if orjson.loads(metadata.get(_RUN_KEY, b"{}")) != self._run_metadata():
                return
            table = pq.read_table(path, columns=["status", "n_tokens"])
            self.manifest = replace(self.manifest, parts=[*self.manifest.parts, self._entry(path, table)])

    @property
    def next_row(self) -> int:
        """0-based number of the first corpus row that no finished part holds."""
        return self.manifest.rows

    def write_part(self, table: pa.Table) -> Part:
        """Write one part, then enter it in the manifest.

        Args:
            table: input columns followed by the columns of `schema.score_fields`.
        """
        path = self._next_path()
        metadata = {**(table.schema.metadata or {}), **file_metadata(self._run_metadata())}
        temporary = path.with_suffix(".parquet.tmp")
        with writing(self.folder):
            pq.write_table(
                table.replace_schema_metadata(metadata),
                temporary,
                compression="zstd",
                version="2.6",
                row_group_size=row_group_rows(table),
            )
            _rename(temporary, path)
            part = self._entry(path, table)
            self.manifest = replace(self.manifest, parts=[*self.manifest.parts, part])
            self._write_manifest()
        return part

    def keep_tokenizer(self, state: str) -> None:
        """Put the student's tokenizer beside the parts, so that token ids can be read as text anywhere.

        Args:
            state: the tokenizer as JSON, as the `tokenizers` library writes it.
        """
        path = self.folder / TOKENIZER
        temporary = self.folder / f"{TOKENIZER}.tmp"
        with writing(self.folder):
            temporary.write_text(state, "utf-8")
            _rename(temporary, path)

    def finish(self) -> None:
        """Record that the corpus was scored to its end."""
        with writing(self.folder):
            self.manifest = replace(self.manifest, rows_in=self.manifest.rows, complete=True)
            self._write_manifest()

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def __enter__(self) -> ScoreFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_path(self) -> Path:
        return self.folder / f"part-{len(self.manifest.parts):05d}.parquet"

    def _run_metadata(self) -> dict[str, object]:
        return {"run": self.manifest.run, "first_row": self.manifest.rows}

    def _entry(self, path: Path, table: pa.Table) -> Part:
        statuses = Counter(table["status"].to_pylist())
        statuses.pop(OK, None)
        return Part(
            file=path.name,
            first_row=self.manifest.rows,
            rows=table.num_rows,
            tokens=pc.sum(table["n_tokens"]).as_py() or 0,
            sha256=_sha256(path),
            refused=dict(statuses),
        )

    def _write_manifest(self) -> None:
        manifest = {**asdict(self.manifest), "run": self.manifest.run, "totals": self.manifest.totals}
        temporary = self.folder / f"{MANIFEST}.tmp"
        temporary.write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        _rename(temporary, self.folder / MANIFEST)


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings in which two runs differ, a line each.

    >>> differences({"dtype": "float32", "model": {"path": "a"}}, {"dtype": "float32", "model": {"path": "b"}})
    ["model.path: was 'a', now 'b'"]
    """
    lines = []
    for key in dict.fromkeys([*earlier, *now]):
        before, after = earlier.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: was {before!r}, now {after!r}")
    return lines


def _refuse_other_settings(folder: Path, earlier: Manifest, now: Manifest) -> None:
    # Through JSON and back, so that a tuple and a list do not count as different.
    lines = differences(earlier.settings, orjson.loads(orjson.dumps(now.settings)))
    if lines:
        raise UsageError(
            f"{folder}: holds scores made with other settings:\n  " + "\n  ".join(lines),
            "Repeat the earlier command to continue it, choose another --out, or --overwrite to start anew.",
        )


def _rename(temporary: Path, path: Path) -> None:
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())
    temporary.replace(path)
    if os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
