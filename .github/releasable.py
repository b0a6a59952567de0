"""Refuses a release that would be wrong: `python .github/releasable.py TAG`, exit code 1 and the reasons.

The README on a package index needs whole addresses, which begin with the project's URL; the tag must be the version, and the
changelog must know it. It reads text and imports nothing of the package, so that it runs before anything is installed.
"""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def reasons(root: Path, tag: str) -> list[str]:
    """Why this tag is no release; empty where it is one."""
    url = runpy.run_path(str(root / "trajscore" / "_project.py"))["URL"]
    found = re.search(
        r'^__version__ = "([^"]+)"', (root / "trajscore" / "__init__.py").read_text("utf-8"), re.MULTILINE
    )
    version = found[1] if found else None
    wrong = []
    if url is None:
        wrong.append("trajscore/_project.py: URL is unset. Set it to the repository's address.")
    if tag != f"v{version}":
        wrong.append(
            f"the tag is {tag}, and trajscore/__init__.py says {version}: the tag of that version is v{version}."
        )
    if f"## [{version}]" not in (root / "CHANGELOG.md").read_text("utf-8"):
        wrong.append(f"CHANGELOG.md has no entry for {version}.")
    return wrong


if __name__ == "__main__":
    found = reasons(ROOT, sys.argv[1])
    sys.stderr.writelines(f"{each}\n" for each in found)
    sys.exit(1 if found else 0)
