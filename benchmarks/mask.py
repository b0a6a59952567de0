"""What `trajscore mask` costs over reading the columns of its rule, in time and memory, over many tokens. Prints one table.

The baseline reads every column that the rule needs, to the last token, in the same engine (polars, streaming). Each run is a
process of its own, so that its peak memory owes nothing to the runs before it. Scores are those of `benchmarks/selection.py`.
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

import polars as pl

from benchmarks.selection import write
from trajscore.masking.mask import mask
from trajscore.masking.rules import RULES, RuleSettings
from trajscore.scores import scan

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


def read(path: Path, rule: str, options: dict[str, object]) -> None:
    """The baseline: every value of the columns that the rule needs."""
    columns = ("input_ids", "positions", *RuleSettings(rule, **options).columns)  # type: ignore[arg-type]
    scan(path).select(pl.col(name).list.sum() for name in columns).collect(engine="streaming")


def work(task: str, path: Path, rule: str, options: dict[str, object]) -> None:
    """Do one task in this process and print how long it took."""
    if task == "make":
        return write(path, int(path.name))
    start = time.perf_counter()
    if task == "read":
        read(path, rule, options)
    else:
        mask(path, rule, out=path.parent / "masked.parquet" if task == "write" else None, **options)  # type: ignore[arg-type]
    print(time.perf_counter() - start)
    return None


def measure(task: str, path: Path, rule: str = "", options: dict[str, object] | None = None, repeats: int = 2) -> Run:
    """The fastest of several runs, each in a fresh process."""
    runs = []
    for _ in range(repeats):
        arguments = [sys.executable, "-m", "benchmarks.mask", "--work", json.dumps([task, str(path), rule, options])]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{task} {rule} failed")
        runs.append(Run(float(printed or 0), usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)))
    return min(runs, key=lambda run: run.seconds)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 and 2 million tokens in place of 10 and 100")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        task, path, rule, options = json.loads(arguments.work)
        return work(task, Path(path), rule, options)
    print(f"Python {platform.python_version()}, polars {version('polars')}; {os.cpu_count()} CPU cores\n")
    print(
        "| rule | scope | tokens | read, s | decide / read | decide and write / read | read, MiB | decide, MiB | write, MiB |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    peaks: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for tokens in (1_000_000, 2_000_000) if arguments.quick else (10_000_000, 100_000_000):
            path = Path(temporary) / str(tokens)
            # In a child too: a process that was once large passes its peak on to its children.
            measure("make", path, repeats=1)
            for rule, options in CASES:
                base, decide, write_out = (measure(task, path, rule, options) for task in ("read", "decide", "write"))
                scope = str(options.get("scope", "")) if RULES[rule].clipped else ""
                peaks.setdefault((rule, scope), []).append(write_out.peak)
                print(
                    f"| `{rule}` | {scope} | {tokens:,} | {base.seconds:.2f} | {decide.seconds / base.seconds:.2f} "
                    f"| {write_out.seconds / base.seconds:.2f} | {base.peak:.0f} | {decide.peak:.0f} | {write_out.peak:.0f} |",
                    flush=True,
                )
    print("\n| rule | scope | peak of writing over that of a part of the tokens |\n|---|---|---:|")
    for (rule, scope), (small, large) in peaks.items():
        print(f"| `{rule}` | {scope} | {large / small:.2f} |")
    return None


if __name__ == "__main__":
    main()
