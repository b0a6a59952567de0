"""The benchmarks run: what they measure is printed as a table. Times are read by people, never asserted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_run_prints_a_table(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 4


def test_every_benchmark_is_listed_where_people_look() -> None:
    for name in NAMES:
        assert f"`{name}.py`" in (ROOT / "benchmarks" / "README.md").read_text()
        assert f"benchmarks.{name}" in (ROOT / "Makefile").read_text()
