"""What the user typed -> the files it means, in order, or a hub id: by paths and suffixes alone, no data are opened.

A folder means every supported file below it, a glob every supported file it matches, both sorted by relative path.
Hidden files and folders are passed over, and so are files that describe a data set and hold no rows of it. Files of several
splits together are an error, unless one split is named. The same file twice is an error, because doubled rows would double
their weight.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trajscore.errors import UsageError, did_you_mean
from trajscore.io.ours import as_manifest
from trajscore.io.paths import as_path, is_remote, is_url, reaching

PACKED = (".gz", ".zst")
SUFFIXES = (
    *(name + packed for packed in ("", *PACKED) for name in (".jsonl", ".ndjson", ".json")),
    *(".parquet", ".arrow", ".csv"),
)
_METADATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"})
"""What `datasets` and the hub put beside the rows."""
_KNOWN_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_SUPPORTED = (
    f"Supported: {', '.join(SUFFIXES)}, folders and globs of these, local or s3://, gs://; or the id of a hub data set."
)


class Located(NamedTuple):
    """A file of the corpus.

    Attributes:
        path: where it is, as the user would recognise it.
        name: its path below the folder or glob that was given, else its file name: what the fingerprint records. Bytes that
            are not UTF-8 are written as escapes there.
    """

    path: Path
    name: str


class HubId(NamedTuple):
    """A data set of the Hugging Face hub."""

    name: str


def suffix_of(path: Path) -> str:
    """The supported suffix of a file name, .gz included; empty if it has none.

    >>> suffix_of(Path("a/b.JSON.gz"))
    '.json.gz'
    """
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def locate(data: Sequence[str | Path] | str | Path, split: str | None = None) -> list[Located | HubId]:
    """All files and hub ids that the arguments mean, in the order given.

    Args:
        data: what the user typed.
        split: the split whose files are meant, where folders hold several; None where there is one only.

    Raises:
        UsageError: for a path that does not exist, an unsupported file, a folder of scores, a file reached twice, files of
            several splits, or of none that is called `split`.
    """
    items = [data] if isinstance(data, str | Path) else list(data)
    if not items:
        raise UsageError("No data was given.", _SUPPORTED)
    found = [source for item in items for source in _of_split(_locate_one(item), split, item)]
    _refuse_repeats(found)
    return found


def split_of(name: str) -> str | None:
    """The split that a file's path below its data set names; None where it names none.

    >>> split_of("data/train-00000-of-00002.parquet"), split_of("test/data.arrow"), split_of("gen1.json")
    ('train', 'test', None)
    """
    *folders, file = name.split("/")
    stem = file.partition(".")[0]
    if shard := _SHARD.fullmatch(stem):
        return next((folder for folder in folders if folder in _KNOWN_SPLITS), None if shard[1] == "data" else shard[1])
    words = [*folders, stem, re.split(r"[-_]", stem)[0]]
    return next((word for word in words if word in _KNOWN_SPLITS), None)


def teachers_by_path(names: Sequence[str]) -> dict[str, str]:
    """Files by the first part of their path in which they differ, without a format's suffix: names of models have dots.

    >>> teachers_by_path(["x/A/gen1.json", "x/B/gen1.json"]), teachers_by_path(["Qwen2.5-7B.jsonl", "b.jsonl.gz"])
    ({'x/A/gen1.json': 'A', 'x/B/gen1.json': 'B'}, {'Qwen2.5-7B.jsonl': 'Qwen2.5-7B', 'b.jsonl.gz': 'b'})
    """
    split = {name: name.split("/") for name in names}
    shortest = min(map(len, split.values()), default=1)
    place = next((i for i in range(shortest) if len({parts[i] for parts in split.values()}) > 1), shortest - 1)
    return {
        name: parts[place][: -len(suffix_of(Path(name))) or None] if place == len(parts) - 1 else parts[place]
        for name, parts in split.items()
    }


def _of_split(found: Sequence[Located | HubId], split: str | None, item: str | Path) -> Sequence[Located | HubId]:
    """The files of one split, where a folder or pattern has files of several."""
    if len(found) < 2 and split is None:
        return found
    splits = {each.name: split_of(each.name) for each in found if isinstance(each, Located)}
    names = sorted({name for name in splits.values() if name is not None})
    if split is None:
        if len(names) > 1:
            raise UsageError(
                f"{item}: holds files of several splits ({', '.join(names)}), which are not one corpus.",
                f"Choose one: --split {'train' if 'train' in names else names[0]}.",
            )
        return found
    if not names:
        return found
    if split not in names:
        raise UsageError(f"--split {split}: {item} has the splits {', '.join(names)}.", "Give one of them.")
    return [each for each in found if splits.get(each.name) == split]


def _locate_one(item: str | Path) -> Sequence[Located | HubId]:
    text = str(item)
    path = as_path(text) if is_url(text) else Path(text).expanduser()
    try:
        with reaching(path):
            return _at(path, text, item)
    except OSError as error:
        if not is_remote(path):
            raise
        raise UsageError(
            f"{text}: cannot be reached: {error}.", "Check the address, and the credentials in the environment."
        ) from error


def _at(path: Path, text: str, item: str | Path) -> Sequence[Located | HubId]:
    if _has_wildcard(text) and is_remote(path):
        return _matching_url(text)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        if not suffix_of(path):
            raise UsageError(f"{path}: files of this kind cannot be read.", _SUPPORTED)
        return [Located(path, _as_utf8(path.name))]
    if path.exists():
        raise UsageError(f"{path}: is no regular file, and a corpus is read twice.", "Write it to a file first.")
    if _has_wildcard(text):
        return _matching(path)
    looks_like_path = is_remote(path) or suffix_of(path) or text.startswith((".", "/", "~")) or isinstance(item, Path)
    if looks_like_path or not _HUB_ID.fullmatch(text):
        raise _no_such_file(path)
    return [HubId(text)]


def _has_wildcard(text: str) -> bool:
    return any(char in text for char in "*?[")


def _no_such_file(path: Path) -> UsageError:
    parent = path.parent
    if is_remote(path):
        return UsageError(f"{path}: no such file.", _SUPPORTED)
    if not parent.is_dir():
        return UsageError(f"{path}: no such file; its folder {parent} does not exist either.", _SUPPORTED)
    names = sorted(other.name for other in parent.iterdir() if other.is_dir() or suffix_of(other))[:20]
    hint = did_you_mean(path.name, names) if names else f"{parent} holds no supported file. {_SUPPORTED}"
    return UsageError(f"{path}: no such file.", hint)


def _visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in _below(path, root).split("/"))


def _below(path: Path, root: Path) -> str:
    """The path of a file below a folder, with slashes."""
    return str(path).removeprefix(str(root)).lstrip("/") if is_remote(path) else path.relative_to(root).as_posix()


def _gather(root: Path, pattern: str) -> list[Located]:
    paths = [path for path in root.glob(pattern) if path.is_file() and suffix_of(path) and _visible(path, root)]
    paths = [path for path in paths if path.name not in _METADATA and not _is_cache(path)]
    names = sorted(((_below(path, root), path) for path in paths), key=lambda pair: pair[0])
    return [Located(path, _as_utf8(name)) for name, path in names]


def _is_cache(path: Path) -> bool:
    """Whether `datasets` made a file of the rows of others beside it."""
    return path.suffix == ".arrow" and path.name.startswith(("cache-", "tmp"))


def _as_utf8(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _in_folder(folder: Path) -> list[Located]:
    found = _gather(folder, "**/*")
    for located in found:
        if located.path.name.startswith("manifest") and as_manifest(located.path):
            raise UsageError(
                f"{located.path.parent}: holds scores already (it has trajscore's {located.path.name}), and their columns "
                "would collide with new ones.",
                "Give the corpus that was scored, not the folder of its scores.",
            )
    if not found:
        raise UsageError(f"{folder}: the folder holds no supported file.", _SUPPORTED)
    return found


def _matching_url(pattern: str) -> list[Located]:
    """Files that a URL with wildcards means; the part before the first of them is a folder."""
    scheme, _, rest = pattern.partition("://")
    parts = rest.split("/")
    fixed = next(i for i, part in enumerate(parts) if _has_wildcard(part))
    found = _gather(as_path(f"{scheme}://{'/'.join(parts[:fixed])}"), "/".join(parts[fixed:]))
    if not found:
        raise UsageError(f"{pattern}: no such file; nothing supported matches the pattern.", _SUPPORTED)
    return found


def _matching(pattern: Path) -> list[Located]:
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if _has_wildcard(part))
    try:
        found = _gather(Path(*parts[:fixed]), str(Path(*parts[fixed:])))
    except ValueError as error:
        raise UsageError(f"{pattern}: is no valid pattern: {error}.", "** must stand alone between slashes.") from None
    if not found:
        raise UsageError(f"{pattern}: no such file; nothing supported matches the pattern.", _SUPPORTED)
    return found


def _refuse_repeats(found: Sequence[Located | HubId]) -> None:
    seen: set[Path | str] = set()
    for source in found:
        key: Path | str = source.name
        if isinstance(source, Located):
            key = str(source.path) if is_remote(source.path) else source.path.resolve()
        if key in seen:
            name = source.path if isinstance(source, Located) else source.name
            raise UsageError(f"{name}: is given twice, and its rows would count twice.", "Name every file once.")
        seen.add(key)
