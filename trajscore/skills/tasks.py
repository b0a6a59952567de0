"""What the annotator is asked: for each task the filled prompt and the JSON schema of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trajscore.skills.calls import Call
from trajscore.skills.options import AnnotatorOptions

MOST_SKILLS = 5
"""Skills per question, at most (arXiv 2510.10023, section 4 and appendix)."""


def repeated(
    task: str, annotator: AnnotatorOptions, schema: Mapping[str, Any], samples: int, **values: str
) -> list[Call]:
    """The calls that ask one thing `samples` times."""
    prompt = annotator.prompt_texts[task]
    content, settings = prompt.fill(**values), annotator.settings(samples)
    return [Call(task, prompt.version, content, schema, sample, settings) for sample in range(samples)]


def name_skills(annotator: AnnotatorOptions, question: str, solution: str | None) -> list[Call]:
    """Ask for free names of skills; the answer is `{"skills": [...]}`."""
    schema = _object(skills=_list({"type": "string"}, MOST_SKILLS))
    return repeated("name_skills", annotator, schema, 1, question=question, solution=solution or "(unknown)")


def merge_skills(annotator: AnnotatorOptions, subject: str, names: Sequence[tuple[str, int]], size: int) -> list[Call]:
    """Ask for one list of skills instead of many names; the answer is `{"skills": [...]}`."""
    schema = _object(skills=_list({"type": "string"}, size, least=1))
    lines = "\n".join(f"- {name} ({count})" for name, count in names)
    return repeated(
        "merge_skills", annotator, schema, 1, subject=subject or "all subjects", skills=lines, size=str(size)
    )


def label(
    annotator: AnnotatorOptions, question: str, solution: str | None, skills: Sequence[str], votes: int
) -> list[Call]:
    """Ask which of a closed list of skills a question needs; the answer is `{"reason": ..., "skills": [...]}`."""
    schema = _object(reason={"type": "string"}, skills=_list(_one_of(skills), MOST_SKILLS))
    return repeated(
        "label", annotator, schema, votes, skills=_lines(skills), question=question, solution=solution or "(unknown)"
    )


def diagnose(
    annotator: AnnotatorOptions, question: str, response: str, skills: Sequence[str], votes: int
) -> list[Call]:
    """Ask what a student lacks; the answer is `{"reason": ..., "judge": "correct" or "incorrect", "skills": [...]}`."""
    schema = _object(
        reason={"type": "string"},
        judge=_one_of(("correct", "incorrect")),
        skills=_list(_one_of(skills), MOST_SKILLS),
    )
    return repeated("diagnose", annotator, schema, votes, skills=_lines(skills), question=question, response=response)


def propose(
    annotator: AnnotatorOptions, skill: str, seeds: Sequence[tuple[str, str | None]], number: int, sample: int
) -> Call:
    """Ask for new questions on a skill; the answer is `{"questions": [{"reason", "draft", "question"}]}`."""
    question = _object(reason={"type": "string"}, draft={"type": "string"}, question={"type": "string"})
    schema = _object(questions=_list(question, number, least=number))
    shown = [f"## Example {i}\n{text}\n\n{solution or ''}".strip() for i, (text, solution) in enumerate(seeds, 1)]
    prompt = annotator.prompt_texts["propose"]
    content = prompt.fill(skill=skill, seeds="\n\n".join(shown), number=str(number))
    # Two pairs may draw the same seeds: the sample keeps their proposals apart.
    return Call("propose", prompt.version, content, schema, sample, annotator.settings(2))


def solve(annotator: AnnotatorOptions, question: str, solutions: int) -> list[Call]:
    """Ask for independent solutions; each answer is `{"solution": ..., "answer": ...}`."""
    schema = _object(solution={"type": "string"}, answer={"type": "string"})
    return repeated("solve", annotator, schema, solutions, question=question)


def _object(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Mapping[str, Any], most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def _one_of(values: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _lines(skills: Sequence[str]) -> str:
    return "\n".join(f"- {skill}" for skill in skills)
