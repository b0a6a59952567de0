"""What the teacher is asked: each task's filled prompt and the JSON schema of its answer. It knows no server and no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajscore.errors import UsageError
from trajscore.skills.calls import Call
from trajscore.skills.prompts import Prompt

MOST_SKILLS = 5
"""Skills per question, at most (arXiv 2510.10023, section 4 and appendix)."""


@dataclass(frozen=True)
class Asking:
    """What can change an answer beside the prompt's text.

    Attributes:
        model: the teacher's name.
        temperature: None for 0 where one answer is asked for and 0.7 where several are compared.
        max_tokens: longest answer, in tokens.
        seed: seed of sample 0; sample i has seed + i.
        prompts: every prompt by name.

    Raises:
        UsageError: a value is out of range.
    """

    model: str
    prompts: Mapping[str, Prompt]
    temperature: float | None = None
    max_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError("no teacher was given.", "Name the model that answers: --teacher MODEL.")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise UsageError(f"--temperature is {self.temperature}.", "Give a number from 0 to 2.")
        if self.max_tokens < 1:
            raise UsageError(f"--max-tokens is {self.max_tokens}.", "Give a whole number of at least 1.")

    def settings(self, samples: int) -> dict[str, Any]:
        """What a call records of this, where `samples` answers to one prompt are asked for."""
        temperature = (0.0 if samples == 1 else 0.7) if self.temperature is None else self.temperature
        if samples > 1 and temperature == 0:
            raise UsageError("--temperature 0 makes all answers the same.", "Give a temperature above 0, or ask once.")
        return {"model": self.model, "temperature": temperature, "max_tokens": self.max_tokens, "seed": self.seed}


def repeated(task: str, asking: Asking, schema: Mapping[str, Any], samples: int, **values: str) -> list[Call]:
    """The calls that ask one thing `samples` times."""
    prompt = asking.prompts[task]
    content, settings = prompt.fill(**values), asking.settings(samples)
    return [Call(task, prompt.version, content, schema, sample, settings) for sample in range(samples)]


def name_skills(asking: Asking, question: str, solution: str | None) -> list[Call]:
    """Ask for free names of skills; the answer is `{"skills": [...]}`."""
    schema = _object(skills=_list({"type": "string"}, MOST_SKILLS))
    return repeated("name_skills", asking, schema, 1, question=question, solution=solution or "(unknown)")


def merge_skills(asking: Asking, subject: str, names: Sequence[tuple[str, int]], size: int) -> list[Call]:
    """Ask for one list of skills instead of many names; the answer is `{"skills": [...]}`."""
    schema = _object(skills=_list({"type": "string"}, size, least=1))
    lines = "\n".join(f"- {name} ({count})" for name, count in names)
    return repeated("merge_skills", asking, schema, 1, subject=subject or "all subjects", skills=lines, size=str(size))


def label(asking: Asking, question: str, solution: str | None, skills: Sequence[str], votes: int) -> list[Call]:
    """Ask which of a closed list of skills a question needs; the answer is `{"reason": ..., "skills": [...]}`."""
    schema = _object(reason={"type": "string"}, skills=_list(_one_of(skills), MOST_SKILLS))
    return repeated(
        "label", asking, schema, votes, skills=_lines(skills), question=question, solution=solution or "(unknown)"
    )


def diagnose(asking: Asking, question: str, response: str, skills: Sequence[str], votes: int) -> list[Call]:
    """Ask what a student lacks; the answer is `{"reason": ..., "judge": "correct" or "incorrect", "skills": [...]}`."""
    schema = _object(
        reason={"type": "string"},
        judge=_one_of(("correct", "incorrect")),
        skills=_list(_one_of(skills), MOST_SKILLS),
    )
    return repeated("diagnose", asking, schema, votes, skills=_lines(skills), question=question, response=response)


def propose(asking: Asking, skill: str, seeds: Sequence[tuple[str, str | None]], number: int, sample: int) -> Call:
    """Ask for new questions on a skill; the answer is `{"questions": [{"reason", "draft", "question"}]}`."""
    question = _object(reason={"type": "string"}, draft={"type": "string"}, question={"type": "string"})
    schema = _object(questions=_list(question, number, least=number))
    shown = [f"## Example {i}\n{text}\n\n{solution or ''}".strip() for i, (text, solution) in enumerate(seeds, 1)]
    prompt = asking.prompts["propose"]
    content = prompt.fill(skill=skill, seeds="\n\n".join(shown), number=str(number))
    # Two pairs may draw the same seeds: the sample keeps their proposals apart.
    return Call("propose", prompt.version, content, schema, sample, asking.settings(2))


def solve(asking: Asking, question: str, solutions: int) -> list[Call]:
    """Ask for independent solutions; each answer is `{"solution": ..., "answer": ...}`."""
    schema = _object(solution={"type": "string"}, answer={"type": "string"})
    return repeated("solve", asking, schema, solutions, question=question)


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
