"""How much the samples that a teacher wrote for one prompt differ: n-grams, answers, near duplicates.

Samples of one prompt are few, so that sets of n-grams are compared pair by pair, exactly: an estimate such as MinHash would
save nothing here. T scored tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from trajscore.metrics.measure import collect
from trajscore.ranking.profiles import PHASE, PHASES
from trajscore.schema import OK
from trajscore.scores.reading_parts import ROW, planned_parts
from trajscore.scores.source import ScoreSource

NGRAM = 4
"""Tokens of an n-gram."""

ALIKE = 0.8
"""Share of common n-grams (Jaccard) from which a sample counts as a near duplicate of another."""

PROMPTS = 200
"""Prompts of each teacher that are read, drawn by a hash of their ids: all would be read into memory."""

ALL = "all"
"""In place of a prompt's id: the mean over a teacher's prompts."""

_FACTORS = np.random.default_rng(0).integers(0, 2**63, NGRAM, dtype=np.uint64) | np.uint64(1)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Diversity:
    """The samples of one teacher for one prompt, or the mean over its prompts with several.

    Attributes:
        teacher: the teacher.
        part: the prompt's id, or `all`.
        rows: samples.
        distinct_ngrams: distinct n-grams of four tokens over all of them, those of all samples together; None without any.
        distinct_answers: distinct texts after the thinking over the samples that have one; None without any.
        near_duplicates: share of the samples of which at least 0.8 of the n-grams are those of an earlier one (by id).
    """

    teacher: str
    part: str
    rows: int
    distinct_ngrams: float | None
    distinct_answers: float | None
    near_duplicates: float | None


class _Sample(NamedTuple):
    tokens_T: Ids
    answer: bytes | None


def diversity(source: ScoreSource, table: pl.DataFrame) -> tuple[Diversity, ...]:
    """The diversity of each teacher's samples, by prompt and over all.

    Args:
        source: the scores.
        table: one line per row: `row`, `id`, `prompt_id`, `teacher` (never null), `status`.

    Returns:
        By teacher in the order of names: the line of all its prompts, then one for each prompt of which it wrote several
        samples, at most `PROMPTS` of them. Teachers with one sample per prompt are left out.

    Source: distinct n-grams and repetition in distilled data: arXiv 2502.02671, arXiv 2601.09088.
    """
    scored = table.filter(pl.col("status") == OK).sort("teacher", "prompt_id", "id")
    groups = (
        scored.group_by("teacher", "prompt_id", maintain_order=True).agg("row").filter(pl.col("row").list.len() > 1)
    )
    groups = groups.sort("teacher", pl.col("prompt_id").hash(0)).group_by("teacher", maintain_order=True).head(PROMPTS)
    samples = _samples(source, groups["row"].explode(empty_as_null=False).sort())
    found: list[Diversity] = []
    for (teacher,), own in groups.group_by("teacher", maintain_order=True):
        lines = [
            _of_prompt(str(teacher), prompt, [samples[row] for row in rows])
            for prompt, rows in own.sort("prompt_id").select("prompt_id", "row").iter_rows()
        ]
        found += [_mean(lines), *lines]
    return tuple(found)


def _samples(source: ScoreSource, rows: pl.Series) -> dict[int, _Sample]:
    phase = pl.col(PHASE) if PHASE in source.columns else pl.lit(None, pl.List(pl.UInt8)).alias(PHASE)
    samples = {}
    for part, plan in planned_parts(source, rows.alias(ROW).to_frame()):
        wanted = part.filter(pl.col(ROW).is_in(plan[ROW].implode()))
        for row, ids, places, phases in collect(wanted.select(ROW, "input_ids", "positions", phase)).iter_rows():
            tokens_T = np.array(ids, np.int64)[places]
            answer_T = tokens_T[np.array(phases) == PHASES["answer"]] if phases else tokens_T[:0]
            samples[row] = _Sample(tokens_T, answer_T.tobytes() or None)
    return samples


def _of_prompt(teacher: str, prompt: str, samples: Sequence[_Sample]) -> Diversity:
    ngrams = [ngrams_of(each.tokens_T) for each in samples]
    pooled = np.concatenate(ngrams)
    answers = [each.answer for each in samples if each.answer is not None]
    sets = [np.unique(each) for each in ngrams]
    repeated = sum(any(_alike(sets[n], sets[m]) for m in range(n)) for n in range(1, len(samples)))
    return Diversity(
        teacher,
        prompt,
        len(samples),
        np.unique(pooled).size / pooled.size if pooled.size else None,
        len(set(answers)) / len(answers) if answers else None,
        repeated / len(samples),
    )


def ngrams_of(tokens_T: Ids) -> npt.NDArray[np.uint64]:
    """A hash of each n-gram: [T] -> [T - 3]; of a shorter sample, one hash of all it has.

    >>> len(ngrams_of(np.arange(6))), len(ngrams_of(np.arange(2)))
    (3, 1)
    """
    count = max(1, tokens_T.size - NGRAM + 1)
    hashes = np.zeros(count, np.uint64)
    for place, factor in enumerate(_FACTORS[: tokens_T.size]):
        hashes += (tokens_T[place : place + count] + 1).astype(np.uint64) * factor
    return hashes


def _alike(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> bool:
    common = np.intersect1d(left, right, assume_unique=True).size
    return bool(common >= ALIKE * (left.size + right.size - common))


def _mean(lines: Sequence[Diversity]) -> Diversity:
    def over(values: Sequence[float | None]) -> float | None:
        defined = [value for value in values if value is not None]
        return fmean(defined) if defined else None

    return Diversity(
        lines[0].teacher,
        ALL,
        sum(line.rows for line in lines),
        over([line.distinct_ngrams for line in lines]),
        over([line.distinct_answers for line in lines]),
        over([line.near_duplicates for line in lines]),
    )
