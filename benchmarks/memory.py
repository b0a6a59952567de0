"""Peak memory of `trajscore score` grows with the batch, not with the corpus. Prints two tables and writes nothing.

Each run is a process of its own, so that its peak (ru_maxrss of exactly that process) owes nothing to the runs before it. A
run over one row, which loads the same libraries and model, is subtracted. Corpora are made on the fly: rows of the same
length distribution, in a folder that vanishes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

STUDENT = Path(__file__).parents[1] / "data" / "models" / "student"
PART_ROWS = 250
TOKENS = 4096


@dataclass(frozen=True)
class Run:
    """What one process did.

    Attributes:
        rows: rows of the corpus.
        batched_tokens: --max-num-batched-tokens.
        peak: largest resident set, MiB.
        speed: scored tokens per second after the first part, so that loading does not count; None if there is one part.
    """

    rows: int
    batched_tokens: int
    peak: float
    speed: float | None


def corpus(path: Path, rows: int) -> Path:
    """Rows whose lengths follow one distribution (20 to 400 words, most of them short), the same for every seed."""
    draw = random.Random(rows)  # noqa: S311 - a benchmark
    with path.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            digits = [str(draw.randrange(10)) for _ in range(int(20 * 20 ** draw.random() ** 2) // 4)]
            steps = ". ".join(f"{first} + 3 = {second}" for first, second in pairwise(digits))
            messages = [
                {"role": "user", "content": f"Start with {number % 10}. Then plus 3. Last digit?"},
                {"role": "assistant", "content": f"<think>\n{steps}.\n</think>\n\nAnswer: {digits[-1]}"},
            ]
            handle.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    return path


def score(data: Path, out: Path, rows: int, batched_tokens: int) -> Run:
    """Score a corpus in a fresh process and measure it."""
    arguments = [
        sys.executable, "-m", "trajscore.cli", "score", str(data), "--student", str(STUDENT), "--out", str(out),
        "--part-rows", str(PART_ROWS), "--max-num-batched-tokens", str(batched_tokens),
    ]  # fmt: skip
    log = out.with_suffix(".log")
    # posix_spawn and wait4, because RUSAGE_CHILDREN is the maximum over all children there ever were.
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT, 0o600),
    ]
    process = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(log.read_text())
    parts = json.loads((out / "manifest.json").read_text())["parts"]
    written = [(out / part["file"]).stat().st_mtime for part in parts]
    tokens = sum(part["tokens"] for part in parts[1:])
    unit = 2**20 if sys.platform == "darwin" else 2**10
    speed = tokens / (written[-1] - written[0]) if tokens else None
    return Run(rows, batched_tokens, usage.ru_maxrss / unit, speed)


def table(runs: Sequence[Run], base: Run) -> None:
    """Print runs: their peaks over that of the run with one row, these in units of the first one's, and speed."""
    print("| rows | --max-num-batched-tokens | peak, MiB | over one row, MiB | ratio to first | tokens/s |")
    print("|---:|---:|---:|---:|---:|---:|")
    smallest = runs[0].peak - base.peak
    for run in runs:
        over = run.peak - base.peak
        print(
            f"| {run.rows:,} | {run.batched_tokens:,} | {run.peak:.0f} | {over:.0f} | {over / smallest:.2f} "
            f"| {f'{run.speed:,.0f}' if run.speed else ''} |"
        )
    print()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 rows in place of 16,000")
    quick = parser.parse_args().quick
    libraries = ("torch", "transformers", "polars")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    print(f"Python {platform.python_version()}, {versions}; {os.cpu_count()} CPU cores")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = score(corpus(folder / "one.jsonl", 1), folder / "one", 1, TOKENS)
        print(f"One row: {base.peak:.0f} MiB\n\nThe corpus grows, --part-rows {PART_ROWS}:\n")
        sizes = (250, 500, 1_000) if quick else (250, 1_000, 4_000, 16_000)
        data = {size: corpus(folder / f"{size}.jsonl", size) for size in sizes}
        table([score(data[size], folder / f"rows-{size}", size, TOKENS) for size in sizes], base)
        print("The batch grows:\n")
        middle = sizes[1]
        budgets = (1_024, 4_096, 16_384)
        table([score(data[middle], folder / f"batch-{n}", middle, n) for n in budgets], base)


if __name__ == "__main__":
    main()
