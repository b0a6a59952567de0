"""One trajectory of 32,768 tokens under a vocabulary of 151,936: peak memory and time, student alone and with a teacher.

Each measurement runs in a process of its own; its peak is set beside that of a trajectory of 1,024 tokens, so that what grows
with the length is seen apart from what loading costs. Whole logits of 32,768 tokens would take 18.5 GiB for each model.

    python benchmarks/long.py [--quick] [--hidden 64] [--vocabulary 151936] [--length 32768]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from trajscore.engines import EngineOptions, ModelSource, TokenSequence
from trajscore.engines.hf import HFEngine
from trajscore.engines.reductions import STATES, TOKENS, Other, pair


def _write_model(folder: Path, hidden: int, vocabulary: int, seed: int) -> None:
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=2**17, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def _measure(student: str, teacher: str, vocabulary: int, length: int) -> None:
    """Run in a process of its own: print seconds and peak memory in MiB as JSON."""
    ids = np.random.default_rng(0).integers(0, vocabulary, length).astype(np.int32)
    sequence = TokenSequence(ids, np.arange(1, length, dtype=np.uint32))
    vocabulary_ids = np.arange(vocabulary)
    engine = HFEngine(ModelSource(student, vocabulary_ids), EngineOptions())
    other = HFEngine(ModelSource(teacher, vocabulary_ids), EngineOptions()) if teacher else None
    began = time.perf_counter()
    if other is None:
        ((_, scores),) = engine.run([sequence], TOKENS)
        rows = len(scores.rank_N)
    else:
        ((_, states),) = other.run([sequence], STATES)
        ((_, found),) = engine.run([sequence], pair(Other(lambda _: states, head=other.head)))
        rows = len(found.js_N)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "peak": peak}))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        _measure(args.measure[0], args.measure[1], args.vocabulary, args.length)
        return
    if args.quick:
        args.length = 4096
    print("| models | tokens | seconds | peak, MiB | over 1,024 tokens, MiB |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("student", "teacher")):
            _write_model(Path(folder) / name, args.hidden, args.vocabulary, number)
        for models in (["student"], ["student", "teacher"]):
            base = 0.0
            paths = [str(Path(folder) / name) if name in models else "" for name in ("student", "teacher")]
            for length in (1024, args.length):
                command = [sys.executable, __file__, "--vocabulary", str(args.vocabulary), "--length", str(length)]
                done = subprocess.run([*command, "--measure", *paths], capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                base = base or found["peak"]
                print(
                    f"| {' + '.join(models)} | {found['rows'] + 1:,} | {found['seconds']:.1f} | {found['peak']:,.0f} "
                    f"| {found['peak'] - base:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
