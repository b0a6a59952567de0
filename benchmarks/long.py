"""Long trajectories: 32,768 tokens under a vocabulary of 151,936, and 32,768 to 131,072 tokens read in pieces and whole.

Each measurement runs in a process of its own; its peak is set beside that of a trajectory of 1,024 tokens, so that what grows
with the length is seen apart from what loading costs. Whole logits of 32,768 tokens would take 18.5 GiB for each model. The
second table has a wider model and a small vocabulary, so that the backbone is what takes memory.

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

_SMALL_VOCABULARY = 4096


def _write_model(folder: Path, hidden: int, vocabulary: int, seed: int) -> None:
    config = transformers.Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=2**17, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def _write_wide_model(folder: Path, attention: str) -> None:
    """Eight heads on two of keys and values, as usual; eager attention by way of a soft cap, as Gemma 2 has it."""
    shape = {
        "vocab_size": _SMALL_VOCABULARY, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2**17,
    }  # fmt: skip
    torch.manual_seed(0)
    if attention == "eager":
        transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**shape)).save_pretrained(folder)
    else:
        transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape)).save_pretrained(folder)


def _measure(student: str, teacher: str, vocabulary: int, length: int, batched: int) -> None:
    """Run in a process of its own: print seconds and peak memory in MiB as JSON."""
    ids = np.random.default_rng(0).integers(0, vocabulary, length).astype(np.int32)
    sequence = TokenSequence(ids, np.arange(1, length, dtype=np.uint32))
    vocabulary_ids = np.arange(vocabulary)
    options = EngineOptions(max_num_batched_tokens=batched)
    engine = HFEngine(ModelSource(student, vocabulary_ids), options)
    other = HFEngine(ModelSource(teacher, vocabulary_ids), options) if teacher else None
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


def _run(paths: list[str], vocabulary: int, length: int, batched: int) -> dict[str, float] | None:
    """Measurements of a fresh process; None if it ran out of memory."""
    numbers = ["--vocabulary", str(vocabulary), "--length", str(length), "--batched", str(batched)]
    command = [sys.executable, __file__, *numbers, "--measure", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "out of memory" in done.stderr:
        return None
    done.check_returncode()
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _with_large_vocabulary(folder: Path, args: argparse.Namespace) -> None:
    print("| models | tokens | seconds | peak, MiB | over 1,024 tokens, MiB |\n|---|---:|---:|---:|---:|")
    for number, name in enumerate(("student", "teacher")):
        _write_model(folder / name, args.hidden, args.vocabulary, number)
    for models in (["student"], ["student", "teacher"]):
        base = 0.0
        paths = [str(folder / name) if name in models else "" for name in ("student", "teacher")]
        for length in (1024, args.length):
            found = _run(paths, args.vocabulary, length, args.batched)
            assert found is not None
            base = base or found["peak"]
            print(
                f"| {' + '.join(models)} | {found['rows'] + 1:,} | {found['seconds']:.1f} | {found['peak']:,.0f} "
                f"| {found['peak'] - base:,.0f} |",
                flush=True,
            )


def _in_pieces(folder: Path, args: argparse.Namespace) -> None:
    print(
        "\n| attention | tokens | read | seconds | peak, MiB | over 1,024 tokens, MiB |\n|---|---:|---|---:|---:|---:|"
    )
    lengths = (args.length,) if args.quick else tuple(args.length * factor for factor in (1, 2, 4))
    for attention in ("sdpa", "eager"):
        path = folder / attention
        _write_wide_model(path, attention)
        base = _run([str(path), ""], _SMALL_VOCABULARY, 1024, args.batched)
        assert base is not None
        for length in lengths:
            # Whole eager scores of 32,768 tokens are 32 GiB in each layer.
            ways = {"pieces": args.batched, "whole": length} if attention == "sdpa" else {"pieces": args.batched}
            for way, batched in ways.items():
                found = _run([str(path), ""], _SMALL_VOCABULARY, length, batched)
                numbers = (
                    "- | out of memory | -"
                    if found is None
                    else f"{found['seconds']:.0f} | {found['peak']:,.0f} | {found['peak'] - base['peak']:,.0f}"
                )
                print(f"| {attention} | {length:,} | {way} | {numbers} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--length", type=int, default=32_768)
    parser.add_argument("--batched", type=int, default=8192, help="tokens per forward pass")
    parser.add_argument("--only-pieces", action="store_true", help="only the second table")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        _measure(args.measure[0], args.measure[1], args.vocabulary, args.length, args.batched)
        return
    if args.quick:
        args.length, args.batched = 4096, 1024
    with tempfile.TemporaryDirectory() as folder:
        if not args.only_pieces:
            _with_large_vocabulary(Path(folder), args)
        _in_pieces(Path(folder), args)


if __name__ == "__main__":
    main()
