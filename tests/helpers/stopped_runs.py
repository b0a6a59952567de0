"""Runs of `trajscore score` that stop at a known point until a signal ends them, and waiting for a state: no clock decides."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HANGS = 900
"""Seconds after which only something that hangs is still not done."""

_CODE = """
import runpy, sys, time
from pathlib import Path
from trajscore.scoring.passes import Passes
real, calls, most, marker = Passes.run, [], int(sys.argv[1]), Path(sys.argv[2])
def run(self, rows, done=None):
    calls.append(1)
    if len(calls) > most:
        marker.touch()
        time.sleep(3600)
    real(self, rows, done)
Passes.run = run
sys.argv[:] = ["trajscore", *sys.argv[3:]]
runpy.run_module("trajscore", run_name="__main__", alter_sys=False)
"""


def score_until(parts: int, marker: Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start `trajscore score` in a session of its own, and return once its student has read `parts` parts and waits.

    All of them but the last one are written; that one may be.
    """
    command = [sys.executable, "-c", _CODE, str(parts), str(marker), "score", *map(str, arguments)]
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, start_new_session=True, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert until(lambda: marker.exists() or process.poll() is not None)
    assert marker.exists(), process.communicate()
    return process


def until(true: Callable[[], bool]) -> bool:
    """Wait until something is true, which it is or else something hangs."""
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return true()
