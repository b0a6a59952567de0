"""What notebook 06 needs of the tiny world: a student that never saw one operation, an annotator made of rules, and training.

The problems are those of data/world.py. How skills are counted and rows are drawn is trajscore's part.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "data"))

from training import RECIPES, greedy_texts, train, write_model  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from vocabularies import VOCABULARIES, train_tokenizer  # noqa: E402
from world import Operation, Problem, is_correct, problems, solve  # noqa: E402

from trajscore.skills.calls import Call, Done, Reply  # noqa: E402

MISSING = "double"
STEPS = (1, 2)
_QUESTION = re.compile(r"(?:Start with|Take|Begin at) (\d)\. Then ([^.]*)\.")
_EQUATION = re.compile(r"(\d) ([-+*]) (\d) = (\d)")


def make_student(folder: Path, updates: int = 1500) -> None:
    """Train the student of data/ from scratch on chats in which nothing is ever doubled; about a minute."""
    recipe = replace(
        RECIPES["student"],
        name="student-without-double",
        skills=("plus", "minus"),
        mix={"chat": 0.75, "story": 0.15, "prose": 0.1},
        updates=updates,
    )
    tokenizer = train_tokenizer(VOCABULARIES[recipe.vocabulary])
    write_model(train(recipe, tokenizer), tokenizer, folder)


def problem_of(text: str) -> Problem:
    """The problem whose question stands in a text."""
    found = _QUESTION.search(text)
    if found is None:
        raise ValueError(f"no problem in {text!r}")
    words = [part.partition(" ") for part in found[2].split(", ")]
    return Problem(int(found[1]), tuple(Operation(skill, int(operand or 2)) for skill, _, operand in words))


class RuleAnnotator:
    """Labels and diagnoses by the rules of the world, in the place of an LLM.

    A question needs the operations in it. A wrong solution lacks the operation of its first wrong step; all operations of the
    question when no step can be read.
    """

    def answer(self, calls: Sequence[Call], done: Done) -> None:
        """Answer each call."""
        for call in calls:
            done(call, Reply(text=orjson.dumps(self._value(call)).decode()))

    def _value(self, call: Call) -> dict[str, Any]:
        problem = problem_of(call.content.rpartition("# Exercise")[2])
        needed = sorted({operation.skill for operation in problem.operations})
        if call.task == "label":
            return {"reason": "the operations in the question", "skills": needed}
        response = call.content.rpartition("# The model's solution")[2]
        if is_correct(problem, response):
            return {"reason": "", "judge": "correct", "skills": []}
        return {
            "reason": "the first wrong step",
            "judge": "incorrect",
            "skills": first_wrong(problem, response) or needed,
        }


def first_wrong(problem: Problem, response: str) -> list[str]:
    """The skill of the first step that is wrong or missing in a response; none if it has no equation at all."""
    written = [match[0] for match in _EQUATION.finditer(response)]
    if not written:
        return []
    for number, operation in enumerate(problem.operations):
        before, after = problem.states[number], problem.states[number + 1]
        if number >= len(written) or written[number] != f"{before} {operation.symbol} = {after}":
            return [operation.skill]
    return []


def split(pool: int, validation: int, rare: float, seed: int = 0) -> tuple[list[Problem], list[Problem]]:
    """Training and validation problems, none in both: validation as the world has them, of the training problems a share of
    `rare` has the missing operation.
    """
    everything = problems(1000, seed, steps=STEPS, split="train")
    chosen, rest = everything[:validation], everything[validation:]
    few = [each for each in rest if lacking(each)][: round(pool * rare)]
    training = [*few, *[each for each in rest if not lacking(each)][: pool - len(few)]]
    return Random(seed).sample(training, len(training)), chosen


def lacking(problem: Problem) -> bool:
    """Whether a problem has the operation that the student never saw."""
    return any(operation.skill == MISSING for operation in problem.operations)


def rows(chosen: Sequence[Problem], seed: int = 0) -> list[dict[str, Any]]:
    """Problems with one plain solution each, as rows for `trajscore score`."""
    return [
        {
            "id": problem.id,
            "prompt_id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "solution": solve(problem, "plain", Random(f"{seed} {problem.id}")),
        }
        for problem in chosen
    ]


def finetune(folder: Path, training: Sequence[dict[str, Any]], seed: int, epochs: int = 6, rate: float = 1e-3) -> Any:
    """The student after supervised fine-tuning on rows, repeated as often as their `sample_weight` says."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    chats = [
        [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["solution"]}]
        for row in training
    ]
    ids = [
        tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        for chat in chats
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    order, size = Random(seed), 8
    for _ in range(epochs):
        shuffled = order.sample(ids, len(ids))
        for first in range(0, len(shuffled), size):
            part = [torch.tensor(each) for each in shuffled[first : first + size]]
            padded = torch.nn.utils.rnn.pad_sequence(part, True, int(tokenizer.pad_token_id))
            labels = torch.nn.utils.rnn.pad_sequence(part, True, -100)
            loss = model(input_ids=padded, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    return model


def accuracy(model: Any, folder: Path, chosen: Sequence[Problem]) -> float:
    """The share of problems that a model solves with greedy decoding."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = greedy_texts(model, tokenizer, chosen)
    return sum(is_correct(problem, text) for problem, text in zip(chosen, texts, strict=True)) / len(chosen)
