"""`trajscore skills begin`: the student's own responses, cut, for a teacher to go on from.

It is the first half of DASD's mixed policy (arXiv 2601.09088). What goes on is `skills answer`, with the teacher in the
student's place, which also joins the two.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills.calls import OK
from trajscore.skills.commands.annotator import Outcome, check_out, read_made, write_lines
from trajscore.skills.options import BeginOptions
from trajscore.skills.questions import Question, read_questions

NOT_ANSWERED, FINISHED, NO_PLACE, NOT_DRAWN = "not_answered", "finished", "no_place_to_cut", "not_drawn"
"""Why a question has no beginning."""

_WORD = re.compile(r"(?<=\s)\S")


@keywords_of(BeginOptions)
def begin_answers(options: BeginOptions) -> Outcome:
    """Cut the student's responses at a random word of their second half.

    A line of `out` has `prompt_id`, `messages` (the turns before the answer), `subject`, `answer`, `beginning` (the response up
    to the cut) and `cut_at`, its length in characters. Of several responses to a question one is drawn, of those whose second
    half has a word that begins in it; the cut is uniform among these words. By default only responses that ran out of tokens
    are cut, as in the source. Draws depend on seed and question alone, so neither other questions nor their order matter.

    Raises:
        UsageError: an argument or a row's shape is wrong, or there is nothing to cut; nothing was written.

    Source: arXiv 2601.09088 (DASD): 15,000 cut responses of 50,000 prompts. The share and where a word begins are ours.
    """
    spare_inputs_of(options)
    target = check_out(options.out)
    questions = read_questions(options.data, options.source)
    answers = {
        str(row["question_id"]): list(zip(row["responses"], row["finished"], strict=True))
        for row in read_made(options.answers, ("question_id", "responses", "finished"), "answer")
    }
    left_out, found = Counter(questions.left_out), list[tuple[float, Question, str]]()
    for question in questions.questions:
        if question.id not in answers:
            left_out[NOT_ANSWERED] += 1
            continue
        fit = [response for response, finished in answers[question.id] if options.whole or not finished]
        places = [(text, place) for text in fit if (place := places_to_cut(text))]
        if not places:
            left_out[NO_PLACE if fit else FINISHED] += 1
            continue
        draw = random.Random(f"{options.seed}:{question.id}")  # noqa: S311 - no secret
        order, (text, own) = draw.random(), draw.choice(places)
        found.append((order, question, text[: draw.choice(own)]))
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UsageError(
            f"{options.answers}: no response to cut ({why}).",
            "Give answers to these questions; --whole cuts finished ones, too.",
        )
    limit = max(1, int(options.share * len(found)))
    drawn = {question.id for _, question, _ in sorted(found, key=lambda each: (each[0], each[1].id))[:limit]}
    if rest := len(found) - len(drawn):
        left_out[NOT_DRAWN] = rest
    lines = [_line(question, beginning) for _, question, beginning in found if question.id in drawn]
    write_lines(target, lines)
    return Outcome(questions.rows, len(lines), dict(left_out), {OK: len(lines)}, {})


def places_to_cut(response: str) -> Sequence[int]:
    """Where words of the second half begin, in characters.

    >>> places_to_cut("one two three four"), places_to_cut("one"), places_to_cut("")
    ([14], [], [])
    """
    return [match.start() for match in _WORD.finditer(response, (len(response) + 1) // 2)]


def _line(question: Question, beginning: str) -> Mapping[str, Any]:
    return {
        "prompt_id": question.id,
        "messages": list(question.messages),
        "subject": question.subject,
        "answer": question.answer,
        "beginning": beginning,
        "cut_at": len(beginning),
    }
