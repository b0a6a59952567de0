"""`score --reuse`: rows that an older folder of scores holds already are copied, not scored.

A row is known by its key, a hash of all that the models would read of it. Every part carries the keys of its rows in its
metadata, so that an older folder is searched by its footers alone: 24 bytes a row are held in memory. Whatever else made a
number (models, settings, the version of trajscore) must be the same for the whole folder, or nothing is copied.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from trajscore.errors import DataError, first_line
from trajscore.io.paths import for_arrow, reaching
from trajscore.options.declaration import options_in
from trajscore.scores import Manifest, differences, part_paths, read_manifest
from trajscore.scores.adding import ADDED
from trajscore.scores.part_files import COPIED_KEY, ROWS_KEY
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.rows import ScoredRow

_LOG = logging.getLogger("trajscore")

_KEY_BYTES = 16
_NO_KEY = bytes(_KEY_BYTES)
"""In place of the key of a row that was not scored."""

_SHOWN = 5
"""Settings that are named where they differ."""


def row_key(row: ScoredRow, conversation: bool, author: bool) -> bytes:
    """What a row is known by: two rows with one key have the same numbers under the same models and settings.

    Args:
        row: rendered.
        conversation: whether a model makes tokens of its own from the row's conversation.
        author: whether who wrote the row decides which model reads it.

    Returns:
        16 bytes; all zero for a row that cannot be scored.
    """
    if not row.is_ok:
        return _NO_KEY
    rendered, digest = row.rendered, hashlib.blake2b(digest_size=_KEY_BYTES)
    for array in (rendered.input_ids_P, rendered.positions_N, rendered.scaffold_S, rendered.sentence_N):
        digest.update(len(array).to_bytes(8, "little") + np.ascontiguousarray(array).tobytes())
    for turn in rendered.bare_turns:
        digest.update(turn.first.to_bytes(8, "little") + turn.header_ids.astype(np.int64).tobytes())
    said: list[Any] = [rendered.n_sentences, rendered.truncated]
    if author:
        said.append(row.trajectory.teacher)
    if conversation:
        said.append({name: value for name, value in vars(row.trajectory).items() if name not in _IDENTITY})
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS
    digest.update(orjson.dumps(said, default=str, option=options))
    return digest.digest()


_IDENTITY = frozenset(
    {"id", "prompt_id", "teacher", "refusal", "detail", "correct", "made_from", "as_given", "tokens", "said_beside"},
)
"""What no model reads of a trajectory."""


def with_keys(table: pa.Table, rows: Sequence[ScoredRow]) -> pa.Table:
    """The table of a part with the keys of its rows, and how many of them were copied, in its metadata."""
    keys = b"".join(row.key if row.is_ok else _NO_KEY for row in rows)
    said = {**(table.schema.metadata or {}), ROWS_KEY: base64.b64encode(keys)}
    if copied := sum(row.copied for row in rows):
        said[COPIED_KEY] = str(copied).encode()
    return table.replace_schema_metadata(said)


def open_older(options: ScoreOptions, now: Manifest, columns: Sequence[str]) -> OlderScores | None:
    """The folder of `--reuse`, if rows can be copied from it; where they cannot, the log says which settings differ.

    Args:
        options: every setting of this run.
        now: what the manifest of this run says.
        columns: names of the columns that models make.

    Raises:
        UsageError: the folder holds no scores that this version reads.
        DataError: its manifest cannot be read.
    """
    if options.reuse is None:
        return None
    folder = str(options.reuse)
    older = read_manifest(folder)
    lines = differences(_of_models(older.settings), _of_models(orjson.loads(orjson.dumps(now.settings))))
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        _LOG.warning(
            "--reuse %s: nothing is copied, because its scores were made with other settings:\n  %s",
            folder,
            "\n  ".join([*lines[:_SHOWN], *more]),
        )
        return None
    return OlderScores(folder, older, columns)


def naming(manifest: Manifest, older: OlderScores | None) -> Manifest:
    """The manifest of a run, with the folder from which it copies rows."""
    return manifest if older is None else replace(manifest, reused={older.manifest.run: older.folder})


def _of_models(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that say how a corpus is read and cut into parts: what came of them is in the rows' keys."""
    declared = options_in(ScoreOptions).items()
    reading = {
        (each.option.recorded_as or name).split(".")[0] for name, each in declared if each.option.panel == "Data"
    }
    reading |= {"input", "columns", "rows_read", "trajectories", "part_rows", ADDED}
    return {name: value for name, value in settings.items() if name not in reading}


class _Index(NamedTuple):
    """The rows of an older folder by their keys.

    Attributes:
        high_R: first half of each key, ascending.
        low_R: second half.
        place_R: number of the row over all parts.
        first_Q: number of the first row of each part.
    """

    high_R: npt.NDArray[np.uint64]
    low_R: npt.NDArray[np.uint64]
    place_R: npt.NDArray[np.int64]
    first_Q: npt.NDArray[np.int64]


class OlderScores:
    """An older folder with the same models and settings, from which rows are copied.

    Args:
        folder: written by `trajscore score`.
        manifest: what it says of itself.
        columns: names of the columns to copy.
    """

    def __init__(self, folder: str, manifest: Manifest, columns: Sequence[str]) -> None:
        self.folder, self.manifest = folder, manifest
        self._columns = list(columns)
        self._paths = part_paths(folder, manifest)

    @cached_property
    def _index(self) -> _Index:
        """Made when it is first needed: from the footers of all parts."""
        found = []
        for path, part in zip(self._paths, self.manifest.parts, strict=True):
            with _reading(path), for_arrow(path) as source:
                if path.stat().st_size != part.bytes:
                    raise ValueError("another size than its manifest says")
                metadata = pq.read_schema(source).metadata or {}
                found.append(np.frombuffer(base64.b64decode(metadata.get(ROWS_KEY, b"")), ">u8").reshape(-1, 2))
                if len(found[-1]) not in (0, part.rows):
                    raise ValueError(f"keys of {len(found[-1])} rows, it has {part.rows}")
        first_Q = np.cumsum([0, *(part.rows for part in self.manifest.parts)])
        if unknown := sum(not len(keys) for keys in found):
            _LOG.warning(
                "--reuse %s: %d of %d parts were written before rows could be copied; their rows are scored",
                self.folder,
                unknown,
                len(found),
            )
        place_R = np.concatenate(
            [np.arange(first, first + len(keys)) for first, keys in zip(first_Q, found, strict=False)]
        )
        keys_R2 = np.concatenate(found).astype(np.uint64)
        scored_R = keys_R2.any(axis=1)
        keys_R2, place_R = keys_R2[scored_R], place_R[scored_R]
        order_R = np.argsort(keys_R2[:, 0], kind="stable")
        return _Index(keys_R2[order_R, 0], keys_R2[order_R, 1], place_R[order_R], first_Q)

    def places(self, rows: Sequence[ScoredRow]) -> list[int | None]:
        """For each row the number of the older one with its key; None where there is none."""
        index = self._index
        keys_R2 = np.frombuffer(b"".join(row.key for row in rows), ">u8").reshape(-1, 2).astype(np.uint64)
        at_R = np.minimum(np.searchsorted(index.high_R, keys_R2[:, 0]), max(len(index.high_R) - 1, 0))
        if not len(index.high_R):
            return [None] * len(rows)
        same_R = (index.high_R[at_R] == keys_R2[:, 0]) & (index.low_R[at_R] == keys_R2[:, 1]) & keys_R2.any(axis=1)
        return [int(index.place_R[at]) if same else None for at, same in zip(at_R, same_R, strict=True)]

    def copy_into(self, rows: Sequence[ScoredRow]) -> int:
        """Give rows the values that an older row with the same key has; at most a row group is in memory.

        Returns:
            How many rows were found.

        Raises:
            DataError: a part of the older folder cannot be read.
        """
        pairs = sorted(
            ((place, number) for number, place in enumerate(self.places(rows)) if place is not None),
        )
        part_of = lambda pair: int(np.searchsorted(self._index.first_Q, pair[0], side="right")) - 1  # noqa: E731
        for part, group in itertools.groupby(pairs, part_of):
            first = int(self._index.first_Q[part])
            wanted = [(place - first, rows[number]) for place, number in group]
            with _reading(self._paths[part]):
                self._copy_from(self._paths[part], wanted)
        return len(pairs)

    def _copy_from(self, path: Path, wanted: Sequence[tuple[int, ScoredRow]]) -> None:
        with (
            for_arrow(path) as source,
            pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False) as file,
        ):
            names = [name for name in self._columns if name in file.schema_arrow.names]
            first = 0
            for group in range(file.num_row_groups):
                stop = first + file.metadata.row_group(group).num_rows
                here = [(place - first, row) for place, row in wanted if first <= place < stop]
                first = stop
                if here:
                    table = file.read_row_group(group, columns=names).take([place for place, _ in here])
                    for number, (_, row) in enumerate(here):
                        row.copied = True
                        row.values |= _values(table, number)


def _values(table: pa.Table, number: int) -> dict[str, npt.NDArray[Any]]:
    """The lists of one row; a null inside a list is NaN, as models give it, and a null list is left out."""
    lists = {name: table[name][number].values for name in table.column_names}
    return {name: _array(each) for name, each in lists.items() if each is not None}


def _array(values: pa.Array) -> npt.NDArray[Any]:
    """The values of a list; equally long lists in it become rows."""
    if pa.types.is_list(values.type):
        return _array(values.flatten()).reshape((len(values), -1) if len(values) else (0, 0))
    array: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a part of the older folder into a message.

    Raises:
        DataError: in place of any error of pyarrow or the operating system.
    """
    try:
        with reaching(path):
            yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"--reuse: {path} cannot be read ({first_line(error)}).",
            f"`trajscore verify {path.parent}` names damaged parts; restore the file, or leave --reuse out.",
        ) from error
