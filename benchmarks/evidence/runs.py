"""One run: choose rows with trajscore, fine-tune the student on them, measure it on held-out problems, make a record."""

from __future__ import annotations

import hashlib
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

import trajscore as ts
from benchmarks.evidence import design, pools, records
from benchmarks.evidence.design import Arm
from benchmarks.evidence.student import FOLDER, Row, Student, Trained, in_steps
from benchmarks.evidence.words import Problem, is_correct, problems, solve


class Chosen(NamedTuple):
    """The rows to train on, and what the record says of them."""

    rows: list[Row]
    about: dict[str, Any]


def choose(arm: Arm, seed: int, scores: Path) -> Chosen:
    """What `ts.select` keeps of the pool within the budget, with the labels that `ts.mask` gives it."""
    chosen = _within(arm, seed, scores, arm.budget)
    if arm.rule != "all":
        # As many rows as leave as many labels as the other policies have.
        labels = sum(row.n_labels for row in chosen.rows)
        chosen = _within(arm, seed, scores, round(design.BUDGET * chosen.about["tokens"] / labels))
    return chosen


def _within(arm: Arm, seed: int, scores: Path, budget: int | None) -> Chosen:
    with tempfile.TemporaryDirectory() as folder:
        selected, masked = Path(folder) / "selected.parquet", Path(folder) / "masked.parquet"
        kept = ts.select(scores, **arm.select, max_tokens=budget, seed=seed, out=selected)
        ts.mask(scores, rule=arm.rule, selected=selected, seed=seed, out=masked, keep=arm.keep)
        rows = [Row(*each) for each in pl.read_parquet(masked).select("input_ids", "labels").iter_rows()]
    ids = sorted(kept.decisions.filter("kept")["id"].to_list())
    table = ts.scan(scores).filter(pl.col("id").is_in(ids)).select("teacher", "prompt_id", "correct", "n_tokens")
    return Chosen([row for row in rows if row.n_labels], _about(table.collect(), ids))


def scores_beside(arm: Arm, seed: int, pool: pools.Pool, cache: Path) -> Path:
    """The pool's scores, with those of another arm's student beside them where the arm's rule reads one."""
    if arm.beside is None:
        return pool.scores
    role, name = arm.beside
    folder = cache / f"seed-{seed}" / f"{role}-{name}"
    return pools.score(
        pool.scores.parent / "rows.jsonl", folder / "scores", **{role: trained_copy(name, seed, pool, folder / "model")}
    )


def trained_copy(name: str, seed: int, pool: pools.Pool, folder: Path) -> Path:
    """The student as an arm's training leaves it, saved in a folder where it is not there yet."""
    if not folder.exists():
        arm = next(each for each in (*design.CORE, *design.MORE) if each.name == name)
        student = Student()
        train(student, arm, seed, written(arm, seed) if arm.teacher else choose(arm, seed, pool.scores))
        student.save(folder)
    return folder


def written(arm: Arm, seed: int) -> Chosen:
    """What one teacher alone writes, about as many prompts of the seed as the budget takes."""
    student = Student()
    rows, about, so_far = list[Row](), list[tuple[Any, ...]](), 0
    for problem in problems(400, seed, "train"):
        assert arm.teacher is not None
        assert arm.budget is not None
        text = solve(problem, arm.teacher, seed)
        row = student.row(problem.question, text)
        # The end-of-turn marker is no scored token.
        if so_far + row.n_labels - 1 > arm.budget:
            break
        so_far += row.n_labels - 1
        rows.append(row)
        about.append((arm.teacher, problem.id, is_correct(problem, text), row.n_labels - 1))
    table = pl.DataFrame(about, schema=["teacher", "prompt_id", "correct", "n_tokens"], orient="row")
    return Chosen(rows, _about(table, table["prompt_id"].to_list()))


def _about(table: pl.DataFrame, ids: list[str]) -> dict[str, Any]:
    by_teacher = table.group_by("teacher").len().sort("len", "teacher", descending=[True, False])
    return {
        "rows": table.height,
        "tokens": int(table["n_tokens"].sum()),
        "prompts": table["prompt_id"].n_unique(),
        "share_correct": round(table["correct"].sum() / table.height, 4),
        "by_teacher": dict(by_teacher.iter_rows()),
        "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
    }


class Measured(NamedTuple):
    """The held-out problems that were solved, as a string of 0 and 1, what the answers were like, and the surprisal
    of right ones.
    """

    solved: str
    answered: float
    mean_characters: float
    surprisal: dict[str, float]


def measure(student: Student, limit: int = design.ANSWER_LIMIT) -> Measured:
    """Greedy answers to the held-out problems, and the mean surprisal (nats) of solutions written by four right
    teachers.
    """
    asked = problems(design.HELD_OUT, design.HELD_OUT_SEED, "test")
    texts = student.generate([problem.question for problem in asked], limit)
    solved = "".join("1" if is_correct(problem, text) else "0" for problem, text in zip(asked, texts, strict=True))
    surprisal = {style: _surprisal(student, asked[: design.SOLVED], style) for style in design.STYLES}
    answered = sum("answer is" in text.lower() for text in texts) / len(texts)
    return Measured(solved, round(answered, 4), round(sum(map(len, texts)) / len(texts), 1), surprisal)


def _surprisal(student: Student, asked: list[Problem], style: str) -> float:
    rows = [student.row(problem.question, solve(problem, style, design.HELD_OUT_SEED)) for problem in asked]
    return round(sum(student.surprisal(rows)) / len(rows), 5)


def train(student: Student, arm: Arm, seed: int, chosen: Chosen) -> Trained:
    """In each epoch as many steps as the budget has portions of `STEP` tokens; for the whole pool, as its tokens have."""
    tokens = chosen.about["tokens"] if arm.budget is None else arm.budget
    steps = min(round(tokens / design.STEP), len(chosen.rows))
    epochs = (in_steps(chosen.rows, steps, f"{seed} {epoch}") for epoch in range(arm.epochs))
    return student.train([step for epoch in epochs for step in epoch])


def run(arm: Arm, seed: int, cache: Path = pools.CACHE) -> dict[str, Any]:
    """The record of a run."""
    began = datetime.now(UTC)
    pool = pools.make(seed, cache) if arm.teacher is None else None
    watch = records.Stopwatch()
    chosen = written(arm, seed) if pool is None else choose(arm, seed, scores_beside(arm, seed, pool, cache))
    student = Student()
    trained = train(student, arm, seed, chosen)
    measured = measure(student)
    return {
        "kind": "run",
        "seed": seed,
        "arm": arm.name,
        "about": arm.about,
        "began": began.isoformat(timespec="seconds"),
        "hours": watch.hours(),
        "versions": records.versions(),
        "settings": design.settings(arm),
        "rows_sha256": pool.sha256 if pool else None,
        "chosen": chosen.about,
        "trained": {
            **trained._asdict(),
            "first_loss": round(trained.first_loss, 4),
            "last_loss": round(trained.last_loss, 4),
        },
        "results": _results(measured),
    }


def _results(measured: Measured) -> dict[str, Any]:
    return {"accuracy": round(measured.solved.count("1") / len(measured.solved), 5), **measured._asdict()}


def untouched() -> dict[str, Any]:
    """The record of the student as it comes, which is given room to end: 200 tokens an answer."""
    began = datetime.now(UTC)
    watch = records.Stopwatch()
    measured = measure(Student(), limit=200)
    return {
        "kind": "untouched",
        "seed": None,
        "began": began.isoformat(timespec="seconds"),
        "hours": watch.hours(),
        "versions": records.versions(),
        "student": {
            "folder": FOLDER.name,
            "config_sha256": hashlib.sha256((FOLDER / "config.json").read_bytes()).hexdigest(),
        },
        "settings": {"answer_limit": 200, "held_out": design.HELD_OUT, "held_out_seed": design.HELD_OUT_SEED},
        "results": _results(measured),
    }


def stored(arm: Arm, seed: int) -> dict[str, Any] | None:
    """The record of a run, if it was made with today's settings."""
    place = records.path(arm.name, seed)
    if not place.exists():
        return None
    record: dict[str, Any] = json.loads(place.read_text("utf-8"))
    return record if record["settings"] == json.loads(json.dumps(design.settings(arm))) else None
