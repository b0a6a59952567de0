"""Makes everything that ships in this folder: the corpus, the two tokenizers and the three models.

    python data/make.py                    all of it, a few minutes on one CPU core
    python data/make.py --only corpus      trajectories.jsonl, a second, without torch
    python data/make.py --out /tmp/copy    somewhere else

Same seeds, same bytes for the corpus and the tokenizers; weights are the same on one machine and close on another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import TypedDict

from world import TEACHERS, Problem, is_correct, problems, solve

PROMPTS = 40
CORPUS_SEED = 1
# A style that draws at random may be sampled more than once; a second sample of a fixed one would be a copy.
SAMPLES = {"noisy": 2}
# Real runs return nothing now and then; a reader of this corpus meets that too, three times.
EMPTY_TEACHER = "answer-only"
EMPTY_PROMPTS = (7, 19, 31)


class Trajectory(TypedDict):
    """One row of trajectories.jsonl: `answer` is the right digit, `correct` whether the response ends in it."""

    id: str
    prompt_id: str
    teacher: str
    messages: list[dict[str, str]]
    answer: str
    correct: bool
    steps: int


def trajectory(problem: Problem, teacher: str, sample: int, response: str) -> Trajectory:
    """The row of one response, its correctness computed from the text."""
    return {
        "id": f"{problem.id}/{teacher}/{sample}",
        "prompt_id": problem.id,
        "teacher": teacher,
        "messages": [{"role": "user", "content": problem.question}, {"role": "assistant", "content": response}],
        "answer": problem.answer,
        "correct": is_correct(problem, response),
        "steps": len(problem.operations),
    }


def trajectories() -> list[Trajectory]:
    """All rows: every teacher on every prompt, each row drawn from a seed of its own."""
    rows = []
    for index, problem in enumerate(problems(PROMPTS, CORPUS_SEED, steps=(3, 4), split="train")):
        for teacher in TEACHERS:
            for sample in range(SAMPLES.get(teacher, 1)):
                # A seed per row keeps all other rows as they are when a teacher is added or changed.
                rng = Random(f"{CORPUS_SEED} {problem.id} {teacher} {sample}")
                empty = teacher == EMPTY_TEACHER and index in EMPTY_PROMPTS
                rows.append(trajectory(problem, teacher, sample, "" if empty else solve(problem, teacher, rng)))
    return rows


def make_corpus(out: Path) -> None:
    """Writes trajectories.jsonl and prints the teachers' table of README.md."""
    rows = trajectories()
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "trajectories.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")
    print("| teacher | style | rows | correct | mean characters |\n|---|---|---|---|---|")
    for teacher in TEACHERS.values():
        own = [row for row in rows if row["teacher"] == teacher.name]
        correct = sum(row["correct"] for row in own) / len(own)
        length = sum(len(row["messages"][1]["content"]) for row in own) / len(own)
        print(f"| {teacher.name} | {teacher.description} | {len(own)} | {correct:.2f} | {length:.0f} |")


def make_tokenizers(out: Path) -> None:
    """Writes each tokenizer into the folders of the models that use it."""
    # The corpus needs neither torch nor transformers, so they are imported only where they are used.
    from training import RECIPES  # noqa: PLC0415
    from vocabularies import VOCABULARIES, train_tokenizer, write_tokenizer  # noqa: PLC0415

    for recipe in RECIPES.values():
        tokenizer = train_tokenizer(VOCABULARIES[recipe.vocabulary])
        write_tokenizer(tokenizer, out / "models" / recipe.name)
        print(f"{recipe.name}: {recipe.vocabulary} tokenizer, {len(tokenizer)} entries")


def make_models(out: Path, names: list[str]) -> None:
    """Trains and writes the models, each with its tokenizer, and prints the models' table of README.md."""
    import torch  # noqa: PLC0415
    from training import RECIPES, make_model  # noqa: PLC0415

    torch.set_num_threads(1)
    table = [make_model(RECIPES[name], out / "models" / name) for name in names or RECIPES]
    print("| model | class | layers x width | parameters | tokenizer | rows | 1-2 steps | 3-4 steps | s |")
    print("\n".join(["|---|---|---|---|---|---|---|---|---|", *table]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("corpus", "tokenizers", "models"), help="make one part only")
    parser.add_argument("--model", action="append", default=[], help="with models: this one only (may be repeated)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="the folder to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only in (None, "corpus"):
        make_corpus(options.out)
    if options.only == "tokenizers":
        make_tokenizers(options.out)
    if options.only in (None, "models"):
        make_models(options.out, options.model)


if __name__ == "__main__":
    main()
