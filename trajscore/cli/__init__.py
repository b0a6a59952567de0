"""The command line: each command parses, calls one function, prints. It knows typer and nothing of scores, metrics or files."""

from __future__ import annotations

import signal
import sys

from trajscore.cli import (
    diff,
    doctor,
    export,
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
from trajscore.cli.app import EXIT_INTERRUPTED, app, interrupt

__all__ = [
    "app",
    "diff",
    "doctor",
    "export",
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
    try:
        # A polite kill ends like Ctrl-C: finished parts stay, and the exit code says that it was interrupted.
        signal.signal(signal.SIGTERM, interrupt)
        if (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):  # a shell has jobs in the background ignore it
            signal.signal(signal.SIGINT, interrupt)
        app(prog_name="trajscore")
    except KeyboardInterrupt:  # before or after the command
        sys.stderr.write("interrupted\n")
        sys.exit(EXIT_INTERRUPTED)
