"""One reading of the corpus that surveys and samples: the length of every row, and some rows rendered, for totals with a range.

A total is what rendered rows have per character, by classes of length, times the characters of all rows; by how much the rows
of a file are off that counts for the file. Rows are rendered in stretches of neighbours, drawn by chance but always the same in
each of equal pieces of a file, so that a corpus that is sorted, or repeats itself at whatever distance, is not misread.
Axes: R rows of the corpus, N rendered rows, S stretches, F files, C classes of length.
"""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.corpus import Chunk, Corpus, Trajectory
from trajscore.rendering.literals import strings
from trajscore.scoring.rows import ScoredRow

STRETCHES, STRETCH_ROWS = 100, 20
"""What is rendered, two stretches of a file at least; all of a corpus that is not longer."""

_READ_ROWS, _CLASSES, _FAR = 1000, 64, 8

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, which is the number itself where it was counted."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, error: float = 0.0) -> Estimate:
        """A value and half the width of its interval, not below zero."""
        value, error = float(value), float(error)  # numpy's own kind is no JSON
        return cls(value, max(0.0, value - error), value + error)

    def times(self, factor: Estimate) -> Estimate:
        """The product with a number that was found independently."""
        errors = [(each.high - each.value) / (each.value or 1) for each in (self, factor)]
        return Estimate.around(self.value * factor.value, self.value * factor.value * math.hypot(*errors))


class Sample:
    """A corpus as a dry run knows it.

    Args:
        corpus: the corpus. Of a stream only the first rows are read.
        render: the rows of a chunk in tokens.
        full: render every row.

    Attributes:
        rows: of the corpus; None for a stream that did not end within the sample, of which there are no totals.
        length_R: characters of every row that was read.
        status: rendered rows by status.
        longest: most tokens of a rendered row; the rows with most characters are looked at, too.
        longest_row: its number from 0, and its id.
        chunk, kept: rows of the stretches, as they were read and as they were rendered.
    """

    def __init__(self, corpus: Corpus, render: Callable[[Chunk], list[ScoredRow]], *, full: bool) -> None:
        self.rows, self.longest = corpus.n_rows, 0
        self.longest_row: tuple[int, str] | None = None
        self._status_N, self._sizes_N3 = list[str](), array("q")
        most, lengths, far = STRETCHES * STRETCH_ROWS, array("q"), list[tuple[int, Chunk]]()
        every = full or self.rows is None or self.rows <= most
        self._file_F, self._stretch_S = _drawn(corpus.file_starts, self.rows or most)
        drawn = np.unique(np.add.outer(self._stretch_S, np.arange(STRETCH_ROWS)))
        self.kept, chunks = list[ScoredRow](), list[Chunk]()
        for chunk in corpus.chunks(_READ_ROWS):
            if corpus.n_rows is None and not full and chunk.first_row >= most:
                break
            own = [length_of(each) for each in chunk.trajectories]
            lengths.extend(own)
            first, stop = np.searchsorted(drawn, [chunk.first_row, chunk.first_row + len(own)])
            mine = (drawn[first:stop] - chunk.first_row).tolist()
            chunks.append(take(chunk, mine))
            rows = dict(enumerate(render(chunk))) if every else dict(zip(mine, render(chunks[-1]), strict=True))
            self.kept += [rows[place] for place in mine]
            for place, row in rows.items():
                self._sizes_N3.extend((chunk.first_row + place, *self._tokens(chunk.first_row + place, row)))
                self._status_N.append(row.rendered.status)
            far.append((max(own), take(chunk, [int(np.argmax(own))])))
            far = sorted(far, key=lambda each: -each[0])[: 0 if every else _FAR]
        else:
            self.rows = len(lengths)
        for _, chunk in far:
            self._tokens(chunk.first_row, render(chunk)[0])
        table, rows_of = pa.concat_tables([each.table for each in chunks]), (each.trajectories for each in chunks)
        self.chunk = replace(chunks[0], table=table, trajectories=[each for mine in rows_of for each in mine])
        self.length_R, self.status = np.array(lengths), Counter(self._status_N)

    def _tokens(self, number: int, row: ScoredRow) -> tuple[int, int]:
        """Tokens of a row, read and scored; the longest row is noted."""
        read = len(row.rendered.input_ids_P)
        if read > self.longest:
            self.longest, self.longest_row = read, (number, row.trajectory.id)
        return read, len(row.rendered.positions_N)

    @property
    def exact(self) -> bool:
        """Whether every row was rendered."""
        return len(self._status_N) == self.rows

    @property
    def read(self) -> Estimate | None:
        """Tokens of all rendered conversations."""
        return self._total(np.array(self._sizes_N3).reshape(-1, 3)[:, 1], self.length_R)

    @property
    def scored(self) -> Estimate | None:
        """Tokens with statistics."""
        return self._total(np.array(self._sizes_N3).reshape(-1, 3)[:, 2], self.length_R)

    def rows_with(self, status: str) -> Estimate | None:
        """Rows of the corpus with a status."""
        found = self._total(np.array([each == status for each in self._status_N], int), np.ones_like(self.length_R))
        if found is None or self.exact or self.rows is None:
            return found
        seen, unseen = self.status[status], self.rows - len(self._status_N)
        return Estimate(found.value, max(seen, found.low), min(seen + unseen, found.high))

    def _total(self, of_N: Ints, per_R: Ints) -> Estimate | None:
        """The sum over all rows of what is known of the rendered ones.

        How far each stretch is off what its rows lead to expect, beside its neighbour in the file, says how far the sum may be;
        and of what was not met, three in N rows may be otherwise.

        Args:
            of_N: the number of each rendered row.
            per_R: what it goes with: characters, or 1.
        """
        if self.rows is None or self.exact:
            return None if self.rows is None else Estimate.around(of_N.sum())
        number_N = np.array(self._sizes_N3).reshape(-1, 3)[:, 0]
        per_N, class_R = per_R[number_N], np.log2(self.length_R).astype(int)
        file_R = np.searchsorted(self._file_F, np.arange(self.rows), "right") - 1
        files, class_N, file_N = len(self._file_F), class_R[number_N], file_R[number_N]
        known_C = np.bincount(class_N, per_N, _CLASSES)
        each_C = np.where(
            known_C > 0, np.bincount(class_N, of_N, _CLASSES) / np.maximum(known_C, 1), of_N.sum() / per_N.sum()
        )
        expected_N = per_N * each_C[class_N]
        expected_F = np.bincount(file_N, expected_N, files)
        off_F = np.where(expected_F > 0, np.bincount(file_N, of_N, files) / np.maximum(expected_F, 1e-9), 1)
        # The error, file by file.
        stretch_N = np.searchsorted(self._stretch_S, number_N, "right") - 1
        off_S = np.bincount(stretch_N, of_N - off_F[file_N] * expected_N, len(self._stretch_S))
        file_S = file_R[self._stretch_S]
        (pair_S,) = np.nonzero(np.diff(file_S) == 0)
        pairs_F = np.maximum(1, np.bincount(file_S[pair_S], minlength=files))
        square_F = np.bincount(file_S[pair_S], np.diff(off_S)[pair_S] ** 2, files) / (2 * pairs_F)
        all_F, known_F = np.bincount(file_R, per_R, files), np.bincount(file_N, per_N, files)
        variance_F = np.bincount(file_S, minlength=files) * square_F * (all_F / known_F) ** 2 * (1 - known_F / all_F)
        unmet = 3 / len(of_N) * (all_F - known_F).sum() * max(1.0, of_N.sum() / per_N.sum())
        error = math.hypot(2.1 * math.sqrt(variance_F.sum()), unmet)
        return Estimate.around((off_F[file_R] * each_C[class_R] * per_R).sum(), error)


def _drawn(starts: Sequence[int], rows: int) -> tuple[Ints, Ints]:
    """The first row of each file (of several neighbours, where there are many), and that of each stretch."""
    first_F = np.array([some[0] for some in np.array_split(starts, min(len(starts), STRETCHES // 2))])
    draw, stretches = random.Random(0), list[int]()  # noqa: S311 - no secret
    for first, stop in zip(first_F, [*first_F[1:], rows], strict=True):
        pieces = np.linspace(first, stop, 1 + max(2, round(STRETCHES * (stop - first) / rows))).astype(int).tolist()
        stretches += [draw.randint(a, max(a, b - STRETCH_ROWS)) for a, b in itertools.pairwise(pieces)]
    return first_F, np.unique(stretches)


def take(chunk: Chunk, places: Sequence[int], first_row: int | None = None) -> Chunk:
    """Some rows of a chunk as a chunk, which begins where the first of them stands, or where it is said."""
    first = chunk.first_row + (places[0] if places else 0) if first_row is None else first_row
    table = chunk.table.take(pa.array(places, pa.int64()))
    return replace(chunk, first_row=first, table=table, trajectories=[chunk.trajectories[place] for place in places])


def length_of(trajectory: Trajectory) -> int:
    """Characters of a trajectory, or tokens where it is given in tokens, and one, so that no row has none."""
    if trajectory.tokens is not None:
        return 1 + len(trajectory.tokens.ids_P)
    return 1 + sum(map(len, strings([trajectory.text, trajectory.messages, trajectory.tools])))
