"""The README is true: its generated parts are up to date, and its commands and its Python run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.generated_docs import regenerate
from tests.helpers.paths import ROOT
from trajscore.schema import STATUSES

README = ROOT / "README.md"
TEXT = README.read_text("utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like the clone from which a reader types the commands."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    return tmp_path


def test_generated_parts_are_up_to_date() -> None:
    assert regenerate(TEXT) == TEXT, "run `make docs`"


def test_commands_run_and_print_what_the_page_shows(clone: Path) -> None:
    """Blocks marked `sh`; those marked `bash` need the hub, those marked `console` would install or call this test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    printed = ""
    for block in _blocks("sh"):
        done = subprocess.run(
            ["bash", "-euc", block], cwd=clone, env={**os.environ, "PATH": path, "COLUMNS": "100"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert len((clone / "selected.jsonl").read_text().splitlines()) == 40
    (table,) = (block for block in _blocks("text") if block.startswith("teacher "))
    shown = [line.split()[:5] for line in table.splitlines() if not line.startswith("...")]
    found = [line.split()[:5] for line in printed.splitlines()]
    assert all(line in found for line in shown), "the teachers' table of the page is not what `report` prints"


def test_python_runs(clone: Path) -> None:
    for block in _blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=clone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_links_of_the_page_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_every_status_in_the_code_is_declared() -> None:
    found = set()
    for path in (ROOT / "trajscore").rglob("*.py"):
        source = path.read_text("utf-8")
        found |= set(re.findall(r"(?:RefusedRow|refused)\(\s*\"(\w+)\"", source))
        found |= (
            set(re.findall(r"^[A-Z_]+ = \"([a-z]+_[a-z_]+)\"$", source, re.MULTILINE))
            if path.stem == "layouts"
            else set()
        )
    assert found
    assert found <= set(STATUSES)
    assert set(STATUSES) - found == {"ok"}


def test_pictures_load_nothing_and_are_drawn_by_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture of the page is one that the script draws, whole, and free of other servers."""
    import runpy
    from xml.etree import ElementTree

    drawn = runpy.run_path(str(ROOT / "data" / "pictures.py"))
    monkeypatch.setitem(drawn["main"].__globals__, "OUT", tmp_path)
    drawn["main"]()
    shown = re.findall(r"!\[[^]]+\]\((data/pictures/[^)]+)\)", TEXT)
    assert sorted(Path(each).name for each in shown) == sorted(path.name for path in tmp_path.iterdir())
    for path in (*(ROOT / each for each in shown), *tmp_path.iterdir()):
        text = path.read_text("utf-8")
        ElementTree.fromstring(text)  # noqa: S314 - files of ours
        assert not re.search(r"(href|src|url\()[^>]{0,3}https?:", text)
    # Drawn again from the same data, a picture shows the same teachers in the same order.
    for name in ("ranking.svg", "why.svg"):
        words = [
            re.findall(r">([a-z-]{5,})<", (folder / name).read_text()) for folder in (ROOT / "data/pictures", tmp_path)
        ]
        assert words[0] == words[1]
