"""Makes the runs that are missing and stores each: `python -m benchmarks.evidence`; stop and start it as you like, or
start it twice: two processes share the runs.

--more          the runs of `make evidence-more`: controls, single teachers, HES, masks
--seeds N       goes on to N seeds
--until 22:00   begins no run after this time of day (UTC)
--most N        makes at most N runs
--quick         makes two stored runs again, without storing them, and prints both beside each other: ten minutes
"""

from __future__ import annotations

import argparse
import fcntl
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.evidence import design, pools, records, runs
from benchmarks.evidence.design import CORE

QUICK = ("random-2400", "rsr")


def make(more: bool, seeds: int, until: str | None, most: int | None) -> None:
    """The missing runs in the order of the plan, but for those that another process is making."""
    place, made = records.FOLDER / "untouched.json", 0
    for arm, seed in design.plan(more, seeds):
        with claimed(f"seed-{seed} {arm.name}") as ours:
            if not ours or runs.stored(arm, seed):
                continue
            if most is not None and made >= most:
                return
            if until is not None and datetime.now(UTC).strftime("%H:%M") >= until:
                print(f"it is past {until}: stopping")
                return
            with claimed("untouched") as first:
                if first and seed > 0 and not place.exists():
                    records.write(place, runs.untouched())
            print(f"seed {seed}, {arm.name}: begins at {datetime.now(UTC):%H:%M:%S}", flush=True)
            record = runs.run(arm, seed)
            records.write(records.path(arm.name, seed), record)
        made += 1
        accuracy, seconds = record["results"]["accuracy"], 3600 * record["hours"]["processor"]
        print(
            f"seed {seed}, {arm.name}: {accuracy:.1%} of {design.HELD_OUT}, {seconds:.0f} s of processor time",
            flush=True,
        )


@contextmanager
def claimed(name: str) -> Iterator[bool]:
    """Whether this process has the name to itself, until the end of the block or its own."""
    pools.CACHE.mkdir(parents=True, exist_ok=True)
    with (pools.CACHE / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def quick() -> None:
    """Two runs of seed 0 that are stored, made anew side by side, pool included, beside what is stored."""
    arms = {arm.name: arm for arm in CORE}
    names = [name for name in QUICK if runs.stored(arms[name], 0)]
    if not names:
        raise SystemExit(f"none of {', '.join(QUICK)} of seed 0 is stored yet: run `make evidence` first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The pool's texts are stored; its scores agree to 1e-5 nats whatever the number of threads.
        torch.set_num_threads(os.cpu_count() or 1)
        pools.make(0, folder)
        with ProcessPoolExecutor(len(names), get_context("spawn"), torch.set_num_threads, (1,)) as processes:
            made = list(
                processes.map(runs.run, (arms[name] for name in names), (0 for _ in names), (folder for _ in names))
            )
    print(
        "| policy | stored accuracy | made now | stored surprisal | made now | rows chosen alike |\n|---|---|---|---|---|---|"
    )
    for name, now in zip(names, made, strict=True):
        then = runs.stored(arms[name], 0)
        assert then is not None
        cells = [name]
        for key in ("accuracy", "surprisal"):
            cells += [_shown(each["results"][key]) for each in (then, now)]
        alike = then["chosen"]["ids_sha256"] == now["chosen"]["ids_sha256"]
        print(f"| {' | '.join([*cells, 'yes' if alike else 'no'])} |", flush=True)


def _shown(value: float | dict[str, float]) -> str:
    if isinstance(value, dict):
        return f"{sum(value.values()) / len(value):.3f} nats"
    return f"{value:.1%}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, metavar="N", default=design.SEEDS)
    parser.add_argument("--until", metavar="HH:MM")
    parser.add_argument("--most", type=int, metavar="N")
    options = parser.parse_args()
    # One thread: the same numbers on every machine of a kind, and room for others.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.quick:
        quick()
    else:
        make(options.more, options.seeds, options.until, options.most)


if __name__ == "__main__":
    main()
