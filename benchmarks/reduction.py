"""What the exact reduction costs over the head's matrix product alone, in time and in memory.

Run: python -m benchmarks.reduction [--quick] [--threads 1]

Every variant is timed in turn, `--repeats` times, and its fastest time is kept: on a machine shared with other work only minima
can be compared. With one thread its CPU time is taken, which other work stretches less. The extra memory is the growth of the
process's peak during the first run of a variant in a process of its own, after a warm-up on 8 rows and 256 entries, so
that libraries do not count.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trajscore.statistics import Head, pair_statistics, token_statistics
from trajscore.statistics.blocks import BLOCK, blocks

VOCABULARY = 151_936


@dataclass(frozen=True)
class Case:
    """Random hidden states and heads of a student and a teacher of the same width."""

    hidden_ND: Tensor
    head: Head
    teacher_ND: Tensor
    teacher: Head
    targets_N: Tensor

    @classmethod
    def random(cls, rows: int, width: int, vocabulary: int, shared: bool) -> Case:
        """`shared`: both heads are one tensor, for widths at which two would not fit into memory."""
        torch.manual_seed(0)
        weight_VD = torch.empty(vocabulary, width).normal_(std=3 / width**0.5)
        teacher_VD = weight_VD if shared else torch.empty(vocabulary, width).normal_(std=3 / width**0.5)
        hidden_ND, teacher_ND = torch.randn(2, rows, width)
        targets_N = torch.randint(0, vocabulary, (rows,))
        return cls(hidden_ND, Head(weight_VD), teacher_ND, Head(teacher_VD), targets_N)


def whole_product(case: Case) -> None:
    """The product alone, all logits at once."""
    case.hidden_ND @ case.head.weight_VD.T


def blocked_product(case: Case) -> None:
    """The product alone, in the blocks of the reduction."""
    out = torch.empty(len(case.hidden_ND), min(BLOCK, case.head.vocabulary))
    for ids, _ in blocks(case.head.vocabulary, BLOCK):
        torch.mm(case.hidden_ND, case.head.weight_VD[ids].T, out=out)


def whole_logits(case: Case) -> None:
    """The same statistics from whole logits, in the style of the RSR reference code: top 100, log-softmax, gather."""
    logits_NV = case.hidden_ND @ case.head.weight_VD.T
    own_N1 = logits_NV.gather(1, case.targets_N[:, None])
    rank_N = 1 + (logits_NV.topk(100, dim=1).values > own_N1).sum(1)
    logprobs_NV = logits_NV.log_softmax(1)
    surprisal_N = -logprobs_NV.gather(1, case.targets_N[:, None])[:, 0]
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(1)
    assert rank_N.shape == surprisal_N.shape == entropy_N.shape


def one_model(case: Case) -> None:
    """Ours, one model."""
    token_statistics(case.hidden_ND, case.head, case.targets_N)


def two_models(case: Case) -> None:
    """Ours, two models with both Kullback-Leibler divergences."""
    pair_statistics(case.hidden_ND, case.head, case.teacher_ND, case.teacher, case.targets_N, js=False)


def two_models_js(case: Case) -> None:
    """Ours, two models with the Jensen-Shannon divergence too."""
    pair_statistics(case.hidden_ND, case.head, case.teacher_ND, case.teacher, case.targets_N)


VARIANTS: dict[str, tuple[Callable[[Case], None], int, str]] = {
    "whole product": (whole_product, 1, ""),
    "blocked product": (blocked_product, 1, ""),
    "whole logits (RSR style)": (whole_logits, 1, ""),
    "token_statistics": (one_model, 1, "1.05"),
    "pair_statistics, js=False": (two_models, 2, "1.10"),
    "pair_statistics": (two_models_js, 2, "2.20"),
}
"""Name: what runs, how many whole products it is compared with, and the ratio that was to be reached."""


def fastest(case: Case, repeats: int) -> dict[str, float]:
    """Seconds of each variant's fastest run; the variants take turns."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = dict.fromkeys(VARIANTS, float("inf"))
    for _ in range(repeats):
        for name, (run, _, _) in VARIANTS.items():
            start = clock()
            run(case)
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def peak_mebibytes() -> float:
    """The most memory this process ever had resident (Linux; `ru_maxrss` would count what the parent had)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def extra_mebibytes(name: str, rows: int, width: int, vocabulary: int, shared: bool) -> float:
    """Growth of the peak during one run, in this process."""
    run = VARIANTS[name][0]
    run(Case.random(8, 64, 256, shared))
    case = Case.random(rows, width, vocabulary, shared)
    before = peak_mebibytes()
    run(case)
    return peak_mebibytes() - before


def measured_elsewhere(name: str, rows: int, width: int, vocabulary: int) -> float:
    """The same in a fresh process."""
    arguments = ["--memory", name, "--rows", str(rows), "--width", str(width), "--vocabulary", str(vocabulary)]
    command = [sys.executable, "-m", "benchmarks.reduction", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(rows: int, width: int, vocabulary: int, repeats: int) -> None:
    """Print one Markdown table."""
    extra = {name: measured_elsewhere(name, rows, width, vocabulary) for name in VARIANTS}
    seconds = fastest(Case.random(rows, width, vocabulary, width > 1024), repeats)
    whole = seconds["whole product"]
    print(f"\n{rows} rows x {vocabulary:,} entries, hidden width {width}, float32, fastest of {repeats}:\n")
    print("| variant | ms | over its products | bar | extra MiB |\n|---|---|---|---|---|")
    for name, (_, products, bar) in VARIANTS.items():
        ratio = seconds[name] / (products * whole)
        over = f"{ratio:.2f}" + (" (of two)" if products == 2 else "")
        print(f"| {name} | {seconds[name] * 1e3:.0f} | {over} | {bar} | {extra[name]:.0f} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="a quarter of the vocabulary, width 1,024 only, few repeats"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory", metavar="VARIANT", help="only print the extra MiB of this variant")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    given = parser.parse_args()
    if given.memory:
        print(extra_mebibytes(given.memory, given.rows, given.width, given.vocabulary, given.width > 1024))
        return
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    if given.quick:
        table(given.rows, given.width, given.vocabulary // 4, 3)
        return
    table(512, 1024, given.vocabulary, given.repeats)
    table(128, 3584, given.vocabulary, given.repeats)


if __name__ == "__main__":
    main()
