"""What some rows cost when they go through the run itself: seconds per token, and bytes on disk.

Bytes do not depend on how far the models came: parts are made of all rows of the sample, with values drawn from those that the
models gave to the first ones.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from trajscore.corpus import Chunk
from trajscore.io.parquet import write_table
from trajscore.scoring.forecast.sample import Estimate, Sample, length_of, take
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import score_parts, table_of
from trajscore.scoring.rows import ScoredRow

_FIRST_ROWS, _FIRST_TOKENS = 8, 2000


class Trial(NamedTuple):
    """What was found: seconds per rendered token, how long was timed, how long the first rows took, which wait for what is
    compiled, and the loading of models in each round; bytes of parts per character of their rows, and of the most probable
    entries per scored token."""

    seconds_per_token: Estimate
    measured: float
    starting: float
    loading: float
    bytes_per_character: Estimate
    topk_bytes: float


def try_rows(sample: Sample, passes: Passes, seconds: float) -> Trial | None:
    """Score some rows for about so many seconds; the first ones whatever it takes. None if none of them can be scored."""
    first = [row for row in sample.kept if row.is_ok]
    random.Random(0).shuffle(first)  # noqa: S311 - no secret
    first = first[: max(_FIRST_ROWS, int(np.searchsorted(np.cumsum([_tokens(row) for row in first]), _FIRST_TOKENS)))]
    if not first:
        return None

    def loading() -> float:
        return sum(model.load_seconds for model in (passes.student, *passes.others))

    def clock() -> float:
        return time.monotonic() - loading()

    began = clock()
    passes.run(first)
    starting, loaded = clock() - began, loading()
    count = int(len(first) * seconds / (4 if passes.takes_turns else 10) / max(starting, 1e-9))
    count = min(max(_FIRST_ROWS, count), passes.options.part_rows, len(sample.kept))
    marks, tokens = _rounds(sample, passes, count, seconds, clock)
    # The first round waited until its rows were rendered.
    after = 1 if len(tokens) > 2 else 0
    spent, loaded = np.diff(marks)[after:], loading() - loaded
    return Trial(
        Estimate.ratio(spent, tokens[after:]),
        float(spent.sum()),
        starting,
        loaded / len(tokens),
        *_disk(sample, first, passes),
    )


def _disk(sample: Sample, first: Sequence[ScoredRow], passes: Passes) -> tuple[Estimate, float]:
    """Bytes per character of parts made of the sample's rows, and of the most probable entries per scored token."""
    sizes, characters, topk = list[int](), list[int](), 0.0
    fill, at_once = _filler(first), passes.options.part_rows
    for begin in range(0, len(sample.kept), at_once):
        chunk = take(sample.chunk, range(begin, min(begin + at_once, len(sample.kept))))
        rows = [fill(row) for row in sample.kept[begin : begin + at_once]]
        table = table_of(chunk, rows, passes)
        sizes.append(_bytes(table))
        characters.append(sum(map(length_of, chunk.trajectories)))
        if passes.topk_columns and not topk:
            scored = sum(len(row.rendered.positions_N) for row in rows)
            topk = (sizes[0] - _bytes(table.drop_columns(passes.topk_columns))) / max(1, scored)
    return Estimate.ratio(sizes, characters), topk


def _filler(first: Sequence[ScoredRow]) -> Callable[[ScoredRow], ScoredRow]:
    """Gives rows values like those of the first ones; equal rows get equal values, as a model gives them."""
    names = sorted({name for row in first for name in row.values})
    known = {name: np.concatenate([row.values[name] for row in first if name in row.values]) for name in names}
    tokens = sum(map(_tokens, first))

    def filled(row: ScoredRow) -> ScoredRow:
        draw, values = np.random.default_rng(zlib.crc32(row.rendered.input_ids_P.tobytes())), dict[str, Any]()
        for name, each in known.items():
            like = draw.choice(each, round(len(each) * _tokens(row) / tokens))
            # Hardly two real numbers are the same.
            noise = 1 + draw.normal(0, 1e-3, like.shape) if like.dtype.kind == "f" else 1
            values[name] = (like * noise).astype(like.dtype)
        return ScoredRow(row.trajectory, row.rendered, {**values, **row.values})

    return filled


def _rounds(
    sample: Sample, passes: Passes, count: int, seconds: float, clock: Callable[[], float]
) -> tuple[list[float], list[int]]:
    """Rounds of `count` rows through the pipeline until the time is up, at least one.

    Returns:
        What the clock said before them and after each, and the tokens of each.
    """
    until, marks, tokens = time.monotonic() + seconds, [clock()], list[int]()

    def chunks() -> Iterator[Chunk]:
        while not tokens or time.monotonic() < until:
            mine = [(len(tokens) * count + each) % len(sample.kept) for each in range(count)]
            tokens.append(sum(_tokens(sample.kept[each]) for each in mine))
            yield take(sample.chunk, mine)

    def note(_: int, part: pa.Table) -> None:
        _bytes(part)
        marks.append(clock())

    for stream in ([each] for each in chunks()) if passes.takes_turns else [chunks()]:
        score_parts(iter(stream), passes, note)
    return marks, tokens


def _tokens(row: ScoredRow) -> int:
    return len(row.rendered.input_ids_P)


def _bytes(table: pa.Table) -> int:
    """Size of a part with these rows."""
    buffer = pa.BufferOutputStream()
    write_table(table, buffer)
    return int(buffer.getvalue().size)
