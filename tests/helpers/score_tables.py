"""Synthetic score folders for tests, written through `trajscore.scores.ScoreFolder` as `score` writes them. No model."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trajscore.schema import COLUMNS, OK, score_fields
from trajscore.scores import Manifest, ScoreFolder

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(pa.string()))])
INPUT_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("prompt_id", pa.string()),
    pa.field("teacher", pa.string()),
    pa.field("correct", pa.bool_()),
    pa.field("messages", pa.list_(MESSAGE)),
    pa.field("extra", pa.string(), metadata={"encoding": "json"}),
]


def trajectory(
    number: int,
    ranks: Sequence[int],
    surprisals: Sequence[float],
    entropies: Sequence[float] | None = None,
    **values: Any,
) -> dict[str, Any]:
    """One scored row; `values` replace any column."""
    tokens = len(ranks)
    row = {
        "id": f"id-{number:04d}",
        "prompt_id": f"prompt-{number % 3}",
        "teacher": "T",
        "correct": None,
        "messages": [{"role": "assistant", "content": f"text {number}", "tool_calls": None}],
        "extra": f'{{"number": {number}, "none": null}}',
        "status": OK,
        "truncated": False,
        "input_ids": list(range(tokens + 1)),
        "positions": list(range(1, tokens + 1)),
        "n_tokens": tokens,
        "student_rank": list(ranks),
        "student_surprisal": list(surprisals),
        "student_entropy": list(surprisals if entropies is None else entropies),
        "sentence": [0] * tokens,
        **{f"scaffold_{name}": [] for name in ("positions", "kind", "rank", "surprisal", "entropy")},
        "phase": [0] * (tokens // 2) + [2] * (tokens - tokens // 2),
        "student_sentence_logprob": [-1.0],
        "response_compression": 1 + tokens / 16 if tokens else None,
        "repeated_lines": tokens % 5 / 5 if tokens else None,
        "repeated_ngrams": tokens % 7 / 7 if tokens else None,
        "response_words": tokens if tokens else None,
        **{f"{name}_words": tokens % 3 if tokens else None for name in ("verification", "exploration", "conclusion")},
    }
    return row | values


def refused(number: int, status: str, **values: Any) -> dict[str, Any]:
    """One refused row: null statistics."""
    row = trajectory(number, [], [], status=status, n_tokens=None, truncated=None)
    lists = ("input_ids", "positions", "student_rank", "student_surprisal", "student_entropy", "sentence", "phase")
    scaffold = [f"scaffold_{name}" for name in ("positions", "kind", "rank", "surprisal", "entropy")]
    return row | dict.fromkeys((*lists, *scaffold, "student_sentence_logprob")) | values


def random_rows(count: int, seed: int = 0, teachers: Sequence[str | None] = ("A", "B", None)) -> list[dict[str, Any]]:
    """Rows with plausible statistics over a handful of prompts; some refused, some certain of every token."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        names: dict[str, Any] = {
            "prompt_id": f"prompt-{draw.randrange(max(1, count // 4))}",
            "teacher": draw.choice(list(teachers)),
            "correct": draw.choice([True, False, None]),
        }
        if draw.random() < 0.1:
            rows.append(refused(number, draw.choice(["too_long", "empty_response"]), **names))
            continue
        tokens = draw.randrange(1, 30)
        surprisals = (
            [0.0] * tokens if draw.random() < 0.05 else [draw.choice([0.0, 0.5, 2.0, 7.28]) for _ in range(tokens)]
        )
        rows.append(trajectory(number, [draw.randrange(1, 300) for _ in range(tokens)], surprisals, **names))
    return rows


def with_every_column(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """The rows with plausible values of every column that a metric reads; null in refused rows."""
    draw = random.Random(seed)
    divergences = ("kl_student_teacher", "kl_teacher_student", "js")
    further = [name for name, column in COLUMNS.items() if column.flag.startswith("--teacher MODEL --extra")]
    lists = ("teacher_surprisal", "distilled_surprisal", *divergences, *further, "student_collision")
    words = ("response_words", "verification_words", "exploration_words", "conclusion_words")
    chunks = ("teacher_chunk_logprob", "student_chunk_logprob")
    every = (
        *lists,
        "sampler_logprob",
        *words,
        *chunks,
        "student_unconditional_surprisal",
        "teacher_sentence_logprob",
        "student_local_sentence_logprob",
        "step_rewards",
        "inference_entropy",
    )
    complete = []
    for row in rows:
        if row["status"] != OK:
            complete.append(row | dict.fromkeys(every))
            continue
        tokens, sentences = row["n_tokens"], draw.randrange(1, 6)
        own: dict[str, Any] = {name: [draw.random() / 2 for _ in range(tokens)] for name in lists}
        # Some templates put nothing before a response read alone; after others its first token has a surprisal, too.
        first = 2.0 if tokens % 3 == 0 else None
        own["student_unconditional_surprisal"] = [first, *(draw.choice([0.5, 3.0]) for _ in range(tokens - 1))]
        own["phase"] = sorted(draw.randrange(3) for _ in range(tokens))
        own["sampler_logprob"] = [-draw.random() for _ in range(tokens)]
        own |= {name: [-40 * draw.random() for _ in range(sentences)] for name in chunks}
        own["sentence"] = sorted(draw.randrange(4) for _ in range(tokens))
        own["inference_entropy"] = draw.uniform(0, 4.3)
        own["step_rewards"] = [draw.random() for _ in range(sentences)]
        own |= {words[0]: tokens} | {name: draw.randrange(tokens + 1) for name in words[1:]}
        own["response_compression"], own["repeated_lines"] = draw.uniform(0.5, 9), draw.random()
        own["repeated_ngrams"] = draw.choice([None, draw.random()])
        for role in ("teacher", "student", "student_local"):
            own[f"{role}_sentence_logprob"] = [draw.choice([None, -0.1, -1.0, -7.0]) for _ in range(sentences)]
        complete.append(row | own)
    return complete


def _filled(rows: Sequence[dict[str, Any]], extra: Iterable[str]) -> list[str]:
    """The score columns among the names given and those that a row has a value of, in a settled order."""
    names = [*extra, *(name for row in rows for name, value in row.items() if value is not None)]
    return sorted(name for name in dict.fromkeys(names) if name in COLUMNS)


def table(
    rows: Sequence[dict[str, Any]], input_fields: Sequence[pa.Field] = INPUT_FIELDS, extra: Iterable[str] = ()
) -> pa.Table:
    """Rows as the Arrow table that a part holds: input columns, then the score columns; optional ones where a row has them."""
    own = [field.name for field in input_fields]
    extra = _filled(rows, extra)
    schema = pa.schema([*input_fields, *(field for field in score_fields(extra) if field.name not in own)])
    return pa.table(
        {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema}, schema
    )


def write_folder(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    part_rows: int = 4,
    student: str = "student-1b",
    input_fields: Sequence[pa.Field] = INPUT_FIELDS,
    extra: Iterable[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """A finished score folder.

    Args:
        folder: where it goes.
        rows: its rows.
        part_rows: rows of a part.
        student: the student's name.
        input_fields: columns of the corpus.
        extra: score columns that are written only when asked for.
        settings: settings of the manifest beside the student.
    """
    settings = {"student": {"name": student, "revision": "main"}, "part_rows": part_rows, **(settings or {})}
    manifest = Manifest(settings=settings, environment={}, input_columns=[field.name for field in input_fields])
    extra = _filled(rows, extra)
    with ScoreFolder(folder, manifest) as scores:
        for start in range(0, max(len(rows), 1), part_rows):
            scores.write_part(table(rows[start : start + part_rows], input_fields, extra))
        scores.finish()
    return folder


def float32(values: Sequence[float]) -> list[float]:
    """The float64 values of what a float32 column stores."""
    return [float(value) for value in np.asarray(values, dtype=np.float32)]
