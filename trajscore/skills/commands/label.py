"""`trajscore skills catalogue` and `label`: the closed lists of skills, and the Skill-Map that says which question needs which.

Both join questions, prompts and the annotator's answers; what is asked and how votes are counted lives in `trajscore.skills`.
Source: arXiv 2510.10023, section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from trajscore.errors import EngineError
from trajscore.io.atomic import replacing
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills import tasks
from trajscore.skills.calls import OK, Answer, Call
from trajscore.skills.catalogue import Catalogue, catalogue, read_catalogue
from trajscore.skills.commands.annotator import (
    UNKNOWN_SUBJECT,
    Outcome,
    Session,
    check_out,
    joint_status,
    write_lines,
)
from trajscore.skills.options import AnnotatorOptions, CatalogueOptions, LabelOptions
from trajscore.skills.questions import Question, Questions, read_questions
from trajscore.skills.votes import agreement, majority_skills

_MOST_NAMES = 400


@keywords_of(CatalogueOptions)
def skill_catalogue(options: CatalogueOptions) -> Outcome:
    """Make closed lists of skills from a question set: free names for every question, then one list per subject.

    A column `subject` makes one list per subject. `out` becomes subject -> list of skills, most frequent first; edit it as you
    like. A dry run counts calls and tokens; one call per subject comes on top.

    Raises:
        UsageError: an argument or a row's shape is wrong; nothing was written.
        EngineError: the annotator gave no list for a subject.
    """
    spare_inputs_of(options)
    target = check_out(options.out, ".json")
    questions = read_questions(options.data, options.source)
    session = Session(options, target, options.dry_run)
    calls = [call for each in questions.questions for call in tasks.name_skills(options, each.text, each.solution)]
    with session:
        if options.dry_run:
            return _outcome(questions, {}, session.count(calls), dry_run=True)
        answers = session.ask(calls)
        names = _names(questions.questions, answers)
        merged = [
            call
            for subject, counted in names.items()
            for call in tasks.merge_skills(options, subject, counted[:_MOST_NAMES], options.size)
        ]
        lists = dict(zip(names, session.ask(merged), strict=True))
        made = {subject: _merged(subject, answer) for subject, answer in lists.items()}
        catalogue(made)
        with replacing(target) as temporary:
            temporary.write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        statuses = Counter(answer.status for answer in answers)
        details = {
            "skills": {subject: len(skills) for subject, skills in made.items()},
            "names": {subject: len(counted) for subject, counted in names.items()},
            "names_left_out": sum(max(0, len(counted) - _MOST_NAMES) for counted in names.values()),
        }
        return _outcome(questions, statuses, session.account(), details)


def _names(questions: Sequence[Question], answers: Sequence[Answer]) -> dict[str, list[tuple[str, int]]]:
    """Names by subject with their counts, most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for question, answer in zip(questions, answers, strict=True):
        if answer.status == OK:
            named = {" ".join(name.split()).lower() for name in answer.value["skills"]} - {""}
            counts.setdefault(question.subject or "", Counter()).update(named)
    if not any(counts.values()):
        raise EngineError(
            "the annotator named no skill for any question.", "Look into the cache of calls for its answers."
        )
    order = {subject: sorted(found.items(), key=lambda each: (-each[1], each[0])) for subject, found in counts.items()}
    return {subject: names for subject, names in sorted(order.items()) if names}


def _merged(subject: str, answer: Answer) -> list[str]:
    if answer.status != OK:
        raise EngineError(
            f"no list of skills for the subject {subject!r}: {answer.status}, {answer.detail}.",
            "Try another annotator or a larger --max-tokens, or bring your own list.",
        )
    names = dict.fromkeys(" ".join(name.split()) for name in answer.value["skills"])
    return [name for name in names if name]


@keywords_of(LabelOptions)
def label_skills(options: LabelOptions) -> Outcome:
    """Label every training question with the skills that it needs, at most five of its subject's closed list.

    `data` is the corpus that is or will be scored; each question is labelled once. A line of `out` has `question_id` (what
    `score` calls `prompt_id`), `question`, `subject`, `solution`, `answer`, `status`, `detail`, `skills`, `votes`, `agreement`,
    `annotator`, `prompt_version`. A skill counts when more than half of the valid answers name it.

    Returns:
        The account; `details` has `agreement`, the mean over questions of the votes' pairwise overlap (null with one vote).

    Raises:
        UsageError: an argument, the catalogue or a row's shape is wrong; nothing was written.
        EngineError: the annotator cannot be reached; answered calls are kept.
    """
    spare_inputs_of(options)
    target = check_out(options.out)
    skills, votes = options.skills, options.votes
    lists = skills if isinstance(skills, Catalogue) else read_catalogue(skills)
    questions = read_questions(options.data, options.source)
    session = Session(options, target, options.dry_run)
    known = [each for each in questions.questions if lists.of(each.subject) is not None]
    calls = [call for each in known for call in _label_calls(options, each, lists, votes)]
    with session:
        if options.dry_run:
            return _outcome(questions, {}, session.count(calls), dry_run=True)
        answers = dict(zip([each.id for each in known], _in_votes(session.ask(calls), votes), strict=True))
        version = calls[0].version if calls else None
        rows = [
            _row(each, lists, answers.get(each.id), {"annotator": options.annotator, "prompt_version": version})
            for each in questions.questions
        ]
        write_lines(target, rows)
        agreements = [row["agreement"] for row in rows if row["agreement"] is not None]
        details = {"votes": votes, "agreement": sum(agreements) / len(agreements) if agreements else None}
        return _outcome(questions, Counter(row["status"] for row in rows), session.account(), details)


def _label_calls(annotator: AnnotatorOptions, question: Question, lists: Catalogue, votes: int) -> list[Call]:
    allowed = lists.of(question.subject) or ()
    return tasks.label(annotator, question.text, question.solution, allowed, votes)


def _in_votes(answers: Sequence[Answer], votes: int) -> list[Sequence[Answer]]:
    return [answers[first : first + votes] for first in range(0, len(answers), votes)]


def _row(
    question: Question, lists: Catalogue, answers: Sequence[Answer] | None, made: Mapping[str, Any]
) -> dict[str, Any]:
    given = [answer.value["skills"] for answer in answers or () if answer.status == OK]
    status, detail = (
        joint_status(answers)
        if answers
        else (UNKNOWN_SUBJECT, f"the catalogue has no list for the subject {question.subject!r}")
    )
    chosen = majority_skills(given, lists.of(question.subject) or (), tasks.MOST_SKILLS) if status == OK else None
    return {
        "question_id": question.id,
        "question": question.text,
        "subject": question.subject,
        "solution": question.solution,
        "answer": question.answer,
        "status": status,
        "detail": detail,
        "skills": chosen,
        "votes": len(given),
        "agreement": agreement(given),
        **made,
    }


def _outcome(
    questions: Questions,
    statuses: Mapping[str, int],
    calls: Mapping[str, Any],
    details: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Outcome:
    return Outcome(
        rows=questions.rows,
        items=len(questions.questions),
        left_out=questions.left_out,
        statuses=dict(statuses),
        calls=calls,
        details=details or {},
        dry_run=dry_run,
    )
