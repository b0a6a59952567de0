"""`trajscore skills diagnose`: difficult questions, and the skills that the student lacks in each. It joins the rules of
difficulty and the annotator's answers; both live in `trajscore.skills`. Source: arXiv 2510.10023, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from trajscore.corpus import read_rows
from trajscore.errors import UsageError, did_you_mean
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills import tasks
from trajscore.skills.answers import final_answer, require_math_verify
from trajscore.skills.calls import OK, Answer
from trajscore.skills.catalogue import Catalogue, read_catalogue
from trajscore.skills.commands.annotator import (
    NOT_DIFFICULT,
    NOT_DRAWN,
    UNDEFINED,
    UNKNOWN_SUBJECT,
    Outcome,
    Session,
    check_out,
    joint_status,
    write_lines,
)
from trajscore.skills.difficulty import RULES, DifficultyBounds, by_consistency, by_correctness, by_length, by_reward
from trajscore.skills.options import DiagnoseOptions
from trajscore.skills.questions import NO_QUESTION, REPEATED
from trajscore.skills.votes import agreement, majority_skills, majority_verdict

NO_RESPONSE = "no_response"


class _Answered(NamedTuple):
    """A question with the student's responses, and what is known of them."""

    id: str
    question: str
    subject: str | None
    responses: list[str]
    correct: list[bool | None]
    rewards: list[float] | None


@keywords_of(DiagnoseOptions)
def diagnose_skills(options: DiagnoseOptions) -> Outcome:
    """Find the questions that are difficult for the student, and ask which skills it lacks in each.

    Rows that `skills answer` did not write need `question` with `response` or `responses`, and may have `question_id`,
    `subject`, `correct` (one or a list) and `step_rewards` (of the first response, by a process reward model). The annotator
    sees the first response. A line of `out` has `question_id`, `question`, `subject`, `rule`, `difficult`, `status`, `detail`,
    `judge`, `missing_skills`, `reason`, `votes`, `agreement`, `annotator`, `prompt_version`.
    As published, 500 questions are diagnosed.

    Raises:
        UsageError: an argument or a row is wrong, or the rule needs what no row has; nothing was written.
        EngineError: the annotator cannot be reached; answered calls are kept.
    """
    spare_inputs_of(options)
    target = check_out(options.out)
    skills, votes = options.skills, options.votes
    lists = skills if isinstance(skills, Catalogue) else read_catalogue(skills)
    rows, found, left_out = _read(options.answers)
    chosen = _rule(options.rule, found, options.answers)
    if chosen == "consistency":
        require_math_verify()
    limits = DifficultyBounds(options.tau1, options.tau2, options.repeats, options.words)
    difficult = {each.id: _difficult(each, chosen, limits) for each in found}
    hard = [each for each in found if difficult[each.id] and lists.of(each.subject) is not None]
    drawn = _drawn(hard, options.questions, options.seed)
    session = Session(options, target, options.dry_run)
    asked = [each for each in hard if each.id in drawn]
    calls = [
        call
        for each in asked
        for call in tasks.diagnose(options, each.question, each.responses[0], lists.of(each.subject) or (), votes)
    ]
    with session:
        counts = {"rule": chosen, "difficult": sum(value is True for value in difficult.values()), "votes": votes}
        if options.dry_run:
            return Outcome(rows, len(found), left_out, {}, session.count(calls), counts, dry_run=True)
        replies = session.ask(calls)
        given = {each.id: replies[number * votes : (number + 1) * votes] for number, each in enumerate(asked)}
        made = {"annotator": options.annotator, "prompt_version": calls[0].version if calls else None}
        lines = [_row(each, chosen, difficult[each.id], lists, given.get(each.id), made) for each in found]
        write_lines(target, lines)
        agreements = [line["agreement"] for line in lines if line["agreement"] is not None]
        details = {**counts, "agreement": sum(agreements) / len(agreements) if agreements else None}
        statuses = Counter(line["status"] for line in lines)
        return Outcome(rows, len(found), left_out, dict(statuses), session.account(), details)


def _read(path: str | Path) -> tuple[int, list[_Answered], dict[str, int]]:
    found: dict[str, _Answered] = {}
    left_out: Counter[str] = Counter()
    rows = 0
    for row in read_rows(path):
        rows += 1
        each = _answered(row, f"{path}, row {rows}")
        if isinstance(each, str):
            left_out[each] += 1
        elif each.id in found:
            left_out[REPEATED] += 1
        else:
            found[each.id] = each
    if not found:
        raise UsageError(f"{path}: no question with a response.", "Give what `trajscore skills answer` wrote.")
    return rows, list(found.values()), dict(left_out)


def _answered(row: Mapping[str, Any], where: str) -> _Answered | str:
    """One row, or the reason why it is no answered question."""
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        return NO_QUESTION
    given = row.get("responses", row.get("response"))
    responses = [given] if isinstance(given, str) else given
    if not responses or not all(isinstance(each, str) for each in responses):
        return NO_RESPONSE
    known = row.get("correct")
    correct = known if isinstance(known, list) else [known]
    if not all(each is None or each in (0, 1) for each in correct):
        raise UsageError(f"{where}: correct is {known!r}.", "Give true, false or null, or a list of these.")
    return _Answered(
        id=str(row.get("question_id") or row.get("id") or question),
        question=question,
        subject=None if row.get("subject") is None else str(row["subject"]),
        responses=list(responses),
        correct=[None if each is None else bool(each) for each in correct],
        rewards=_rewards(row.get("step_rewards"), where),
    )


def _rewards(value: Any, where: str) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(each, int | float | None) and not isinstance(each, bool) for each in value
    ):
        raise UsageError(f"{where}: step_rewards is {value!r}.", "Give a list of numbers, one per step.")
    return value


def _rule(rule: str, found: Sequence[_Answered], path: str | Path) -> str:
    """The rule in force."""
    if rule not in ("auto", *RULES):
        raise UsageError(f"--rule {rule}: no such rule.", did_you_mean(rule, ("auto", *RULES)))
    able = {
        "reward": any(each.rewards for each in found),
        "correctness": any(known is not None for each in found for known in each.correct),
        "consistency": any(len(each.responses) > 1 for each in found),
        "length": True,
    }
    chosen = next((name for name in RULES[:-1] if able[name]), None) if rule == "auto" else rule
    if chosen is None or not able[chosen]:
        needs = "reward: `step_rewards`; correctness: `correct`; consistency: several responses per question"
        raise UsageError(f"{path}: no row has what --rule {rule} needs ({needs}).", "Add it, or give --rule length.")
    return chosen


def _difficult(each: _Answered, rule: str, limits: DifficultyBounds) -> bool | None:
    if rule == "reward":
        return by_reward(each.rewards, limits)
    if rule == "correctness":
        return by_correctness(each.correct)
    if rule == "consistency":
        return by_consistency([final_answer(response) for response in each.responses], limits)
    return by_length(each.responses, limits)


def _drawn(hard: Sequence[_Answered], questions: int | None, seed: int) -> set[str]:
    if questions is None or questions >= len(hard):
        return {each.id for each in hard}
    return {each.id for each in Random(f"difficult {seed}").sample(list(hard), questions)}  # noqa: S311


def _row(
    each: _Answered,
    rule: str,
    difficult: bool | None,
    lists: Catalogue,
    answers: Sequence[Answer] | None,
    made: Mapping[str, Any],
) -> dict[str, Any]:
    status, detail = joint_status(answers) if answers else _unasked(each, difficult, lists)
    valid = [answer.value for answer in answers or () if answer.status == OK]
    votes = [value["skills"] for value in valid]
    judge = majority_verdict([value["judge"] for value in valid]) if status == OK else None
    skills = majority_skills(votes, lists.of(each.subject) or (), tasks.MOST_SKILLS) if status == OK else None
    return {
        "question_id": each.id,
        "question": each.question,
        "subject": each.subject,
        "rule": rule,
        "difficult": difficult,
        "status": status,
        "detail": detail,
        "judge": judge,
        "missing_skills": skills,
        "reason": valid[0]["reason"] if status == OK else None,
        "votes": len(valid),
        "agreement": agreement(votes),
        **made,
    }


def _unasked(each: _Answered, difficult: bool | None, lists: Catalogue) -> tuple[str, str]:
    if difficult is None:
        return UNDEFINED, "the rule needs what this row lacks"
    if not difficult:
        return NOT_DIFFICULT, ""
    if lists.of(each.subject) is None:
        return UNKNOWN_SUBJECT, f"the catalogue has no list for the subject {each.subject!r}"
    return NOT_DRAWN, "beyond the number of questions asked for"
