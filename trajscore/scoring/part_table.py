"""Scored rows -> the Arrow table of one part: the input's columns unchanged, then ours.

Axes: N scored tokens of a row, K kept entries of the vocabulary, R rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from trajscore.corpus import Trajectory
from trajscore.engines import TokenScores
from trajscore.engines.token_scores import ServedScores, TopKEntries, at
from trajscore.io.fields import INPUT_NAME
from trajscore.rendering.alignment import sentence_means
from trajscore.rendering.loops import compression, repeated_lines, repeated_ngrams
from trajscore.rendering.renderer import Rendered
from trajscore.rendering.wording import KEYWORDS, count_words
from trajscore.schema import COLUMNS, score_fields, served_columns, topk_columns
from trajscore.scoring.precision import rounded
from trajscore.scoring.rows import ScoredRow

CHUNK_ELEMENTS = 2**24
"""Most elements of one chunk of a list column, unless a single row has more: Arrow's offsets end at 2^31, and making a small
chunk takes little memory."""


RENDERED = {
    "input_ids": "input_ids_P",
    "positions": "positions_N",
    "sentence": "sentence_N",
    "phase": "phase_N",
    "scaffold_positions": "scaffold_S",
    "scaffold_kind": "scaffold_kind_S",
}
"""List columns that rendering makes -> the attribute of `Rendered` that holds them; models make all others."""


def part_table(
    inputs: pa.Table,
    rows: Sequence[ScoredRow],
    extra: Iterable[str] = (),
    storage: str = "float32",
    renamed: Mapping[str, str] | None = None,
    absent: Collection[str] = (),
) -> pa.Table:
    """The table of one part.

    Args:
        inputs: the input rows, all columns unchanged.
        rows: what was found out about each of them, in the same order.
        extra: names of the columns to write that are not always written.
        storage: one of `schema.STORAGES`.
        renamed: input columns that bear names of ours -> their names here, see `Corpus.renamed`.
        absent: names of columns that are always written but for this run.

    Returns:
        The input columns in their order, `id`, `prompt_id` and `teacher` as strings in the place they had, then the rest of
        `schema.score_fields`. Statistics of refused rows are null.
    """
    names = {name: (renamed or {}).get(name, name) for name in inputs.column_names}
    fields = {names[field.name]: _renamed(field, names[field.name]) for field in inputs.schema}
    columns: dict[str, Any] = {names[name]: inputs[name] for name in inputs.column_names}
    known = _row_columns(rows)
    for field in score_fields(extra, storage):
        if field.name in absent:
            continue
        fields[field.name] = field
        if field.name in known:
            columns[field.name] = pa.array(known[field.name], field.type)
        else:
            arrays = [_list(row, field.name) for row in rows]
            if b"precision" in field.metadata:
                upper = COLUMNS[field.name].upper
                arrays = [None if array is None else rounded(array, upper) for array in arrays]
            columns[field.name] = _lists(field.type, arrays)
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(list(fields.values())))


def _renamed(field: pa.Field, name: str) -> pa.Field:
    """The field under another name, with its own in the metadata."""
    if name == field.name:
        return field
    return field.with_name(name).with_metadata({**(field.metadata or {}), INPUT_NAME: field.name.encode()})


def token_values(role: str, scores: TokenScores, rendered: Rendered) -> dict[str, npt.NDArray[Any]]:
    """List columns of a row under a model that reads the student's tokens; collision has a column for the student only.

    Args:
        role: the model's role.
        scores: of all tokens of `rendered.whole`, scaffold among them.
        rendered: the row's tokens.
    """
    scored_M = rendered.scored_M
    scaffold, scores = at(scores, ~scored_M), at(scores, scored_M)
    prefix = "" if role == "student" else f"{role}_"
    values = {
        f"{prefix}scaffold_rank": scaffold.rank_N,
        f"{prefix}scaffold_surprisal": scaffold.surprisal_N,
        f"{prefix}scaffold_entropy": scaffold.entropy_N,
        f"{role}_rank": scores.rank_N,
        f"{role}_surprisal": scores.surprisal_N,
        f"{role}_entropy": scores.entropy_N,
        f"{role}_sentence_logprob": sentence_means(-scores.surprisal_N, rendered.sentence_N, rendered.n_sentences),
    }
    return {**values, "student_collision": scores.collision_N} if role == "student" else values


def served_values(role: str, scores: ServedScores, rendered: Rendered, mass: str) -> dict[str, npt.NDArray[Any]]:
    """List columns of a row under a model behind a server.

    Args:
        role: the model's role.
        scores: of all tokens of `rendered.whole`, scaffold among them.
        rendered: the row's tokens.
        mass: the column for the probability of the best entries.
    """
    scored_M = rendered.scored_M
    scaffold, scores = at(scores, ~scored_M), at(scores, scored_M)
    prefix = "" if role == "student" else f"{role}_"
    truncated = (scores.rank_topk_N, scores.entropy_topk_N, scores.mass_N)
    return {
        f"{prefix}scaffold_surprisal": scaffold.surprisal_N,
        f"{role}_surprisal": scores.surprisal_N,
        f"{role}_sentence_logprob": sentence_means(-scores.surprisal_N, rendered.sentence_N, rendered.n_sentences),
        **dict(zip(served_columns(role, mass), truncated, strict=True)),
    }


def topk_values(role: str, kept: TopKEntries, rendered: Rendered) -> dict[str, npt.NDArray[Any]]:
    """List columns of a role's kept entries.

    Args:
        role: `teacher` or `student`.
        kept: of all tokens of `rendered.whole`, scaffold among them.
        rendered: the row's tokens.
    """
    values: dict[str, npt.NDArray[Any]] = {}
    for scaffold, which_M in ((False, rendered.scored_M), (True, ~rendered.scored_M)):
        found = at(kept, which_M)
        ours = (found.ids_NK, found.logprobs_NK, found.log_tail_N)
        values |= dict(zip(topk_columns(role, scaffold=scaffold), ours, strict=True))
    return values


def _row_columns(rows: Sequence[ScoredRow]) -> dict[str, list[Any]]:
    said = [row.rendered.response.said if row.is_ok else "" for row in rows]
    words = [count_words(text) if text else {} for text in said]
    return {
        "id": [row.trajectory.id for row in rows],
        "prompt_id": [row.trajectory.prompt_id for row in rows],
        "teacher": [row.trajectory.teacher for row in rows],
        "correct": [_truth(row.trajectory.correct) for row in rows],
        "messages_from": [row.trajectory.made_from for row in rows],
        "scored_messages": [_json(row.trajectory) for row in rows],
        "status": [row.rendered.status for row in rows],
        "status_detail": [row.rendered.detail or None for row in rows],
        "truncated": [row.rendered.truncated for row in rows],
        "n_tokens": [len(row.rendered.positions_N) if row.is_ok else None for row in rows],
        "response_compression": [compression(text) for text in said],
        "repeated_lines": [repeated_lines(text) for text in said],
        "repeated_ngrams": [repeated_ngrams(text) for text in said],
        **{name: [counts.get(name) for counts in words] for name in ("response_words", *KEYWORDS)},
    }


def _truth(correct: bool | float | None) -> bool | None:
    return correct if isinstance(correct, bool) else None


def _json(trajectory: Trajectory) -> str | None:
    """The conversation, where the row's column `messages` is another one."""
    if trajectory.as_given:
        return None
    return orjson.dumps(trajectory.normalised(), default=str).decode()


def _list(row: ScoredRow, name: str) -> npt.NDArray[Any] | None:
    if not row.is_ok:
        return None
    return getattr(row.rendered, RENDERED[name]) if name in RENDERED else row.values.get(name)


def _lists(dtype: pa.DataType, arrays: Sequence[npt.NDArray[Any] | None]) -> pa.ChunkedArray:
    """A list column, or one of lists of lists for arrays [N, K]; None becomes null, NaN inside an array too."""
    sizes = np.array([0 if array is None else array.size for array in arrays], np.int64)
    return pa.chunked_array([_chunk(dtype, arrays[part]) for part in chunks(sizes, CHUNK_ELEMENTS)], dtype)


def chunks(lengths_R: npt.NDArray[np.int64], limit: int) -> Iterator[slice]:
    """Consecutive rows whose lengths sum to at most `limit`, as many as there is room for; a longer row stands alone.

    >>> list(chunks(np.array([2, 2, 9, 1]), 4))
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    ends = np.cumsum(lengths_R)
    first = before = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(first, last)
        first, before = last, int(ends[last - 1])


def _chunk(dtype: pa.DataType, arrays: Sequence[npt.NDArray[Any] | None]) -> pa.Array:
    lengths = [0 if array is None else len(array) for array in arrays]
    there = [array for array in arrays if array is not None and len(array)]
    missing = pa.array([array is None for array in arrays], pa.bool_())
    values = _values(dtype.value_type, np.concatenate(there) if there else np.empty(0))
    return pa.ListArray.from_arrays(_offsets(lengths), values, type=dtype, mask=missing)


def _values(dtype: pa.DataType, flat: npt.NDArray[Any]) -> pa.Array:
    if not pa.types.is_list(dtype):
        return pa.array(flat, dtype, from_pandas=True)
    width = flat.shape[1] if flat.ndim > 1 else 0
    inner = _values(dtype.value_type, flat.reshape(-1))
    return pa.ListArray.from_arrays(_offsets([width] * len(flat)), inner, type=dtype)


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
