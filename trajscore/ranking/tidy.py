"""A report as one long CSV table: every number on a line, under the path that it has in the JSON.

The names that identify a number (student, teacher, metric, part) have columns of their own, so that a spreadsheet filters
by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from trajscore.io.frames import write_frames

NAMES = ("student", "teacher", "metric", "part")
COLUMNS = ("section", *NAMES, "quantity", "value")


def write_tidy(report: Mapping[str, Any], out: Path) -> None:
    """Write what `Report.to_dict` gives as CSV: section, student, teacher, metric, part, quantity, value; null is empty.

    Raises:
        TrajscoreError: the file cannot be written.
    """
    lines = []
    for names, place, value in leaves(report, {}, ()):
        section, quantity = place[0], ".".join(place[1:]) or place[0]
        cells = (section, *(names.get(each) for each in NAMES), quantity, value)
        lines.append([None if cell is None else str(cell) for cell in cells])
    table = pl.DataFrame(lines, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")
    write_frames([table], table.to_arrow().schema, out)


Leaf = tuple[dict[str, Any], tuple[str, ...], Any]

# Mappings whose keys are names, and what they name; `metrics` within a teacher's line, the rest wherever they stand.
_KEYED = {"values": ("student", "teacher", "metric"), "performance": ("student", "teacher"), "metrics": ("metric",)}
_BY_TEACHER = ("probability_best", "values")


def leaves(value: Any, names: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[Leaf]:
    """Every scalar in nested JSON, with the names that identify it and where it stands.

    >>> report = {"students": [{"student": "S", "plan": {"prompts": 3}}]}
    >>> [leaf for leaf in leaves(report, {}, ())]
    [({'student': 'S'}, ('plan', 'prompts'), 3)]
    """
    if isinstance(value, Mapping):
        own = {**names, **{name: value[name] for name in NAMES if isinstance(value.get(name), str)}}
        for key, each in value.items():
            if key not in NAMES or not isinstance(each, str):
                yield from _member(key, each, own, place)
    elif isinstance(value, list | tuple):
        yield from _items(value, names, place)
    else:
        yield dict(names), place, value


def _member(key: str, value: Any, names: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[Leaf]:
    if key == "students" and not place:
        yield from _items(value, names, place)
    elif place[-1:] == ("comparison",) and key in _BY_TEACHER:
        yield from _keyed(value, ("teacher",), names, (*place, key))
    elif key in _KEYED and isinstance(value, Mapping):
        yield from _keyed(value, _KEYED[key], names, (*place, key))
    else:
        yield from leaves(value, names, (*place, key))


def _keyed(value: Any, keys: Sequence[str], names: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[Leaf]:
    if not keys:
        yield from leaves(value, names, place)
        return
    for key, each in value.items():
        yield from _keyed(each, keys[1:], {**names, keys[0]: key}, place)


def _items(values: Sequence[Any], names: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[Leaf]:
    for number, each in enumerate(values):
        identified = isinstance(each, Mapping) and any(isinstance(each.get(name), str) for name in NAMES)
        yield from leaves(each, names, place if identified or not place else (*place, str(number + 1)))
