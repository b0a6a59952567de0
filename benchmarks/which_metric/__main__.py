"""`python -m benchmarks.which_metric`: every metric on the shipped world, and under the real student, stored beside it.

    python -m benchmarks.which_metric           # scores data/trajectories.jsonl with every flag that metrics need
    python -m benchmarks.which_metric --real    # the same on prompts of `make evidence`: a quarter of an hour

Both need nothing but what ships, and `--real` the student of `make real-student`; what takes long is kept in .cache. The
manual's page "Which metric should I use?" is made of what is stored, see `tables`.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import trajscore as ts
from benchmarks.evidence import pools, runs
from benchmarks.evidence.records import versions, write, write_text
from benchmarks.evidence.student import FOLDER
from benchmarks.which_metric.tables import BESIDE_STUDENT, PROMPTS, ROOT, STORED, first, measured

WORLD = ROOT / "data"
FLAGS: dict[str, Any] = {
    "extra": (
        *("collision", "tv", "hellinger", "jsd:0.1", "jsd:0.5", "jsd:0.9", "skew_kl:0.1", "skew_rkl:0.1"),
        *("renyi:0.5", "renyi:2", "kl_at:2", "standardised:2", "local:4"),
    ),
    "unconditional": True,
}
"""What metrics need beside the models."""

SEED = 0


def world() -> dict[str, Any]:
    """The record of the shipped world, whose teacher model was trained in it."""
    with tempfile.TemporaryDirectory() as folder:
        models = WORLD / "models"
        teacher = str(models / "teacher")
        ts.score(WORLD / "trajectories.jsonl", str(models / "student"), folder, teacher=teacher, engine="hf", **FLAGS)
        return measured(folder)


def real(cache: Path = pools.CACHE) -> dict[str, Any]:
    """The record of the real student on the first prompts of a seed's pool, with copies of it that were fine-tuned as arms of
    the experiment are.

    How unsure it is of a prompt comes from answers that it begins itself, as `skills answer --entropy` lets it.
    """
    pool = pools.make(SEED, cache)
    home = pool.scores.parent
    corpus, folder = home / f"first-{PROMPTS}.jsonl", home / f"every-metric-{PROMPTS}"
    write_text(corpus, first(PROMPTS, (home / "rows.jsonl").read_text("utf-8")))
    # One thread, as the experiment has: a copy's weights depend on it. In a process that gives its memory back.
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as training:
        models = {
            role: training.submit(runs.trained_copy, arm, SEED, pool, home / f"{role}-{arm}" / "model").result()
            for role, arm in BESIDE_STUDENT.items()
        }
    scores, begun, unsure = pools.score(corpus, folder, **models, **FLAGS), home / "begun.jsonl", home / "unsure"
    ts.answer_questions([str(corpus)], student=str(FOLDER), entropy=True, engine="hf", dtype="float32", out=begun)
    ts.prompt_entropies([str(begun)], scores=scores, out=unsure, overwrite=True)
    return measured(unsure)


def main() -> None:
    """Measure, and store the record."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--real", action="store_true", help="under the real student")
    name, measure = ("real", real) if asked.parse_args().real else ("world", world)
    write(STORED / f"{name}.json", {**measure(), "versions": versions()})


if __name__ == "__main__":
    main()
