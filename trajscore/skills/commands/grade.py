"""`trajscore grade`: makes the column `correct` of a corpus that has reference answers, and compares it with labels that are
there. How one response is judged lives in `trajscore.skills.grading`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trajscore.corpus import read_rows, trajectory_from_row
from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills.answers import require_math_verify
from trajscore.skills.commands.annotator import check_out, write_lines
from trajscore.skills.grading import NO_ANSWER, grade_response
from trajscore.skills.options import GradeOptions

_LISTED = 1000


@dataclass(frozen=True)
class Grading:
    """What was graded: rows == right + wrong + sum(undecided).

    Attributes:
        rows: rows read, all of which are written.
        right: rows whose answer is the reference.
        wrong: rows whose answer is not.
        undecided: rows without a verdict, by reason.
        undecided_rows: the first thousand of them: row (from 1), id and reason.
        labelled: decided rows that had a label already.
        agreeing: of these, rows whose label says the same.
        disagreeing_rows: the first thousand that do not: row, id, label.
    """

    rows: int
    right: int
    wrong: int
    undecided: Mapping[str, int]
    undecided_rows: Sequence[Mapping[str, Any]]
    labelled: int
    agreeing: int
    disagreeing_rows: Sequence[Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values, with the share of labels that agree; null where there is none."""
        share = self.agreeing / self.labelled if self.labelled else None
        return {**asdict(self), "agreement": share}


@keywords_of(GradeOptions)
def grade(options: GradeOptions) -> Grading:
    """Say of every row whether its last answer is the reference.

    Every row of the input is written with `correct` (null where not decided) and `grade`: `decided`, `no_answer`,
    `no_reference`, `unclear`, or why the row holds no response. A label that was there is kept as `correct_before`.

    Raises:
        UsageError: an argument is wrong, or no row has the reference column; nothing was written.
        MissingExtraError: math-verify is not installed.
    """
    spare_inputs_of(options)
    target = check_out(options.out)
    require_math_verify()
    seen = _Seen()
    write_lines(target, seen.graded(options))
    return Grading(
        rows=seen.rows,
        right=seen.verdicts[True],
        wrong=seen.verdicts[False],
        undecided=dict(seen.reasons),
        undecided_rows=seen.undecided,
        labelled=seen.labelled,
        agreeing=seen.agreeing,
        disagreeing_rows=seen.disagreeing,
    )


class _Seen:
    """Rows on their way to the file, and what was counted of them."""

    def __init__(self) -> None:
        self.rows = self.labelled = self.agreeing = 0
        self.verdicts: Counter[bool | None] = Counter()
        self.reasons: Counter[str] = Counter()
        self.undecided: list[dict[str, Any]] = []
        self.disagreeing: list[dict[str, Any]] = []

    def graded(self, options: GradeOptions) -> Iterator[dict[str, Any]]:
        """The rows with their verdicts.

        Raises:
            UsageError: no row has the reference column.
        """
        referenced = False
        for row in read_rows(options.data, options.source):
            self.rows += 1
            reference, known = _at(row, options.reference_field)
            referenced = referenced or known
            correct, how = _verdict(row, None if reference is None else str(reference), options)
            yield {**row, **self._count(row, correct, how), "correct": correct, "grade": how}
        if not referenced:
            raise UsageError(
                f"{options.data}: no row has the column {options.reference_field!r}.",
                "Name the column of the right answer: --reference-field COLUMN; dots lead into it.",
            )

    def _count(self, row: Mapping[str, Any], correct: bool | None, how: str) -> dict[str, Any]:
        """Count a row; gives the label that it had, as a column."""
        self.verdicts[correct] += 1
        name = {"row": self.rows, "id": row.get("id")}
        if correct is None:
            self.reasons[how] += 1
            if len(self.undecided) < _LISTED:
                self.undecided.append({**name, "reason": how})
        label = row.get("correct")
        if correct is not None and label in (True, False):
            self.labelled += 1
            self.agreeing += bool(label) == correct
            if bool(label) != correct and len(self.disagreeing) < _LISTED:
                self.disagreeing.append({**name, "label": bool(label)})
        return {"correct_before": label} if "correct" in row else {}


def _at(row: Mapping[str, Any], path: str) -> tuple[Any, bool]:
    """The value in a column, dots lead into it, and whether there is one."""
    if path in row:
        return row[path], True
    value: Any = row
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None, False
        value = value[name]
    return value, True


def _verdict(row: dict[str, Any], reference: str | None, options: GradeOptions) -> tuple[bool | None, str]:
    trajectory = trajectory_from_row(row, options.source.fields)
    if trajectory.refusal:
        return None, trajectory.refusal
    said = [each["content"] for each in trajectory.messages or [] if each.get("role") == "assistant"]
    if not said or not isinstance(said[-1], str):
        return None, NO_ANSWER
    return grade_response(said[-1], reference)
