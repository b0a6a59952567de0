"""What `trajscore mask` costs over reading the columns of its rule, in time and memory, over many tokens. Prints one table.

The baseline reads every column that the rule needs, to the last token, in the same engine (polars, streaming). Each run is a
process of its own, so that its peak memory owes nothing to the runs before it. Scores are random, in score folders that vanish.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from trajscore.policies.masks import RULES, MaskOptions
from trajscore.schema import COLUMNS
from trajscore.shards import Manifest, ScoreFolder, scan
from trajscore.workflows.mask import mask

ROWS = 500
LENGTH = 4_000
EXTRA = ("teacher_entropy", "kl_student_teacher", "kl_teacher_student")
CASES: tuple[tuple[str, dict[str, object]], ...] = (
    ("entropy", {"keep": 0.5}),
    ("entropy_sample", {"keep": 0.5}),
    ("confidence_gap", {}),
    ("soft_or", {"keep": 0.5, "scope": "trajectory"}),
    ("soft_or", {"keep": 0.5, "scope": "corpus"}),
)


@dataclass(frozen=True)
class Run:
    """What one process did.

    Attributes:
        seconds: time of the work itself, without imports.
        peak: largest resident set, MiB.
    """

    seconds: float
    peak: float


def part(number: int) -> pa.Table:
    """Random scores of some two million tokens."""
    draw = np.random.default_rng(number)
    lengths = draw.integers(LENGTH // 2, LENGTH * 3 // 2, ROWS)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    tokens = int(lengths.sum())
    names = [f"{number}-{row}" for row in range(ROWS)]
    columns: dict[str, pa.Array] = {
        "id": pa.array(names),
        "prompt_id": pa.array(names),
        "teacher": pa.nulls(ROWS, pa.string()),
        "status": pa.array(["ok"] * ROWS),
        "n_tokens": pa.array(lengths, pa.uint32()),
    }
    values = {
        # Frequencies of words follow a power law; without one, files would not compress.
        "input_ids": np.minimum(draw.zipf(1.2, tokens), 150_000).astype(np.int32),
        # Every token is scored but the first, which stands in for the prompt.
        "positions": (np.arange(tokens) - starts).astype(np.uint32),
        **{name: draw.exponential(size=tokens).astype(np.float32) for name in ("student_entropy", *EXTRA)},
    }
    columns |= {name: pa.ListArray.from_arrays(offsets, pa.array(each)) for name, each in values.items()}
    return pa.table(columns, schema=pa.schema([COLUMNS[name].field for name in columns]))


def folder(path: Path, parts: int) -> Path:
    """A score folder of so many parts."""
    with ScoreFolder(path, Manifest(settings={}, environment={}, input_columns=["id"])) as scores:
        for number in range(parts):
            scores.write_part(part(number))
        scores.finish()
    return path


def read(path: Path, rule: str, options: dict[str, object]) -> None:
    """The baseline: every value of the columns that the rule needs."""
    columns = ("input_ids", "positions", *MaskOptions(rule, **options).columns)  # type: ignore[arg-type]
    scan(path).select(pl.col(name).list.sum() for name in columns).collect(engine="streaming")


def work(task: str, path: Path, rule: str, options: dict[str, object]) -> None:
    """Do one task in this process and print how long it took."""
    start = time.perf_counter()
    if task == "read":
        read(path, rule, options)
    else:
        mask(path, rule, out=path.parent / "masked.parquet" if task == "write" else None, **options)  # type: ignore[arg-type]
    print(time.perf_counter() - start)


def measure(task: str, path: Path, rule: str, options: dict[str, object]) -> Run:
    """The faster of two runs, each in a fresh process."""
    runs = []
    for _ in range(2):
        arguments = [sys.executable, "-m", "benchmarks.mask", "--work", json.dumps([task, str(path), rule, options])]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{task} {rule} failed")
        runs.append(Run(float(printed), usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)))
    return min(runs, key=lambda run: run.seconds)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 and 4 million tokens in place of 6 and 50")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        task, path, rule, options = json.loads(arguments.work)
        return work(task, Path(path), rule, options)
    print(f"Python {platform.python_version()}, polars {version('polars')}; {os.cpu_count()} CPU cores\n")
    print("| rule | scope | tokens | read, s | decide / read | decide and write / read | read, MiB | write, MiB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for parts in (1, 2) if arguments.quick else (3, 25):
            path = folder(Path(temporary) / str(parts), parts)
            tokens = pl.scan_parquet(path / "*.parquet").select(pl.col("n_tokens").sum()).collect().item()
            for rule, options in CASES:
                base, decide, write = (measure(task, path, rule, options) for task in ("read", "decide", "write"))
                scope = options.get("scope", "") if RULES[rule].clipped else ""
                print(
                    f"| `{rule}` | {scope} | {tokens:,} | {base.seconds:.2f} | {decide.seconds / base.seconds:.2f} "
                    f"| {write.seconds / base.seconds:.2f} | {base.peak:.0f} | {write.peak:.0f} |",
                    flush=True,
                )
    return None


if __name__ == "__main__":
    main()
