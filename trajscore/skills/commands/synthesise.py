"""`trajscore skills synthesise` (STAT-Syn): new questions on missing skills, with solutions that agree. It joins the profile,
the Skill-Map and the annotator; draws and agreement live in `trajscore.skills.synthesis`.

Source: arXiv 2510.10023, section 4.3.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from trajscore.errors import UsageError
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills import tasks
from trajscore.skills.answers import require_math_verify
from trajscore.skills.calls import OK, Answer, Call
from trajscore.skills.commands.annotator import Outcome, Session, check_out, joint_status, write_lines
from trajscore.skills.commands.profile import read_profile, read_skill_map
from trajscore.skills.options import AnnotatorOptions, SynthesiseOptions
from trajscore.skills.questions import Question
from trajscore.skills.synthesis import SeedDraw, agreeing, draw_seeds, normalised

NO_SEED = "no_seed_question"
COPY = "copy"
EMPTY = "empty_question"
NO_AGREEMENT = "no_agreement"
TOTAL = "total"


@dataclass
class _Proposal:
    """A new question on its way: `status` is empty until something decides on it."""

    id: str
    text: str
    draw: SeedDraw
    status: str = ""
    detail: str = ""


@keywords_of(SynthesiseOptions)
def synthesise_questions(options: SynthesiseOptions) -> Outcome:
    """Let the annotator write questions on the skills that the student lacks, and solve them several times.

    A line of `out` is a kept pair of `question` and `solution` (columns that `score` reads) with `id`, `prompt_id`, `teacher`,
    `answer`, `skill`, `source_question_id`, `seeds`, `agreement` (size of the agreeing group) and `solutions`. A dry run counts
    calls and tokens; calls for solutions at most.

    Returns:
        The account: rows are pairs of question and missing skill, items are proposals.

    Raises:
        UsageError: an argument or a file is wrong; nothing was written.
        EngineError: the annotator cannot be reached; answered calls are kept.
    """
    spare_inputs_of(options)
    target = check_out(options.out)
    listed = None if options.decisions is None else check_out(options.decisions, flag="--decisions")
    require_math_verify()
    draws = list(draw_seeds(read_profile(options.profile), _by_skill(options.skill_map), options.seeds, options.seed))
    if not draws:
        raise UsageError(f"{options.profile}: no question lacks a skill.", "There is nothing to write questions for.")
    usable = [draw for draw in draws if draw.seeds]
    left_out = {NO_SEED: len(draws) - len(usable)} if len(usable) < len(draws) else {}
    session = Session(options, target, options.dry_run)
    calls = [_proposing(options, draw, options.questions) for draw in usable]
    with session:
        if options.dry_run:
            later = len(calls) * options.questions * options.solutions
            return Outcome(
                len(draws), 0, left_out, {}, session.count(calls), {"solution_calls_at_most": later}, dry_run=True
            )
        answers = session.ask(calls)
        proposals, failed = _proposals(usable, answers, _known(usable))
        fresh = [each for each in proposals if not each.status]
        solving = [tasks.solve(options, each.text, options.solutions) for each in fresh]
        solved = session.ask([call for several in solving for call in several])
        pairs = []
        for number, each in enumerate(fresh):
            own = solved[number * options.solutions : (number + 1) * options.solutions]
            pairs += list(_agreed(each, own, options.min_agreement, options.annotator))
        kept = _within(pairs, options.total, options.seed)
        _drop_unwritten(fresh, kept)
        write_lines(target, kept)
        if listed is not None:
            write_lines(listed, map(_decision, proposals))
        statuses = Counter(each.status for each in proposals)
        details = {
            "calls_without_proposals": dict(failed),
            "pairs_agreeing": len(pairs),
            "pairs_written": len(kept),
            "questions_written": len({row["prompt_id"] for row in kept}),
        }
        left_out |= {f"proposal_{status}": count for status, count in failed.items()}
        return Outcome(len(draws), len(proposals), left_out, dict(statuses), session.account(), details)


def _by_skill(path: str | Path) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for row in read_skill_map(path):
        question = Question(
            id=str(row["question_id"]),
            text=str(row["question"]),
            messages=(),
            subject=row.get("subject"),
            answer=row.get("answer"),
            solution=row.get("solution"),
        )
        for skill in dict.fromkeys(row["skills"]):
            found.setdefault(skill, []).append(question)
    return found


def _proposing(annotator: AnnotatorOptions, draw: SeedDraw, questions: int) -> Call:
    seeds = [(seed.text, seed.solution) for seed in draw.seeds]
    return tasks.propose(annotator, draw.skill, seeds, questions, draw.number)


def _known(draws: Sequence[SeedDraw]) -> set[str]:
    return {normalised(seed.text) for draw in draws for seed in draw.seeds}


def _proposals(
    draws: Sequence[SeedDraw], answers: Sequence[Answer], known: set[str]
) -> tuple[list[_Proposal], Counter[str]]:
    """Every proposed question, those that are copies or empty marked; and the calls that gave none, by status."""
    seen, proposals, failed = set(known), [], Counter[str]()
    for draw, answer in zip(draws, answers, strict=True):
        if answer.status != OK:
            failed[answer.status] += 1
            continue
        for item in answer.value["questions"]:
            text = item["question"].strip()
            name = hashlib.blake2b(normalised(text).encode(), digest_size=16).hexdigest()
            status = EMPTY if not text else COPY if normalised(text) in seen else ""
            seen.add(normalised(text))
            proposals.append(_Proposal(f"syn-{name}", text, draw, status))
    return proposals, failed


def _agreed(proposal: _Proposal, answers: Sequence[Answer], least: int, teacher: str) -> Iterator[dict[str, Any]]:
    """The pairs of a question whose solutions agree; marks the proposal."""
    finals = [answer.value["answer"] if answer.status == OK else None for answer in answers]
    places = agreeing(finals, least)
    if not places:
        status, detail = joint_status(answers)
        proposal.status, proposal.detail = (NO_AGREEMENT, f"answers: {finals}") if status == OK else (status, detail)
        return
    proposal.status = OK
    for place in places:
        yield {
            "id": f"{proposal.id}/{place}",
            "prompt_id": proposal.id,
            "question": proposal.text,
            "solution": answers[place].value["solution"],
            "answer": finals[places[0]],
            "teacher": teacher,
            "skill": proposal.draw.skill,
            "source_question_id": proposal.draw.question_id,
            "seeds": [seed.id for seed in proposal.draw.seeds],
            "agreement": len(places),
            "solutions": len(answers),
        }


def _within(pairs: Sequence[dict[str, Any]], total: int | None, seed: int) -> list[dict[str, Any]]:
    if total is None or total >= len(pairs):
        return list(pairs)
    chosen = Random(f"total {seed}").sample(range(len(pairs)), total)  # noqa: S311
    return [pairs[place] for place in sorted(chosen)]


def _drop_unwritten(proposals: Sequence[_Proposal], kept: Sequence[Mapping[str, Any]]) -> None:
    written = {row["prompt_id"] for row in kept}
    for each in proposals:
        if each.status == OK and each.id not in written:
            each.status = TOTAL


def _decision(each: _Proposal) -> dict[str, Any]:
    return {
        "prompt_id": each.id,
        "question": each.text,
        "skill": each.draw.skill,
        "source_question_id": each.draw.question_id,
        "kept": each.status == OK,
        "step": "kept" if each.status == OK else each.status,
        "detail": each.detail,
    }
