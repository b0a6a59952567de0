"""`trajscore skills entropy`: how unsure the student is of each prompt, as a column beside the scores (EDCO, arXiv 2601.03725).

The scores are written again with one column more. A prompt that was not answered has no entropy.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from trajscore.display.notebook import Shown
from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.scores.adding import add_columns
from trajscore.scores.source import open_scores
from trajscore.skills.commands.annotator import read_made
from trajscore.skills.commands.answer import ENTROPY
from trajscore.skills.options import EntropyOptions

COLUMN = pa.field(
    ENTROPY,
    pa.float64(),
    metadata={
        "unit": "bits",
        "meaning": "mean entropy of the student's most uncertain predictions as it begins a brief answer to the prompt, over "
        "its responses; null where there is none",
    },
)


@dataclass(frozen=True, repr=False)
class PromptEntropies(Shown):
    """What was joined: rows == measured + not_answered.

    Attributes:
        rows: rows of the scores, all of which are written.
        measured: rows that have an entropy.
        not_answered: rows whose prompt has none.
        prompts: prompts of the scores.
        measured_prompts: of these, how many have an entropy.
        unused_questions: answered questions that no row of the scores asks.
        frame: the prompts of the scores by id: `prompt_id`, `inference_entropy`.
    """

    rows: int
    measured: int
    not_answered: int
    prompts: int
    measured_prompts: int
    unused_questions: int
    frame: pl.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "frame"}

    def lines(self) -> list[str]:
        """Rows and prompts with an entropy, and what has none."""
        unused = f"; {self.unused_questions:,} answered questions are no prompt of these scores"
        return [
            f"Entropies: {self.measured:,} of {self.rows:,} rows; {self.not_answered:,} not answered",
            f"{self.measured_prompts:,} of {self.prompts:,} prompts" + (unused if self.unused_questions else ""),
        ]

    def preview(self) -> pl.DataFrame:
        """The prompts, the most uncertain first."""
        return self.frame.sort(ENTROPY, descending=True, nulls_last=True)


@keywords_of(EntropyOptions)
def prompt_entropies(options: EntropyOptions) -> PromptEntropies:
    """Write scores again with the student's inference entropy of each row's prompt, which the metric of that name reads.

    Of several responses to a prompt, in one file or several, it is the mean.

    Raises:
        UsageError: an argument or an answer is wrong, or no prompt of the scores was answered; nothing was written.
        DataError: the scores or the answers cannot be read.
        TrajscoreError: the folder cannot be written.

    Source: arXiv 2601.03725.
    """
    spare_inputs_of(options)
    files = [options.answers] if isinstance(options.answers, str | Path) else options.answers
    found = _entropies(files)
    rows = open_scores(options.scores).frame.select("prompt_id").collect()["prompt_id"]
    prompts = rows.drop_nulls().unique().sort()
    if not any(each in found for each in prompts):
        raise UsageError(
            f"{options.scores}: none of its prompts has an entropy.",
            "Let the student begin answers to the corpus that was scored: `trajscore skills answer CORPUS --entropy`. A "
            "question's id is the prompt_id of its rows.",
        )
    digest = hashlib.sha256(orjson.dumps(sorted(found.items()))).hexdigest()
    said = {"answers": [Path(each).name for each in files], "sha256": digest}

    def values(part: pa.Table) -> Sequence[Sequence[Any]]:
        return [[found.get(prompt) for prompt in part["prompt_id"].to_pylist()]]

    add_columns(options.scores, options.out, (COLUMN,), values, said, options.overwrite)
    counts = Counter(each in found for each in rows)
    return PromptEntropies(
        rows=len(rows),
        measured=counts[True],
        not_answered=counts[False],
        prompts=len(prompts),
        measured_prompts=sum(each in found for each in prompts),
        unused_questions=len(found.keys() - {*prompts}),
        frame=pl.DataFrame(
            {"prompt_id": prompts, ENTROPY: pl.Series([found.get(each) for each in prompts], dtype=pl.Float64)}
        ),
    )


def _entropies(files: Sequence[str | Path]) -> Mapping[str, float]:
    """The mean entropy of each question that has one, by its id; the order of files and lines does not matter."""
    found: dict[str, list[float]] = {}
    for file in files:
        for number, row in enumerate(read_made(file, ("question_id", ENTROPY), "answer --entropy"), 1):
            given = row[ENTROPY] if isinstance(row[ENTROPY], list) else [row[ENTROPY]]
            for each in given:
                if each is not None and not (isinstance(each, float | int) and math.isfinite(each) and each >= 0):
                    raise UsageError(
                        f"{file}, row {number}: {ENTROPY} is {each!r}.", "Give numbers of at least 0, or null."
                    )
            found.setdefault(str(row["question_id"]), []).extend(each for each in given if each is not None)
    return {name: math.fsum(each) / len(each) for name, each in found.items() if each}
