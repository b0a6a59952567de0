"""A folder with a record of the files in it that are ours: exactly these are replaced, whatever else lies there stays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from trajscore import __version__
from trajscore.errors import UsageError
from trajscore.io.atomic import files_in, move_files, swap_folder, write_whole


class RecordedFolder:
    """A folder that a command fills anew each time.

    Args:
        folder: where it is, or shall be.
        record: name of the file in it that says which files are ours.
        command: what fills it.
        flag: the option that names it.
        keep_foreign: fill it also where files of others lie, and leave these.

    Attributes:
        folder: where it is.

    Raises:
        UsageError: files of others lie in it, and they are not to be kept.
    """

    def __init__(self, folder: Path, record: str, command: str, flag: str, keep_foreign: bool) -> None:
        self.folder, self._record, self._command, self._flag = folder, record, command, flag
        self._keep_foreign = keep_foreign
        self._own = self._recorded(folder) if folder.is_dir() else []
        foreign = sorted({*files_in(folder)} - {*self._own}) if folder.is_dir() else []
        if foreign and not keep_foreign:
            raise UsageError(
                f"{flag} {folder}: holds files that `{command}` did not write: {foreign[0]} ({len(foreign)} such).",
                "Choose an empty or a new folder; or add --keep-foreign, which replaces our files and leaves those.",
            )

    def _recorded(self, folder: Path) -> list[str]:
        """The files of ours: those that lie in a folder, not behind a link in it, and are named by its record."""
        try:
            record = orjson.loads((folder / self._record).read_bytes())
            named = record["files"] if "trajscore" in record else []
            return [name for name in files_in(folder) if name in named]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def put(self, made: Path, said: Mapping[str, Any]) -> None:
        """Put the files of another folder into this one, in place of ours.

        Args:
            made: see `trajscore.io.atomic.new_folder`.
            said: what the record says besides, as JSON values.

        Raises:
            UsageError: a file of somebody else has a name of ours. Nothing was written.
            OSError: the folder cannot be written.
        """
        new = sorted([*files_in(made), self._record])
        record = {"trajscore": __version__, **said, "files": new}
        (made / self._record).write_bytes(orjson.dumps(record))
        if not (self._keep_foreign and self.folder.is_dir()):
            return swap_folder(made, self.folder, self._recorded)
        if lost := [name for name in new if name not in self._own and os.path.lexists(self.folder / name)]:
            raise UsageError(
                f"{self._flag} {self.folder}: {lost[0]} was not written by `{self._command}` and would be replaced.",
                "Move it away, or choose another folder.",
            )
        # A kill in between leaves a record that names the old files and the new ones.
        write_whole(self.folder / self._record, orjson.dumps({**record, "files": sorted({*self._own, *new})}))
        move_files(made, self.folder, self._own, self._record)
