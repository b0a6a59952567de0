"""The name: a built wheel bears it, hints say it, and a stranger's package of the same import name is noticed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import HeaderParser
from itertools import chain
from pathlib import Path

import pytest

import trajscore
from tests.helpers.paths import ROOT
from trajscore._project import DISTRIBUTION

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"


def _tree(folder: Path) -> Path:
    """What a wheel is built from, in a folder of its own."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "trajscore", folder / "trajscore", ignore=skipped)
    (folder / ".ci").mkdir()
    for name in (".ci/index_readme.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def _wheel(tree: Path, out: Path) -> Path:
    made = subprocess.run([sys.executable, "-c", _BUILD, out], cwd=tree, capture_output=True, text=True, check=True)
    return out / made.stdout.splitlines()[-1]


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (each for each in files.namelist() if each.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(files.read(name).decode())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _wheel(_tree(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("dist"))


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """The wheel, laid out as pip does."""
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "site")
    return tmp_path / "site"


def _run(site: Path) -> subprocess.CompletedProcess[str]:
    """What the console script does, with this folder first on the path."""
    code = "from trajscore._start import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "--help"], cwd=site, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip


def test_names_agree() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    extras = PROJECT["optional-dependencies"]
    inside = [each for each in chain.from_iterable(extras.values()) if each.startswith("trajscore")]
    assert inside
    for each in inside:
        name, _, asked = each.removesuffix("]").partition("[")
        assert name == DISTRIBUTION
        assert set(asked.split(",")) <= extras.keys()


def test_the_wheel_is_ours_and_runs(wheel: Path, site: Path) -> None:
    assert wheel.name == f"trajscore_toolkit-{trajscore.__version__}-py3-none-any.whl"
    entry = (site / f"trajscore_toolkit-{trajscore.__version__}.dist-info" / "entry_points.txt").read_text()
    assert "trajscore = trajscore._start:main" in entry
    done = _run(site)
    assert done.returncode == 0, done.stderr
    assert "Usage: trajscore" in done.stdout


def test_a_stranger_of_the_same_import_name_is_noticed(site: Path) -> None:
    (site / "trajscore-1.1.6.dist-info").mkdir()
    (site / "trajscore" / "schema.py").write_text("raise SystemExit('a file of theirs runs')")
    done = _run(site)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "pip uninstall trajscore" in done.stderr
    assert DISTRIBUTION in done.stderr
    assert str(site / "trajscore") in done.stderr
    assert "Traceback" not in done.stderr


def test_hints_name_the_distribution() -> None:
    """A hint that spells `pip install 'trajscore[...]'` would install the stranger."""
    strange = re.compile(r"pip install[^\n]*['\" ]trajscore(?!-toolkit)\b|\btrajscore\[")
    assert strange.search("run pip install 'trajscore[hf]'")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.toml")]
    sources = [
        *(ROOT / "trajscore").rglob("*.py"),
        *(ROOT / "trajscore").rglob("*.html"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
    found = {path.name: hit[0] for path in (*pages, *sources) if (hit := strange.search(path.read_text("utf-8")))}
    assert found == {}


def test_the_readme_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Without a URL no target is left that an index cannot resolve; with one, all are addresses of files that exist."""
    local = re.compile(r"\]\((?![a-z]+:|#)[^)]+\)")
    assert local.search((ROOT / "README.md").read_text("utf-8"))
    metadata = _metadata(wheel)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert not local.search(str(metadata.get_payload()))
    assert metadata.get_all("Project-URL") is None

    tree = _tree(tmp_path / "tree")
    constant = tree / "trajscore" / "_project.py"
    text, changed = re.subn(
        r"^URL: str \| None = .*$", 'URL: str | None = "https://host.test/us/it"', constant.read_text(), flags=re.M
    )
    assert changed == 1
    constant.write_text(text)
    metadata = _metadata(_wheel(tree, tmp_path / "dist"))
    page = str(metadata.get_payload())
    assert not local.search(page)
    tag = f"v{trajscore.__version__}"
    pictures = re.findall(rf"!\[[^]]*\]\(https://host.test/us/it/raw/{tag}/([^)]+)\)", page)
    links = re.findall(rf"(?<!!)\[[^]]+\]\(https://host.test/us/it/blob/{tag}/([^)#]+)[^)]*\)", page)
    assert pictures
    assert links
    assert all((ROOT / each).is_file() for each in (*pictures, *links))
    assert "Repository, https://host.test/us/it" in metadata.get_all("Project-URL", [])
