"""Totals of a corpus from some of its rows: the length of every row is read, and some stretches of neighbours are rendered.

A total is that of the rendered rows per character, class of lengths by class, times the characters that all rows have.
Stretches lie somewhere in each of equal pieces of the corpus, drawn by chance but always the same: a corpus that
repeats itself, at whatever distance, is not misread.
Axes: R rows of the corpus, S stretches, C classes of lengths.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trajscore.corpus import Chunk, Corpus, Trajectory
from trajscore.rendering.literals import strings
from trajscore.scoring.rows import ScoredRow

STRETCHES, STRETCH_ROWS = 20, 100
"""What is rendered; all of a corpus that is not longer."""

Floats = npt.NDArray[np.float64]

_CLASSES = 40
_LONGEST_STRETCHES = 3


@dataclass(frozen=True)
class Range:
    """A number and its 95 % interval, which is the number itself where it was counted."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, error: float = 0.0) -> Range:
        """A value and half the width of its interval, not below zero."""
        value, error = float(value), float(error)  # numpy's own kind is no JSON
        return cls(value, max(0.0, value - error), value + error)

    def times(self, factor: Range) -> Range:
        """The product with a number that was found independently."""
        errors = [(each.high - each.value) / (each.value or 1) for each in (self, factor)]
        return Range.around(self.value * factor.value, self.value * factor.value * math.hypot(*errors))


@dataclass
class Sample:
    """What is known of the rows of a corpus.

    Attributes:
        rows: how many; None for a stream that did not end within the sample.
        characters_R: of every row that was read, in order.
        counted: rows that were rendered, and these by `status`.
        read, scored: tokens of all rendered conversations, and those with statistics; None where `rows` is.
        longest: most tokens of a rendered row; rows with most characters are among these.
        longest_row: its number from 0, and its id.
        kept: stretches with their rows, for a trial.
    """

    rows: int | None = None
    characters_R: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    counted: int = 0
    status: Counter[str] = field(default_factory=Counter)
    read: Range | None = None
    scored: Range | None = None
    longest: int = 0
    longest_row: tuple[int, str] | None = None
    kept: list[tuple[Chunk, list[ScoredRow]]] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether every row was rendered."""
        return self.counted == self.rows

    def rows_with(self, status: str) -> Range | None:
        """Rows of the corpus with a status; Wilson's interval, which allows for what was not met."""
        count = self.status[status]
        if self.rows is None or self.exact:
            return None if self.rows is None else Range.around(count)
        n, share = self.counted, count / self.counted
        middle, half = share + 2 / n, 2 * math.sqrt(share * (1 - share) / n + 1 / n**2)
        low, high = ((middle + sign * half) / (1 + 4 / n) * self.rows for sign in (-1, 1))
        return Range(share * self.rows, max(low, count), min(high, self.rows))


def take_sample(corpus: Corpus, render: Callable[[Chunk], list[ScoredRow]], *, full: bool) -> Sample:
    """Render some rows, or all of them.

    Args:
        corpus: the corpus. Of a stream only the first rows are read.
        render: the rows of a chunk in tokens.
        full: render every row.
    """
    every = full or corpus.n_rows is None or corpus.n_rows <= STRETCHES * STRETCH_ROWS
    drawn, lengths, chunks = _drawn(corpus.n_rows), array("q"), corpus.chunks(STRETCH_ROWS)
    if not every:
        lengths.extend(length_of(each) for chunk in corpus.chunks(1000) for each in chunk.trajectories)
        far = np.argsort(lengths)[-_LONGEST_STRETCHES:] // STRETCH_ROWS
        chunks = corpus.parts(STRETCH_ROWS, sorted({*drawn, *far.tolist()}))
    found, sums, stretches = Sample(), np.zeros(3), list[Floats]()
    for chunk in chunks:
        number = chunk.first_row // STRETCH_ROWS
        if corpus.n_rows is None and not full and number == STRETCHES:
            break
        rows = render(chunk)
        sizes = [
            (length_of(row.trajectory), len(row.rendered.input_ids_P), len(row.rendered.positions_N)) for row in rows
        ]
        place = max(range(len(rows)), key=lambda each: sizes[each][1])
        if sizes[place][1] > found.longest:
            found.longest, found.longest_row = sizes[place][1], (chunk.first_row + place, rows[place].trajectory.id)
        if every:
            lengths.extend(size[0] for size in sizes)
            sums += np.sum(sizes, 0)
        if number in drawn:
            found.kept.append((chunk, rows))
            stretches.append(_by_class(np.array(sizes)))
        if every or number in drawn:
            found.counted += len(rows)
            found.status.update(row.rendered.status for row in rows)
    else:
        found.rows = len(lengths)
    found.characters_R = np.array(lengths)
    if found.rows is not None:
        all_C, sums_SC3 = _by_class(found.characters_R[:, None])[:, 0], np.array(stretches)
        found.read, found.scored = (
            Range.around(sums[i]) if every else _total(all_C, sums_SC3[:, :, 0], sums_SC3[:, :, i]) for i in (1, 2)
        )
    return found


def _drawn(rows: int | None) -> set[int]:
    """Numbers of the stretches that count: one from somewhere in each of equal pieces; the first ones of a stream."""
    count, draw = STRETCHES if rows is None else -(-rows // STRETCH_ROWS), random.Random(0)  # noqa: S311 - no secret
    pieces = [range(count * i // STRETCHES, count * (i + 1) // STRETCHES) for i in range(STRETCHES)]
    return {draw.choice(piece) for piece in pieces if piece}


def _by_class(sizes_RK: npt.NDArray[np.int64]) -> Floats:
    """Sums over rows by class of their characters, which stand first, shape [C, K]; a class is a factor of two."""
    class_R = np.log2(sizes_RK[:, 0]).astype(int)
    return np.array([np.bincount(class_R, column, _CLASSES) for column in sizes_RK.T]).T


def _total(all_C: Floats, x_SC: Floats, y_SC: Floats) -> Range:
    """Sum over the corpus, from characters x and tokens y of stretches; how far each is off what its lengths lead to expect
    says how far the sum may be."""
    known_C = x_SC.sum(0) > 0
    per_character_C = np.where(known_C, y_SC.sum(0) / np.maximum(x_SC.sum(0), 1), y_SC.sum() / x_SC.sum())
    off_S = (y_SC - x_SC * per_character_C).sum(1)
    times = all_C.sum() / x_SC.sum()
    error = 2.1 * float(off_S.std(ddof=1)) * math.sqrt(len(off_S)) * times * math.sqrt(max(0.0, 1 - 1 / times))
    return Range.around(float(all_C @ per_character_C), error)


def length_of(trajectory: Trajectory) -> int:
    """Characters of a trajectory, or tokens where it is given in tokens, and one, so that no row has none."""
    if trajectory.tokens is not None:
        return 1 + len(trajectory.tokens.ids_P)
    return 1 + sum(map(len, strings([trajectory.text, trajectory.messages, trajectory.tools])))
