"""The manual is true: made from the code where it can be, its commands and its Python run, no link or picture is missing."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import trajscore
from tests.helpers import generated_docs
from tests.helpers.pages import DOCS, PAGES, README, anchors, blocks, clone, links, run
from tests.helpers.paths import ROOT
from trajscore.cli import app
from trajscore.schema import STATUSES

NAVIGATION = (ROOT / "mkdocs.yml").read_text("utf-8")
GUIDES = sorted((DOCS / "guides").glob("*.md"))
_IDS = [page.relative_to(DOCS).as_posix() for page in PAGES]


def test_generated_pages_are_up_to_date() -> None:
    made = generated_docs.whole_pages()
    wrong = [path.name for path, text in made.items() if not path.exists() or path.read_text("utf-8") != text]
    wrong += [path.name for path in (DOCS / "reference" / "cli").glob("*.md") if path not in made]
    for path in (ROOT / "mkdocs.yml", *PAGES):
        text = path.read_text("utf-8")
        wrong += [path.name] if path not in made and generated_docs.regenerate(text) != text else []
    assert wrong == [], "run `make docs`"


def test_the_check_notices_what_is_out_of_date() -> None:
    text = (DOCS / "reference" / "metrics.md").read_text("utf-8")
    assert generated_docs.regenerate(text.replace("`rsr`", "`rrs`")) == text


def test_every_option_of_every_command_is_on_its_page() -> None:
    """Read from the help that users see, not from what made the page."""
    pages = {page.stem: page.read_text("utf-8") for page in (DOCS / "reference" / "cli").glob("*.md")}
    assert {"score", "select", "skills-label"} <= pages.keys()
    for name in pages.keys() - {"index"}:
        words = name.replace("pass-rate", "pass rate").split("-")
        help_text = CliRunner().invoke(
            app, [*(word.replace(" ", "-") for word in words), "--help"], env={"COLUMNS": "200"}
        )
        assert help_text.exit_code == 0, help_text.output
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text.output)) - {"--help"}
        assert {each for each in options if each not in pages[name]} == set(), name


@pytest.mark.parametrize("page", PAGES, ids=_IDS)
def test_links_and_pictures_exist(page: Path) -> None:
    for target, anchor in links(page):
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), target
        assert DOCS in path.parents, f"{target} lies outside of the manual and would be missing from the site"
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_every_page_can_be_reached() -> None:
    named = set(re.findall(r"(\S+\.md)$", NAVIGATION, re.MULTILINE))
    assert named == {page.relative_to(DOCS).as_posix() for page in PAGES if page.parent.name != "_incoming"}


def test_python_reference_holds_every_public_name() -> None:
    page = (DOCS / "reference" / "python.md").read_text("utf-8")
    functions = set(trajscore.__all__) - {"__version__", "metrics"}
    assert functions == {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the quickstart has been typed, and the teacher of the guide on scoring beside the student."""
    folder = clone(tmp_path_factory.mktemp("started"))
    for language, code in (
        *blocks(DOCS / "guides" / "quickstart.md", "sh"),
        *blocks(DOCS / "guides" / "score.md", "sh"),
    ):
        run(language, code, folder)
    return folder


def _texts(pages: Iterable[Path]) -> list[Path]:
    typed = {DOCS / "guides" / "quickstart.md", DOCS / "guides" / "score.md"}
    return [page for page in pages if page not in typed and list(blocks(page, "sh", "python"))]


# It trains a model; what it does is tried on less by tests/exporters/test_on_policy.py.
_LONG = ("on-policy",)
_TYPED = [pytest.param(page, marks=pytest.mark.slow if page.stem in _LONG else ()) for page in _texts(PAGES)]


@pytest.mark.parametrize("page", _TYPED, ids=lambda page: page.stem)
def test_what_a_page_types_runs_and_prints_what_it_shows(page: Path, started: Path, tmp_path: Path) -> None:
    """Blocks marked `sh` and `python`; those marked `bash` need the hub or a server, those marked `console` install."""
    folder = tmp_path / "clone"
    shutil.copytree(started, folder, symlinks=True)
    printed = "".join(run(language, code, folder) for language, code in blocks(page, "sh", "python"))
    for _, shown in blocks(page, "text"):
        assert _words(shown) <= _words(printed)


def _words(text: str) -> set[str]:
    return {" ".join(line.split()) for line in text.splitlines() if line.strip() != "..."}


def test_pages_with_commands_are_found() -> None:
    assert {"mask", "trace", "select", "train", "clusters"} <= {page.stem for page in _texts(GUIDES)}


def test_every_status_in_the_code_is_declared() -> None:
    found = set()
    for path in (ROOT / "trajscore").rglob("*.py"):
        source = path.read_text("utf-8")
        found |= set(re.findall(r"(?:RefusedRow|refused)\(\s*\"(\w+)\"", source))
        found |= (
            set(re.findall(r"^[A-Z_]+ = \"([a-z]+_[a-z_]+)\"$", source, re.MULTILINE))
            if path.stem in ("trajectories", "token_ids", "turns")
            else set()
        )
    assert found
    assert found <= set(STATUSES)
    assert set(STATUSES) - found == {"ok"}


def test_pictures_load_nothing_and_are_drawn_by_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture of README and manual is whole, free of other servers, and drawn by a script from what ships."""
    drawn = runpy.run_path(str(ROOT / "data" / "pictures.py"))
    monkeypatch.setitem(drawn["main"].__globals__, "OUT", tmp_path)
    drawn["main"]()
    made = {path.name for path in tmp_path.iterdir()} | {path.name for path in generated_docs.whole_pages()}
    shown = {Path(target).name for page in (README, *PAGES) for target, _ in links(page) if target.endswith(".svg")}
    assert shown == {path.name for path in (DOCS / "pictures").iterdir()}
    assert shown <= made
    for path in (*(DOCS / "pictures").iterdir(), *tmp_path.iterdir()):
        text = path.read_text("utf-8")
        ElementTree.fromstring(text)  # noqa: S314 - files of ours
        assert not re.search(r"(href|src|url\()[^>]{0,3}https?:", text)
    # Drawn again from the same data, a picture shows the same teachers in the same order.
    words = [
        re.findall(r">([a-z-]{5,})<", (each / "ranking.svg").read_text()) for each in (DOCS / "pictures", tmp_path)
    ]
    assert "very-noisy" in words[0]
    assert words[0] == words[1]
    # And the picture of agreement has the same cells, as dark as they were.
    cells = [
        re.findall(r'd="([^"]+)" fill="(#\w+)" opacity="([\d.]+)"', (each / "agreement.svg").read_text())
        for each in (DOCS / "pictures", tmp_path)
    ]
    assert len(cells[0]) > 500
    assert cells[0] == cells[1]


def test_the_site_builds_without_warnings_and_loads_nothing(tmp_path: Path) -> None:
    """Strict, as `make docs` builds it, in a copy; and with a broken link the build must fail."""
    for name in ("docs", "trajscore", "tests/helpers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "_incoming"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = _build(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for path in (*pages, *(tmp_path / "site").rglob("*.css")):
        assert not re.search(
            r"(?:<link[^>]+href|src|@import|url\()[=\s\"'(]+(?:https?:)?//", path.read_text("utf-8")
        ), path
    python = (tmp_path / "site" / "reference" / "python.html").read_text("utf-8")
    assert "max_num_batched_tokens" in python, "keywords that come from an options class"
    assert "UsageError" in python
    shutil.rmtree(tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    configuration = (tmp_path / "mkdocs.yml").read_text("utf-8")
    (tmp_path / "mkdocs.yml").write_text(configuration.partition("\nnav:")[0] + "\nnav: [Home: index.md]\n")
    for link, fails in (("index.md", False), ("nowhere.md", True)):
        (tmp_path / "docs" / "index.md").write_text(f"# One page\n\n[a link]({link})\n")
        assert (_build(tmp_path).returncode != 0) == fails


def _build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
