"""`trajscore score` on a CPU, the whole command by its defaults, over its floor and beside scoring in the reference style.

The student has a real shape: 30 layers, hidden 576, vocabulary 49,152 (SmolLM2-135M, which `--student` may name; without it a
random model of that shape is made). `engine.py` and `reduction.py` measure shapes of two or four layers: nearly all head.
Floor: the bare backbone, rows sorted by length, at the best of several batch sizes, plus the bare product of the scored rows
with the head. Reference style: batches of four in file order, whole logits, log-softmax, top-100. Start-up is what the same
command takes for one short row, and is subtracted. Everything takes turns, and the least of several rounds counts. Where other
work disturbs the machine, `--threads 1` and the columns of processor time tell more than the clock.

    python -m benchmarks.score_cpu [--student FOLDER --corpus FILE] [--rows 48] [--rounds 3] [--threads N] [--vllm] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.engine import reference_style
from trajscore.corpus import open_corpus
from trajscore.engines import TokenSequence
from trajscore.rendering.renderer import Renderer
from trajscore.scoring.options import ScoreOptions
from trajscore.scoring.rows import render

DATA = Path(__file__).parents[1] / "data"
BATCHES = (256, 512, 1024, 2048)
"""Tokens of the backbone's batches, of which the fastest is the floor."""


class Cost(NamedTuple):
    """Seconds by the clock, and of processors."""

    clock: float
    processor: float

    def least(self, other: Cost) -> Cost:
        """The smaller of each."""
        return Cost(min(self.clock, other.clock), min(self.processor, other.processor))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.clock - other.clock, self.processor - other.processor)


def make_student(folder: Path, vocabulary: int, hidden: int, layers: int) -> Path:
    """A random Llama in the shape of SmolLM2-135M, with the tokenizer that ships here grown to its vocabulary."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "models" / "student")
    tokenizer.add_tokens([f"<extra_{number}>" for number in range(vocabulary - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 8 // 3, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 192, tie_word_embeddings=True,
        max_position_embeddings=8192,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def sequences_of(corpus: Path, student: Path, rows: int) -> list[TokenSequence]:
    """What `score` lets the student read of the first rows."""
    renderer = Renderer(str(student), ScoreOptions(data=corpus, student=student, out="-"))
    read = open_corpus(corpus)
    trajectories = [each for chunk in read.chunks(rows) for each in chunk.trajectories][:rows]
    return [found.whole for found in (render(each, renderer) for each in trajectories) if len(found.positions_N)]


def command(corpus: Path, student: Path, engine: str, threads: int) -> Cost:
    """What `trajscore score` takes, and all processes that it starts."""
    with tempfile.TemporaryDirectory() as out:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "trajscore", "score", corpus, "--student", student, "--engine", engine, "--out", out],
            check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Cost(time.perf_counter() - began, used)


def here(function: Callable[[], object]) -> Cost:
    """What a function of this process takes."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - clock, time.process_time() - processor)


@torch.inference_mode()
def backbone(model: Any, sequences: list[TokenSequence], tokens: int) -> list[torch.Tensor]:
    """States of the scored tokens, rows sorted by length in batches of so many tokens."""
    waiting = sorted(sequences, key=lambda each: -len(each.input_ids_P))
    found = []
    while waiting:
        longest = len(waiting[0].input_ids_P)
        batch = waiting[: max(1, tokens // longest)]
        waiting = waiting[len(batch) :]
        ids_BP = np.zeros((len(batch), longest), np.int64)
        for row, each in enumerate(batch):
            ids_BP[row, : len(each.input_ids_P)] = each.input_ids_P
        hidden_BPD = model.base_model(input_ids=torch.from_numpy(ids_BP), use_cache=False).last_hidden_state
        found += [hidden_BPD[row, each.positions_N.astype(np.int64) - 1] for row, each in enumerate(batch)]
    return found


@torch.inference_mode()
def product(states_ND: torch.Tensor, weight_VD: torch.Tensor) -> None:
    """The bare product with the head."""
    for chunk in torch.split(states_ND, 512):
        torch.mm(chunk, weight_VD.T)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--corpus", type=Path, default=DATA / "trajectories.jsonl")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    shape = (49_152, 576, 30)
    if args.quick:
        shape, args.rows, args.rounds = (2_048, 192, 2), 6, 1
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        student = args.student or make_student(folder / "student", *shape)
        lines = args.corpus.read_text("utf-8").splitlines(keepends=True)[: args.rows]
        whole, short = folder / "whole.jsonl", folder / "short.jsonl"
        whole.write_text("".join(lines), "utf-8")
        short.write_text(json.dumps({"prompt": "1 + 1?", "response": "2."}) + "\n")
        sequences = sequences_of(whole, student, args.rows)
        model = transformers.AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).eval()
        states_ND, weight_VD = torch.cat(backbone(model, sequences, 512)), model.get_output_embeddings().weight
        variants: dict[str, Callable[[], Cost]] = {
            f"backbone, {tokens:,} tokens a batch": lambda tokens=tokens: here(  # type: ignore[misc]
                lambda: backbone(model, sequences, tokens)
            )
            for tokens in BATCHES
        }
        variants |= {
            "head product": lambda: here(lambda: product(states_ND, weight_VD)),
            "reference style": lambda: here(lambda: reference_style(model, sequences)),
        }
        engines = ["hf", "vllm"] if args.vllm else ["hf"]
        for engine in engines:
            for what, corpus in (("start", short), ("whole", whole)):
                variants[f"{engine}, {what}"] = lambda engine=engine, corpus=corpus: command(  # type: ignore[misc]
                    corpus, student, engine, args.threads
                )
        found: dict[str, Cost] = {}
        for _ in range(args.rounds):
            for name, run in variants.items():
                cost = run()
                found[name] = cost.least(found.get(name, cost))
        config = model.config
    read, scored = sum(len(each.input_ids_P) for each in sequences), len(states_ND)
    print(
        f"{student.name}: {config.num_hidden_layers} layers, hidden {config.hidden_size}, vocabulary {len(weight_VD):,}; "
        f"{len(sequences)} rows, {read:,} tokens, {scored:,} scored, float32, {args.threads} threads, {args.rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f}\n\n| | clock, s | processor, s |\n|---|---:|---:|"
    )
    for name, cost in found.items():
        print(f"| {name} | {cost.clock:.1f} | {cost.processor:.1f} |")
    bare = [found[f"backbone, {tokens:,} tokens a batch"] for tokens in BATCHES]
    reference = found["reference style"]
    print("\n| ratio | clock | processor |\n|---|---:|---:|")
    for engine in engines:
        scoring = found[f"{engine}, whole"] - found[f"{engine}, start"]
        for name, above, below in (
            (f"{engine} over the floor", scoring, [found["head product"], bare]),
            (f"reference style over {engine}", reference, [scoring]),
        ):
            ratios = []
            for kind in ("clock", "processor"):
                total = 0.0
                for part in below:
                    total += (
                        min(getattr(each, kind) for each in part) if isinstance(part, list) else getattr(part, kind)
                    )
                ratios.append(f"{getattr(above, kind) / total:.2f}")
            print(f"| {name} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
