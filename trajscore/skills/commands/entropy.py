"""`trajscore skills entropy`: how unsure the student is of each prompt, as a column beside the scores (EDCO, arXiv 2601.03725).

The scores are written again with one column more. A prompt that was not answered has no entropy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills.commands.annotator import read_made
from trajscore.skills.commands.answer import ENTROPY
from trajscore.skills.commands.joining import Joined, answer_files, read_prompts, told_unused, write_joined
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
class PromptEntropies(Joined):
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

    def lines(self) -> list[str]:
        """Rows and prompts with an entropy, and what has none."""
        return [
            f"Entropies: {self.measured:,} of {self.rows:,} rows; {self.not_answered:,} not answered",
            f"{self.measured_prompts:,} of {self.prompts:,} prompts{told_unused(self.unused_questions)}",
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
    found = _entropies(answer_files(options))
    prompts = read_prompts(options.scores)
    if not any(each in found for each in prompts.known):
        raise UsageError(
            f"{options.scores}: none of its prompts has an entropy.",
            "Let the student begin answers to the corpus that was scored: `trajscore skills answer CORPUS --entropy`. A "
            "question's id is the prompt_id of its rows.",
        )

    def numbers(prompt: str | None) -> tuple[float | None]:
        return (None if prompt is None else found.get(prompt),)

    write_joined(options, (COLUMN,), {name: (each,) for name, each in found.items()}, numbers)
    counts = Counter(each in found for each in prompts.of_rows)
    return PromptEntropies(
        rows=len(prompts.of_rows),
        measured=counts[True],
        not_answered=counts[False],
        prompts=len(prompts.known),
        measured_prompts=sum(each in found for each in prompts.known),
        unused_questions=len(found.keys() - {*prompts.known}),
        frame=pl.DataFrame(
            {"prompt_id": prompts.known, ENTROPY: pl.Series([*map(found.get, prompts.known)], dtype=pl.Float64)}
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
