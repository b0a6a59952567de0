"""Several answers to one question -> one, and how far they agree: sets of skills, and verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations


def majority_skills(votes: Sequence[Sequence[str]], order: Sequence[str], most: int) -> list[str]:
    """The skills that more than half of the votes name, most votes first; ties in the order of the catalogue.

    Args:
        votes: the skills that each vote names; a name twice in a vote counts once.
        order: the catalogue's list.
        most: how many are kept.

    >>> majority_skills([["b", "a"], ["b"], ["c", "a"]], ["a", "b", "c"], 5)
    ['a', 'b']
    """
    counts = Counter(skill for vote in votes for skill in set(vote))
    place = {skill: number for number, skill in enumerate(order)}
    chosen = [skill for skill, count in counts.items() if 2 * count > len(votes)]
    return sorted(chosen, key=lambda skill: (-counts[skill], place[skill]))[:most]


def majority_verdict(votes: Sequence[str]) -> str | None:
    """What more than half of the votes say; None where no half does, or without votes.

    >>> majority_verdict(["correct", "incorrect", "correct"]), majority_verdict(["correct", "incorrect"])
    ('correct', None)
    """
    return next((verdict for verdict, count in Counter(votes).items() if 2 * count > len(votes)), None)


def agreement(votes: Sequence[Sequence[str]]) -> float | None:
    """Mean over all pairs of votes of |common skills| / |skills of either|; two empty votes agree. None below two votes.

    >>> agreement([["a", "b"], ["a"], ["a"]])
    0.6666666666666666
    """
    sets = [frozenset(vote) for vote in votes]
    pairs = [len(one & two) / len(one | two) if one | two else 1.0 for one, two in combinations(sets, 2)]
    return sum(pairs) / len(pairs) if pairs else None
