"""The notebooks run to their end, with their own assertions; what they show was made by the code that they show."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

import trajscore
from tests.helpers.paths import ROOT

FOLDER = ROOT / "notebooks"
QUICK = {"01_score_and_read", "03_write_a_metric", "07_a_real_student"}
NOTEBOOKS = [
    pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem)
    for path in sorted(FOLDER.glob("*.ipynb"))
]
PATHS = re.compile(r"/(?:home|root|tmp|Users|var|opt|work|mnt)/|[A-Z]:\\\\")


def _runner() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_runs(path: Path) -> None:
    """A cell that raises ends the test; the cells that show something are those that did when it was stored."""
    made, stored = _runner().execute(path), nbformat.read(path, as_version=4)
    assert [bool(cell.get("outputs")) for cell in made.cells] == [bool(cell.get("outputs")) for cell in stored.cells]


def test_a_broken_notebook_is_noticed(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2, 'broken on purpose'")])
    nbformat.write(notebook, tmp_path / "broken.ipynb")
    with pytest.raises(Exception, match="broken on purpose"):
        _runner().execute(tmp_path / "broken.ipynb")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_is_shown_with_its_results(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not PATHS.search(
        str([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in outputs])
    )


def _missing(code: str) -> list[str]:
    """Names of ours that code takes (`from trajscore.x import NAME`, `ts.NAME`) and that are not there."""
    taken = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trajscore":
            taken += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ts":
            taken.append(("trajscore", node.attr))
    return [f"{module}.{name}" for module, name in taken if not hasattr(importlib.import_module(module), name)]


def _unknown_options(code: str) -> list[str]:
    """Options that calls of our functions are given, by name or in a dictionary, and that they do not have."""
    tree, found = ast.parse(code), []
    written = {
        node.targets[0].id: [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
        ):
            if node.func.value.id != "ts" or not inspect.isfunction(function := getattr(trajscore, node.func.attr)):
                continue
            given = [each.arg for each in node.keywords if each.arg]
            given += [
                key
                for each in node.keywords
                if each.arg is None and isinstance(each.value, ast.Name)
                for key in written.get(each.value.id, [])
            ]
            found += [
                f"{node.func.attr}({name})" for name in given if name not in inspect.signature(function).parameters
            ]
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_names_that_a_notebook_takes_are_there(path: Path) -> None:
    """Most notebooks run in `make test-slow` only. Elsewhere the type checker knows the package's names."""
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert any("ts." in cell for cell in cells)
    assert [name for cell in cells for name in _missing(cell)] == []
    assert _unknown_options("\n".join(cells)) == []
    assert _unknown_options("d = {'gone': 1}\nts.score(x, teacher=y, lost=2, **d)") == ["score(lost)", "score(gone)"]
    assert _missing("import trajscore as ts\nfrom trajscore.io import nothing\nts.nothing()") == [
        "trajscore.io.nothing",
        "trajscore.nothing",
    ]


def test_every_notebook_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    names = [path.name for path in sorted(FOLDER.glob("*.ipynb"))]
    assert [name[:2] for name in names] == [f"{number:02}" for number in range(1, len(names) + 1)]
    assert all(f"(notebooks/{name})" in text for name in names)
