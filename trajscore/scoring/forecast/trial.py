"""What some rows cost when they go through the run itself: seconds per token, and bytes on disk.

Bytes do not depend on how far the models came: parts are made of all rows of the sample, with values drawn from those that the
models gave to the first ones.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from trajscore.corpus import Chunk
from trajscore.io.parquet import write_table
from trajscore.scoring.forecast.sample import Estimate, length_of, take
from trajscore.scoring.passes import Passes
from trajscore.scoring.pipeline import score_parts, table_of
from trajscore.scoring.rows import ScoredRow

_FIRST_ROWS, _FIRST_TOKENS = 8, 2000


class Trial(NamedTuple):
    """What was found: seconds per rendered token; bytes of parts per character of their rows, and of the most probable entries
    per scored token; how long was timed; how much longer the first rows took; seconds of loading models in each round."""

    seconds_per_token: Estimate
    bytes_per_character: Estimate
    topk_bytes: float | None
    measured: float
    warming: float
    loading: float


def try_rows(chunk: Chunk, rows: Sequence[ScoredRow], passes: Passes, seconds: float) -> Trial | None:
    """Score some rows for about so many seconds; None if none of them can be scored.

    Args:
        chunk: rows of the corpus, neighbours together.
        rows: the same ones, rendered.
        passes: the models.
        seconds: about how long; the first rows are run whatever it takes.
    """
    first = [row for row in rows if row.is_ok]
    if not first:
        return None
    random.Random(0).shuffle(first)  # noqa: S311 - no secret
    first = first[: max(_FIRST_ROWS, int(np.searchsorted(np.cumsum([_tokens(row) for row in first]), _FIRST_TOKENS)))]
    began, loaded = time.monotonic(), _loading(passes)
    passes.run(first)
    warm = time.monotonic() - began - (_loading(passes) - loaded)
    filled, at_once = _filled(rows, first), passes.options.part_rows
    parts = [range(len(rows))[begin : begin + at_once] for begin in range(0, len(rows), at_once)]
    tables = [table_of(take(chunk, part, 0), filled[part.start : part.stop], passes) for part in parts]
    lengths = [sum(length_of(chunk.trajectories[place]) for place in part) for part in parts]
    best = tables[0].select([name for name in tables[0].column_names if name in passes.topk_columns])
    scored = sum(len(rows[i].rendered.positions_N) for i in parts[0])
    wanted = int(len(first) * seconds / (4 if passes.takes_turns else 10) / max(warm, 1e-9))
    rounds = _rounds(chunk, rows, passes, min(max(_FIRST_ROWS, wanted), at_once, len(rows)), seconds)
    per_token = _ratio([(spent, tokens) for spent, _, tokens in rounds], alone=0.5)
    return Trial(
        per_token,
        _ratio(list(zip(map(_bytes, tables), lengths, strict=True)), alone=0.2),
        _bytes(best) / max(1, scored) if passes.topk_columns else None,
        measured=sum(spent for spent, *_ in rounds),
        warming=max(0.0, warm - sum(map(_tokens, first)) * per_token.value),
        loading=sum(loading for _, loading, _ in rounds) / len(rounds),
    )


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


def _rounds(
    chunk: Chunk, rows: Sequence[ScoredRow], passes: Passes, count: int, seconds: float
) -> list[tuple[float, float, int]]:
    """Rounds of `count` rows through the pipeline until the time is up, at least one: seconds, those of loading, and tokens."""
    until, last = time.monotonic() + seconds, (time.monotonic(), _loading(passes))
    found, tokens = list[tuple[float, float, int]](), list[int]()

    def chunks() -> Iterator[Chunk]:
        while not found or time.monotonic() < until:
            number = len(tokens)
            mine = [each % len(rows) for each in range(number * count, (number + 1) * count)]
            tokens.append(sum(_tokens(rows[each]) for each in mine))
            yield take(chunk, mine, number * passes.options.part_rows)

    def note(number: int, part: pa.Table) -> None:
        nonlocal last
        _bytes(part)
        now, loaded = time.monotonic(), _loading(passes)
        found.append((now - last[0] - (loaded - last[1]), loaded - last[1], tokens[number]))
        last = now, loaded

    for stream in ([each] for each in chunks()) if passes.takes_turns else [chunks()]:
        score_parts(iter(stream), passes, note)
    # The first one waited until its rows were rendered.
    return found[1:] if len(found) > 2 else found


def _tokens(row: ScoredRow) -> int:
    return len(row.rendered.input_ids_P)


def _loading(passes: Passes) -> float:
    return sum(model.load_seconds for model in (passes.student, *passes.others))


def _bytes(table: pa.Table) -> int:
    """Size of a part with these rows."""
    buffer = pa.BufferOutputStream()
    write_table(table, buffer)
    return int(buffer.getvalue().size)


def _ratio(pairs: Sequence[tuple[float, float]], alone: float) -> Estimate:
    """The first of each pair per unit of the second, and how far it may be off: as far as any of them, by a tenth at least; of
    fewer than four by at least the share that is given."""
    measured_R, by_R = np.maximum(np.array(pairs, float), 1e-9).T
    ratio = float(measured_R.sum() / by_R.sum())
    spread = float(np.abs(measured_R / by_R / ratio - 1).max())
    return Estimate.around(ratio, ratio * max(alone if len(pairs) < 4 else 0.1, spread))
