"""Where the `trajscore` command starts: do another project's files lie among ours? If not, `trajscore.cli` goes on.

Another project on the package index is called `trajscore` and installs into the same folder, where each of the two overwrites
files of the other. Until that is ruled out nothing else is imported; looking reads one directory, in less than a millisecond.
"""

from __future__ import annotations

import sys
from pathlib import Path

_WRONG_USAGE = 2


def conflict(site: Path) -> str | None:
    """What is wrong with the folder that our package lies in, and what to do; None where nothing is.

    Args:
        site: site-packages, or a clone: there no distribution named `trajscore` is installed.
    """
    theirs = sorted(each.name for each in site.glob("trajscore-*.dist-info"))
    if not theirs:
        return None
    from trajscore._project import DISTRIBUTION

    version = theirs[0].removeprefix("trajscore-").removesuffix(".dist-info")
    return (
        f"{site / 'trajscore'} holds files of two packages: {DISTRIBUTION} and trajscore {version}, another project of the "
        f"same import name.\nRemove both, because each has overwritten files of the other: pip uninstall trajscore "
        f"{DISTRIBUTION}. Then install {DISTRIBUTION} again, as you did before."
    )


def main() -> None:
    """Entry point of the `trajscore` command; exit code 2 where another project's files might run."""
    problem = conflict(Path(__file__).parent.parent)
    if problem is not None:
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(_WRONG_USAGE)
    from trajscore.interruptions import stop_on_signals

    stop_on_signals()
    from trajscore.cli import main as command

    command()
