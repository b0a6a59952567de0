"""README and manual as tests read them: code blocks by language, links, anchors; and the folder from which a reader types."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.helpers.warm_commands import warm_program

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)#]*)(?:#([^)]+))?\)")


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """The page's code in its order: (language, code)."""
    for language, code in _FENCE.findall(page.read_text("utf-8")):
        if language in languages:
            yield language, code


def links(page: Path) -> list[tuple[str, str]]:
    """Targets of the page's links and pictures that lie in the repository: (path, anchor), either of them possibly empty."""
    return _LINK.findall(re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL))


def anchors(page: Path) -> set[str]:
    """The anchors that headings give: lower case, letters, digits and hyphens."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


def run(language: str, code: str, folder: Path) -> str:
    """What a block prints when a reader types it in a clone; fails with what it says on stderr."""
    path = os.pathsep.join([str(warm_program().parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def clone(folder: Path) -> Path:
    """A folder that looks like the clone in which a reader works."""
    (folder / "data").symlink_to(ROOT / "data")
    return folder
