"""The pool of a seed: what all teachers and the student itself write about its prompts, scored by trajscore.

It is made once and kept in .cache. Its record holds what the page shows of it: per teacher the rows, their length, the
share correct, and every metric with its interval.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import trajscore as ts
from benchmarks.evidence import design, records
from benchmarks.evidence.student import FOLDER, Student
from benchmarks.evidence.words import Problem, is_correct, problems, solve

CACHE = Path(__file__).parents[2] / ".cache" / "evidence"


class Pool(NamedTuple):
    """Where the scores of a seed's pool lie, and the sha256 of its rows."""

    scores: Path
    sha256: str


def row(problem: Problem, teacher: str, response: str) -> dict[str, Any]:
    """A line of the corpus; `correct` is read off the text."""
    return {
        "id": f"{problem.id}/{teacher}",
        "prompt_id": problem.id,
        "teacher": teacher,
        "messages": [{"role": "user", "content": problem.question}, {"role": "assistant", "content": response}],
        "correct": is_correct(problem, response),
    }


def scripted(asked: list[Problem], teachers: tuple[str, ...], seed: int) -> Iterator[dict[str, Any]]:
    """What scripted teachers write."""
    return (row(problem, teacher, solve(problem, teacher, seed)) for problem in asked for teacher in teachers)


def sample(asked: list[Problem], student: Student, seed: int) -> dict[str, list[str]]:
    """What the untrained student writes itself, once per prompt and temperature; cut off after `ROLLOUT_LIMIT` tokens."""
    questions = [problem.question for problem in asked]
    return {
        str(temperature): student.generate(questions, design.ROLLOUT_LIMIT, temperature, seed=100 * seed + number)
        for number, temperature in enumerate(design.TEMPERATURES)
    }


def rollouts(asked: list[Problem], sampled: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Samples as lines of the corpus. A student that ends at once has written nothing, and nothing is no trajectory."""
    for temperature, texts in sampled.items():
        pairs = [(problem, text) for problem, text in zip(asked, texts, strict=True) if text.strip()]
        yield from (row(problem, f"itself-{temperature}", text) for problem, text in pairs)


def lines(asked: list[Problem], sampled: dict[str, list[str]], seed: int) -> str:
    """The corpus of a pool as JSON lines: first the scripted teachers, then what the student sampled."""
    rows = [*scripted(asked, design.POOLED, seed), *rollouts(asked, sampled)]
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)


def score(corpus: Path, out: Path, **others: Any) -> Path:
    """Scores of a corpus under the untrained student, and what else is asked for, such as a `teacher`; continued if there."""
    ts.score(corpus, FOLDER, out, engine="hf", dtype="float32", max_num_batched_tokens=1024, part_rows=100, **others)
    return out


def make(seed: int, folder: Path = CACHE) -> Pool:
    """The pool of a seed, made if it is not there; its record is written where it is missing.

    What the student sampled is taken from the record where there is one: sampling may differ between machines.
    """
    corpus, scores = folder / f"seed-{seed}" / "rows.jsonl", folder / f"seed-{seed}" / "scores"
    corpus.parent.mkdir(parents=True, exist_ok=True)
    with (corpus.parent / "pool.lock").open("w") as lock:
        # A second process waits here for the first to have made it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _make(seed, corpus, scores)


def _make(seed: int, corpus: Path, scores: Path) -> Pool:
    watch, stored = records.Stopwatch(), records.read_one(records.path("pool", seed))
    asked = problems(design.PROMPTS, seed, "train")
    if not corpus.exists():
        sampled = stored["rollouts"] if stored else sample(asked, Student(), seed)
        records.write_text(corpus, lines(asked, sampled, seed))
    score(corpus, scores)
    sha256 = hashlib.sha256(corpus.read_bytes()).hexdigest()
    if stored is None:
        made = _record(seed, sha256, scores, watch)
        records.write(records.path("pool", seed), {**made, "rollouts": _sampled(corpus, asked)})
    elif stored["rows_sha256"] != sha256:
        raise SystemExit(f"{corpus}: not the rows of the stored runs of seed {seed}; remove its folder and start again")
    return Pool(scores, sha256)


def _sampled(corpus: Path, asked: list[Problem]) -> dict[str, list[str]]:
    """What the student sampled, read back: temperature -> a text for each prompt, empty where it wrote nothing."""
    found = (json.loads(line) for line in corpus.read_text("utf-8").split("\n") if line)
    texts = {(line["teacher"], line["prompt_id"]): line["messages"][1]["content"] for line in found}
    return {str(t): [texts.get((f"itself-{t}", problem.id), "") for problem in asked] for t in design.TEMPERATURES}


def _record(seed: int, sha256: str, scores: Path, watch: records.Stopwatch) -> dict[str, Any]:
    report = ts.report(scores).to_dict()
    (student,) = report["students"]
    manifest = json.loads((scores / "manifest.json").read_text("utf-8"))
    return {
        "kind": "pool",
        "seed": seed,
        "rows_sha256": sha256,
        "totals": manifest["totals"],
        "hours": watch.hours(),
        "versions": records.versions(),
        "settings": {key: value for key, value in design.settings(design.CORE[0]).items() if key in _POOL_SETTINGS},
        "metrics": report["metrics"],
        "confidence": 0.9,
        "teachers": {line["teacher"]: _line(line) for line in student["ranking"]["lines"]},
    }


def _line(line: dict[str, Any]) -> dict[str, Any]:
    values = {
        name: [None if each[end] is None else round(each[end], 5) for end in ("value", "low", "high")]
        for name, each in line["metrics"].items()
    }
    kept = {key: line[key] for key in ("rows", "share_correct", "mean_length", "probability_best")}
    return {**kept, "metrics": values}


_POOL_SETTINGS = ("prompts", "teachers", "temperatures", "rollout_limit")
