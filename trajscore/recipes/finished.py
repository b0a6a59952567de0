"""Whether a step was done before: a fingerprint of its settings and of the files that it reads, kept beside what it wrote."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from trajscore import __version__
from trajscore.io.atomic import write_whole
from trajscore.options import Options, options_in
from trajscore.options.declaration import as_json
from trajscore.scores import MANIFEST

SUFFIX = ".recipe.json"
_HASHED_BYTES = 2**26
"""Larger files are told apart by size and time, so that no run begins with minutes of reading."""


def outputs_of(step: Options) -> list[str]:
    """The files and folders that a step writes."""
    declared = options_in(type(step)).items()
    return [
        str(getattr(step, name)) for name, each in declared if each.option.writes and getattr(step, name) is not None
    ]


def fingerprint(step: Options) -> str | None:
    """A hash of the version, the settings, and the files that they name; None where some lie in a remote place.

    Args:
        step: the options; relative paths begin in the working folder.
    """
    values = {
        name: as_json(getattr(step, name))
        for name, each in options_in(type(step)).items()
        if not each.option.python_only
    }
    if any("://" in text for text in _texts(values)):
        return None
    written = set(outputs_of(step))
    inputs = {text: _identities(text) for text in _texts(values) if text not in written}
    whole = [__version__, type(step).__name__, values, {text: each for text, each in inputs.items() if each}]
    return hashlib.sha256(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS)).hexdigest()


def is_finished(step: Options) -> bool:
    """Whether a step ran to its end with the same settings and inputs, and what it wrote is still as it left it."""
    record = record_of(step)
    try:
        found: Any = orjson.loads(record.read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(found, Mapping):
        return False
    now = {text: _identities(text) for text in outputs_of(step)}
    return found.get("outputs") == now and all(now.values()) and found.get("fingerprint") == (fingerprint(step) or "")


def remember(step: Options, mark: str | None) -> None:
    """Write beside its output that a step is finished, under the fingerprint that it had when it began."""
    if mark is None:
        return
    outputs = {text: _identities(text) for text in outputs_of(step)}
    value = {"trajscore": __version__, "fingerprint": mark, "outputs": outputs}
    write_whole(record_of(step), orjson.dumps(value, option=orjson.OPT_INDENT_2))


def record_of(step: Options) -> Path:
    """The file that says that a step is finished, beside its first output."""
    first = Path(outputs_of(step)[0]).absolute()
    return first.with_name(f"{first.name}{SUFFIX}")


def _texts(value: Any) -> Iterator[str]:
    """Every text in JSON values, and what follows the first = in it, as in NAME=MODEL."""
    if isinstance(value, str):
        yield value
        if "=" in value:
            yield value.partition("=")[2]
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _identities(text: str) -> dict[str, str]:
    """What identifies the files that a text names, by path; none where it names none."""
    try:
        paths = [text] if Path(text).exists() else glob.glob(text, recursive=True) if text else []  # noqa: PTH207
    except (OSError, ValueError):  # a text that can be no path
        return {}
    found: dict[str, str] = {}
    for name in sorted(paths):
        path = Path(name)
        if path.is_dir() and (path / MANIFEST).is_file():
            # The manifest of scores holds a checksum of every part; that the parts are there is checked by their sizes.
            sizes = {each.name: str(each.stat().st_size) for each in sorted(path.glob("*.parquet"))}
            found |= {name: _identity(path / MANIFEST), **{f"{name}/{part}": size for part, size in sizes.items()}}
        elif path.is_dir():
            found |= {str(each): _identity(each) for each in sorted(path.rglob("*")) if each.is_file()}
        else:
            found[name] = _identity(path)
    return found


def _identity(path: Path) -> str:
    status = path.stat()
    if status.st_size > _HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
