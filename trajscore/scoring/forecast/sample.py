"""One reading of the corpus that surveys and samples: the length of every row, and some rows rendered, for totals with a range.

Rows are rendered in stretches of neighbours, drawn by chance but always the same in each of equal pieces of a file, so that a
corpus that is sorted, or repeats itself at whatever distance, is not misread. Rendered rows stand for the others by weights, as
their lengths and files want it; how far a total moves where a stretch is left out says how far it may be off (the jackknife).
Axes: R rows of the corpus, N rendered rows that are kept, S stretches, F files, G groups of rows, P parts of what was measured.
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

_READ_ROWS, _FAR = 1000, 8

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


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

    @classmethod
    def jackknifed(cls, of: Callable[[Floats], float], parts: int, unseen: float = 1.0) -> Estimate:
        """What is made of several parts, and by how much it moves where each of them is left out in turn.

        Args:
            of: the number made of the parts for which P numbers are 1 and not 0.
            parts: how many there are.
            unseen: the share of the whole that lies in no part.
        """
        value = of(np.ones(parts))
        moved_P = [of(1 - each_P) - value for each_P in np.eye(parts)] if parts > 1 else [0.0]
        return cls.around(value, 2 * math.sqrt(unseen * (parts - 1) / parts * np.square(moved_P).sum()))

    @classmethod
    def ratio(cls, measured: npt.ArrayLike, units: npt.ArrayLike) -> Estimate:
        """What was measured per unit: one measurement is trusted to a half, several as their number and spread allow."""
        of_P, per_P = np.maximum(measured, 1e-9), np.maximum(units, 1e-9)
        ratio, parts = of_P.sum() / per_P.sum(), len(of_P)
        spread = 2 * math.sqrt(parts / max(1, parts - 1)) * np.linalg.norm(of_P - ratio * per_P) / per_P.sum()
        return cls.around(ratio, math.hypot(spread, 0.5 * ratio / math.sqrt(parts)))

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
        rendered: rows that were rendered, by status.
        longest: most tokens of a rendered row, its number from 0, and its id; the rows with most characters are looked at, too.
        chunk, kept: rows of the stretches, as they were read and as they were rendered.
    """

    def __init__(self, corpus: Corpus, render: Callable[[Chunk], list[ScoredRow]], *, full: bool) -> None:
        self.rows, self.rendered, self.longest = corpus.n_rows, Counter[str](), (0, -1, "")
        most, lengths, self.kept, chunks = STRETCHES * STRETCH_ROWS, array("q"), list[ScoredRow](), list[Chunk]()
        every, far = full or self.rows is None or self.rows <= most, list[tuple[int, Chunk]]()
        self._first_F, self._stretch_S = _drawn(corpus.file_starts, self.rows or most)
        drawn, self._sums = list(itertools.chain(*self._stretch_S)), Counter[str]()
        for chunk in corpus.chunks(_READ_ROWS):
            if corpus.n_rows is None and not full and chunk.first_row >= most:
                break
            own = [length_of(each) for each in chunk.trajectories]
            lengths.extend(own)
            mine = [number - chunk.first_row for number in drawn if 0 <= number - chunk.first_row < len(own)]
            places = range(len(own)) if every else mine
            rows = dict(zip(places, render(take(chunk, places)), strict=True))
            chunks.append(take(chunk, mine))
            self.kept += [rows[place] for place in mine]
            self.rendered.update(row.rendered.status for row in rows.values())
            for place, row in rows.items():
                self._sums.update(_counts(row))
                self._compare(chunk.first_row + place, row)
            far.append((max(own), take(chunk, [int(np.argmax(own))])))
            far = sorted(far, key=lambda each: -each[0])[: 0 if every else _FAR]
        else:
            self.rows = len(lengths)
        for _, chunk in far:
            self._compare(chunk.first_row, render(chunk)[0])
        table, rows_of = pa.concat_tables([each.table for each in chunks]), (each.trajectories for each in chunks)
        self.chunk = replace(chunks[0], table=table, trajectories=[each for mine in rows_of for each in mine])
        self.length_R = np.array(lengths)

    def _compare(self, number: int, row: ScoredRow) -> None:
        self.longest = max(self.longest, (len(row.rendered.input_ids_P), number, row.trajectory.id))

    @property
    def exact(self) -> bool:
        """Whether every row was rendered."""
        return self.rendered.total() == self.rows

    def rows_with(self, status: str) -> Estimate | None:
        """Rows of the corpus with a status, or `copied`. Of what was not met, three in as many rows may be otherwise."""
        found, seen = self._total(status, np.ones_like(self.length_R)), self._sums[status]
        if found is None or self.exact or self.rows is None:
            return found
        unseen = self.rows - self.rendered.total()
        unmet = 3 * unseen / self.rendered.total()
        return Estimate(found.value, max(seen, found.low - unmet), min(seen + unseen, found.high + unmet))

    def tokens(self, name: str) -> Estimate | None:
        """Tokens of all rows: `read`, of whole conversations, or `scored`, with statistics."""
        return self._total(name, self.length_R)

    def _total(self, name: str, by_R: Ints) -> Estimate | None:
        """The sum of a number over all rows. Rendered ones have weights, so that they have as many characters (or as many rows,
        `by_R` says which) as all rows, first in each class of length and then in each file."""
        if self.rows is None or self.exact:
            return None if self.rows is None else Estimate.around(self._sums[name])
        number_N = np.concatenate(self._stretch_S)
        stretch_N = np.repeat(np.arange(len(self._stretch_S)), [len(each) for each in self._stretch_S])
        of_N, by_N = np.array([_counts(row)[name] for row in self.kept]), by_R[number_N]
        classes = np.log2(self.length_R).astype(int)
        files = np.searchsorted(self._first_F, np.arange(self.rows), "right") - 1
        groups = [(np.bincount(group_R, by_R), group_R[number_N]) for group_R in (classes, files)]

        def total(kept_S: Floats) -> float:
            weight_N = kept_S[stretch_N]
            for all_G, group_N in groups:
                known_G = np.bincount(group_N, weight_N * by_N, len(all_G))
                weight_N = weight_N * (all_G / np.maximum(known_G, 1e-9))[group_N]
            return float(weight_N @ of_N * by_R.sum() / (weight_N @ by_N))

        return Estimate.jackknifed(total, len(self._stretch_S), unseen=1 - by_N.sum() / by_R.sum())


def _counts(row: ScoredRow) -> Counter[str]:
    """What is added up over rows."""
    found = row.rendered
    return Counter(
        {found.status: 1, "copied": row.copied, "read": len(found.input_ids_P), "scored": len(found.positions_N)}
    )


def _drawn(starts: Sequence[int], rows: int) -> tuple[list[int], list[range]]:
    """The first row of each file (of several neighbours, where there are many), and the rows of each stretch."""
    first_F = [int(some[0]) for some in np.array_split(starts, min(len(starts), STRETCHES // 2))]
    draw, stretches = random.Random(0), list[range]()  # noqa: S311 - no secret
    for first, stop in itertools.pairwise([*first_F, rows]):
        pieces = np.linspace(first, stop, 1 + max(2, round(STRETCHES * (stop - first) / rows))).astype(int).tolist()
        for begin, end in itertools.pairwise(pieces):
            start = draw.randint(begin, max(begin, end - STRETCH_ROWS))
            stretches.append(range(start, min(start + STRETCH_ROWS, end)))
    return first_F, [each for each in stretches if each]


def take(chunk: Chunk, places: Sequence[int]) -> Chunk:
    """Some rows of a chunk as a chunk, which begins where the first of them stands."""
    first = chunk.first_row + (places[0] if places else 0)
    table = chunk.table.take(pa.array(places, pa.int64()))
    return replace(chunk, first_row=first, table=table, trajectories=[chunk.trajectories[place] for place in places])


def length_of(trajectory: Trajectory) -> int:
    """Characters of a trajectory, or tokens where it is given in tokens, and one, so that no row has none."""
    if trajectory.tokens is not None:
        return 1 + len(trajectory.tokens.ids_P)
    return 1 + sum(map(len, strings([trajectory.text, trajectory.messages, trajectory.tools])))
