"""Diagnoses -> the Missing-Skill-Profile (arXiv 2510.10023, section 4.2): skills a student lacks, and how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

FEW_QUESTIONS = 30
"""Below this many diagnosed questions a profile says that it rests on few."""


def counts(missing: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Skills and the questions that lack them, most first, ties by name; a skill twice in one question counts once.

    >>> counts({"q1": ["b", "a"], "q2": ["b"], "q3": []})
    [('b', 2), ('a', 1)]
    """
    found = Counter(skill for skills in missing.values() for skill in set(skills))
    return sorted(found.items(), key=lambda each: (-each[1], each[0]))


def incidence(missing: Mapping[str, Sequence[str]], skills: Sequence[str]) -> NDArray[np.float64]:
    """1 where a question (row) lacks a skill (column), else 0."""
    column = {skill: number for number, skill in enumerate(skills)}
    table = np.zeros((len(missing), len(skills)))
    for row, names in enumerate(missing.values()):
        for name in names:
            table[row, column[name]] = 1.0
    return table
