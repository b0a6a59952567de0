"""Item response of teachers and prompts, from which rows are right: how able each teacher is, and which labels look wrong."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl

from trajscore.estimates.bootstrap import Floats
from trajscore.estimates.item_response import fit_items

NO_CORRECT = "no row says whether it is correct"
ONE_TEACHER = "fewer than two teachers are sometimes right and sometimes wrong"


@dataclass(frozen=True)
class Ability:
    """One teacher.

    Attributes:
        teacher: the teacher.
        rows: its rows that say whether they are correct.
        correct: the share that is; None without such rows.
        ability: log-odds that it is right on a prompt of middling difficulty and discrimination; None where it was always
            right, or never, so that none is finite, and where the model was not fitted.
        low: lower end of its interval; None where it has none.
        high: upper end.
    """

    teacher: str
    rows: int
    correct: float | None
    ability: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Item:
    """One prompt.

    Attributes:
        part: the prompt's id.
        rows: its rows that say whether they are correct.
        correct: the share that is.
        difficulty: ability at which one is right half of the time; None where the model was not fitted.
        discrimination: how much better able teachers do on it than others; negative where they do worse.
        negative: probability that the discrimination is negative.
        suspect: whether that is at least the report's confidence: the reference may be wrong.
    """

    part: str
    rows: int
    correct: float
    difficulty: float | None
    discrimination: float | None
    negative: float | None
    suspect: bool


@dataclass(frozen=True)
class Items:
    """The two-parameter model of teachers and prompts.

    Attributes:
        abilities: the most able teacher first, those without an ability last, by share of correct rows, then by name.
        items: prompts with a row that says whether it is correct, the most suspect first.
        undefined: why there are no abilities; None where there are.
        notes: what a reader should know.
    """

    abilities: tuple[Ability, ...]
    items: tuple[Item, ...]
    undefined: str | None
    notes: tuple[str, ...]


def item_response(table: pl.DataFrame, confidence: float) -> Items:
    """Fit the model to all rows that say whether they are correct, refused ones too.

    Args:
        table: one line per row: `prompt_id`, `teacher` (never null), and `correct` if known.
        confidence: of the intervals, and from which a prompt is suspect.

    Source: the two-parameter model P = sigma(a (theta - b)) of item response theory, see `trajscore.estimates.item_response`.
    """
    teachers = table["teacher"].unique().sort().to_list()
    if "correct" not in table.columns or table["correct"].is_null().all():
        return Items(tuple(Ability(name, 0, None, None, None, None) for name in teachers), (), NO_CORRECT, ())
    known = table.filter(pl.col("correct").is_not_null() & pl.col("prompt_id").is_not_null())
    prompts = known["prompt_id"].unique().sort().to_list()
    places = known.select(
        pl.col("teacher").replace_strict(teachers, range(len(teachers)), return_dtype=pl.Int64),
        pl.col("prompt_id").replace_strict(prompts, range(len(prompts)), return_dtype=pl.Int64),
        pl.col("correct").cast(pl.Float64),
    )
    at_R = places["teacher"].to_numpy(), places["prompt_id"].to_numpy()
    answers_IJ, right_IJ = (np.zeros((len(teachers), len(prompts))) for _ in range(2))
    np.add.at(answers_IJ, at_R, 1.0)
    np.add.at(right_IJ, at_R, places["correct"].to_numpy())
    found = fit_items(right_IJ, answers_IJ, confidence)
    abilities = [
        Ability(
            name,
            int(answers_IJ[i].sum()),
            float(right_IJ[i].sum() / answers_IJ[i].sum()) if answers_IJ[i].any() else None,
            _known(found.ability_I[i]),
            _known(found.low_I[i]),
            _known(found.high_I[i]),
        )
        for i, name in enumerate(teachers)
    ]
    items = [
        Item(
            prompt,
            int(answers_IJ[:, j].sum()),
            float(right_IJ[:, j].sum() / answers_IJ[:, j].sum()),
            _known(found.difficulty_J[j]),
            _known(found.discrimination_J[j]),
            _known(found.negative_J[j]),
            bool(found.negative_J[j] >= confidence),
        )
        for j, prompt in enumerate(prompts)
    ]
    fitted = any(each.ability is not None for each in abilities)
    return Items(
        tuple(sorted(abilities, key=_ablest_first)),
        tuple(sorted(items, key=lambda each: (-(each.negative or 0.0), each.part))),
        None if fitted else ONE_TEACHER,
        tuple(_notes(abilities, answers_IJ, found.converged)) if fitted else (),
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ablest_first(each: Ability) -> tuple[bool, float, float, str]:
    return each.ability is None, -(each.ability or 0.0), -(each.correct or 0.0), each.teacher


def _notes(abilities: list[Ability], answers_IJ: Floats, converged: bool) -> list[str]:
    notes = []
    without = Counter(each.correct for each in abilities if each.ability is None and each.rows)
    for share, said in ((1.0, "always right"), (0.0, "never right")):
        if without[share]:
            names = ", ".join(each.teacher for each in abilities if each.ability is None and each.correct == share)
            notes.append(f"{said}, so without a finite ability: {names}")
    if not (answers_IJ[answers_IJ.any(1)].all(0)).any():
        notes.append(
            "no prompt has labels of all teachers: abilities compare as far as the teachers' prompts are alike"
        )
    if not converged:
        notes.append("the fit had not come to rest: read its numbers as rough")
    return notes
