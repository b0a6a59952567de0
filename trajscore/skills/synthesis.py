"""STAT-Syn without its calls (arXiv 2510.10023, section 4.3): seeds, which proposals are new, which solutions agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from trajscore.skills.answers import groups
from trajscore.skills.questions import Question


class SeedDraw(NamedTuple):
    """The seeds drawn for one difficult question and one skill that it lacks.

    Attributes:
        question_id: the difficult question.
        skill: the skill.
        seeds: questions of that skill; empty where there is none.
        number: number of the draw: equal seeds of two draws are two requests.
    """

    question_id: str
    skill: str
    seeds: tuple[Question, ...]
    number: int


def draw_seeds(
    missing: Mapping[str, Sequence[str]],
    skill_map: Mapping[str, Sequence[Question]],
    seeds: int,
    seed: int,
) -> Iterator[SeedDraw]:
    """For every question and every skill it lacks, `seeds` questions of that skill, without repetition; all if there are fewer.

    Each pair has a random state of its own, so that adding a question to the profile leaves the others' draws as they are.
    """
    number = 0
    for question_id, skills in missing.items():
        for skill in dict.fromkeys(skills):
            pool = [question for question in skill_map.get(skill, ()) if question.id != question_id]
            chosen = Random(f"{seed} {question_id} {skill}").sample(pool, min(seeds, len(pool)))  # noqa: S311
            yield SeedDraw(question_id, skill, tuple(chosen), number)
            number += 1


def normalised(question: str) -> str:
    """A question's text as far as copies share it: case and white space do not count.

    >>> normalised(" What  is 2+2?\\n") == normalised("what is 2+2?")
    True
    """
    return " ".join(question.casefold().split())


def agreeing(answers: Sequence[str | None], least: int) -> list[int]:
    """Places of the solutions in the largest group of equal answers; empty if the group has fewer than `least`.

    >>> agreeing(["4", "5", "4.0"], 2), agreeing(["4", "5", None], 2)
    ([0, 2], [])
    """
    found = groups(answers)
    return found[0] if found and len(found[0]) >= least else []
