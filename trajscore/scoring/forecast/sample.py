"""Some rows of a corpus in place of all: which ones, what is counted of them, and how far the totals may be off.

It knows rows and sums; nothing of time, models or files. The rows come in stretches, one from each part of the corpus, so
that one sorted by length or by teacher is not misjudged, and they are the same ones every time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.corpus import Chunk, Corpus, Trajectory

STRETCHES, STRETCH_ROWS = 20, 100
"""A corpus of at most so many stretches is read whole."""

KEPT_BYTES = 2**28
"""Text of rows that are kept for a calibration; beyond it every second one goes."""

_NEIGHBOURS = 50
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)


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
    added_columns: tuple[str, ...] = ()
    _step: int = 1

    def add(self, chunk: Chunk, read: Sequence[int]) -> None:
        """Keep the rows of a chunk, or every second, fourth, ... of them."""
        mine = list(range(0, len(read), self._step))
        table = chunk.table.take(mine)
        self.table = pa.concat_tables([self.table, table]) if self.read else table
        self.trajectories += [chunk.trajectories[i] for i in mine]
        self.read += [read[i] for i in mine]
        self.added_columns = chunk.added_columns
        while self.table.nbytes > KEPT_BYTES and len(self.read) > 1:
            self.table = self.table.take(list(range(0, len(self.read), 2)))
            self.trajectories, self.read = self.trajectories[::2], self.read[::2]
            self._step *= 2

    def chunk(self, rows: int, number: int) -> Chunk:
        """Rows like the kept ones, others for every number, in their order in the corpus.

        Many rows are neighbours in the corpus, as those of a part are, which compress together; of few, the lengths are
        those of all kept rows.
        """
        count, shift = len(self.read), number * (math.sqrt(5) - 1) / 2 % 1
        if rows >= 8 * _NEIGHBOURS:
            blocks = -(-rows // _NEIGHBOURS)
            firsts = ((np.arange(blocks) + shift) * count / blocks).astype(int)
            mine = np.sort((firsts[:, None] + np.arange(_NEIGHBOURS)).ravel()[:rows] % count)
        else:
            by_length = np.argsort(self.read, kind="stable")
            mine = np.sort(by_length[((np.arange(rows) + shift) * count / rows).astype(int) % count])
        return Chunk(0, self.table.take(mine), [self.trajectories[i] for i in mine], self.added_columns)


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

    Of each stretch (axis S) are known its rows, the rows that it stands for, its statuses and its sums.
    """

    rows: int | None
    exact: bool
    counted: int
    status: Counter[str]
    longest: int
    longest_row: tuple[int, str] | None
    kept: Kept
    _rows_S: npt.NDArray[np.int64]
    _stand_for_S: npt.NDArray[np.int64]
    _status_S: list[Counter[str]]
    _sums: dict[str, npt.NDArray[np.float64]]

    def mean(self, name: str) -> float:
        """Of a field of `RowFacts` over the rows of the corpus."""
        return float(self._totals(name).sum() / max(1, self._stand_for_S.sum()))

    def share(self, status: str) -> float:
        """Share of the rows that have a status."""
        count_S = np.array([counts[status] for counts in self._status_S])
        return float((self._stand_for_S * count_S / self._rows_S).sum() / max(1, self._stand_for_S.sum()))

    def total(self, name: str) -> Estimate | None:
        """Sum of a field of `RowFacts` over the corpus; None if its rows are unknown.

        The variance comes from the differences of neighbouring stretches, one from each part of the corpus: what changes
        slowly over the file, as lengths in a sorted corpus do, is seen everywhere and adds little.
        """
        if self.rows is None:
            return None
        total_S = self._totals(name)
        value = float(total_S.sum())
        if self.exact or not value:
            return Estimate(value, value, value)
        step_S = np.diff(self._sums[name] / self._rows_S) ** 2
        beside_S = (np.append(step_S, step_S[-1]) + np.append(step_S[0], step_S)) / 2
        unread_S = 1 - self._rows_S / self._stand_for_S
        variance = float((self._stand_for_S**2 * unread_S * beside_S / 2).sum())
        return Estimate.around(value, student_quantile(int((unread_S > 0).sum())) * math.sqrt(variance) / value)

    def share_from(self, row: int, name: str) -> float:
        """Share of a field's total that lies in row `row` and later, by the stretches."""
        if not row or self.rows is None:
            return 1.0
        # Of the part in which the row lies, what is behind it.
        behind_S = np.clip((np.cumsum(self._stand_for_S) - row) / self._stand_for_S, 0, 1)
        total_S = self._totals(name)
        return float((behind_S * total_S).sum() / total_S.sum()) if total_S.sum() else 0.0

    def _totals(self, name: str) -> npt.NDArray[np.float64]:
        """Of the rows that each stretch stands for."""
        return self._stand_for_S * self._sums[name] / self._rows_S


def student_quantile(freedom: int) -> float:
    """Half-width of a 95 % interval in standard errors, for so many degrees of freedom (Student's distribution).

    >>> student_quantile(1), student_quantile(5), student_quantile(40)
    (12.71, 2.57, 2.1)
    """
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 2.1


def take_sample(corpus: Corpus, count: Callable[[Chunk], list[RowFacts]], *, full: bool) -> Sample:
    """Count some rows, or all of them.

    Args:
        corpus: the corpus. Of a streamed one the first rows are read.
        count: what is counted of each row of a chunk.
        full: count every row.
    """
    kept, status_S = Kept(), list[Counter[str]]()
    sizes, stand_for, sums = list[int](), list[int](), list[list[float]]()
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
        stand_for.append(len(facts) if full or corpus.n_rows is None else wanted[number])
        sums.append([float(sum(getattr(fact, name) for fact in facts)) for name in names])
        status_S.append(Counter(fact.status for fact in facts))
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
        status=sum(status_S, Counter()),
        longest=longest,
        longest_row=longest_row,
        kept=kept,
        _rows_S=np.array(sizes),
        _stand_for_S=np.array(stand_for),
        _status_S=status_S,
        _sums=dict(zip(names, columns, strict=True)),
    )


def _wanted(rows: int | None) -> dict[int, int]:
    """Numbers of the stretches that are read when not all are, and the rows that each stands for.

    One from somewhere in each of equal parts: at equal distances they might always meet the same rows of a corpus that repeats.
    """
    stretches = STRETCHES if rows is None else -(-rows // STRETCH_ROWS)
    draw = np.random.default_rng(0)
    found = {}
    for part in np.array_split(np.arange(stretches), min(STRETCHES, stretches)):
        end = (int(part[-1]) + 1) * STRETCH_ROWS
        found[int(draw.choice(part))] = min(end, rows or end) - int(part[0]) * STRETCH_ROWS
    return found


def _chunks(corpus: Corpus, wanted: Iterable[int] | None) -> Iterator[tuple[int, Chunk]]:
    """Stretches with their numbers: all, or those that are wanted."""
    if wanted is None or corpus.n_rows is None:
        yield from enumerate(corpus.chunks(STRETCH_ROWS))
        return
    for number in sorted(wanted):
        yield number, next(corpus.chunks(STRETCH_ROWS, start=number * STRETCH_ROWS))
