"""`trajscore select` and `report` over 100 million scored tokens beside merely reading the columns that they need, and how
memory grows from a tenth of them. Prints tables.

Scores are made on the fly, with a teacher's columns and the responses' text, 3 GB on disk, in a folder that vanishes: rows of
unequal length, eight per prompt. Each run is a process of its own, so that its peak (ru_maxrss of exactly that process)
owes nothing to the runs before it; time counts from the first access to the scores, after imports. Runs of the variants are
interleaved and the fastest of each counts.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from trajscore.schema import score_fields
from trajscore.scores import Manifest, ScoreFolder

MEAN_TOKENS = 2_000
PART_ROWS = 500
PER_PROMPT = 8
OWN = [pa.field(name, pa.string()) for name in ("id", "prompt_id", "teacher", "response")]
TEACHER = ("teacher_surprisal", "teacher_entropy", "kl_student_teacher", "kl_teacher_student")
NEEDED = ("student_rank", "student_surprisal")


@dataclass(frozen=True)
class Run:
    """What one process did.

    Attributes:
        seconds: from the first access to the scores to the end.
        processor: processor seconds of the same, over all threads; other work disturbs them less.
        peak: largest resident set, MiB.
    """

    seconds: float
    processor: float
    peak: float


def _lists(values: np.ndarray, offsets: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values).cast(kind.value_type), kind)


def part(first: int, rows: int, draw: np.random.Generator) -> pa.Table:
    """One part: plausible surprisals, ranks that grow with them, one sentence in twenty tokens, one token of prompt."""
    lengths = draw.integers(MEAN_TOKENS // 2, MEAN_TOKENS * 3 // 2, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(offsets[-1])
    within = np.arange(tokens) - np.repeat(offsets[:-1], lengths)
    surprisal = draw.standard_exponential(tokens, np.float32) * np.float32(0.7)
    sentences = -(-lengths // 20)
    by_token = {
        "positions": within + 1,
        "student_rank": np.minimum(np.exp(surprisal * 1.5), 1e5).astype(np.uint32) + 1,
        "student_surprisal": surprisal,
        "student_entropy": draw.standard_exponential(tokens, np.float32),
        "sentence": within // 20,
        "phase": np.zeros(tokens, np.uint8),
        **{name: draw.standard_exponential(tokens, np.float32) for name in TEACHER},
    }
    numbers = range(first, first + rows)
    values: dict[str, pa.Array] = {
        "id": pa.array([f"row-{number:08d}" for number in numbers]),
        "prompt_id": pa.array([f"prompt-{number // PER_PROMPT:07d}" for number in numbers]),
        "teacher": pa.array([f"teacher-{number % PER_PROMPT}" for number in numbers]),
        "response": pa.array([draw.bytes(2 * length).hex() for length in lengths]),
        "status": pa.array(["ok"] * rows),
        "truncated": pa.array([False] * rows),
        "n_tokens": pa.array(lengths.astype(np.uint32)),
        # Frequencies of words follow a power law; without one, files would not compress.
        "input_ids": _lists(
            np.minimum(draw.zipf(1.2, tokens + rows), 150_000).astype(np.int32),
            offsets + np.arange(rows + 1),
            pa.list_(pa.int32()),
        ),
        "student_sentence_logprob": _lists(
            -draw.exponential(0.7, int(sentences.sum())).astype(np.float32),
            np.concatenate([[0], np.cumsum(sentences)]),
            pa.list_(pa.float32()),
        ),
    }
    schema = pa.schema(
        [*OWN, *(field for field in score_fields(TEACHER) if field.name not in {own.name for own in OWN})]
    )
    for field in schema:
        if field.name in by_token:
            values[field.name] = _lists(by_token[field.name], offsets, field.type)
    return pa.table({f.name: values[f.name] if f.name in values else pa.nulls(rows, f.type) for f in schema}, schema)


def write(folder: Path, tokens: int) -> None:
    """A finished score folder of about so many tokens, in parts of the same size whatever their number."""
    draw = np.random.default_rng(0)
    rows = tokens // MEAN_TOKENS
    manifest = Manifest(
        settings={"student": "synthetic", "part_rows": PART_ROWS},
        environment={},
        input_columns=[field.name for field in OWN],
    )
    with ScoreFolder(folder, manifest) as scores:
        for first in range(0, rows, PART_ROWS):
            scores.write_part(part(first, min(PART_ROWS, rows - first), draw))
        scores.finish()


def read(folder: Path, _: Path) -> None:
    """Read the two columns that RSR is made of, streaming, and keep nothing of them."""
    import polars as pl

    columns = pl.scan_parquet(sorted(folder.glob("*.parquet"))).select(NEEDED)
    for batch in columns.collect_batches(engine="streaming"):
        del batch


def read_all(folder: Path, _: Path) -> None:
    """Read every column that a metric reads, streaming: below this no report of every metric can come."""
    import polars as pl

    from trajscore.metrics import METRICS, missing_columns

    rows = pl.scan_parquet(sorted(folder.glob("*.parquet")))
    present = rows.collect_schema().names()
    metrics = (metric for metric in METRICS.values() if not missing_columns(metric, present))
    columns = sorted({name for metric in metrics for name in metric.columns})
    for batch in rows.select(columns).collect_batches(engine="streaming"):
        del batch


def choose(folder: Path, _: Path) -> None:
    """`select --metric rsr --per-prompt 1`."""
    from trajscore.selection.select import select

    select(folder, "rsr", per_prompt=1)


def choose_of_the_last(folder: Path, _: Path) -> None:
    """The same with a `--where` that only the last part meets."""
    from trajscore.selection.select import select

    last = int(folder.name) // MEAN_TOKENS - PART_ROWS
    select(folder, "rsr", per_prompt=1, where=f"id >= 'row-{last:08d}'")


def choose_and_write(folder: Path, out: Path) -> None:
    """The same with `--out` and `--decisions`."""
    from trajscore.selection.select import select

    select(folder, "rsr", per_prompt=1, out=out / "kept.parquet", decisions=out / "decisions.parquet")


def choose_everything(folder: Path, out: Path) -> None:
    """Two metrics combined, a quota and weights."""
    from trajscore.selection.select import select

    select(
        folder, ["rsr", "surprisal"], combine="zscore", combine_within="prompt", fraction=0.5, quota="teacher=0.2",
        weight="softmax", out=out / "all.parquet",
    )  # fmt: skip


def rank_teachers(folder: Path, out: Path) -> None:
    """`report --metric rsr --out`."""
    from trajscore.ranking.report import report

    report(folder, metrics="rsr", out=out / "report.html")


def rank_by_everything(folder: Path, out: Path) -> None:
    """`report --out` with every metric that the columns give."""
    from trajscore.ranking.report import report

    report(folder, out=out / "report.html")


def make(folder: Path, _: Path) -> None:
    """Write the folder; its name is the number of tokens."""
    write(folder, int(folder.name))


VARIANTS: dict[str, Callable[[Path, Path], None]] = {
    "read two columns": read,
    "read the columns of every metric": read_all,
    "select": choose,
    "select, --where of one part": choose_of_the_last,
    "select, --out and --decisions": choose_and_write,
    "combine, quota, weight, --out": choose_everything,
    "report, rsr": rank_teachers,
    "report, every metric": rank_by_everything,
}
ONCE = ("report, rsr", "report, every metric")
"""Runs that are long, and of which one is measured."""


def one(name: str, folder: Path, out: Path) -> None:
    """What a child process does: one variant, its seconds and processor seconds on stdout."""
    import polars  # noqa: F401

    import trajscore.ranking.report
    import trajscore.selection.select  # noqa: F401

    start, used = time.perf_counter(), time.process_time()
    (VARIANTS | {"make": make})[name](folder, out)
    sys.stdout.write(json.dumps([time.perf_counter() - start, time.process_time() - used]))


def measure(name: str, folder: Path, out: Path) -> Run:
    """Run one variant in a fresh process."""
    log = out / "run.json"
    # posix_spawn and wait4, because RUSAGE_CHILDREN is the maximum over all children there ever were.
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
    command = [sys.executable, "-m", "benchmarks.selection", "--one", name, str(folder), str(out)]
    process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"{name} failed")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    seconds, processor = json.loads(log.read_text())
    return Run(seconds, processor, usage.ru_maxrss / unit)


def table(folder: Path, out: Path, repeats: int) -> dict[str, Run]:
    """Print every variant over the first, and return the smallest figures of each."""
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    for repeat in range(repeats):
        for name in VARIANTS:
            if repeat == 0 or name not in ONCE:
                runs[name].append(measure(name, folder, out))
    best = {
        name: Run(min(r.seconds for r in each), min(r.processor for r in each), min(r.peak for r in each))
        for name, each in runs.items()
    }
    base = best["read two columns"]
    print(
        "| variant | seconds | over reading | processor, s | over reading | peak, MiB |\n|---|---:|---:|---:|---:|---:|"
    )
    for name, run in best.items():
        ratios = run.seconds / base.seconds, run.processor / base.processor
        print(
            f"| {name} | {run.seconds:.2f} | {ratios[0]:.2f} | {run.processor:.2f} | {ratios[1]:.2f} | {run.peak:.0f} |"
        )
    print()
    return best


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 million tokens in place of 100 million")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="and a tenth of them; 100 million by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("VARIANT", "FOLDER", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), Path(options.one[2]))
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("polars", "pyarrow"))
    print(f"Python {platform.python_version()}, {versions}; {os.cpu_count()} CPU cores")
    tokens = 2_000_000 if options.quick else options.tokens
    peaks = {}
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        for size in (tokens // 10, tokens):
            folder = out / str(size)
            # In a child too: a process that was once large passes its peak on to its children.
            measure("make", folder, out)
            parts = [each.stat().st_size for each in folder.glob("*.parquet")]
            print(f"\n{size:,} tokens, {size // MEAN_TOKENS:,} rows, {len(parts)} parts, {sum(parts) / 1e9:.2f} GB:\n")
            peaks[size] = table(folder, out, 1 if options.quick else options.repeats)
    print("| variant | peak over that of a tenth of the tokens and parts |\n|---|---:|")
    for name in VARIANTS:
        print(f"| {name} | {peaks[tokens][name].peak / peaks[tokens // 10][name].peak:.2f} |")


if __name__ == "__main__":
    main()
