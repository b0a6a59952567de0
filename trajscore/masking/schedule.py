"""`mask --schedule`: rows by the stage of training that they belong to, the lowest number first (DASD, arXiv 2601.09088).

A response carries a number, the temperature at which it was sampled, say; a stage is the rows of one number, in a file of its
own, because a trainer shuffles what lies in one file and the next stage starts from the weights of the last.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from trajscore.errors import UsageError
from trajscore.scores.source import ScoreSource

NOT_SCHEDULED = "not_scheduled"
"""Why a row is left out that has none of the numbers."""

STAGE = "stage"
VALUE = "trajscore.schedule"
"""Name under which the column is carried along."""

_FORM = "Write --schedule COLUMN=LOW,HIGH, such as temperature=0.6,1."
_ERROR = 1e-6
"""By which a stored number may be off, relatively: columns of float32 hold 0.6 as 0.60000002."""


@dataclass(frozen=True)
class Schedule:
    """Stages of training.

    Attributes:
        column: the column of the scores that tells them apart.
        values: its number in each stage, ascending.
    """

    column: str
    values: tuple[float, ...]

    def files(self, out: Path) -> list[Path]:
        """The file of each stage.

        >>> [path.name for path in Schedule("temperature", (0.6, 1.0)).files(Path("masks.parquet"))]
        ['masks-1.parquet', 'masks-2.parquet']
        """
        return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, len(self.values) + 1)]

    def check(self, source: ScoreSource) -> None:
        """That the scores hold the column, and that it is one of numbers.

        Raises:
            UsageError: they do not, or it is none.
        """
        if self.column not in source.columns:
            raise UsageError(
                f"--schedule reads the column {self.column!r}, which these scores do not hold.",
                "Add it to the corpus, a number for each row, and score again.",
            )
        kind = source.columns[self.column]
        if not kind.is_numeric():
            raise UsageError(f"--schedule: the column {self.column!r} is {kind}.", "Name a column of numbers.")

    def stages(self, values: pl.Series) -> pl.Series:
        """The stage of each row, from 1 on; null where its number is that of none.

        >>> Schedule("t", (0.6, 1.0)).stages(pl.Series([1.0, 0.6, 0.7, None])).to_list()
        [2, 1, None, None]
        """
        found = pl.lit(None, pl.UInt8)
        for number, value in enumerate(self.values, 1):
            near = (pl.col(STAGE) - value).abs() <= _ERROR * max(abs(value), _ERROR)
            found = pl.when(near).then(pl.lit(number, pl.UInt8)).otherwise(found)
        return values.cast(pl.Float64).rename(STAGE).to_frame().select(found.alias(STAGE)).to_series()


def parse_schedule(text: str) -> Schedule:
    """What `--schedule` was given.

    Raises:
        UsageError: it is of another form, there are fewer than two numbers, or they do not ascend.

    >>> parse_schedule("temperature=0.6,1")
    Schedule(column='temperature', values=(0.6, 1.0))
    """
    column, equals, listed = text.partition("=")
    try:
        values = tuple(float(each) for each in listed.split(","))
    except ValueError:
        values = ()
    if not (column.strip() and equals and values and all(map(math.isfinite, values))):
        raise UsageError(f"--schedule {text!r} cannot be read.", _FORM)
    if len(values) < 2 or any(late <= early for early, late in itertools.pairwise(values)):
        raise UsageError(f"--schedule {text!r}: stages are two or more numbers, the lowest first.", _FORM)
    return Schedule(column.strip(), values)
