"""`trajscore skills profile`: diagnoses -> the Missing-Skill-Profile with intervals, as JSON and as a bar chart. It joins
counts and the bootstrap. Source: arXiv 2510.10023, section 4.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from trajscore.display import charts
from trajscore.errors import UsageError
from trajscore.estimates.bootstrap import GroupSums, interval, replicate
from trajscore.io.atomic import replacing
from trajscore.io.outputs import spare_inputs_of
from trajscore.options import keywords_of
from trajscore.skills.calls import OK
from trajscore.skills.commands.annotator import check_out, read_json, read_made
from trajscore.skills.options import ProfileOptions
from trajscore.skills.profile import FEW_QUESTIONS, counts, incidence


@dataclass(frozen=True)
class SkillLine:
    """One skill that the student lacks.

    Attributes:
        skill: its name.
        questions: diagnosed questions that lack it.
        low: lower end of the interval of `questions`; None below two diagnosed questions.
        high: upper end.
        share: `questions` over all diagnosed questions.
    """

    skill: str
    questions: int
    low: float | None
    high: float | None
    share: float


@dataclass(frozen=True)
class SkillProfile:
    """The Missing-Skill-Profile.

    Attributes:
        questions: diagnosed question -> the skills it lacks; questions that lack none are left out.
        skills: most frequent first, ties by name.
        rows: rows of the diagnosis; the sum of `statuses`.
        statuses: rows by what became of them.
        diagnosed: questions that the counts rest on.
        agreement: mean agreement of the votes; None with one vote per question.
        confidence: share of the bootstrap replicates inside an interval.
        replicates: bootstrap replicates over questions.
        seed: of the resampling.
        notes: what a reader should know.
    """

    questions: Mapping[str, list[str]]
    skills: tuple[SkillLine, ...]
    rows: int
    statuses: Mapping[str, int]
    diagnosed: int
    agreement: float | None
    confidence: float
    replicates: int
    seed: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values: what the profile's file holds."""
        return asdict(self)


@keywords_of(ProfileOptions)
def skill_profile(options: ProfileOptions) -> SkillProfile:
    """Count the skills that a student lacks.

    Returns:
        The counts with their intervals.

    Raises:
        UsageError: an argument or the file is wrong; nothing was written.
    """
    spare_inputs_of(options)
    out, chart = options.out, options.chart
    targets = (
        None if out is None else check_out(out, ".json"),
        None if chart is None else check_out(chart, ".svg", "--chart"),
    )
    rows = read_made(options.diagnosis, ("question_id", "status", "missing_skills"), "diagnose")
    profile = _profile(rows, options.confidence, options.replicates, options.seed)
    if targets[0] is not None:
        with replacing(targets[0]) as temporary:
            temporary.write_bytes(
                orjson.dumps(profile.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            )
    if targets[1] is not None:
        rows = [{"name": e.skill, "value": e.questions, "low": e.low, "high": e.high} for e in profile.skills]
        axis = charts.Axis(0, max([1.0, *(max(row["value"], row["high"] or 0) for row in rows)]) * 1.03, "questions")
        with replacing(targets[1]) as temporary:
            temporary.write_text(charts.svg_file(charts.bars(rows, axis, "Missing skills by questions")), "utf-8")
    return profile


def _profile(rows: list[dict[str, Any]], confidence: float, replicates: int, seed: int) -> SkillProfile:
    missing = {str(row["question_id"]): list(row["missing_skills"]) for row in rows if row["status"] == OK}
    counted = counts(missing)
    skills = [skill for skill, _ in counted]
    ends = _intervals(missing, skills, confidence, replicates, seed)
    agreements = [row["agreement"] for row in rows if row.get("agreement") is not None]
    return SkillProfile(
        questions={question: skills for question, skills in missing.items() if skills},
        skills=tuple(
            SkillLine(skill, number, *pair, share=number / len(missing))
            for (skill, number), pair in zip(counted, ends, strict=True)
        ),
        rows=len(rows),
        statuses=dict(Counter(row["status"] for row in rows)),
        diagnosed=len(missing),
        agreement=sum(agreements) / len(agreements) if agreements else None,
        confidence=confidence,
        replicates=replicates,
        seed=seed,
        notes=tuple(_notes(rows, missing)),
    )


def _intervals(
    missing: Mapping[str, list[str]], skills: list[str], confidence: float, replicates: int, seed: int
) -> list[tuple[float | None, float | None]]:
    """Ends of every skill's count; None below two questions, where resampling says nothing."""
    if len(missing) < 2:
        return [(None, None) for _ in skills]
    table = incidence(missing, skills)
    group = GroupSums(np.arange(len(missing)), table, np.ones_like(table))
    shares = replicate([group], len(missing), replicates, seed)[:, 0, :] if skills else np.empty((0, 0))
    ends = [interval(shares[:, column], confidence, len(missing)) for column in range(len(skills))]
    return [(None, None) if pair is None else (pair[0] * len(missing), pair[1] * len(missing)) for pair in ends]


def _notes(rows: list[dict[str, Any]], missing: Mapping[str, list[str]]) -> list[str]:
    notes = []
    if len(missing) < FEW_QUESTIONS:
        notes.append(
            f"Only {len(missing)} questions were diagnosed: the order of the skills is uncertain (at least {FEW_QUESTIONS} "
            "are needed for intervals worth reading)."
        )
    failed = len(rows) - sum(row["status"] in (OK, "not_difficult", "not_drawn") for row in rows)
    if failed:
        notes.append(f"{failed} of {len(rows)} questions have no diagnosis; see `statuses`.")
    if missing and not any(missing.values()):
        notes.append("No diagnosed question lacks a skill.")
    return notes


def read_profile(path: str | Path) -> dict[str, list[str]]:
    """The questions of a profile's file with the skills that each lacks.

    Raises:
        UsageError: the file cannot be read or is no profile.
        DataError: it is no JSON.
    """
    what = "what `trajscore skills profile --out` wrote"
    value = read_json(path, what)
    questions = value.get("questions") if isinstance(value, dict) else None
    if not isinstance(questions, dict) or not all(
        isinstance(skills, list) and all(isinstance(skill, str) for skill in skills) for skills in questions.values()
    ):
        raise UsageError(f"{path}: no Missing-Skill-Profile.", f"Give {what}.")
    return questions


def read_skill_map(path: str | Path) -> list[dict[str, Any]]:
    """The labelled questions of a Skill-Map: rows of `skills label` that have skills.

    Raises:
        UsageError: the file cannot be read, is no Skill-Map, or labels no question.
    """
    rows = read_made(path, ("question_id", "question", "skills", "status"), "label")
    labelled = [row for row in rows if row["status"] == OK and row["skills"]]
    if not labelled:
        raise UsageError(f"{path}: no question has a skill.", "Look at its column `status`.")
    return labelled
