"""An export, read again and compared token for token: with the mask it came from, or with the student's own rendering.

How an export is read is its exporter's. Axis P is the tokens of a row.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trajscore.exporters.base import arrow_rows, chat_row, trained
from trajscore.exporters.soft import TOPK_COLUMNS, entries_per_token, soft_rows
from trajscore.exporters.table import Conversation, Exporter, Plan, Trained
from trajscore.rendering.renderer import Renderer
from trajscore.rendering.templates import MARKER

_EXAMPLES = 5


@dataclass(frozen=True)
class Check:
    """What came of reading an export again.

    Attributes:
        reader: who read it: the trainer's own loader with its version, or this program.
        rows: rows compared.
        agreeing: rows that are the same, token for token.
        differences: the first few rows that are not, a sentence each.
        note: why the trainer's own loader was not used; empty when it was.
    """

    reader: str
    rows: int
    agreeing: int
    differences: tuple[str, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether every row agrees, and there are rows."""
        return self.rows == self.agreeing and not self.differences

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class Expected:
    """What a trainer should make of a row.

    Attributes:
        row: the row as it should be trained.
        may_P: tokens on which a loss is no surprise although they were not scored: what ends a turn, its line break included.
    """

    row: Trained
    may_P: npt.NDArray[np.bool_]


def expected_tokens(batches: Iterable[Any], sample_weights: bool) -> Iterator[Expected]:
    """Rows of a mask, with sample weights if these were exported."""
    for batch in batches:
        k = entries_per_token(batch, "") if TOPK_COLUMNS[0] in batch.schema.names else None
        targets = soft_rows(batch, k) if k else itertools.repeat(None)
        for row, target in zip(arrow_rows(batch), targets, strict=False):
            weight = row["sample_weight"] if sample_weights else None
            wanted = trained(row["input_ids"], row["labels"], row.get("loss_weight"), weight)
            yield Expected(replace(wanted, targets=target), np.zeros(len(wanted.input_ids_P), bool))


def expected_messages(rows: Iterable[Conversation], renderer: Renderer) -> Iterator[Expected]:
    """Conversations as the student's template renders them, trained where `score` would score them."""
    for row in rows:
        rendered = renderer.render_messages(row.messages, row.tools, row.chat_template_kwargs, row.context)
        weight_P = np.zeros(len(rendered.input_ids_P))
        weight_P[rendered.positions_N] = 1.0 if row.weight is None else row.weight
        may_P = np.zeros(len(weight_P), bool)
        may_P[rendered.scaffold_S] = True
        # A trainer that splits prompt and completion trains on the line break too, which a template's marks leave out.
        for place in rendered.scaffold_S[rendered.scaffold_kind_S == MARKER] + 1:
            if place < len(may_P) and not renderer.decode([int(rendered.input_ids_P[place])]).strip():
                may_P[place] = True
        yield Expected(Trained(rendered.input_ids_P.astype(np.int64), weight_P), may_P)


def check(exporter: Exporter, folder: Path, plan: Plan, student: str | None, wanted: Iterable[Expected]) -> Check:
    """Compare an export through the trainer's own loader.

    Raises:
        ImportError: the trainer is not installed.
    """
    name = f"{exporter.trainer} {_version(exporter)}"
    try:
        with _stdout_to_stderr():
            return _compare(wanted, exporter.load(folder, plan, student), name)
    except ImportError:
        raise
    except Exception as error:  # a trainer's loader may raise anything, and that is the result
        return Check(name, 0, 0, (f"its loader stopped: {type(error).__name__}: {_first_line(error)}",))


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Trainers print, also through handles they took of stdout when they were imported; stdout is for our product."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def check_tokens(exporter: Exporter, folder: Path, wanted: Iterable[Expected]) -> Check:
    """Compare the written tokens, columns and types as the trainer's documentation asks for them."""
    try:
        return _compare(wanted, exporter.read_tokens(folder), "trajscore")
    except (ValueError, KeyError) as error:
        return Check("trajscore", 0, 0, (str(error),))


def check_messages(exporter: Exporter, folder: Path, rows: Iterable[Conversation]) -> Check:
    """Compare the written conversations, columns and types as the trainer's documentation asks for them."""
    count, differences = 0, []
    try:
        for count, (row, found) in enumerate(zip_longest(rows, exporter.read_messages(folder)), 1):
            if row is None or found is None:
                differences.append(f"row {count - 1}: {'was not asked for' if row is None else 'is missing'}")
            elif _text(chat_row(row)) != _text(found):
                differences.append(f"row {count - 1}, id {row.id!r}: the text differs")
    except (ValueError, KeyError) as error:
        differences.append(str(error))
    return Check("trajscore", count, count - len(differences), tuple(differences[:_EXAMPLES]))


def _text(row: dict[str, Any]) -> list[Any]:
    """What a row says, with reasoning folded in or not."""
    said = []
    for message in row["messages"]:
        reasoning = message.get("reasoning_content")
        text = f"<think>\n{reasoning}\n</think>\n\n{message['content']}" if reasoning else message["content"]
        said.append([message["role"], text, message.get("tool_calls")])
    return [said, row.get("tools"), row.get("sample_weight")]


def _compare(wanted: Iterable[Expected], found: Iterable[Trained], reader: str) -> Check:
    rows = agreeing = 0
    differences = list[str]()
    for expected, row in zip_longest(wanted, found):
        difference = (
            "there is one more" if expected is None else "is missing" if row is None else _difference(expected, row)
        )
        agreeing += not difference
        if difference and len(differences) < _EXAMPLES:
            differences.append(f"row {rows}: {difference}")
        rows += 1
    return Check(reader, rows, agreeing, tuple(differences))


def _difference(expected: Expected, found: Trained) -> str:
    """How a row differs; empty when it does not. Weights are compared to float32's precision."""
    wanted_P, ids_P = expected.row.input_ids_P, found.input_ids_P
    common = min(len(wanted_P), len(ids_P))
    (apart,) = np.nonzero(wanted_P[:common] != ids_P[:common])
    if len(apart) or len(wanted_P) != len(ids_P):
        place = int(apart[0]) if len(apart) else common
        return f"the tokens differ from number {place} on ({len(wanted_P)} expected, {len(ids_P)} found)"
    want_P, have_P = expected.row.weight_P, found.weight_P
    (missing,) = np.nonzero((want_P != 0) & (have_P == 0))
    if len(missing):
        return f"{len(missing)} scored tokens get no loss, the first is number {missing[0]}"
    (extra,) = np.nonzero((want_P == 0) & (have_P != 0) & ~expected.may_P)
    if len(extra):
        return f"{len(extra)} tokens that were not scored get loss, the first is number {extra[0]}"
    if (found.targets is None) != (expected.row.targets is None):
        return f"{'no ' if found.targets is None else ''}entries of a teacher"
    if found.targets is not None and expected.row.targets is not None and not found.targets.same(expected.row.targets):
        return "the teacher's entries differ"
    (other,) = np.nonzero((want_P != 0) & ~np.isclose(want_P, have_P, rtol=1e-5, atol=0))
    if len(other):
        return f"the weight of token {other[0]} is {have_P[other[0]]:g}, {want_P[other[0]]:g} expected"
    return ""


def _version(exporter: Exporter) -> str:
    try:
        return metadata.version(exporter.package)
    except metadata.PackageNotFoundError:
        return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
