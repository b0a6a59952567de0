"""One trajectory, token by token: texts, statistics, and how strongly each token is coloured.

Axes: P input tokens, N scored tokens. A statistic has one value per scored token; sentence statistics are spread over the
tokens that start in the sentence. Eight levels of colour have fixed thresholds, so that two trajectories can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from trajscore.errors import UsageError, did_you_mean
from trajscore.metrics.sentence_classes import BETA, THREE_WAY, UNDEFINED, classify
from trajscore.schema import COLUMNS, OK

_NATS = (0.1, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0)
_THRESHOLDS = (
    ("rank", (2.0, 3.0, 6.0, 11.0, 31.0, 101.0, 1001.0)),
    ("surprisal", _NATS),
    ("logprob", _NATS),
    ("entropy", (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)),
    ("kl_", (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)),
    ("js", (0.005, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6)),
)
_SHARES = (1e-9, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)

PHASES = ("thinking", "marker", "answer")


@dataclass(frozen=True)
class Statistic:
    """One number per scored token.

    Attributes:
        name: what users type after `--by`.
        unit: unit of the values; empty when they have none.
        meaning: one sentence.
        values: one per scored token, [N]; None where undefined.
        thresholds: seven values from which the next of eight levels of colour holds, for the value's size; empty with
            `categories`.
        categories: names of the values 0, 1, ... where they are no quantities.
    """

    name: str
    unit: str
    meaning: str
    values: tuple[float | int | None, ...]
    thresholds: tuple[float, ...]
    categories: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """What each level of colour stands for, in order: sizes of the value, or categories."""
        if self.categories:
            return self.categories
        return (f"< {self.thresholds[0]:g}", *(f"≥ {each:g}" for each in self.thresholds))

    def level(self, value: float | None) -> int | None:
        """The level of colour of a value, 0 to 7, or the number of its category.

        >>> Statistic("rank", "", "", (), (2, 3, 6, 11, 31, 101, 1001)).level(12)
        4
        """
        if value is None or not math.isfinite(value):
            return None
        if self.categories:
            return int(value) % len(self.categories)
        return sum(abs(value) >= threshold for threshold in self.thresholds)


@dataclass(frozen=True)
class TokenView:
    """One trajectory.

    Attributes:
        id: the trajectory's name.
        prompt_id: the prompt's.
        teacher: who wrote it; None when unknown.
        status: `ok`, or why it has no statistics.
        detail: a sentence about the status.
        correct: whether the answer is right; None when unknown.
        metrics: its metrics by name.
        texts: the text of every input token, [P]; empty for a refused row.
        positions: index into `texts` of each scored token, [N].
        statistics: by name.
    """

    id: str
    prompt_id: str
    teacher: str | None
    status: str
    detail: str | None
    correct: bool | None
    metrics: dict[str, float | None]
    texts: tuple[str, ...]
    positions: tuple[int, ...]
    statistics: dict[str, Statistic]

    def pieces(self, by: str) -> list[tuple[str, int | None, int | None]]:
        """The text in order: each scored token with its number and level, and what is unscored between them in one piece.

        Returns:
            (text, number among the scored tokens, level); number and level are None for unscored text, and the level alone
            where the statistic is undefined.
        """
        scored = {place: number for number, place in enumerate(self.positions)}
        statistic = self.statistics.get(by)
        found: list[tuple[str, int | None, int | None]] = []
        unscored = ""
        for place, text in enumerate(self.texts):
            number = scored.get(place)
            if number is None:
                unscored += text
                continue
            if unscored:
                found.append((unscored, None, None))
                unscored = ""
            found.append((text, number, None if statistic is None else statistic.level(statistic.values[number])))
        return [*found, (unscored, None, None)] if unscored else found


def statistics_of(row: Mapping[str, Any], weights: Sequence[float] | None = None) -> dict[str, Statistic]:
    """Every statistic that a scored row holds.

    Args:
        row: one row of scores.
        weights: weight in the loss of each scored token, from a mask file.

    >>> row = {"student_rank": [3], "sentence": [0], "student_sentence_logprob": [-1.5], "status": "ok"}
    >>> {name: each.values for name, each in statistics_of(row).items()}
    {'student_rank': (3,), 'student_sentence_logprob': (-1.5,), 'sentence': (0,)}
    """
    if row.get("status") != OK:
        return {}
    sentences = row.get("sentence") or []
    found = {}
    known = [*COLUMNS, *(name for name in row if name in COLUMNS)]
    for name in dict.fromkeys(known):
        column, values = COLUMNS[name], row.get(name)
        # Colours show one number a token.
        if values is None or name in ("sentence", "positions") or column.nested:
            continue
        if column.axis == "sentence":
            values = [values[sentence] if sentence < len(values) else None for sentence in sentences]
        elif column.axis != "scored token":
            continue
        categories = PHASES if name == "phase" else ()
        thresholds = () if categories else _thresholds(name)
        found[name] = Statistic(name, column.unit, column.meaning, tuple(values), thresholds, categories)
    if sentences:
        meaning = "index of the sentence; neighbours differ in colour"
        found["sentence"] = Statistic("sentence", "", meaning, tuple(sentences), (), ("even", "odd"))
    found |= _sentence_class(row, sentences)
    if "phase" not in found and row.get("phase") is not None:
        found["phase"] = Statistic("phase", "", "part of the trajectory", tuple(row["phase"]), (), PHASES)
    if weights is not None:
        found["mask"] = Statistic("mask", "", "weight of the token in the loss", tuple(weights), _SHARES)
    return found


def _thresholds(name: str) -> tuple[float, ...]:
    return next((each for part, each in _THRESHOLDS if part in name), _SHARES)


def _sentence_class(row: Mapping[str, Any], sentences: Sequence[int]) -> dict[str, Statistic]:
    """Whose each sentence is before training: the teacher's, the student's or common to both (arXiv 2512.20908)."""
    teacher, student = row.get("teacher_sentence_logprob"), row.get("student_sentence_logprob")
    if teacher is None or student is None:
        return {}
    found = pl.DataFrame({"student": student, "teacher": teacher}, {"student": pl.Float64, "teacher": pl.Float64})
    classes = found.select(classify(pl.col("student").exp(), pl.col("teacher").exp())).to_series().to_list()
    values = tuple(None if classes[s] == UNDEFINED else THREE_WAY.index(classes[s]) for s in sentences)
    meaning = f"whose sentence it is: probabilities of student and teacher differ by more than {BETA}, or it is common"
    return {"sentence_class": Statistic("sentence_class", "", meaning, values, (), THREE_WAY)}


_SHORT: dict[str, Callable[[str], str]] = {
    name: lambda each: f"student_{each}" for name in ("rank", "surprisal", "entropy", "collision")
}


def find_statistic(name: str, views: Sequence[TokenView]) -> str:
    """The full name of a statistic that some trajectory has; `rank`, `surprisal` and `entropy` are the student's.

    Raises:
        UsageError: none of the trajectories has it.
    """
    known = list(dict.fromkeys(each for view in views for each in view.statistics))
    full = name if name in known else _SHORT.get(name, str)(name)
    if full in known or not known:
        return full
    raise UsageError(f"--by {name}: these scores have no such statistic.", did_you_mean(name, known))
