"""The command line: each command parses, calls one function, prints."""

from __future__ import annotations

from trajscore import interruptions
from trajscore.cli import (
    diff,
    doctor,
    export,
    grade,
    inspect,
    listing,
    mask,
    merge,
    report,
    run,
    score,
    select,
    skills,
    slurm,
    trace,
    verify,
)
from trajscore.cli.app import app
from trajscore.display.writer import guard_streams

__all__ = [
    "app",
    "diff",
    "doctor",
    "export",
    "grade",
    "inspect",
    "listing",
    "main",
    "mask",
    "merge",
    "report",
    "run",
    "score",
    "select",
    "skills",
    "slurm",
    "trace",
    "verify",
]


def main() -> None:
    """Entry point of the `trajscore` command."""
    guard_streams()
    try:
        app(prog_name="trajscore")
    except SystemExit as end:
        if end.code == interruptions.EXIT_INTERRUPTED:
            interruptions.end_interrupted()
        raise
