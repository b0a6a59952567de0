"""What the forge runs and reads: workflows and citation by their schemas, and when a release is refused."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import trajscore
from tests.helpers.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def _check(schema: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_workflows_are_valid(tmp_path: Path) -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "docs", "newest", "release"}
    done = _check("vendor.github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "runs-with:", 1))
    assert _check("vendor.github-workflows", broken).returncode != 0


def test_every_make_target_that_a_workflow_calls_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in WORKFLOWS:
        called = {each for line in re.findall(r"\bmake ([^\n|&;]+)", path.read_text()) for each in line.split()}
        assert {each for each in called if "=" not in each and not each.startswith("$")} <= targets, path.name


def test_citation_is_valid_and_names_the_version(tmp_path: Path) -> None:
    text = (ROOT / "CITATION.cff").read_text()
    done = _check("vendor.citation-file-format", ROOT / "CITATION.cff")
    assert done.returncode == 0, done.stdout
    assert f"version: {trajscore.__version__}\n" in text
    broken = tmp_path / "CITATION.cff"
    broken.write_text(text.replace("authors:", "writers:"))
    assert _check("vendor.citation-file-format", broken).returncode != 0


@pytest.mark.parametrize(
    ("url", "tag", "said"),
    [
        ("None", f"v{trajscore.__version__}", "URL is unset"),
        ('"https://host.test/us/it"', "v9.9.9", "the tag is v9.9.9"),
        ('"https://host.test/us/it"', f"v{trajscore.__version__}", None),
    ],
)
def test_a_release_is_refused_while_something_is_missing(url: str, tag: str, said: str | None, tmp_path: Path) -> None:
    for name in (".github/releasable.py", "CHANGELOG.md", "trajscore/__init__.py", "trajscore/_project.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    constant = tmp_path / "trajscore" / "_project.py"
    constant.write_text(
        re.sub(r"^URL: str \| None = .*$", f"URL: str | None = {url}", constant.read_text(), flags=re.M)
    )
    command = [sys.executable, ".github/releasable.py", tag]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if said is None else 1), done.stderr
    assert (said or "") in done.stderr


def test_the_constant_is_marked_as_unset_until_it_is_set() -> None:
    known = runpy.run_path(str(ROOT / "trajscore" / "_project.py"))["URL"]
    assert ("UNSET" in (ROOT / "trajscore" / "_project.py").read_text()) == (known is None)
