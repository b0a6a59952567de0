"""Scored rows -> the Arrow table of one part: the input's columns unchanged, then ours. It knows the schema and no file.

Axes: N scored tokens and S sentences of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.corpus import Trajectory
from trajscore.engines import TokenScores
from trajscore.rendering import Rendered
from trajscore.schema import COLUMNS, score_fields


@dataclass(frozen=True)
class ScoredRow:
    """One row of the corpus with everything found out about it; `scores` is None exactly for a refused row."""

    trajectory: Trajectory
    rendered: Rendered
    scores: TokenScores | None


def part_table(inputs: pa.Table, rows: Sequence[ScoredRow], extra: Iterable[str] = ()) -> pa.Table:
    """The table of one part.

    Args:
        inputs: the input rows, all columns unchanged.
        rows: what was found out about each of them, in the same order.
        extra: optional statistics to write (`collision`).

    Returns:
        The input columns in their order, `id`, `prompt_id` and `teacher` as strings in the place they had, then the rest of
        `schema.score_fields`. Statistics of refused rows are null.
    """
    optional = [f"student_{name}" for name in extra]
    columns = {field.name: pa.field(field.name, field.type, metadata=field.metadata) for field in inputs.schema}
    values: dict[str, Any] = {name: inputs[name] for name in inputs.column_names}
    ours = _columns(rows, optional)
    for field in score_fields(optional):
        columns[field.name] = field
        values[field.name] = ours[field.name]
    return pa.Table.from_arrays(list(values.values()), schema=pa.schema(list(columns.values())))


def _columns(rows: Sequence[ScoredRow], optional: Sequence[str]) -> dict[str, pa.Array]:
    done = [(row.rendered, row.scores) if row.scores is not None else None for row in rows]

    def text(name: str, values: Sequence[str | None]) -> tuple[str, pa.Array]:
        return name, pa.array(values, pa.string())

    def lists(name: str, value: Callable[[Rendered, TokenScores], npt.NDArray[Any]]) -> tuple[str, pa.Array]:
        return name, _lists(name, [None if pair is None else value(*pair) for pair in done])

    columns = [
        text("id", [row.trajectory.id for row in rows]),
        text("prompt_id", [row.trajectory.prompt_id for row in rows]),
        text("teacher", [row.trajectory.teacher for row in rows]),
        text("status", [row.rendered.status for row in rows]),
        text("status_detail", [row.rendered.detail or None for row in rows]),
        ("truncated", pa.array([row.rendered.truncated for row in rows], pa.bool_())),
        ("n_tokens", pa.array([None if pair is None else len(pair[0].positions_N) for pair in done], pa.uint32())),
        lists("input_ids", lambda rendered, _: rendered.input_ids_P),
        lists("positions", lambda rendered, _: rendered.positions_N),
        lists("sentence", lambda rendered, _: rendered.sentence_N),
        lists("student_rank", lambda _, scores: scores.rank_N),
        lists("student_surprisal", lambda _, scores: scores.surprisal_N),
        lists("student_entropy", lambda _, scores: scores.entropy_N),
        lists("student_sentence_logprob", lambda rendered, scores: sentence_logprobs(scores.surprisal_N, rendered)),
    ]
    if "student_collision" in optional:
        columns.append(lists("student_collision", lambda _, scores: scores.collision_N))
    return dict(columns)


def sentence_logprobs(surprisal_N: npt.NDArray[np.float32], rendered: Rendered) -> npt.NDArray[np.float32]:
    """Mean ln p over the tokens of each sentence, nats, shape [S]; NaN for a sentence in which no token starts."""
    total = np.bincount(rendered.sentence_N, weights=-surprisal_N.astype(np.float64), minlength=rendered.n_sentences)
    count = np.bincount(rendered.sentence_N, minlength=rendered.n_sentences)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)


def _lists(name: str, arrays: Sequence[npt.NDArray[Any] | None]) -> pa.Array:
    """A list column; None becomes null, NaN inside an array too."""
    dtype = COLUMNS[name].dtype
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate([array for array in arrays if array is not None] or [np.empty(0)])
    values = pa.array(flat, dtype.value_type, from_pandas=True)
    missing = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=dtype, mask=missing)
