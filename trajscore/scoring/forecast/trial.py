"""Some rows of the corpus, scored for a while: how fast that goes, and how large the parts will be.

The run's own pipeline is timed. Sizes are those of parts with all rows rendered; where no model read a row, values of the first
rows stand in for its statistics, so that a size does not depend on how far the models came.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from trajscore.corpus import Chunk
from trajscore.io.parquet import write_table
from trajscore.scoring.forecast.sample import Range, length_of
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import score_parts, table_of
from trajscore.scoring.rows import ScoredRow

_FIRST_ROWS, _FIRST_TOKENS = 8, 2000
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.1)


@dataclass(frozen=True)
class Trial:
    """What was found.

    Attributes:
        seconds_per_token: of a rendered token, by rounds of rows; a single round may be off by half.
        bytes_per_character: of a part, by the characters of its rows.
        topk_bytes: of a part, by scored token, that `keep_topk` takes; None where it was not asked for.
        measured: seconds of the rounds.
        warming: seconds that the first rows took beyond what they take later.
        loading: seconds for loading models in each round, where they take turns.
    """

    seconds_per_token: Range
    bytes_per_character: Range
    topk_bytes: float | None
    measured: float
    warming: float
    loading: float


def try_rows(stretches: Sequence[tuple[Chunk, list[ScoredRow]]], passes: Passes, seconds: float) -> Trial | None:
    """Score some rows for about so many seconds; None if none of them can be scored.

    Args:
        stretches: rows of the corpus, neighbours together.
        passes: the models.
        seconds: about how long; the first rows are run whatever it takes.
    """
    chunks, rows = [chunk for chunk, _ in stretches], [row for _, mine in stretches for row in mine]
    trajectories = [row.trajectory for row in rows]
    whole = Chunk(0, pa.concat_tables([each.table for each in chunks]), trajectories, chunks[0].added_columns)
    first = _first(rows)
    if not first:
        return None
    began, loaded = time.monotonic(), _loading(passes)
    passes.run(first)
    warm = time.monotonic() - began - (_loading(passes) - loaded)
    filled = _filled(rows, first)
    sizes = _sizes(passes, whole, filled)
    wanted = int(len(first) * seconds / (4 if passes.takes_turns else 10) / max(warm, 1e-9))
    rounds = _rounds(passes, whole, rows, min(max(_FIRST_ROWS, wanted), passes.options.part_rows, len(rows)), seconds)
    per_token = _ratio([(spent, tokens) for spent, _, tokens in rounds], alone=0.5)
    return Trial(
        seconds_per_token=per_token,
        bytes_per_character=_ratio(sizes, alone=0.2),
        topk_bytes=_topk_bytes(passes, whole, filled) if passes.options.keep_topk else None,
        measured=sum(spent for spent, *_ in rounds),
        warming=max(0.0, warm - sum(map(_tokens, first)) * per_token.value),
        loading=sum(loading for _, loading, _ in rounds) / len(rounds),
    )


def _first(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Rows that are run first: some that can be scored, until their tokens give a picture of statistics."""
    ok = [row for row in rows if row.is_ok]
    random.Random(0).shuffle(ok)  # noqa: S311 - no secret
    tokens = np.cumsum([0, *map(_tokens, ok)])
    return ok[: max(_FIRST_ROWS, int(np.searchsorted(tokens, _FIRST_TOKENS)))]


def _filled(rows: Sequence[ScoredRow], first: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Rows with values like those of the first ones; equal rows get equal values, as a model gives them."""
    names = sorted({name for row in first for name in row.values})
    known = {name: np.concatenate([row.values[name] for row in first if name in row.values]) for name in names}
    share = {name: len(values) / sum(map(_tokens, first)) for name, values in known.items()}
    filled = []
    for row in rows:
        draw, values = np.random.default_rng(zlib.crc32(row.rendered.input_ids_P.tobytes())), {}
        for name in names:
            like = draw.choice(known[name], round(share[name] * _tokens(row)))
            # Hardly two real numbers are the same.
            noise = 1 + draw.normal(0, 1e-3, like.shape) if like.dtype.kind == "f" else 1
            values[name] = (like * noise).astype(like.dtype)
        filled.append(row if row.values else ScoredRow(row.trajectory, row.rendered, values))
    return filled


def _sizes(passes: Passes, whole: Chunk, rows: Sequence[ScoredRow]) -> list[tuple[float, float]]:
    """Bytes, and characters, of parts with these rows."""
    size, found = passes.options.part_rows, list[tuple[float, float]]()
    for first in range(0, len(rows), size):
        mine = list(rows[first : first + size])
        chunk = _take(whole, 0, range(first, first + len(mine)))
        found.append((_bytes(table_of(chunk, mine, passes)), sum(length_of(row.trajectory) for row in mine)))
    return found


def _topk_bytes(passes: Passes, whole: Chunk, rows: Sequence[ScoredRow]) -> float:
    """Bytes by scored token of the columns of most probable entries, in one part."""
    mine = list(rows[: passes.options.part_rows])
    table = table_of(_take(whole, 0, range(len(mine))), mine, passes)
    names = [name for name in table.column_names if name in passes.topk_columns]
    return _bytes(table.select(names)) / max(1, sum(len(row.rendered.positions_N) for row in mine if row.is_ok))


def _rounds(
    passes: Passes, whole: Chunk, rows: Sequence[ScoredRow], count: int, seconds: float
) -> list[tuple[float, float, float]]:
    """Rounds of `count` rows through the pipeline until the time is up, at least one: seconds, those of loading, and tokens."""
    until, last = time.monotonic() + seconds, [time.monotonic(), _loading(passes)]
    found, tokens = list[tuple[float, float, float]](), list[int]()

    def chunks() -> Iterator[Chunk]:
        while not found or time.monotonic() < until:
            number = len(tokens)
            mine = [each % len(rows) for each in range(number * count, (number + 1) * count)]
            tokens.append(sum(_tokens(rows[each]) for each in mine))
            yield _take(whole, number * passes.options.part_rows, mine)

    def note(number: int, part: pa.Table) -> None:
        _bytes(part)
        now, loaded = time.monotonic(), _loading(passes)
        found.append((now - last[0] - (loaded - last[1]), loaded - last[1], tokens[number]))
        last[:] = now, loaded

    for stream in ([each] for each in chunks()) if passes.takes_turns else [chunks()]:
        score_parts(iter(stream), passes, note)
    # The first one waited until its rows were rendered.
    return found[1:] if len(found) > 2 else found


def _take(whole: Chunk, first_row: int, numbers: Sequence[int]) -> Chunk:
    """Some rows of a chunk as a chunk."""
    trajectories = [whole.trajectories[number] for number in numbers]
    return Chunk(first_row, whole.table.take(list(numbers)), trajectories, whole.added_columns)


def _tokens(row: ScoredRow) -> int:
    return len(row.rendered.input_ids_P)


def _loading(passes: Passes) -> float:
    return sum(model.load_seconds for model in (passes.student, *passes.others))


def _bytes(table: pa.Table) -> int:
    """Size of a part with these rows."""
    buffer = pa.BufferOutputStream()
    write_table(table, buffer)
    return int(buffer.getvalue().size)


def _ratio(pairs: Sequence[tuple[float, float]], alone: float) -> Range:
    """The first of each pair per unit of the second, and how far it may be off: by the spread, by a tenth at least; one pair
    alone by the share that is given."""
    measured_R, by_R = np.array(pairs, float).T
    ratio, spread = float(measured_R.sum() / max(by_R.sum(), 1e-9)), alone
    if len(pairs) > 1 and ratio:
        off = float((measured_R - ratio * by_R).std(ddof=1) / measured_R.mean())
        spread = _STUDENT[min(len(pairs) - 1, len(_STUDENT)) - 1] * off / math.sqrt(len(pairs))
    return Range.around(ratio, ratio * max(0.1, spread))
