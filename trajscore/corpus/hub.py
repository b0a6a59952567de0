"""Data sets of the Hugging Face hub -> blocks of rows. It alone imports `datasets`, and only when it has to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trajscore.corpus.jsonfiles import Hash
from trajscore.corpus.sources import BLOCK_ROWS, Block, blocks_of
from trajscore.corpus.storable import mended, readable
from trajscore.errors import DataError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from trajscore.corpus.sources import SourceOptions


class HubTable:
    """A data set of the hub, downloaded; rows come from the Arrow table behind it, undecoded.

    Args:
        name: its id.
        options: split, configuration and revision.

    Raises:
        MissingExtraError: without `datasets`.
        UsageError: with the reason `datasets` gives, if it cannot be loaded.
    """

    def __init__(self, name: str, options: SourceOptions) -> None:
        self.label = self.name = name
        self._options = options
        self._revision, self._data = _load(name, options)

    def blocks(self, skip: int = 0, limit: int | None = None, hashed: Hash | None = None) -> Iterator[Block]:
        end = len(self._data) if limit is None else min(len(self._data), skip + limit)
        table = self._data.with_format("arrow")
        for start in range(skip, end, BLOCK_ROWS):
            yield Block(*readable(table[start : min(start + BLOCK_ROWS, end)]))

    def identity(self) -> dict[str, Any]:
        return {
            "hub": self.label,
            "config_name": self._options.config_name,
            "split": self._options.split or "train",
            "revision": self._revision,
            "fingerprint": getattr(self._data, "_fingerprint", None),
        }


class HubStream(HubTable):
    """A data set of the hub that is read while it is being downloaded; each reading starts at its first row."""

    def blocks(self, skip: int = 0, limit: int | None = None, hashed: Hash | None = None) -> Iterator[Block]:
        read = 0
        try:
            data = self._data.skip(skip) if skip else self._data
            data = data if limit is None else data.take(limit)
            for block in self._typed(data) if self.declared is not None else self._untyped(data):
                yield block
                read += len(block)
        except Exception as error:
            # Whatever a remote file system or a loader raises, the rows before it are good and the user can go on.
            raise DataError(
                f"{self.label}: the stream broke off after row {skip + read}: {type(error).__name__}: {error}",
                "Run the command again to continue, or load without --streaming.",
            ) from error

    def _typed(self, data: Any) -> Iterator[Block]:
        for table in data.with_format("arrow").iter(batch_size=BLOCK_ROWS):
            yield Block(*readable(table))

    def _untyped(self, data: Any) -> Iterator[Block]:
        # `datasets` would infer a type from every few rows and then fail on its own inferences.
        yield from blocks_of(map(mended, data))

    @property
    def declared(self) -> pa.Schema | None:
        """The schema the data set declares, None when it has to be seen from the rows."""
        features = self._data.features
        return None if features is None else features.arrow_schema.remove_metadata()


def _load(name: str, options: SourceOptions) -> tuple[str | None, Any]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "hf") from None
    revision = _commit(name, options.revision) or options.revision
    try:
        data = datasets.load_dataset(
            name, options.config_name, split=options.split or "train", streaming=options.streaming, revision=revision
        )
    except Exception as error:
        # `datasets` passes on errors of many libraries; whichever it is, the id or an option was wrong or out of reach.
        raise UsageError(
            f"{name}: is no file or folder, and `datasets` cannot load it: {type(error).__name__}: {error}",
            "Check the spelling, --split, --config-name, --data-revision, and the connection (or HF_TOKEN for gated data).",
        ) from None
    return revision, data


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag names now, so that the fingerprint changes with the data; None when offline."""
    try:
        from huggingface_hub import HfApi

        commit = HfApi().dataset_info(name, revision=revision, timeout=10).sha
    except Exception:
        # Loading itself reports what is wrong; a cached data set loads without the hub.
        return None
    return commit if isinstance(commit, str) else None
