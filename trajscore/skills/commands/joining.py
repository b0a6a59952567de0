"""What `skills answer` wrote, joined to scores by their prompts: the folder is written again with a column for each number.

`pass_rate.py` and `entropy.py` say what the numbers of a prompt are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
import pyarrow as pa

from trajscore.display.notebook import Shown
from trajscore.scores.adding import add_columns
from trajscore.scores.source import open_scores
from trajscore.skills.options import EntropyOptions, PassRateOptions


@dataclass(frozen=True, repr=False)
class Joined(Shown):
    """What was joined: counts, and `frame`, the prompts of the scores with their numbers."""

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "frame"}


class Prompts(NamedTuple):
    """Prompts of scores: that of each row, null where it has none, and all of them once, in order."""

    of_rows: pl.Series
    known: pl.Series


def answer_files(options: PassRateOptions | EntropyOptions) -> Sequence[str | Path]:
    """The files of answers, one or several."""
    return [options.answers] if isinstance(options.answers, str | Path) else options.answers


def read_prompts(scores: str | Path) -> Prompts:
    """The prompts that scores are of.

    Raises:
        DataError: the scores cannot be read.
    """
    of_rows = open_scores(scores).frame.select("prompt_id").collect()["prompt_id"]
    return Prompts(of_rows, of_rows.drop_nulls().unique().sort())


def write_joined(
    options: PassRateOptions | EntropyOptions,
    added: Sequence[pa.Field],
    found: Mapping[str, tuple[Any, ...]],
    numbers: Callable[[str | None], tuple[Any, ...]],
) -> None:
    """Write the scores again with what was found of their prompts.

    Args:
        options: names answers, scores and the new folder.
        added: the columns.
        found: what all answers say, by question; its digest is recorded.
        numbers: of a row's prompt, one for each column.

    Raises:
        UsageError: the scores cannot have these columns, or the folder holds something else.
        DataError: a part cannot be read.
        TrajscoreError: the folder cannot be written.
    """
    digest = hashlib.sha256(orjson.dumps(sorted((name, *each) for name, each in found.items()))).hexdigest()
    said = {"answers": [Path(each).name for each in answer_files(options)], "sha256": digest}

    def values(part: pa.Table) -> list[list[Any]]:
        rows = [numbers(prompt) for prompt in part["prompt_id"].to_pylist()]
        return [[row[place] for row in rows] for place in range(len(added))]

    add_columns(options.scores, options.out, added, values, said, options.overwrite)


def told_unused(questions: int) -> str:
    """The end of a line that says how many answered questions no row of the scores asks; empty where there are none."""
    return f"; {questions:,} answered questions are no prompt of these scores" if questions else ""
