"""Which questions a student finds difficult (arXiv 2510.10023, section 4.1 and Table 11).

Rewards, correctness, consistency or length of the responses say so. Undefined is None, never "easy".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from trajscore.errors import UsageError
from trajscore.skills.answers import groups

RULES = ("reward", "correctness", "consistency", "length")
"""The rules by name, in the order in which `auto` tries them (it never tries `length`)."""


@dataclass(frozen=True)
class DifficultyBounds:
    """Bounds of the rules; the defaults are the published ones.

    Attributes:
        tau1: a last or mean step reward of at most this is difficult; 0 switches both conditions off.
        tau2: an earlier step's reward of at most this is difficult; 0 switches the condition off.
        repeats: an answer must occur this often to be consistent.
        words: a mean response of at least this many words is difficult.

    Raises:
        UsageError: a value is out of range.
    """

    tau1: float = 0.85
    tau2: float = 0.7
    repeats: int = 2
    words: float = 800

    def __post_init__(self) -> None:
        for name in ("tau1", "tau2"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name} is {getattr(self, name)}.", "Give a reward from 0 to 1; 0 switches it off.")
        if self.repeats < 1 or not self.words > 0:
            raise UsageError(f"repeats {self.repeats}, words {self.words}: both must be above 0.")


def by_reward(rewards: Sequence[float] | None, limits: DifficultyBounds) -> bool | None:
    """Whether the last step, the mean, or any earlier step of a response has too low a reward.

    Formula: r_t <= tau1, or mean(r) <= tau1, or r_i <= tau2 for some i < t. None without steps or with a reward that is no
    number.

    >>> by_reward([0.9, 0.7, 0.95], DifficultyBounds()), by_reward([0.9, 0.71, 0.95], DifficultyBounds())
    (True, False)
    """
    if not rewards or any(reward is None or not math.isfinite(reward) for reward in rewards):
        return None
    # Through the decimal text: the mean of 0.8 and 0.9 is above 0.85 in binary floating point, and 0.85 is meant.
    total, bound = sum(Fraction(str(reward)) for reward in rewards), Fraction(str(limits.tau1)) * len(rewards)
    low_end = limits.tau1 > 0 and (rewards[-1] <= limits.tau1 or total <= bound)
    low_step = limits.tau2 > 0 and any(reward <= limits.tau2 for reward in rewards[:-1])
    return low_end or low_step


def by_correctness(correct: Sequence[bool | None]) -> bool | None:
    """Whether fewer than half of the responses are right. None where none is known.

    >>> by_correctness([True, False]), by_correctness([True, False, False]), by_correctness([None])
    (False, True, None)
    """
    known = [each for each in correct if each is not None]
    return 2 * sum(known) < len(known) if known else None


def by_consistency(answers: Sequence[str | None], limits: DifficultyBounds) -> bool | None:
    """Whether the most common answer occurs fewer than `repeats` times. None with fewer samples than that.

    >>> by_consistency(["1", "2", "3", None, "5"], DifficultyBounds()), by_consistency(["1", "2", "1.0"], DifficultyBounds())
    (True, False)
    """
    if len(answers) < limits.repeats:
        return None
    found = groups(answers)
    return not found or len(found[0]) < limits.repeats


def by_length(responses: Sequence[str], limits: DifficultyBounds) -> bool | None:
    """Whether the responses have at least `words` words on average. None without responses.

    >>> by_length(["a b c", "a"], DifficultyBounds(words=2)), by_length([], DifficultyBounds())
    (True, None)
    """
    if not responses:
        return None
    return sum(len(response.split()) for response in responses) / len(responses) >= limits.words
