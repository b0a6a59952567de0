"""`trajscore skills pass-rate`: how often the student answered each prompt right, as columns beside the scores.

The scores are written again with two columns more. A prompt without a verdict on any answer has no rate, not the rate 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills.commands.annotator import read_made
from trajscore.skills.commands.joining import Joined, Prompts, answer_files, read_prompts, told_unused, write_joined
from trajscore.skills.options import PassRateOptions

RATE = pa.field(
    "pass_rate",
    pa.float64(),
    metadata={
        "unit": "",
        "meaning": "share of the student's answers to the prompt that are right; null without a verdict",
    },
)
SAMPLES = pa.field(
    "pass_rate_samples",
    pa.int64(),
    metadata={"unit": "answers", "meaning": "answers of the student with a verdict, of which pass_rate is the share"},
)

NOT_ANSWERED = "not_answered"
NO_VERDICT = "no_verdict"


class Count(NamedTuple):
    """Answers to one prompt.

    Attributes:
        right: those that are right.
        samples: those with a verdict.
    """

    right: int
    samples: int

    @property
    def rate(self) -> float | None:
        """The share that is right; None without a verdict."""
        return self.right / self.samples if self.samples else None


_NONE = Count(0, 0)


@dataclass(frozen=True, repr=False)
class PassRates(Joined):
    """What was joined: rows == rated + sum(without).

    Attributes:
        rows: rows of the scores, all of which are written.
        rated: rows that have a pass rate.
        without: rows that have none, by reason: `not_answered`, or `no_verdict` where the right answer is unknown.
        prompts: prompts of the scores.
        rated_prompts: of these, how many have a pass rate.
        right: right answers to the prompts of the scores.
        samples: answers to them with a verdict.
        unused_questions: answered questions that no row of the scores asks.
        frame: the prompts of the scores by id: `prompt_id`, `correct`, `samples`, `pass_rate`.
    """

    rows: int
    rated: int
    without: Mapping[str, int]
    prompts: int
    rated_prompts: int
    right: int
    samples: int
    unused_questions: int
    frame: pl.DataFrame

    def lines(self) -> list[str]:
        """Rows and prompts with a pass rate, and what has none."""
        left = "".join(f"; {count:,} {reason}" for reason, count in self.without.items())
        return [
            f"Pass rates: {self.rated:,} of {self.rows:,} rows{left}",
            f"{self.rated_prompts:,} of {self.prompts:,} prompts, {self.right:,} of {self.samples:,} answers right"
            + told_unused(self.unused_questions),
        ]

    def preview(self) -> pl.DataFrame:
        """The prompts with their rates."""
        return self.frame


@keywords_of(PassRateOptions)
def pass_rates(options: PassRateOptions) -> PassRates:
    """Write scores again with the student's pass rate on each row's prompt.

    The columns are `pass_rate`, right answers over answers with a verdict, and `pass_rate_samples`, the number of these; both
    null where the prompt was not answered or its right answer is not known. Answers to one question in several rows or files
    count together.

    Raises:
        UsageError: an argument or an answer is wrong, or no prompt of the scores was answered; nothing was written.
        DataError: the scores or the answers cannot be read.
        TrajscoreError: the folder cannot be written.

    Source: arXiv 2603.11178, whose weight p (1 - p) is `select --weight paced`.
    """
    spare_inputs_of(options)
    counts = _counts(answer_files(options))
    prompts = read_prompts(options.scores)
    if not any(counts[each].samples for each in prompts.known if each in counts):
        raise UsageError(
            f"{options.scores}: none of its prompts has an answer with a verdict.",
            "Let the student answer the corpus that was scored, with the right answers in a column `answer`: "
            "`trajscore skills answer CORPUS --samples N`. A question's id is the prompt_id of its rows.",
        )

    def numbers(prompt: str | None) -> tuple[float | None, int | None]:
        count = counts.get(prompt, _NONE) if prompt is not None else _NONE
        return count.rate, count.samples or None

    write_joined(options, (RATE, SAMPLES), counts, numbers)
    return _joined(prompts, counts)


def _counts(files: Sequence[str | Path]) -> dict[str, Count]:
    """Answers by the id of their question."""
    found: dict[str, Count] = {}
    for file in files:
        for number, row in enumerate(read_made(file, ("question_id", "correct"), "answer"), 1):
            verdicts = row["correct"] if isinstance(row["correct"], list) else [row["correct"]]
            if any(each is not None and each not in (0, 1) for each in verdicts):
                raise UsageError(
                    f"{file}, row {number}: correct is {row['correct']!r}.",
                    "Give true, false or null, or a list of these.",
                )
            name, said = str(row["question_id"]), [bool(each) for each in verdicts if each is not None]
            before = found.get(name, _NONE)
            found[name] = Count(before.right + sum(said), before.samples + len(said))
    return found


def _joined(prompts: Prompts, counts: Mapping[str, Count]) -> PassRates:
    """What was joined to rows of these prompts."""
    without = Counter(
        NO_VERDICT if prompt in counts else NOT_ANSWERED
        for prompt in prompts.of_rows
        if prompt not in counts or not counts[prompt].samples
    )
    own = [counts.get(prompt, _NONE) for prompt in prompts.known]
    frame = pl.DataFrame(
        {
            "prompt_id": prompts.known,
            "correct": pl.Series([each.right if each.samples else None for each in own], dtype=pl.Int64),
            "samples": pl.Series([each.samples or None for each in own], dtype=pl.Int64),
            "pass_rate": pl.Series([each.rate for each in own], dtype=pl.Float64),
        }
    )
    return PassRates(
        rows=len(prompts.of_rows),
        rated=len(prompts.of_rows) - sum(without.values()),
        without=dict(without),
        prompts=len(prompts.known),
        rated_prompts=sum(bool(each.samples) for each in own),
        right=sum(each.right for each in own),
        samples=sum(each.samples for each in own),
        unused_questions=len(counts.keys() - {*prompts.known}),
        frame=frame,
    )
