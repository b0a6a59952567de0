"""Some rows of a corpus in place of all: which ones, what is counted of them, and how far the totals may be off.

It knows rows and sums; nothing of time, models or files. The rows come in stretches that are spread evenly over the corpus, so
that one sorted by length or by teacher is not misjudged, and they are the same ones every time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.corpus import Chunk, Corpus, Trajectory

STRETCHES, STRETCH_ROWS = 20, 100
"""A corpus of at most so many stretches is read whole."""

KEPT_BYTES = 2**28
"""Text of rows that are kept for a calibration; beyond it every second one goes."""

_NORMAL = 1.96


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, which is the number itself where it was counted."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, relative: float) -> Estimate:
        """A value and a half-width in its units, not below zero."""
        return cls(value, max(0.0, value * (1 - relative)), value * (1 + relative))

    @property
    def relative(self) -> float:
        """Half the interval over the value."""
        return (self.high - self.low) / 2 / self.value if self.value else 0.0

    def times(self, factor: float) -> Estimate:
        """All three multiplied."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class RowFacts:
    """What is counted of one row.

    Attributes:
        read: tokens of the rendered conversation, 0 for a refused row.
        scored: tokens with statistics.
        status: `ok` or why it cannot be scored.
        work: what running it costs, in any unit.
        waiting: bytes that wait on disk for the student.
    """

    read: int
    scored: int
    status: str
    work: float
    waiting: int


@dataclass
class Kept:
    """Rows kept for a calibration, as they were read, and their tokens."""

    table: pa.Table = field(default_factory=lambda: pa.table({}))
    trajectories: list[Trajectory] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    _step: int = 1

    def add(self, chunk: Chunk, read: Sequence[int]) -> None:
        """Keep the rows of a chunk, or every second, fourth, ... of them."""
        mine = list(range(0, len(read), self._step))
        table = chunk.table.take(mine)
        self.table = pa.concat_tables([self.table, table]) if self.read else table
        self.trajectories += [chunk.trajectories[i] for i in mine]
        self.read += [read[i] for i in mine]
        while self.table.nbytes > KEPT_BYTES and len(self.read) > 1:
            self.table = self.table.take(list(range(0, len(self.read), 2)))
            self.trajectories, self.read = self.trajectories[::2], self.read[::2]
            self._step *= 2

    def chunk(self, rows: int, number: int) -> Chunk:
        """Rows that have the lengths of all kept ones, others for every number, in their order in the corpus."""
        count = len(self.read)
        by_length = np.argsort(self.read, kind="stable")
        shift = number * (math.sqrt(5) - 1) / 2 % 1
        places = ((np.arange(rows) + shift) * count / rows).astype(int) % count
        mine = np.sort(by_length[places])
        return Chunk(0, self.table.take(mine), [self.trajectories[i] for i in mine])


@dataclass(frozen=True)
class Sample:
    """What was counted.

    Attributes:
        rows: rows of the corpus, None if unknown.
        exact: whether all of them were counted.
        counted: number of rows that were.
        status: counted rows by status, `ok` included.
        longest: most tokens of a counted row.
        longest_row: its number, and its id.
        kept: rows for a calibration.
    """

    rows: int | None
    exact: bool
    counted: int
    status: Counter[str]
    longest: int
    longest_row: tuple[int, str] | None
    kept: Kept
    _rows_S: npt.NDArray[np.int64]
    _sums: dict[str, npt.NDArray[np.float64]]

    def mean(self, name: str) -> float:
        """Of a field of `RowFacts` over the counted rows."""
        return float(self._sums[name].sum() / max(1, self.counted))

    def total(self, name: str) -> Estimate | None:
        """Sum of a field of `RowFacts` over the corpus; None if its rows are unknown.

        The variance is that of a systematic sample, from the differences of neighbouring stretches: what changes slowly over
        the file, as lengths in a sorted corpus do, is seen everywhere and adds little.
        """
        if self.rows is None:
            return None
        value = self.mean(name) * self.rows
        if self.exact:
            exact = float(self._sums[name].sum())
            return Estimate(exact, exact, exact)
        mean_S = self._sums[name] / self._rows_S
        unread = 1 - self.counted / self.rows
        variance = unread * float((np.diff(mean_S) ** 2).sum()) / (2 * (len(mean_S) - 1) * len(mean_S))
        return Estimate.around(value, _NORMAL * math.sqrt(variance) * self.rows / value if value else 0.0)

    def share_from(self, row: int, name: str) -> float:
        """Share of a field's total that lies in row `row` and later, by the stretches."""
        if not row or self.rows is None:
            return 1.0
        if row >= self.rows:
            return 0.0
        # Each stretch stands for an equal part of the corpus; of the one in which the row lies, what is behind it.
        part = self.rows / len(self._rows_S)
        behind_S = np.clip(np.arange(1, len(self._rows_S) + 1) - row / part, 0, 1)
        whole = self._sums[name].sum()
        found = float((behind_S * self._sums[name]).sum() / whole) if whole else 0.0
        return found or 1 - row / self.rows


def take_sample(corpus: Corpus, count: Callable[[Chunk], list[RowFacts]], *, full: bool) -> Sample:
    """Count some rows, or all of them.

    Args:
        corpus: the corpus. Of a streamed one the first rows are read.
        count: what is counted of each row of a chunk.
        full: count every row.
    """
    kept, status = Kept(), Counter[str]()
    sizes, sums = list[int](), list[list[float]]()
    longest, longest_row = 0, None
    names = ("read", "scored", "work", "waiting")
    wanted = _wanted(corpus.n_rows)
    ended = True
    for number, chunk in _chunks(corpus, None if full else wanted):
        if corpus.n_rows is None and not full and number == STRETCHES:
            ended = False
            break
        facts = count(chunk)
        sizes.append(len(facts))
        sums.append([float(sum(getattr(fact, name) for fact in facts)) for name in names])
        status.update(fact.status for fact in facts)
        place = max(range(len(facts)), key=lambda i: facts[i].read)
        if facts[place].read > longest:
            longest = facts[place].read
            longest_row = (chunk.first_row + place, chunk.trajectories[place].id)
        if number in wanted:
            kept.add(chunk, [fact.read for fact in facts])
    counted = sum(sizes)
    rows = corpus.n_rows if corpus.n_rows is not None or not ended else counted
    columns = np.array(sums, np.float64).reshape(-1, len(names)).T
    return Sample(
        rows=rows,
        exact=counted == rows,
        counted=counted,
        status=status,
        longest=longest,
        longest_row=longest_row,
        kept=kept,
        _rows_S=np.array(sizes),
        _sums=dict(zip(names, columns, strict=True)),
    )


def _wanted(rows: int | None) -> set[int]:
    """Numbers of the stretches that are read when not all are."""
    stretches = STRETCHES if rows is None else -(-rows // STRETCH_ROWS)
    if stretches <= STRETCHES:
        return set(range(stretches))
    return {int((k + 0.5) * stretches / STRETCHES) for k in range(STRETCHES)}


def _chunks(corpus: Corpus, wanted: set[int] | None) -> Iterator[tuple[int, Chunk]]:
    """Stretches with their numbers: all, or those that are wanted."""
    if wanted is None or corpus.n_rows is None:
        yield from enumerate(corpus.chunks(STRETCH_ROWS))
        return
    for number in sorted(wanted):
        yield number, next(corpus.chunks(STRETCH_ROWS, start=number * STRETCH_ROWS))
