"""The forecast of `trajscore score --dry-run` beside the run itself: time and disk, for the demo corpus many times over.

Each dry run and each run is a process of its own; a run's time is that of its whole process. The dry run comes first and knows
nothing of the run. What else the machine does meanwhile is in the ratio.
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
from typing import Any

DATA = Path(__file__).parents[1] / "data"
STUDENT, TEACHER = str(DATA / "models" / "student"), str(DATA / "models" / "teacher")

VARIANTS: dict[str, list[str]] = {
    "hf": ["--engine", "hf"],
    "hf, teacher": ["--engine", "hf", "--teacher", TEACHER],
    "hf, teacher, taking turns": ["--engine", "hf", "--teacher", TEACHER, "--swap-models"],
    "vllm": ["--engine", "vllm"],
}


def corpus(path: Path, copies: int) -> Path:
    """The demo corpus several times over, with an id for every copy."""
    rows = [json.loads(line) for line in (DATA / "trajectories.jsonl").read_text("utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as handle:
        for copy in range(copies):
            for row in rows:
                handle.write(json.dumps({**row, "id": f"{row['id']}/{copy}"}) + "\n")
    return path


_BY_PROCESSOR = """
import queue, threading, time
time.monotonic = time.process_time
from trajscore.cli import main
main()
"""


def _trajscore(*arguments: str, cpu_time: bool) -> dict[str, Any]:
    """A command's object; told by processor time, a dry run takes that for the clock."""
    program = ["-c", _BY_PROCESSOR] if cpu_time else ["-m", "trajscore"]
    command = [sys.executable, *program, "score", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _now(cpu_time: bool) -> float:
    """Seconds, of the clock or of all children's processors."""
    if not cpu_time:
        return time.monotonic()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--seconds", default="30", help="--calibration-seconds")
    parser.add_argument("--only", choices=VARIANTS, action="append")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, which other work disturbs less")
    parser.add_argument("--quick", action="store_true", help="the transformers engine, 2 copies, 4 seconds")
    arguments = parser.parse_args()
    chosen = arguments.only or list(VARIANTS)
    if arguments.quick:
        chosen, arguments.copies, arguments.seconds = ["hf", "hf, teacher"], 2, "4"
    print("| run | forecast, s | interval | real, s | forecast / real | disk, MiB | real | forecast / real |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        data = str(corpus(Path(temporary) / "corpus.jsonl", arguments.copies))
        for number, name in enumerate(chosen):
            out = Path(temporary) / str(number)
            command = [data, "--student", STUDENT, "--out", str(out), *VARIANTS[name]]
            plan = _trajscore(
                *command, "--dry-run", "--calibration-seconds", arguments.seconds, cpu_time=arguments.cpu_time
            )
            began = _now(arguments.cpu_time)
            _trajscore(*command, cpu_time=False)
            real = _now(arguments.cpu_time) - began
            total, disk = plan["time"]["total"], plan["disk"]["parts"]["value"] / 2**20
            written = sum(path.stat().st_size for path in out.glob("part-*")) / 2**20
            print(
                f"| {name} | {total['value']:.1f} | {total['low']:.1f} to {total['high']:.1f} | {real:.1f} "
                f"| {total['value'] / real:.2f} | {disk:.1f} | {written:.1f} | {disk / written:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
