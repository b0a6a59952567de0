"""Rows of question files and corpora -> questions, each once.

A question's id is what `trajscore score` calls `prompt_id` for the same row, so that a map of skills made from a corpus fits
its scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trajscore.corpus import FieldNames, SourceOptions, read_rows, trajectory_from_row
from trajscore.corpus.trajectories import UNKNOWN_LAYOUT
from trajscore.errors import UsageError

REPEATED = "repeated_question"
NO_QUESTION = "no_question"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its name, the `prompt_id` of its rows.
        text: what is asked; of several turns, each with its role.
        messages: the turns before the first assistant turn.
        subject: column `subject`, None where there is none.
        answer: the right final answer as text (column `answer`), None when unknown.
        solution: the first response that is not marked incorrect, without its thinking; None when there is none.
        beginning: text from which an answer is to go on (column `beginning`); empty where there is none.
    """

    id: str
    text: str
    messages: tuple[dict[str, Any], ...]
    subject: str | None
    answer: str | None
    solution: str | None
    beginning: str = ""


@dataclass(frozen=True)
class Questions:
    """Questions of a data set: rows = len(questions) + sum(left_out.values()).

    Attributes:
        questions: each once, in the order of first rows.
        rows: rows read.
        left_out: rows that brought no new question, by reason (`repeated_question`, `no_question`, or why a row is none).
    """

    questions: tuple[Question, ...]
    rows: int
    left_out: dict[str, int]


def read_questions(data: Sequence[str | Path] | str | Path, options: SourceOptions | None = None) -> Questions:
    """All questions of a data set; rows as `trajscore score` reads them, or a question without a response.

    Raises:
        UsageError: no row holds a question.
        DataError: a file is broken.
    """
    options = options or SourceOptions()
    found: dict[str, Question] = {}
    left_out: Counter[str] = Counter()
    rows = 0
    for row in read_rows(data, options):
        rows += 1
        question = _question(row, options.fields)
        if isinstance(question, str):
            left_out[question] += 1
        elif question.id in found:
            left_out[REPEATED] += 1
            earlier = found[question.id]
            found[question.id] = replace(earlier, solution=earlier.solution or question.solution)
        else:
            found[question.id] = question
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no rows"
        raise UsageError(
            f"{data}: no question in it ({why}).", "Rows need `question`, `problem`, `prompt` or `messages`."
        )
    return Questions(tuple(found.values()), rows, dict(left_out))


def _question(row: dict[str, Any], fields: FieldNames) -> Question | str:
    """The question of a row, or the reason why it is none."""
    trajectory = trajectory_from_row(row, fields)
    if trajectory.refusal == UNKNOWN_LAYOUT:
        # A question alone: with an empty response it has a layout, and the same prompt_id as with any other.
        trajectory = trajectory_from_row({**row, "response": ""}, fields)
    if trajectory.refusal:
        return NO_QUESTION if trajectory.refusal == UNKNOWN_LAYOUT else trajectory.refusal
    messages = trajectory.messages or []
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    before = messages[:first]
    if not any(message["content"].strip() for message in before):
        return NO_QUESTION
    response = messages[first]["content"] if first < len(messages) and row.get("correct") in (None, True, 1) else ""
    answer = row.get("answer")
    return Question(
        id=trajectory.prompt_id,
        text=_text(before),
        messages=tuple({"role": message["role"], "content": message["content"]} for message in before),
        subject=None if row.get("subject") is None else str(row["subject"]),
        answer=None if answer is None or isinstance(answer, list | dict) else str(answer),
        solution=response.rpartition("</think>")[2].strip() or None,
        beginning=row["beginning"] if isinstance(row.get("beginning"), str) else "",
    )


def _text(messages: Sequence[dict[str, Any]]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
