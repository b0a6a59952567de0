"""A world of words: small arithmetic stories, scripted teachers that solve them, and the check of an answer.

"Mia has 7 apples. She buys 5 more apples. Then she gives 3 apples to Tom. How many apples does Mia have now?" A teacher
is a rule that writes a solution in one style, right or wrong; `correct` is always read off the text. Everything is
drawn from a stated seed, and no sentence is anybody else's. Plain Python: models, files and scores are elsewhere.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

Kind = Literal["plus", "minus", "times"]
Split = Literal["train", "test"]

PEOPLE = (
    ("Mia", "She"), ("Tom", "He"), ("Lena", "She"), ("Omar", "He"), ("Ruth", "She"), ("Ivan", "He"),
    ("Nora", "She"), ("Paul", "He"), ("Zoe", "She"), ("Hugo", "He"), ("Amara", "She"), ("Kenji", "He"),
)  # fmt: skip
THINGS = (
    "apples", "books", "stamps", "coins", "shells", "cards", "pencils", "buttons", "marbles", "stickers", "eggs", "cups",
)  # fmt: skip
SYMBOLS = {"plus": "+", "minus": "-", "times": "*"}
WORDS = {"plus": "plus", "minus": "minus", "times": "times"}
STARTS = range(2, 13)
OPERANDS = {"plus": range(2, 13), "minus": range(2, 13), "times": range(2, 5)}
TIMES = {2: "twice", 3: "three times", 4: "four times"}
LARGEST = 40

STORY = {
    "plus": (
        "{he} buys {n} more {things}.",
        "{he} finds {n} more {things}.",
        "{friend} gives {name} {n} more {things}.",
        "{he} gets {n} more {things} as a present.",
    ),
    "minus": (
        "{he} gives {n} {things} to {friend}.",
        "{he} loses {n} {things}.",
        "{he} sells {n} {things}.",
        "{friend} takes {n} of the {things}.",
    ),
    "times": (
        "{he} collects until there are {fold} as many {things}.",
        "{he} works hard and ends up with {fold} as many {things}.",
        "{friend} helps, and soon there are {fold} as many {things}.",
    ),
}


@dataclass(frozen=True)
class Step:
    """What happens to the number: `Step("plus", 5).apply(7) == 12`."""

    kind: Kind
    operand: int

    def apply(self, value: int) -> int:
        """The number after the step."""
        if self.kind == "times":
            return value * self.operand
        return value + self.operand if self.kind == "plus" else value - self.operand


@dataclass(frozen=True)
class Problem:
    """A story: who has how many of which things, and what happens; problems are the same exactly when their `id` is."""

    person: int
    friend: int
    things: str
    start: int
    steps: tuple[Step, ...]

    @property
    def core(self) -> str:
        """The numbers alone, "7-plus5-minus3"."""
        return "-".join([str(self.start), *(f"{step.kind}{step.operand}" for step in self.steps)])

    @property
    def id(self) -> str:
        """The numbers, the person, the friend and the things."""
        return "-".join([self.core, PEOPLE[self.person][0], PEOPLE[self.friend][0], self.things]).lower()

    @property
    def name(self) -> str:
        """Who the story is about."""
        return PEOPLE[self.person][0]

    @property
    def values(self) -> list[int]:
        """The number at the start and after each step."""
        values = [self.start]
        for step in self.steps:
            values.append(step.apply(values[-1]))
        return values

    @property
    def question(self) -> str:
        """The text of the prompt; its wording follows from the id."""
        sentences, rng = [f"{self.name} has {self.start} {self.things}."], Random(self.id)
        for number, step in enumerate(self.steps):
            text = rng.choice(STORY[step.kind]).format(
                he=PEOPLE[self.person][1],
                name=self.name,
                friend=PEOPLE[self.friend][0],
                things=self.things,
                n=step.operand,
                fold=TIMES.get(step.operand),
            )
            then = text if text.startswith(PEOPLE[self.friend][0]) else text[0].lower() + text[1:]
            sentences.append(text if number == 0 else f"Then {then}")
        return " ".join([*sentences, f"How many {self.things} does {self.name} have now?"])

    @property
    def answer(self) -> int:
        """The number at the end."""
        return self.values[-1]


def split_of(problem: Problem) -> Split:
    """One numeric core in four is held out: no test problem shares its numbers and steps with a training problem."""
    return "test" if zlib.crc32(problem.core.encode()) % 4 == 0 else "train"


def problems(n: int, seed: int | str, split: Split, steps: int = 2) -> list[Problem]:
    """`n` different problems of a split whose numbers stay between 2 and `LARGEST`, the same for the same seed.

    Test problems have different cores among themselves, so that each asks for another computation.
    """
    rng, found, seen = Random(f"problems {seed} {split} {steps}"), list[Problem](), set[str]()
    while len(found) < n:
        person, friend = rng.sample(range(len(PEOPLE)), 2)
        kinds: list[Kind] = rng.choices(("plus", "minus", "times"), weights=(2, 2, 1), k=steps)
        chain = tuple(Step(kind, rng.choice(OPERANDS[kind])) for kind in kinds)
        problem = Problem(person, friend, rng.choice(THINGS), rng.choice(STARTS), chain)
        key = problem.core if split == "test" else problem.id
        if key in seen or split_of(problem) != split or not all(2 <= value <= LARGEST for value in problem.values):
            continue
        seen.add(key)
        found.append(problem)
    return found


NUMBER = re.compile(r"-?\d+")
ANSWER = re.compile(r"answer is:?\s*\$?(-?\d+)", re.IGNORECASE)


def answer_of(text: str) -> int | None:
    """The number after the first "answer is", else the last number of the text; None where there is none.

    >>> answer_of("7 + 5 = 12. The answer is 12. The answer is 13."), answer_of("So 12 apples."), answer_of("None.")
    (12, 12, None)
    """
    if found := ANSWER.search(text):
        return int(found[1])
    numbers = NUMBER.findall(text)
    return int(numbers[-1]) if numbers else None


def is_correct(problem: Problem, text: str) -> bool:
    """Whether the answer that a text gives is the problem's."""
    return answer_of(text) == problem.answer


def _equations(problem: Problem, rng: Random | None = None, share_wrong: float = 0.0) -> list[str]:
    """One equation per step; with a share, that many of the results are wrong by 1, 2 or 10 and carried on."""
    lines, value = [], problem.start
    for step in problem.steps:
        result = step.apply(value)
        if rng is not None and rng.random() < share_wrong:
            result = max(0, result + rng.choice((-10, -2, -1, 1, 2, 10)))
        lines.append(f"{value} {SYMBOLS[step.kind]} {step.operand} = {result}.")
        value = result
    return [*lines, f"The answer is {value}."]


def plain(problem: Problem, _: Random) -> str:
    """One sentence for the start, one equation per step."""
    return " ".join([f"{problem.name} starts with {problem.start} {problem.things}.", *_equations(problem)])


def terse(problem: Problem, _: Random) -> str:
    """Equations without spaces and words."""
    *steps, answer = _equations(problem)
    return " ".join([*(step.replace(" ", "").replace(".", ";") for step in steps), answer])


def verbose(problem: Problem, _: Random) -> str:
    """Whole sentences around every step."""
    words = {"plus": "add {n} to {v}", "minus": "take {n} away from {v}", "times": "multiply {v} by {n}"}
    sentences = [
        f"Let us go through the story in order. In the beginning, {problem.name} has {problem.start} {problem.things}."
    ]
    for number, (step, value) in enumerate(zip(problem.steps, problem.values, strict=False)):
        opening = "In the first step" if number == 0 else "In the next step"
        what = words[step.kind].format(n=step.operand, v=value)
        sentences.append(f"{opening} we have to {what}, and this leaves us with {step.apply(value)} {problem.things}.")
    return " ".join([*sentences, "Nothing else happens in the story.", f"The answer is {problem.answer}."])


def self_correcting(problem: Problem, rng: Random) -> str:
    """At half of the steps a wrong result first, then the right one."""
    lines = [f"{problem.name} starts with {problem.start} {problem.things}."]
    for equation in _equations(problem)[:-1]:
        left, right = equation.removesuffix(".").split(" = ")
        if rng.random() < 0.5:
            lines.append(
                f"{left} = {int(right) + rng.choice((-2, -1, 1, 2, 10))}. Wait, that is wrong: {left} = {right}."
            )
        else:
            lines.append(equation)
    return " ".join([*lines, f"The answer is {problem.answer}."])


def wrong(problem: Problem, rng: Random) -> str:
    """Plain, but two results in five are off by 1, 2 or 10, and carried on."""
    return " ".join([f"{problem.name} starts with {problem.start} {problem.things}.", *_equations(problem, rng, 0.4)])


def looping(problem: Problem, _: Random) -> str:
    """Plain, with every equation three times."""
    *steps, answer = _equations(problem)
    tripled = [each for step in steps for each in (step, step, step)]
    return " ".join([f"{problem.name} starts with {problem.start} {problem.things}.", *tripled, answer])


def shuffled(problem: Problem, rng: Random) -> str:
    """The sentences of plain in another order, the answer last."""
    sentences = [f"{problem.name} starts with {problem.start} {problem.things}.", *_equations(problem)[:-1]]
    order = sentences
    while order == sentences:
        order = rng.sample(sentences, len(sentences))
    return " ".join([*order, f"The answer is {problem.answer}."])


def notation(problem: Problem, _: Random) -> str:
    """Symbols that the student has hardly seen."""
    signs = {"plus": "⊕", "minus": "⊖", "times": "⊗"}
    chain = [f"⟦{problem.start}⟧"]
    for step, value in zip(problem.steps, problem.values[1:], strict=True):
        chain.append(f"{signs[step.kind]} {step.operand} ⇒ ⟦{value}⟧")
    return " ".join([*chain, f"The answer is {problem.answer}."])


PHRASES = {
    "plus": (
        "{v} {things} and {n} more make {r}.",
        "Adding {n} to {v} gives {r} {things}.",
        "With {n} more, {v} becomes {r}.",
        "That brings {name} from {v} up to {r}.",
        "So now it is {v} plus {n}, which is {r}.",
    ),
    "minus": (
        "{v} {things} without {n} leave {r}.",
        "Taking {n} from {v} leaves {r} {things}.",
        "With {n} fewer, {v} becomes {r}.",
        "That brings {name} from {v} down to {r}.",
        "So now it is {v} minus {n}, which is {r}.",
    ),
    "times": (
        "{n} times {v} {things} make {r}.",
        "Having {fold} as many as {v} means {r} {things}.",
        "With {fold} as many, {v} becomes {r}.",
        "That takes {name} from {v} to {r}.",
        "So now it is {v} times {n}, which is {r}.",
    ),
}


def paraphrasing(problem: Problem, rng: Random) -> str:
    """Each step in one of five natural wordings."""
    lines = []
    for step, value in zip(problem.steps, problem.values, strict=False):
        phrase = rng.choice(PHRASES[step.kind])
        parts = {"v": value, "n": step.operand, "r": step.apply(value), "fold": TIMES.get(step.operand)}
        lines.append(phrase.format(**parts, things=problem.things, name=problem.name))
    return " ".join([*lines, f"The answer is {problem.answer}."])


def answer_only(problem: Problem, _: Random) -> str:
    """The right answer and nothing else."""
    return f"The answer is {problem.answer}."


TEACHERS: dict[str, Callable[[Problem, Random], str]] = {
    "plain": plain,
    "terse": terse,
    "verbose": verbose,
    "self-correcting": self_correcting,
    "wrong": wrong,
    "looping": looping,
    "shuffled": shuffled,
    "notation": notation,
    "paraphrasing": paraphrasing,
    "answer-only": answer_only,
}


def solve(problem: Problem, teacher: str, seed: int | str) -> str:
    """What a teacher writes about a problem; a seed per row keeps all other rows when a teacher is added or changed."""
    return TEACHERS[teacher](problem, Random(f"{seed} {problem.id} {teacher}"))
