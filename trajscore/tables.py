"""Scored rows -> the Arrow table of one part: the input's columns unchanged, then ours. It knows the schema and no file.

Axis: N scored tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trajscore.alignment import sentence_means
from trajscore.corpus import Trajectory
from trajscore.engines import TokenScores
from trajscore.loops import compression, repeated_lines
from trajscore.rendering import Rendered
from trajscore.schema import score_fields


@dataclass(frozen=True)
class ScoredRow:
    """One row of the corpus with everything found out about it.

    Attributes:
        trajectory: its identity.
        rendered: its tokens, or why there are none.
        values: list columns of `schema.COLUMNS` by name; None exactly for a refused row. A column that is missing is null.
    """

    trajectory: Trajectory
    rendered: Rendered
    values: Mapping[str, npt.NDArray[Any]] | None


def part_table(inputs: pa.Table, rows: Sequence[ScoredRow], extra: Iterable[str] = ()) -> pa.Table:
    """The table of one part.

    Args:
        inputs: the input rows, all columns unchanged.
        rows: what was found out about each of them, in the same order.
        extra: names of the columns to write that are not always written.

    Returns:
        The input columns in their order, `id`, `prompt_id` and `teacher` as strings in the place they had, then the rest of
        `schema.score_fields`. Statistics of refused rows are null.
    """
    fields = {field.name: field for field in inputs.schema}
    columns: dict[str, Any] = {name: inputs[name] for name in inputs.column_names}
    known = _row_columns(rows)
    for field in score_fields(extra):
        fields[field.name] = field
        if field.name in known:
            columns[field.name] = pa.array(known[field.name], field.type)
        else:
            columns[field.name] = _lists(field.type, [_list(row, field.name) for row in rows])
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(list(fields.values())))


def token_values(role: str, scores: TokenScores, rendered: Rendered) -> dict[str, npt.NDArray[Any]]:
    """List columns of a row under a model that reads the student's tokens; collision has a column for the student only."""
    values = {
        f"{role}_rank": scores.rank_N,
        f"{role}_surprisal": scores.surprisal_N,
        f"{role}_entropy": scores.entropy_N,
        f"{role}_sentence_logprob": sentence_means(-scores.surprisal_N, rendered.sentence_N, rendered.n_sentences),
    }
    return {**values, "student_collision": scores.collision_N} if role == "student" else values


def _row_columns(rows: Sequence[ScoredRow]) -> dict[str, list[Any]]:
    said = ["" if row.values is None else row.rendered.response.said for row in rows]
    return {
        "id": [row.trajectory.id for row in rows],
        "prompt_id": [row.trajectory.prompt_id for row in rows],
        "teacher": [row.trajectory.teacher for row in rows],
        "status": [row.rendered.status for row in rows],
        "status_detail": [row.rendered.detail or None for row in rows],
        "truncated": [row.rendered.truncated for row in rows],
        "n_tokens": [None if row.values is None else len(row.rendered.positions_N) for row in rows],
        "response_compression": [compression(text) for text in said],
        "repeated_lines": [repeated_lines(text) for text in said],
    }


def _list(row: ScoredRow, name: str) -> npt.NDArray[Any] | None:
    if row.values is None:
        return None
    rendered: dict[str, npt.NDArray[Any]] = {
        "input_ids": row.rendered.input_ids_P,
        "positions": row.rendered.positions_N,
        "sentence": row.rendered.sentence_N,
        "phase": row.rendered.phase_N,
    }
    return rendered[name] if name in rendered else row.values.get(name)


def _lists(dtype: pa.DataType, arrays: Sequence[npt.NDArray[Any] | None]) -> pa.Array:
    """A list column; None becomes null, NaN inside an array too."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.concatenate([array for array in arrays if array is not None] or [np.empty(0)])
    values = pa.array(flat, dtype.value_type, from_pandas=True)
    missing = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=dtype, mask=missing)
