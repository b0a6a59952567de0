"""What decides on rows: the options of a selection with the preset settled, metrics, weights and quotas read.

Options that contradict each other are refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from trajscore.errors import UsageError, did_you_mean
from trajscore.options import flag
from trajscore.selection.weights import WEIGHTS

BUDGETS = ("top", "fraction", "max_tokens")
ORDERS = {"ascending": "ascending", "asc": "ascending", "descending": "descending", "desc": "descending"}
RANDOM = "random"
"""The order that ranks by a draw from the seed and the id in place of the metric."""


@dataclass(frozen=True)
class Quota:
    """At most so many of the kept rows may have the same value in a column.

    Attributes:
        column: a column of the scores.
        value: the one value that is limited, as text; None limits every value, null being one of them.
        limit: an int is the largest number of kept rows, a float the largest share of them, in (0, 1].
        text: how it was spelt.
    """

    column: str
    value: str | None
    limit: int | float
    text: str

    def cap(self, kept: int) -> int:
        """The most rows with one value among so many kept rows: the share's decimal text counts, rounded down.

        >>> Quota("teacher", None, 0.29, "teacher=0.29").cap(100)
        29
        """
        return self.limit if isinstance(self.limit, int) else int(Fraction(str(self.limit)) * kept)


def parse_quota(text: str, columns: Collection[str]) -> Quota:
    """A quota from `COLUMN=LIMIT` or `COLUMN:VALUE=LIMIT`; a limit with a decimal point is a share, else rows.

    Args:
        text: what the user typed.
        columns: names of the columns there are; one that holds a colon wins over a column and a value.

    Raises:
        UsageError: it cannot be read, or there is no such column.

    >>> parse_quota("teacher:QwQ-32B=0.3", ["teacher"]).limit, parse_quota("teacher=10", ["teacher"]).limit
    (0.3, 10)
    """
    left, _, number = text.rpartition("=")
    if not left or not re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+", number):
        raise UsageError(
            f"--quota {text!r} cannot be read.",
            "Write COLUMN=LIMIT or COLUMN:VALUE=LIMIT, the limit a share such as 0.3 or a number of rows such as 200.",
        )
    column, colon, value = (left, "", "") if left in columns else left.partition(":")
    if column not in columns:
        raise UsageError(f"--quota {text!r}: no column {column!r}.", did_you_mean(column, columns))
    limit = int(number) if number.isdigit() else float(number)
    if limit == 0 or (isinstance(limit, float) and limit > 1):
        raise UsageError(
            f"--quota {text!r}: the limit is {number}.",
            "Give a share above 0.0 and at most 1.0, or a number of rows of at least 1.",
        )
    return Quota(column, value if colon else None, limit, text)


@dataclass(frozen=True)
class Policy:
    """What to keep.

    Attributes:
        metrics: names of metrics; the first ranks, or all do with `combine`; all are written.
        metric_weights: one weight per metric for `combine`; empty for equal ones.
        quotas: limits on the rows of one value, which hold together with the budget.
        preset: name of the preset that some of these come from; recorded only.

    The others are those of `selection.options.SelectOptions`, with defaults in place of None.

    Raises:
        UsageError: two of them contradict each other.
    """

    metrics: tuple[str, ...] = ("rsr",)
    metric_weights: tuple[float, ...] = ()
    combine: str | None = None
    combine_within: str = "corpus"
    per_prompt: int | None = None
    top: int | None = None
    fraction: float | None = None
    max_tokens: int | None = None
    quotas: tuple[Quota, ...] = ()
    where: str | None = None
    prefer: str | None = None
    order: str | None = None
    weight: str | None = None
    weight_within: str = "corpus"
    temperature: float = 1.0
    weight_column: str = "pass_rate"
    seed: int = 0
    preset: str | None = None

    def __post_init__(self) -> None:
        if not self.metrics:
            raise UsageError("no metric was given.", "Name one, for example --metric rsr.")
        given = [flag(name) for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other.", "Give one of them.")
        self._check_combination()
        if self.order == RANDOM and self.weight is not None and not WEIGHTS[self.weight].reads_column:
            raise UsageError(
                f"--order random and --weight {self.weight} exclude each other: a random rank is no merit.",
                "Leave one of them out.",
            )

    def _check_combination(self) -> None:
        if self.combine is None:
            if self.metric_weights:
                raise UsageError("a metric has a weight, and nothing is combined.", "Add --combine rank or zscore.")
            return
        if len(self.metrics) < 2:
            raise UsageError("--combine needs several metrics.", "Give --metric twice or more.")
        if self.order is not None:
            raise UsageError(
                "--order and --combine exclude each other.",
                "To turn one metric's direction around, give it a negative weight, for example --metric length:-1.",
            )

    @property
    def budget(self) -> str | None:
        """Name of the global budget in force, None without one."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), None)

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names of the metrics that rank; a row that lacks one of them is dropped."""
        return self.metrics if self.combine else self.metrics[:1]
