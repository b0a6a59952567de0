"""The task, the rule-based teachers and the correctness check of the synthetic world; plain Python, no tensors.

A problem is a chain of operations on one digit, "Start with 3. Then minus 4, plus 5, double. Last digit?", counted
modulo 10 (3 minus 4 is 9). A teacher is a rule that writes a chain of thought for a problem in one style, and some
teachers write wrong digits. What becomes of the problems (tokens, chats, files) is made elsewhere.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

MODULUS = 10
OPERANDS = (1, 2, 3, 4, 5)
SKILLS = ("plus", "minus", "double")
Split = Literal["train", "test"]

QUESTIONS = (
    "Start with {start}. Then {chain}. Last digit?",
    "Take {start}. Then {chain}. What is the last digit?",
    "Begin at {start}. Then {chain}. Which digit is last?",
)


@dataclass(frozen=True)
class Operation:
    """One named skill with its operand: `Operation("minus", 4)`; `double` always has the operand 2."""

    skill: str
    operand: int

    def __post_init__(self) -> None:
        """Refuse a skill or an operand outside this world, so that an id always names a real problem."""
        if self.skill not in SKILLS:
            raise ValueError(f"unknown skill {self.skill!r}; the skills are {', '.join(SKILLS)}")
        if self.skill == "double" and self.operand != 2:
            raise ValueError(f"double has the operand 2, not {self.operand}")
        if self.operand not in OPERANDS:
            raise ValueError(f"operand {self.operand} is not one of {OPERANDS}")

    @property
    def words(self) -> str:
        """The operation in the question's words: "minus 4", "double"."""
        return self.skill if self.skill == "double" else f"{self.skill} {self.operand}"

    @property
    def symbol(self) -> str:
        """The operation in symbols: "- 4", "* 2"."""
        return f"{ {'plus': '+', 'minus': '-', 'double': '*'}[self.skill] } {self.operand}"

    def apply(self, digit: int) -> int:
        """The digit after the operation, modulo 10: `Operation("minus", 4).apply(3) == 9`."""
        if self.skill == "double":
            return digit * 2 % MODULUS
        return (digit + (self.operand if self.skill == "plus" else -self.operand)) % MODULUS


@dataclass(frozen=True)
class Problem:
    """A start digit and the operations applied to it in order.

    Two problems are the same exactly when their `id` is the same: the wording of the question follows from the id.
    """

    start: int
    operations: tuple[Operation, ...]

    @property
    def id(self) -> str:
        """Stable name made of the content only: "3-minus4-plus5-double"."""
        return "-".join([str(self.start), *(operation.words.replace(" ", "") for operation in self.operations)])

    @property
    def question(self) -> str:
        """The user's message."""
        template = QUESTIONS[zlib.crc32(self.id.encode()) // 7 % len(QUESTIONS)]
        return template.format(start=self.start, chain=", ".join(operation.words for operation in self.operations))

    @property
    def states(self) -> tuple[int, ...]:
        """The start digit and the digit after each operation: one more than there are operations."""
        states = [self.start]
        for operation in self.operations:
            states.append(operation.apply(states[-1]))
        return tuple(states)

    @property
    def answer(self) -> str:
        """The last state, as the text that must follow "Answer: "."""
        return str(self.states[-1])

    @property
    def split(self) -> Split:
        """ "test" for about a fifth of all problems, by a checksum of the id, so no seed can mix the two splits."""
        return "test" if zlib.crc32(self.id.encode()) % 5 == 0 else "train"


def problems(
    n: int,
    seed: int,
    *,
    steps: Sequence[int] = (3, 4),
    skills: Sequence[str] = SKILLS,
    split: Split | None = None,
) -> list[Problem]:
    """`n` distinct problems, the same for the same arguments.

    `steps` are the allowed chain lengths, drawn evenly; `skills` the allowed operations (leave one out to make the data
    of a student that lacks it); `split` keeps one side of the train/test division. Raises ValueError when the world
    holds fewer than `n` such problems or nothing is allowed.
    """
    if not steps or not skills:
        raise ValueError(f"no problem can be drawn from steps={tuple(steps)}, skills={tuple(skills)}")
    rng, found, misses = Random(f"problems {seed}"), dict[str, Problem](), 0
    while len(found) < n:
        chosen = tuple(_draw_operation(rng, skills) for _ in range(rng.choice(steps)))
        problem = Problem(rng.randrange(MODULUS), chosen)
        if problem.id not in found and split in (None, problem.split):
            found[problem.id], misses = problem, 0
            continue
        misses += 1
        if misses > 20_000:
            raise ValueError(
                f"only {len(found)} of {n} problems found for {steps=}, {skills=}, {split=}; ask for fewer"
            )
    return list(found.values())


def _draw_operation(rng: Random, skills: Sequence[str]) -> Operation:
    skill = rng.choice(skills)
    return Operation(skill, 2 if skill == "double" else rng.choice(OPERANDS))


def extract_answer(text: str) -> str | None:
    """The digit of the last "Answer: d" after the thinking, or None.

    What stands inside <think>, closed or cut off, does not count: `extract_answer("<think>\\nAnswer: 3") is None`.
    """
    outside = text.rpartition("</think>")[2].partition("<think>")[0]
    found = re.findall(r"Answer: (\d)(?!\d)", outside)
    return found[-1] if found else None


def is_correct(problem: Problem, text: str) -> bool:
    """Whether the response `text` ends in the right answer; False where it gives none."""
    return extract_answer(text) == problem.answer


@dataclass(frozen=True)
class Teacher:
    """A style of writing: `write(problem, rng)` returns the thought and the answer it reaches."""

    name: str
    description: str
    write: Callable[[Problem, Random], tuple[str, int]]


def solve(problem: Problem, teacher: str, rng: Random) -> str:
    """The response of the teacher of that name: "<think>\\n...\\n</think>\\n\\nAnswer: d".

    Equal states of `rng` give equal text. Raises ValueError for a name not in `TEACHERS`.
    """
    if teacher not in TEACHERS:
        raise ValueError(f"unknown teacher {teacher!r}; the teachers are {', '.join(TEACHERS)}")
    thought, answer = TEACHERS[teacher].write(problem, rng)
    return f"<think>\n{thought}\n</think>\n\nAnswer: {answer}"


def _steps(problem: Problem) -> Iterator[tuple[int, Operation, int]]:
    states = problem.states
    return zip(states, problem.operations, states[1:], strict=False)


def _equation(before: int, operation: Operation, after: int) -> str:
    return f"{before} {operation.symbol} = {after}."


def _equations(problem: Problem) -> list[str]:
    return [_equation(*step) for step in _steps(problem)]


def _wrong(rng: Random, right: int) -> int:
    return rng.choice([digit for digit in range(MODULUS) if digit != right])


def _plain(problem: Problem, rng: Random) -> tuple[str, int]:
    return " ".join(_equations(problem)), problem.states[-1]


def _terse(problem: Problem, rng: Random) -> tuple[str, int]:
    return ", ".join(str(state) for state in problem.states) + ".", problem.states[-1]


def _verbose(problem: Problem, rng: Random) -> tuple[str, int]:
    actions = {"plus": "add {0} to {1}", "minus": "take {0} away from {1}", "double": "double the number {1}"}
    openings = ("First of all we", "After that we", "In the next step we", "And then we")
    lines = [f"We are asked to start with the number {problem.start}."]
    for index, (before, operation, after) in enumerate(_steps(problem)):
        action = actions[operation.skill].format(operation.operand, before)
        lines.append(f"{openings[min(index, 3)]} {action}, and this gives us the last digit {after}.")
    lines.append(f"So the number that we are left with at the end is {problem.states[-1]}.")
    return " ".join(lines), problem.states[-1]


def _self_correcting(problem: Problem, rng: Random) -> tuple[str, int]:
    parts = []
    for before, operation, after in _steps(problem):
        if rng.random() < 0.35:
            parts.append(f"{_equation(before, operation, _wrong(rng, after))} Wait, that is wrong.")
        parts.append(_equation(before, operation, after))
    return " ".join(parts), problem.states[-1]


def _verifying(problem: Problem, rng: Random) -> tuple[str, int]:
    once = " ".join(_equations(problem))
    return f"{once} Let me check this again. {once} Both times {problem.answer}.", problem.states[-1]


def _noisy(rate: float) -> Callable[[Problem, Random], tuple[str, int]]:
    """Plain steps whose result is a wrong digit with probability `rate`; the next step goes on from the wrong digit."""

    def write(problem: Problem, rng: Random) -> tuple[str, int]:
        parts, digit = [], problem.start
        for operation in problem.operations:
            before, digit = digit, operation.apply(digit)
            if rng.random() < rate:
                digit = _wrong(rng, digit)
            parts.append(_equation(before, operation, digit))
        return " ".join(parts), digit

    return write


def _shuffled(problem: Problem, rng: Random) -> tuple[str, int]:
    ordered = _equations(problem)
    shuffled = list(ordered)
    while shuffled == ordered and len(set(ordered)) > 1:
        rng.shuffle(shuffled)
    return " ".join(shuffled), problem.states[-1]


def _answer_only(problem: Problem, rng: Random) -> tuple[str, int]:
    return "", problem.states[-1]


def _padded(problem: Problem, rng: Random) -> tuple[str, int]:
    filler = (
        "Let me think about this carefully.",
        "This is an interesting question.",
        "I want to be sure about every step.",
        "There is no need to hurry.",
        "Now we go on to what comes next.",
    )
    parts = [sentence for equation in _equations(problem) for sentence in (rng.choice(filler), equation)]
    return " ".join([*parts, rng.choice(filler)]), problem.states[-1]


def _looping(problem: Problem, rng: Random) -> tuple[str, int]:
    return " ".join(equation for equation in _equations(problem) for _ in range(3)), problem.states[-1]


def _paraphrasing(problem: Problem, rng: Random) -> tuple[str, int]:
    forms = (
        "{0} {1} = {2}.",
        "{0} {3} is {2}.",
        "From {0}, {3} makes {2}.",
        "Now {3}: {0} becomes {2}.",
        "I have {0}, so {3} gives {2}.",
    )
    parts = [
        rng.choice(forms).format(before, operation.symbol, after, operation.words)
        for before, operation, after in _steps(problem)
    ]
    return " ".join(parts), problem.states[-1]


TEACHERS: dict[str, Teacher] = {
    teacher.name: teacher
    for teacher in (
        Teacher("plain", "one equation per step", _plain),
        Teacher("terse", "only the digit after each step", _terse),
        Teacher("verbose", "whole sentences around each step", _verbose),
        Teacher("self-correcting", "a wrong result first at 35 % of the steps, then the right one", _self_correcting),
        Teacher("verifying", "the plain steps twice, with a closing remark", _verifying),
        Teacher("noisy", "plain, but 15 % of the steps end in a wrong digit", _noisy(0.15)),
        Teacher("very-noisy", "plain, but 50 % of the steps end in a wrong digit", _noisy(0.5)),
        Teacher("shuffled", "the plain steps in a random order", _shuffled),
        Teacher("answer-only", "nothing inside <think>, the right answer after it", _answer_only),
        Teacher("padded", "the plain steps between sentences that say nothing", _padded),
        Teacher("looping", "each plain step three times", _looping),
        Teacher("paraphrasing", "each step in one of five wordings", _paraphrasing),
    )
}
