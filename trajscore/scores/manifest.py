"""What a score folder says of itself: settings, parts and totals, in `manifest.json` or in the manifest of one shard."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from trajscore.errors import DataError, TrajscoreError, UsageError
from trajscore.io.atomic import write_whole
from trajscore.io.ours import MANIFEST
from trajscore.io.paths import as_path, is_remote
from trajscore.schema import SCHEMA_VERSION

_SHARD_MANIFEST = re.compile(r"manifest-(\d+)-of-(\d+)\.json")


@dataclass(frozen=True, order=True)
class Shard:
    """A share of a corpus: of every `of` parts the one at `index`.

    Attributes:
        index: from 0.
        of: number of shards.
    """

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard as it is typed.

        Raises:
            UsageError: not i/n with i from 0 to n - 1.

        >>> Shard.parse("3/16")
        Shard(index=3, of=16)
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise UsageError(
                f"--shard {text}: not a shard.", "Give I/N with I from 0 to N-1, such as 0/16 for the first of sixteen."
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def manifest(self) -> str:
        """Name of its manifest."""
        return f"manifest-{self.index:05d}-of-{self.of:05d}.json"

    @property
    def lock(self) -> str:
        """Name of the file by which a process holds it."""
        return f".lock-{self.index:05d}-of-{self.of:05d}"

    def has(self, number: int) -> bool:
        """Whether a part, counted from 0, belongs to it. Neighbours go to different shards: corpora are often sorted."""
        return number % self.of == self.index


@dataclass(frozen=True)
class Part:
    """One finished part, as the manifest records it.

    Attributes:
        file: name inside the folder.
        first_row: 0-based number of its first row in the corpus.
        rows: its rows, refused ones included.
        tokens: its scored tokens.
        bytes: size of the file.
        sha256: checksum of the file's bytes.
        refused: refused rows by status.
        copied: rows that `score --reuse` copied from an older folder.
    """

    file: str
    first_row: int
    rows: int
    tokens: int
    bytes: int
    sha256: str
    refused: dict[str, int]
    copied: int = 0


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        settings: everything that can change a number or the parts' layout; a continued run must have the same.
        environment: versions and hardware; recorded, not compared.
        input_columns: names of the corpus's own columns.
        parts: finished parts, by first row. Where several workers write, one in the middle may be missing for a while.
        rows_in: rows of the whole corpus, None while unknown (a streamed corpus that has not ended).
        complete: whether the corpus, or this shard of it, was scored to its end.
        shard: `i/n` in the manifest of one shard, which `trajscore merge` has not joined with the others yet.
        reused: older folders from which rows were copied, name of the run -> path as it was given.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    input_columns: list[str]
    parts: list[Part] = field(default_factory=list)
    rows_in: int | None = None
    complete: bool = False
    shard: str | None = None
    reused: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def run(self) -> str:
        """Name of this run: a hash of the settings."""
        text = orjson.dumps([self.schema_version, self.settings], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def part_rows(self) -> int:
        """Rows of every part but the last."""
        return int(self.settings["part_rows"])

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
        """Row accounting: rows = scored + refused; of those that are scored, `copied` came from older folders."""
        refused = self.refused
        return {
            "rows": self.rows,
            "scored": self.rows - sum(refused.values()),
            "refused": sum(refused.values()),
            "refused_by_reason": refused,
            "tokens": self.tokens,
            "copied": sum(part.copied for part in self.parts),
        }

    def write(self, path: Path) -> None:
        """Put it into a file, in one step."""
        value = {**asdict(self), "run": self.run, "totals": self.totals}
        write_whole(path, orjson.dumps(value, option=orjson.OPT_INDENT_2))


RECORDS = 64
"""Most parts that one file of records holds, and those up to which the manifest is written anew for each."""


def records_path(manifest: Path, number: int) -> Path:
    """Where the records of finished parts lie that the manifest beside them does not name yet.

    A manifest of ten thousand parts has megabytes. What comes after its first parts therefore goes into small files, of which
    only the last one is written anew. They are joined into the manifest whenever as many parts have come again as it holds,
    and at the end; a run that was killed leaves some.

    >>> records_path(Path("s/manifest.json"), 2).name
    'manifest.parts-00002.json'
    """
    return manifest.with_name(f"{manifest.name.removesuffix('.json')}.parts-{number:05d}.json")


def write_records(manifest: Path, number: int, run: str, parts: Sequence[Part]) -> None:
    """Put records into a file, in one step."""
    said = {"run": run, "parts": [asdict(part) for part in parts]}
    write_whole(records_path(manifest, number), orjson.dumps(said, option=orjson.OPT_INDENT_2))


def remove_records(manifest: Path) -> None:
    """Remove all records, the last ones first: a reader looks for them in order, as far as there are any."""
    paths = (records_path(manifest, number) for number in itertools.count())
    for path in reversed(list(itertools.takewhile(lambda path: path.is_file(), paths))):
        path.unlink(missing_ok=True)


def _recorded(manifest: Path) -> list[tuple[str, Part]]:
    """Parts that records name, each with the name of its run."""
    found: list[tuple[str, Part]] = []
    for number in itertools.count():
        path = records_path(manifest, number)
        if not is_remote(path) and not path.is_file():
            if os.path.lexists(path):  # a pipe would be waited for
                raise DataError(f"{path}: is no regular file.", "Move it away.")
            break
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            break
        try:
            raw = orjson.loads(data)
            found += [(str(raw["run"]), _part(part)) for part in raw["parts"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: not what trajscore records of parts ({error}).",
                "Delete it and run the same `trajscore score` command again: it finds the parts themselves.",
            ) from error
    return found


def read_manifest(folder: str | Path, shard: Shard | None = None) -> Manifest:
    """The manifest of a score folder, or of one shard, with all parts that are finished by now.

    Raises:
        UsageError: the folder does not exist or holds no scores, or its schema version is not ours.
        DataError: the manifest is not readable.
    """
    where = as_path(folder)
    path = where / (shard.manifest if shard else MANIFEST)
    # The records first: what is joined meanwhile is in the manifest.
    recorded = _recorded(path)
    manifest = read_joined(where, shard)
    parts = {part.first_row: part for part in manifest.parts}
    parts |= {part.first_row: part for run, part in recorded if run == manifest.run}
    return replace(manifest, parts=[parts[row] for row in sorted(parts)]) if recorded else manifest


def read_joined(folder: Path, shard: Shard | None = None) -> Manifest:
    """The manifest as it lies there, without the parts that are only recorded beside it. Raises as `read_manifest`."""
    path = folder / (shard.manifest if shard else MANIFEST)
    if not path.is_file():
        raise _no_manifest(folder)
    try:
        raw = orjson.loads(path.read_bytes())
        version = raw["schema_version"]
        if version != SCHEMA_VERSION:
            raise _other_version(path, version, raw.get("settings"))
        parts = [_part(part) for part in raw.pop("parts")]
        raw.pop("totals", None)
        raw.pop("run", None)
        return _checked(Manifest(parts=parts, **raw))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a manifest of trajscore ({error}).", "Restore it or score into a new folder."
        ) from error


def _other_version(path: Path, version: Any, settings: Any) -> TrajscoreError:
    if type(version) is not int:
        return DataError(f"{path}: the schema version is {version!r}.", "Restore it or score into a new folder.")
    if version > SCHEMA_VERSION:
        return UsageError(
            f"{path}: schema version {version}, this trajscore reads {SCHEMA_VERSION}.", "Install a newer trajscore."
        )
    return UsageError(
        f"{path}: schema version {version}, written by trajscore {_text(settings, 'trajscore')}; this trajscore reads "
        f"{SCHEMA_VERSION}, where columns have other meanings.",
        "With --reuse nothing of it can be copied: leave that out. Score the corpus again, in the folder where its files and "
        f"the student are: {_again(path, settings)}",
    )


def _again(path: Path, settings: Any) -> str:
    """The command that scores once more what a folder holds, by the names that its manifest has: it knows no other folders."""
    read = settings.get("input") if isinstance(settings, Mapping) else None
    sources = read.get("sources") if isinstance(read, Mapping) else None
    named = [_text(each, "file" if "file" in each else "hub") for each in sources or () if isinstance(each, Mapping)]
    words = [*(named or ["DATA"]), "--student", _text(settings, "student", "name"), "--out", f"{path.parent}-again"]
    return " ".join(["trajscore score", *map(shlex.quote, words)])


def _text(value: Any, *keys: str) -> str:
    """What lies under some keys, for a message; a question mark where nothing does."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "?" if value is None else str(value)


def _part(raw: Any) -> Part:
    """A part, if its values are of the kinds that we write and it lies in its own folder.

    Raises:
        ValueError, TypeError, AttributeError: they are not.
    """
    part = Part(**raw)
    counts = (part.first_row, part.rows, part.tokens, part.bytes, part.copied, *part.refused.values())
    names = (part.file, part.sha256, *part.refused)
    for kind, values in ((int, counts), (str, names)):
        if wrong := [value for value in values if type(value) is not kind]:
            raise ValueError(f"{wrong[0]!r} where a part has {kind.__name__}")
    if min(counts) < 0:
        raise ValueError(f"{min(counts)} rows or tokens")
    if not part.file or Path(part.file).name != part.file:
        raise ValueError(f"{part.file!r} is no file of its folder")
    return part


_MAPPINGS = ("rendering", "fields", "renamed_columns", "added_columns")
"""Settings that are mappings, where a folder has them."""


def _checked(manifest: Manifest) -> Manifest:
    """The manifest, if its values are of the kinds that we write.

    Raises:
        ValueError, TypeError, AttributeError: they are not.
    """
    settings = manifest.settings
    rows_in = [] if manifest.rows_in is None else [manifest.rows_in]
    shard = [] if manifest.shard is None else [manifest.shard]
    mappings = [
        settings,
        manifest.environment,
        manifest.reused,
        *(settings[key] for key in _MAPPINGS if settings.get(key) is not None),
    ]
    renamed = settings.get("renamed_columns")
    # Reports put the settings some levels deeper; a nesting that JSON cannot write must show here.
    orjson.dumps([[[[[[[[settings, manifest.environment]]]]]]]])
    for kind, values in (
        (dict, mappings),
        (int, [settings["part_rows"], *rows_in]),
        (list, [manifest.input_columns]),
        (str, [*manifest.input_columns, *shard, *manifest.reused.values()]),
        (bool, [manifest.complete]),
        (str, [] if renamed is None else renamed.values()),
    ):
        if wrong := [value for value in values if type(value) is not kind]:
            raise ValueError(f"{wrong[0]!r} where it holds {kind.__name__}")
    if min([settings["part_rows"] - 1, *rows_in]) < 0:
        raise ValueError("fewer than 1 row in a part, or in all")
    if shard and str(Shard.parse(shard[0])) != shard[0]:
        raise ValueError(f"{shard[0]!r} is no shard")
    rows = [part.first_row for part in manifest.parts]
    if rows != sorted(set(rows)):
        raise ValueError("parts do not follow one another")
    return manifest


def shards_in(folder: Path) -> list[Shard]:
    """Shards whose manifests lie in a folder, in order."""
    names = [_SHARD_MANIFEST.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(Shard(int(match[1]), int(match[2])) for match in names if match)


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


def changed_settings(earlier: Manifest, now: Manifest) -> list[str]:
    """The settings in which a run differs from an earlier one whose manifest was read from a file, a line each."""
    # Through JSON and back, so that a tuple and a list do not count as different.
    return differences(earlier.settings, orjson.loads(orjson.dumps(now.settings)))


def _no_manifest(folder: Path) -> UsageError:
    if shards_in(folder):
        return UsageError(f"{folder}: its shards are not merged.", f"Run: trajscore merge {folder}")
    return UsageError(
        f"{folder}: no scores here ({MANIFEST} is missing).", "Give a folder that `trajscore score --out` wrote."
    )
