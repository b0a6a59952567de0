"""What may be written where: suffixes that name a format, folders that can be made, inputs that no output may touch."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trajscore.errors import TrajscoreError, UsageError
from trajscore.io.paths import as_path, is_remote, is_url, local_path, reaching
from trajscore.options.declaration import Options, options_in

ROW_SUFFIXES = (".parquet", ".jsonl")


def check_suffix(path: str | Path, allowed: Sequence[str], flag: str) -> Path:
    """The path, if its suffix says a format that can be written.

    Raises:
        UsageError: it does not, or it is a URL.

    >>> check_suffix("kept.jsonl", ROW_SUFFIXES, "--out").name
    'kept.jsonl'
    """
    path = local_path(path, flag)
    if path.suffix not in allowed:
        raise UsageError(
            f"{flag} {path}: the suffix {path.suffix!r} names no format that can be written.",
            f"End the name in {' or '.join(allowed)}.",
        )
    return path


def check_folder(folder: str | Path) -> None:
    """Refuse a path at which no folder can be written, before a model is loaded for nothing.

    Raises:
        UsageError: it is a file, or lies below one, or its name is not UTF-8.
        TrajscoreError: it cannot be written.
    """
    path = as_path(folder)
    if is_remote(path):
        return  # whether it can be written shows when it is
    if str(path) != str(path).encode("utf-8", "replace").decode():
        raise UsageError(
            f"--out {folder}: its name is not UTF-8, and no Parquet file can be written there.", "Name another."
        )
    with writing(path):
        nearest = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not nearest.is_dir():
            raise UsageError(
                f"--out {folder}: {nearest} is a file, not a folder.", "Give a folder; it is made if it does not exist."
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write into {nearest}")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what the operating system says about writing into a message.

    Raises:
        TrajscoreError: in place of any OSError.
    """
    try:
        with reaching(folder):
            yield
    except OSError as error:
        raise TrajscoreError(
            f"{folder}: cannot be written ({error.strerror or error}).",
            "Check the path, its permissions and the free space, then run the same command again; finished parts are kept.",
        ) from error


@dataclass(frozen=True)
class _Place:
    """Where an argument points.

    Attributes:
        flag: how the argument is spelt.
        shown: the path as it was typed, or found by what was typed.
        path: the real one, without links; for a URL as it is.
    """

    flag: str
    shown: str
    path: str

    @property
    def lineage(self) -> list[str]:
        """The path and all folders above it, from below."""
        if is_url(self.path):
            parts = self.path.rstrip("/").split("/")
            return ["/".join(parts[:end]) for end in range(len(parts), 2, -1)]
        return [self.path, *map(str, Path(self.path).parents)]

    def is_in(self, other: _Place) -> bool:
        """Whether it is the other one or lies below it, whatever names a file system has for the same folder."""
        if other.path in self.lineage:
            return True
        if is_url(self.path) or is_url(other.path):
            return False
        try:
            wanted = Path(other.path).stat()
        except OSError:
            return False
        return any(_is_same(each, wanted) for each in self.lineage)


def spare_inputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any], folders: Collection[str] = ()) -> None:
    """Refuse outputs that would touch an input, or one another, before anything is read or written.

    Real paths are compared, through links and also through those that lie in folders of the inputs.

    Args:
        outputs: what is going to be written, by flag: a path, several, or None.
        inputs: what is read, by flag: paths, globs, URLs or hub ids, one or several. What names no file here is passed over,
            and so is what is no path (a LazyFrame, None).
        folders: flags of the outputs that are folders.

    Raises:
        UsageError: an output is an input, lies in one, or holds one; two outputs are one; a folder is where a file shall be.
    """
    made = [_Place(flag, text, _real(text)) for flag, given in outputs.items() for text in _texts(given)]
    for number, one in enumerate(made):
        if (
            one.flag not in folders
            and not is_url(one.path)
            and os.path.lexists(one.path)
            and not Path(one.path).is_file()
        ):
            what = "a folder" if Path(one.path).is_dir() else "no regular file"
            raise UsageError(f"{one.flag} {one.shown}: is {what}.", "Give the name of a file.")
        for other in made[:number]:
            if one.is_in(other) or other.is_in(one):
                same = one.is_in(other) and other.is_in(one)
                said = f"are both {one.shown}" if same else "lie in one another"
                raise UsageError(f"{other.flag} and {one.flag} {said}.", "Give two names.")
    if not made:
        return
    for read in (place for flag, given in inputs.items() for text in _texts(given) for place in _read(flag, text)):
        for one in made:
            if one.is_in(read):
                same = read.is_in(one)
                said = f"is what {read.flag} reads" if same else f"lies in {read.shown}, which {read.flag} reads"
                raise UsageError(
                    f"{one.flag} {one.shown}: {said}.",
                    "Choose another name." if same else "Write beside it, not into it.",
                )
            if read.is_in(one):
                raise UsageError(
                    f"{one.flag} {one.shown}: holds {read.shown}, which {read.flag} reads.",
                    "Choose a folder of its own.",
                )


_READ = frozenset({"DATA", "SCORES", "FILE", "MODEL", "DIR", "CSV", "ANSWERS", "DIAGNOSIS", "PROFILE"})
"""Words that stand for what is read in the metavar of an option, unless it says that it writes."""


def spare_inputs_of(options: Options) -> None:
    """`spare_inputs` for all that a command was told: what it writes as its options declare, against whatever else is a path.

    Raises:
        UsageError: as `spare_inputs`.
    """
    spare_inputs(*_paths_of(options))


def spare_inputs_of_steps(steps: Mapping[str, Options], others: Mapping[str, Any]) -> None:
    """`spare_inputs` for steps that follow one another: none writes what any of them reads, but for what one before it made.

    Args:
        steps: their options by name, in order; relative paths begin in the working folder.
        others: what else is read, by how it is called.

    Raises:
        UsageError: as `spare_inputs`.
    """
    outputs, inputs, folders = dict[str, Any](), dict(others), set[str]()
    for name, options in steps.items():
        found = _paths_of(options)
        made = [_Place("", text, _real(text)) for text in _texts(list(outputs.values()))]
        for flag, given in found.inputs.items():
            texts = [
                text for text in _texts(given) if not any(_Place("", text, _real(text)).is_in(each) for each in made)
            ]
            inputs[f"{name} {flag}"] = texts
        outputs |= {f"{name} {flag}": given for flag, given in found.outputs.items()}
        folders |= {f"{name} {flag}" for flag in found.folders}
    spare_inputs(outputs, inputs, folders)


class _Paths(NamedTuple):
    """What a command writes and reads, by flag, and the flags of folders that it writes."""

    outputs: dict[str, Any]
    inputs: dict[str, Any]
    folders: set[str]


def _paths_of(options: Options) -> _Paths:
    outputs, inputs, folders = dict[str, Any](), dict[str, Any](), set[str]()
    for name, declared in options_in(type(options)).items():
        value, words = getattr(options, name), set(re.split(r"[^A-Za-z]+", declared.metavar))
        if declared.option.writes:
            outputs[declared.flag] = value
            folders |= {declared.flag} if "DIR" in words else set()
        elif words & _READ:
            # NAME=MODEL
            inputs[declared.flag] = [each for text in _texts(value) for each in (text, text.partition("=")[2]) if each]
    return _Paths(outputs | options.also_writes(), inputs, folders)


def _texts(given: Any) -> list[str]:
    if isinstance(given, str | os.PathLike):
        return [os.fspath(given) if isinstance(given, os.PathLike) and not hasattr(given, "fs") else str(given)]
    return [text for each in given for text in _texts(each)] if isinstance(given, list | tuple | set) else []


def _real(text: str) -> str:
    return text.rstrip("/") if is_url(text) else os.path.realpath(Path(text).expanduser())


def _read(flag: str, text: str) -> Iterator[_Place]:
    """What an argument reads: the files of a glob, and of a folder also what its links point to."""
    if is_url(text):
        yield _Place(flag, text, _real(text))
        return
    path = Path(text).expanduser()
    if not os.path.lexists(path) and glob.has_magic(text):
        # With ** everything below would be read, also what is not there yet.
        whole = text.partition("**")[0] if "**" in text else ""
        for found in [whole] if whole and Path(whole).is_dir() else glob.glob(str(path)):  # noqa: PTH207 - absolute and relative
            yield from _read(flag, found)
        return
    if not path.exists():
        return
    yield _Place(flag, text, _real(text))
    for folder, _, files in os.walk(path) if path.is_dir() else ():
        for name in files:
            link = os.path.join(folder, name)  # noqa: PTH118 - of any number of files
            if os.path.islink(link):  # noqa: PTH114
                yield _Place(flag, link, os.path.realpath(link))


def _is_same(path: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(Path(path).stat(), wanted)
    except OSError:
        return False
