"""What to run on a machine with GPUs and vLLM, after `gpu_smoke.py`: the numbers, the speed at real shapes, and how it ends.

Prints tables for RESULTS.md: conformance in bfloat16 with the transformers engine, an 8B shape at 8k and 32k tokens (random
weights), tensor and data parallel over two GPUs, a run that is killed, and a teacher beside the student. Parts for which there
are too few GPUs say so; the exit code is 1 when a part failed. `--quick` tries the script at tiny sizes, also on a CPU.

    python -m benchmarks.gpu_vllm [--quick] [--hidden 4096] [--layers 36] [--vocabulary 151936]
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import trajscore as ts
from benchmarks.engine import make_model, make_sequences
from trajscore.engines import EngineOptions, ModelSource, TokenScores, TokenSequence, load_engine
from trajscore.engines.reductions import TOKENS

DATA = Path(__file__).parents[1] / "data"
STUDENT, TEACHER, CORPUS = DATA / "models" / "student", DATA / "models" / "teacher", DATA / "trajectories.jsonl"

Rows = Iterator[tuple[str, str]]
"""Lines of a table: what, and what was found."""


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _scores(
    engine_name: str, model: str, vocabulary: int, sequences: list[TokenSequence], **options: Any
) -> tuple[list[TokenScores], float, float]:
    """Statistics, seconds for loading, and seconds for scoring after a first sequence."""
    began = time.perf_counter()
    _, engine = load_engine(engine_name, ModelSource(model, np.arange(vocabulary)), EngineOptions(**options))
    loaded = time.perf_counter()
    try:
        list(engine.run(sequences[:1], TOKENS))
        warm = time.perf_counter()
        found = dict(engine.run(sequences, TOKENS))
        return [found[index] for index in range(len(sequences))], loaded - began, time.perf_counter() - warm
    finally:
        engine.close()


def conformance(folder: Path, args: argparse.Namespace) -> Rows:
    """Both engines in the same precision, and each against float32."""
    name, sequences = make_model(folder, 256, 2, args.vocabulary), make_sequences(8, args.vocabulary)
    exact, _, _ = _scores("hf", name, args.vocabulary, sequences, dtype="float32")
    for engine in ("hf", "vllm"):
        found, _, _ = _scores(engine, name, args.vocabulary, sequences, dtype="bfloat16")
        errors = np.concatenate(
            [np.abs(one.surprisal_N - other.surprisal_N) for one, other in zip(found, exact, strict=True)]
        )
        yield f"{engine}, bfloat16 from float32, nats: mean, largest", f"{errors.mean():.2g}, {errors.max():.2g}"


def speed(folder: Path, args: argparse.Namespace) -> Rows:
    """Tokens a second at the shape of a large model."""
    longest = max(args.lengths)
    name = make_model(folder, args.hidden, args.layers, args.vocabulary, longest=longest)
    for length in args.lengths:
        sequences = make_sequences(max(2, args.tokens // length), args.vocabulary, length)
        _, loading, seconds = _scores(
            "vllm", name, args.vocabulary, sequences, max_num_batched_tokens=min(longest, 8192)
        )
        tokens = sum(len(each.input_ids_P) for each in sequences)
        yield f"{length:,} tokens each: start, s; tokens/s", f"{loading:.0f}; {tokens / seconds:,.0f}"


def parallel(folder: Path, args: argparse.Namespace) -> Rows:
    """Two workers give the numbers of one, and start as fast."""
    if _gpus() < 2 and not args.quick:
        yield "tensor and data parallel", f"not run: {_gpus()} GPU"
        return
    name, sequences = make_model(folder, 256, 2, args.vocabulary), make_sequences(16, args.vocabulary)
    one, loading, _ = _scores("vllm", name, args.vocabulary, sequences)
    yield "one engine: start, s", f"{loading:.0f}"
    for option in ("tensor_parallel_size", "data_parallel_size"):
        two, loading, _ = _scores("vllm", name, args.vocabulary, sequences, **{option: 2})
        worst = max(np.abs(a.surprisal_N - b.surprisal_N).max() for a, b in zip(one, two, strict=True))
        yield f"{option} 2: start, s; largest difference, nats", f"{loading:.0f}; {worst:.2g}"


def killed(folder: Path, args: argparse.Namespace) -> Rows:
    """SIGKILL leaves no process of an engine behind, and the run can be continued."""
    words = [
        sys.executable,
        "-m",
        "trajscore",
        "score",
        CORPUS,
        "--student",
        STUDENT,
        "--engine",
        "vllm",
        "--part-rows",
        "10",
    ]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    run = subprocess.Popen(
        [*map(str, words), "--out", str(folder / "s")],
        start_new_session=True,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while not list((folder / "s").glob("part-*.parquet")) and run.poll() is None:
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    left = psutil.wait_procs(children, timeout=30)[1]
    yield "processes of the engine, left after SIGKILL", f"{len(children)}, {len(left)}"
    summary = ts.score(CORPUS, STUDENT, folder / "s", engine="vllm", part_rows=10)
    yield "rows that were kept, rows in the end", f"{summary.resumed_rows}, {summary.rows}"
    if left or not summary.resumed_rows:
        raise RuntimeError("a process was left behind, or nothing was kept")


def teacher(folder: Path, args: argparse.Namespace) -> Rows:
    """Side by side and in turn: the same numbers; how long each takes."""
    divergences = {}
    for what, swap in (("as it chooses", None), ("in turn", True)):
        began = time.perf_counter()
        ts.score(
            CORPUS, STUDENT, folder / what, engine="vllm", teacher=TEACHER, part_rows=100, swap_models=swap, limit=args.limit
        )  # fmt: skip
        divergences[what] = ts.scan(folder / what).select("js").collect()["js"].explode().to_numpy()
        yield f"{what}: seconds", f"{time.perf_counter() - began:.1f}"
    worst = np.nanmax(np.abs(divergences["as it chooses"] - divergences["in turn"]))
    yield "largest difference of js, nats", f"{worst:.2g}"


PARTS = {
    "conformance in bfloat16": conformance,
    "speed": speed,
    "two GPUs": parallel,
    "a run that is killed": killed,
    "teacher beside student": teacher,
}


def main() -> None:
    """Run every part, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.lengths, args.tokens, args.limit = [8192, 32_768], 500_000, None
    if args.quick:
        args.hidden, args.layers, args.vocabulary = 128, 2, 1_000
        args.lengths, args.tokens, args.limit = [64, 128], 500, 60
    import torch
    import vllm

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{max(1, _gpus())} x {device}, vLLM {vllm.__version__}, torch {torch.__version__}")
    failed = []
    for name, part in PARTS.items():
        print(f"\n### {name}\n\n| | |\n|---|---:|", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                for line, value in part(Path(folder), args):
                    print(f"| {line} | {value} |", flush=True)
            except Exception as error:  # whatever it is, the other parts tell something too
                failed.append(name)
                print(f"\n**failed**: {type(error).__name__}: {error}", flush=True)
    print(f"\n{'failed: ' + ', '.join(failed) if failed else 'all parts passed'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
