"""How fast this machine scores, and how large the parts are: the run itself over a few rows, timed, written into memory.

It knows the pipeline of `score`; nothing of totals. Rounds are parts in small: as many rows as a part has where time allows,
with the lengths of the whole sample, rendered ahead of the engine and written behind it as in a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from trajscore.corpus import Chunk
from trajscore.io.parquet import write_table
from trajscore.scoring.background import BackgroundWriter, prefetch
from trajscore.scoring.forecast.sample import Estimate, Kept, student_quantile
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import rounds, table_of
from trajscore.scoring.rows import ScoredRow

_FIRST_ROWS = 8


@dataclass(frozen=True)
class Calibration:
    """What was timed.

    Attributes:
        rounds: rounds that count.
        rows: rows of each.
        seconds: time of all these rounds, loading of models left out.
        tokens: rendered tokens that they read.
        longest: most tokens of a row that ran.
        seconds_per_work: with the interval that the rounds' spread gives; one round alone may be off by half.
        warming: what the first rows took beyond what they take later.
        loading: seconds for loading models in each round, where they take turns.
        part_bytes: size of a part of one row.
        token_bytes: bytes of a part per rendered token.
    """

    rounds: int
    rows: int
    seconds: float
    tokens: int
    longest: int
    seconds_per_work: Estimate
    warming: float
    loading: float
    part_bytes: int
    token_bytes: float


@dataclass(frozen=True)
class _Round:
    """Seconds without loading, seconds of loading, work and tokens of one round."""

    seconds: float
    loading: float
    work: float
    tokens: int
    longest: int


class Calibrator:
    """Runs rounds and times them.

    Args:
        passes: the models of the run.
        kept: rows to run.
        work_of: what running a row costs, in the unit in which the totals are known.
    """

    def __init__(self, passes: Passes, kept: Kept, work_of: Callable[[ScoredRow], float]) -> None:
        self._passes, self._options = passes, passes.options
        self._kept, self._work_of = kept, work_of
        self._written: list[tuple[pa.Table, list[int]]] = []

    def run(self, seconds: float) -> Calibration:
        """Time rounds for about so many seconds, and at least one."""
        began = time.monotonic()
        warm = self._single(_FIRST_ROWS, 0)
        largest = min(self._options.part_rows, len(self._kept.read))
        rows, single = min(_FIRST_ROWS, largest), list[_Round]()
        # Small batches are slow in their own way, so rounds grow to the size of a part while time allows.
        while True:
            single.append(self._single(rows, len(single) + 1))
            share = seconds / 12 / max(single[-1].seconds, 1e-9)
            if rows == largest or share < 1 or time.monotonic() - began > seconds / 2:
                break
            rows = min(largest, int(rows * min(8, 1 + share)))
        left = seconds - (time.monotonic() - began)
        rounds = self._pipeline(rows, left) if left > 2 * single[-1].seconds else []
        rounds = rounds or single[-1:]
        rate = sum(r.seconds for r in rounds) / max(1.0, sum(r.work for r in rounds))
        frame, token = self._sizes()
        return Calibration(
            rounds=len(rounds),
            rows=rows,
            seconds=sum(r.seconds for r in rounds),
            tokens=sum(r.tokens for r in rounds),
            longest=max(r.longest for r in (warm, *single, *rounds)),
            seconds_per_work=Estimate.around(rate, _spread([r.seconds / max(1.0, r.work) for r in rounds])),
            warming=max(0.0, warm.seconds - warm.work * rate),
            loading=sum(r.loading for r in rounds) / len(rounds),
            part_bytes=frame,
            token_bytes=token,
        )

    def _single(self, rows: int, number: int) -> _Round:
        """A round by itself: nothing is made ahead or written behind."""
        (found,) = self._rounds(iter([self._kept.chunk(min(rows, len(self._kept.read)), number)]), lambda _: False)
        return found

    def _pipeline(self, rows: int, seconds: float) -> list[_Round]:
        """Rounds one after the other, without the first, which waits for its rows to be rendered."""
        began = time.monotonic()

        def chunks() -> Iterator[Chunk]:
            number = 0
            while True:
                yield self._kept.chunk(rows, number)
                number += 1

        def enough(rounds: list[_Round]) -> bool:
            return len(rounds) > 2 and time.monotonic() - began > seconds

        return self._rounds(chunks(), enough)[1:]

    def _rounds(self, chunks: Iterator[Chunk], enough: Callable[[list[_Round]], bool]) -> list[_Round]:
        found: list[_Round] = []
        groups = (group for chunk in chunks for group in rounds(iter([chunk]), self._passes))
        last, loaded = time.monotonic(), self._loading()
        with BackgroundWriter() as behind:
            for group in prefetch(groups):
                ((chunk, rows),) = group
                tokens = [len(row.rendered.input_ids_P) for row in rows]
                work = sum(self._work_of(row) for row in rows)
                self._passes.run(rows)
                behind(self._write, chunk, rows)
                now, total = time.monotonic(), self._loading()
                seconds = now - last - (total - loaded)
                found.append(_Round(seconds, total - loaded, work, sum(tokens), max(tokens)))
                last, loaded = now, total
                if enough(found):
                    break
        return found

    def _loading(self) -> float:
        return sum(model.load_seconds for model in (self._passes.student, *self._passes.others))

    def _write(self, chunk: Chunk, rows: list[ScoredRow]) -> None:
        table = table_of(chunk, rows, self._passes)
        _file_bytes(table)
        if sum(len(tokens) for _, tokens in self._written) < self._options.part_rows:
            self._written.append((table, [len(row.rendered.input_ids_P) for row in rows]))

    def _sizes(self) -> tuple[int, float]:
        """Bytes of a part with next to nothing in it, and of each token in a part of the usual size.

        Small parts compress badly, so the rounds' rows are put together.
        """
        table = pa.concat_tables([table for table, _ in self._written]).slice(0, self._options.part_rows)
        tokens = [count for _, counts in self._written for count in counts][: table.num_rows]
        frame = _file_bytes(table.slice(0, 1))
        return frame, max(0, _file_bytes(table) - frame) / max(1, sum(tokens[1:]))


def _file_bytes(table: pa.Table) -> int:
    """Size of a part with these rows."""
    buffer = pa.BufferOutputStream()
    write_table(table, buffer)
    return int(buffer.getvalue().size)


def _spread(rates: Sequence[float]) -> float:
    """Half the 95 % interval of the mean of some rates, relative to it; a single one may be off by half."""
    count, mean = len(rates), sum(rates) / len(rates)
    if count < 2 or not mean:
        return 0.5
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (count - 1))
    return student_quantile(count - 1) * deviation / math.sqrt(count) / mean
