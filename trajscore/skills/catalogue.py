"""The closed lists of skills, one per subject: read, checked, looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from trajscore.errors import UsageError
from trajscore.io.paths import small_bytes

_SHAPE = 'Allowed: {"subject": ["skill", ...], ...}, ["skill", ...], or a text file with one skill per line.'


@dataclass(frozen=True)
class Catalogue:
    """Skills by subject. A skill is its name: one that two subjects list is one skill.

    Attributes:
        subjects: subject -> its skills, in order; the subject is empty where there is only one list without a name.
    """

    subjects: Mapping[str, tuple[str, ...]]

    def of(self, subject: str | None) -> tuple[str, ...] | None:
        """The list of a subject, None where it is unknown. With a single list every question reads that one."""
        if len(self.subjects) == 1:
            return next(iter(self.subjects.values()))
        return None if subject is None else self.subjects.get(subject)


def catalogue(value: Any, where: str = "the catalogue") -> Catalogue:
    """A catalogue from what JSON holds: lists by subject, or one list.

    Raises:
        UsageError: it has another shape, a list is empty, or a skill is empty or twice in its list.

    >>> catalogue({"Algebra": ["factoring", "functions"]}).of("Algebra")
    ('factoring', 'functions')
    """
    lists = {"": value} if isinstance(value, list | tuple) else value
    if not isinstance(lists, Mapping) or not lists:
        raise UsageError(f"{where}: not a catalogue of skills.", _SHAPE)
    return Catalogue({str(subject): _skills(skills, f"{where}, {subject!r}") for subject, skills in lists.items()})


def _skills(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{where}: no list of skills.", _SHAPE)
    for skill in value:
        if not isinstance(skill, str) or not skill.strip():
            raise UsageError(f"{where}: {skill!r} is no skill's name.", _SHAPE)
        if value.count(skill) > 1:
            raise UsageError(f"{where}: {skill!r} is listed twice.", "Name each skill once.")
    return tuple(value)


def read_catalogue(path: str | Path) -> Catalogue:
    """A catalogue from a `.json` file, or from any other text file with one skill per line.

    Raises:
        UsageError: the file cannot be read or holds no catalogue.
    """
    path = Path(path)
    try:
        data = small_bytes(path)
        if path.suffix == ".json":
            return catalogue(orjson.loads(data), str(path))
        return catalogue([line.strip() for line in data.decode().splitlines() if line.strip()], str(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}).", _SHAPE) from error
    except ValueError as error:
        raise UsageError(f"{path}: not readable as a catalogue ({error}).", _SHAPE) from error
