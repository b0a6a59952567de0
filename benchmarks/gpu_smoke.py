"""What to run first on a machine with one GPU: does what no CPU can show hold, and how fast is it? At most 8 minutes, no vLLM.

Prints tables for RESULTS.md: the mixed product, statistics against float64, how often reductions are compiled, reductions over
the bare product at several widths, launches and waits of one chunk, sizes of blocks, two models, the transformers engine whole
and in pieces, and what happens when memory runs out. A part that fails says so and the others go on; the exit code is 1 then.
`--rehearse` runs everything that a CPU can at tiny sizes: that the script works, not what it would find.

    python -m benchmarks.gpu_smoke [--minutes 8] [--vocabulary 151936] [--rehearse]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.engine import make_model
from trajscore.engines import EngineOptions, ModelSource, TokenScores, TokenSequence
from trajscore.engines.hf import HFEngine
from trajscore.engines.reductions import TOKENS
from trajscore.statistics import Head, pair_statistics, token_statistics
from trajscore.statistics.blocks import CUDA_BLOCK, CUDA_ROWS

Rows = Iterator[tuple[str, str]]
"""Lines of a table: what, and what was found."""


class Smoke:
    """Sizes and device, and the parts of the run.

    Args:
        device: a GPU, or the CPU for a rehearsal.
        vocabulary: entries of the heads.
    """

    def __init__(self, device: torch.device, vocabulary: int) -> None:
        self.device, self.gpu = device, device.type == "cuda"
        self.vocabulary = vocabulary if self.gpu else 1_000
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        self.rows = CUDA_ROWS if self.gpu else 70
        self.widths = (1024, 2048, 4096) if self.gpu else (16, 32)
        self.parts: dict[str, Callable[[], Rows]] = {
            "mixed product": self.mixed_product,
            "statistics against float64": self.statistics,
            "compilations": self.compilations,
            "reduction over the product": self.reduction,
            "launches and waits of a chunk": self.launches,
            "sizes of blocks": self.block_sizes,
            "two models": self.pairs,
            "transformers, whole and in pieces": self.engine,
            "out of memory": self.brim,
        }

    def case(self, rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, Head, torch.Tensor]:
        """Random states, a random head, and targets."""
        generator = torch.Generator(self.device).manual_seed(seed)
        drawn = {"generator": generator, "device": self.device}
        hidden_ND = torch.randn(rows, width, **drawn).to(self.dtype)  # type: ignore[call-overload]
        weight_VD = (torch.randn(self.vocabulary, width, **drawn) * 3 / width**0.5).to(self.dtype)  # type: ignore[call-overload]
        targets_N = torch.randint(0, self.vocabulary, (rows,), **drawn)  # type: ignore[call-overload]
        return hidden_ND, Head(weight_VD), targets_N

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], Any], repeats: int = 5) -> float:
        """The fastest of several runs, after one to warm up."""
        best = math.inf
        for number in range(repeats + 1):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            best = min(best, time.perf_counter() - began) if number else best
        return best

    def product(self, hidden_ND: torch.Tensor, head: Head) -> Callable[[], None]:
        """The bare product with the head, in the model's precision, a block at a time."""

        def run() -> None:
            for weight_BD in torch.split(head.weight_VD, CUDA_BLOCK):
                torch.mm(hidden_ND, weight_BD.T)

        return run

    def mixed_product(self) -> Rows:
        """Low precision in, float32 out: the sum of a product must not be rounded to bfloat16."""
        hidden_ND, head, _ = self.case(64, self.widths[-1])
        exact = hidden_ND.double() @ head.weight_VD[:500].double().T
        ours = head.logits(hidden_ND, slice(0, 500)).double()
        rounded = (hidden_ND @ head.weight_VD[:500].T).double()
        yield "largest error of our logits", f"{(ours - exact).abs().max():.2g}"
        yield "of a product in the model's own precision", f"{(rounded - exact).abs().max():.2g}"
        if self.gpu and not (ours - exact).abs().max() < 0.1 * (rounded - exact).abs().max():
            raise RuntimeError("the product is rounded to the model's precision")

    def statistics(self) -> Rows:
        """Rank, surprisal and entropy against float64 over the same bfloat16 numbers."""
        hidden_ND, head, targets_N = self.case(48, self.widths[0])
        found = token_statistics(hidden_ND, head, targets_N)
        logits = hidden_ND.double() @ head.weight_VD.double().T
        logp = logits.log_softmax(1)
        own = logits.gather(1, targets_N[:, None])
        surprisal = -logp.gather(1, targets_N[:, None])[:, 0]
        entropy = -(logp.exp() * logp).sum(1)
        rank = 1 + (logits > own).sum(1)
        errors = {
            "surprisal": (found.surprisal_N - surprisal).abs().max().item(),
            "entropy": (found.entropy_N - entropy).abs().max().item(),
        }
        for name, error in errors.items():
            yield f"largest error of {name}, nats", f"{error:.2g}"
        yield "ranks that differ", f"{int((found.rank_N != rank).sum())} of {len(rank)}"
        if not max(errors.values()) < 1e-3:
            raise RuntimeError("statistics are not those of float64")

    def compilations(self) -> Rows:
        """Any number of rows, with one or two models: reductions are compiled twice at most each."""
        from torch._dynamo.utils import counters

        warnings = list[str]()
        handler = logging.Handler()
        handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("trajscore").addHandler(handler)
        before, began = counters["stats"]["unique_graphs"], time.perf_counter()
        for rows in (1, 2, 63, 64, 65, 500, self.rows, self.rows + 1):
            hidden_ND, head, targets_N = self.case(rows, self.widths[0])
            token_statistics(hidden_ND, head, targets_N)
            pair_statistics(hidden_ND, head, hidden_ND, head, targets_N)
        logging.getLogger("trajscore").removeHandler(handler)
        compiled = counters["stats"]["unique_graphs"] - before
        yield "graphs of three reductions", str(compiled)
        yield "seconds, compilations included", f"{time.perf_counter() - began:.1f}"
        yield "warnings", "; ".join(warnings) or "none"
        if warnings or compiled > 6:
            raise RuntimeError("reductions are compiled too often, or run eagerly")

    def reduction(self) -> Rows:
        """Statistics of a chunk over the bare product."""
        for width in self.widths:
            hidden_ND, head, targets_N = self.case(self.rows, width)
            alone = self.seconds(self.product(hidden_ND, head))
            ours = self.seconds(lambda: token_statistics(hidden_ND, head, targets_N))  # noqa: B023 - called at once
            yield f"width {width}: product, ms", f"{1e3 * alone:.2f}"
            yield f"width {width}: statistics over it", f"{ours / alone:.2f}"

    def launches(self) -> Rows:
        """What the device is told for one chunk, and how often the host waits for it."""
        hidden_ND, head, targets_N = self.case(self.rows, self.widths[0])
        token_statistics(hidden_ND, head, targets_N)
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if self.gpu else []
        with torch.profiler.profile(activities=kinds) as profile:
            token_statistics(hidden_ND, head, targets_N)
            self.wait()
        counts = {event.key: event.count for event in profile.key_averages()}
        for shown, keys in {
            "kernels launched": ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx"),
            "copies": ("aten::copy_",),
            "reads and writes by index": ("aten::index", "aten::index_put_", "aten::_index_put_impl_"),
            "waits of the host": ("cudaStreamSynchronize", "aten::_local_scalar_dense"),
        }.items():
            yield shown, ", ".join(f"{key} {counts[key]}" for key in keys if key in counts) or "none"

    def block_sizes(self) -> Rows:
        """Rows and vocabulary entries of a block."""
        sizes = ((1024, 2048, 4096), (4096, 8192, 16_384, 32_768)) if self.gpu else ((32, 64), (128, 256))
        hidden_ND, head, targets_N = self.case(max(sizes[0]), self.widths[0])
        for rows, block in itertools.product(*sizes):
            torch._dynamo.reset()  # each size as if it were the only one
            took = self.seconds(lambda: token_statistics(hidden_ND, head, targets_N, rows=rows, block=block), 3)  # noqa: B023
            yield f"{rows} rows x {block} entries: us a token", f"{1e6 * took / len(hidden_ND):.2f}"

    def pairs(self) -> Rows:
        """Both models over their two products."""
        width = self.widths[0]
        (hidden_ND, head, targets_N), (other_NE, other, _) = self.case(self.rows, width), self.case(self.rows, width, 1)
        alone = self.seconds(self.product(hidden_ND, head)) + self.seconds(self.product(other_NE, other))
        for js in (False, True):
            took = self.seconds(lambda: pair_statistics(hidden_ND, head, other_NE, other, targets_N, js=js))  # noqa: B023
            yield f"pair, {'with' if js else 'without'} Jensen-Shannon, over two products", f"{took / alone:.2f}"

    def engine(self) -> Rows:
        """The same numbers from a long text read whole and in pieces, and tokens a second."""
        length, width, layers = (16_384, 1024, 8) if self.gpu else (700, 64, 2)
        with tempfile.TemporaryDirectory() as folder:
            name = make_model(Path(folder), max(width, 128), layers, self.vocabulary, longest=length)
            ids = np.random.default_rng(0).integers(0, self.vocabulary, length).astype(np.int32)
            sequence = TokenSequence(ids, np.arange(length // 3, length, dtype=np.uint32))
            found = dict[str, TokenScores]()
            for what, tokens in (("whole", length), ("in pieces", length // 4)):
                options = EngineOptions(max_num_batched_tokens=tokens, device=self.device.type)
                engine = HFEngine(ModelSource(name, np.arange(self.vocabulary)), options)
                took = self.seconds(lambda: found.__setitem__(what, next(iter(engine.run([sequence], TOKENS)))[1]), 1)  # noqa: B023
                yield f"{length:,} tokens {what}: tokens/s", f"{length / took:,.0f}"
                engine.close()
        difference = np.abs(found["whole"].surprisal_N - found["in pieces"].surprisal_N)
        yield "difference of surprisal, nats: mean, largest", f"{difference.mean():.2g}, {difference.max():.2g}"
        if not difference.mean() < 0.05:
            raise RuntimeError("pieces give other numbers")

    def brim(self) -> Rows:
        """With nearly all memory taken the engine goes on with smaller batches and gives the same numbers."""
        if not self.gpu:
            yield "out of memory", "only on a GPU"
            return
        with tempfile.TemporaryDirectory() as folder:
            name = make_model(Path(folder), 1024, 8, self.vocabulary)
            engine = HFEngine(
                ModelSource(name, np.arange(self.vocabulary)), EngineOptions(max_num_batched_tokens=65_536)
            )
            draw = np.random.default_rng(0)
            sequences = [
                TokenSequence(
                    draw.integers(0, self.vocabulary, 2048).astype(np.int32), np.arange(9, 2048, dtype=np.uint32)
                )
                for _ in range(32)
            ]
            free = dict(engine.run(sequences, TOKENS))
            torch.cuda.empty_cache()
            taken = torch.empty(torch.cuda.mem_get_info()[0] - 1536 * 2**20, dtype=torch.uint8, device=self.device)
            tight = dict(engine.run(sequences, TOKENS))
            del taken
            worst = max(np.abs(free[key].surprisal_N - tight[key].surprisal_N).mean() for key in free)
            yield "with 1.5 GiB left: tokens of a batch in the end", f"{engine._budget:,}"
            yield "largest mean difference of surprisal, nats", f"{worst:.2g}"
            engine.close()
            if not worst < 0.05:
                raise RuntimeError("numbers change when memory is short")


def main() -> None:
    """Run every part that time allows, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rehearse", "--quick", action="store_true")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        sys.exit("no CUDA device is here; --rehearse tries the script on a CPU")
    device = torch.device("cpu" if args.rehearse else "cuda")
    what = platform.machine() if args.rehearse else torch.cuda.get_device_name()
    print(
        f"{'Rehearsal on ' if args.rehearse else ''}{what}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}; vocabulary {args.vocabulary:,}"
    )
    smoke, began, failed = Smoke(device, args.vocabulary), time.perf_counter(), list[str]()
    for name, part in smoke.parts.items():
        if time.perf_counter() - began > 60 * args.minutes:
            failed.append(name)
            print(f"\n### {name}\n\nnot run: {args.minutes:g} minutes are over")
            continue
        print(f"\n### {name}\n\n| | |\n|---|---:|", flush=True)
        torch._dynamo.reset()
        try:
            for line, value in part():
                print(f"| {line} | {value} |", flush=True)
        except Exception as error:  # whatever it is, the other parts tell something too
            failed.append(name)
            print(f"\n**failed**: {type(error).__name__}: {error}", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s; {'failed: ' + ', '.join(failed) if failed else 'all parts passed'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
