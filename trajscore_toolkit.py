"""The `trajscore` command starts here: it looks whose files `import trajscore` would load, then hands over to `trajscore.cli`.

Another project on the package index is called `trajscore` and installs into the same folder. This file lies outside of
it, so that it is ours even where that folder is theirs, or both's. It reads one directory, in less than a millisecond.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = Path(__file__).stem.replace(
    "_", "-"
)  # trajscore._project.DISTRIBUTION, which must not be imported before it is known to be ours
_WRONG_USAGE = 2


def conflict() -> str | None:
    """What is wrong with the `trajscore` that Python would import, and what to do; None where it is this distribution's own.

    Own is what lies beside this file: in site-packages, or in a clone, be it installed as editable or on PYTHONPATH. No
    distribution named `trajscore` may lie there too: each of the two overwrites, and on removal deletes, files of the other.
    """
    ours = Path(__file__).parent
    spec = importlib.util.find_spec("trajscore")
    found = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
    if found is None or found.parent.resolve() != ours.resolve():
        return (
            f"`import trajscore` finds {found or 'nothing'}, which does not belong to {NAME} (in {ours}).\n"
            f"Another project has the same import name. If it is installed: pip uninstall trajscore, then install {NAME} "
            "again. If a folder of that name comes first on PYTHONPATH: take it away."
        )
    theirs = sorted(each.name for each in ours.glob("trajscore-*.dist-info"))
    if theirs:
        version = theirs[0].removeprefix("trajscore-").removesuffix(".dist-info")
        return (
            f"{found} holds files of two packages: {NAME} and trajscore {version}, another project of the same import name.\n"
            f"Remove both, because each has overwritten files of the other: pip uninstall trajscore {NAME}. "
            f"Then install {NAME} again, as you did before."
        )
    return None


def main() -> None:
    """Entry point of the `trajscore` command; exit code 2 where another project's files would run."""
    problem = conflict()
    if problem is not None:
        sys.stderr.write(f"error: {problem}\n")
        sys.exit(_WRONG_USAGE)
    from trajscore.cli import main as command

    command()
