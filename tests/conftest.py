"""Settings of all tests: the same random examples on every run, so that a red test is red for everyone.

`auto` means transformers here, which loads in a moment; what concerns vLLM names it.
"""

from __future__ import annotations

import gc
import os
import sys

import pytest
from hypothesis import settings

from trajscore.engines import ENGINE_VARIABLE

os.environ[ENGINE_VARIABLE] = "hf"

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("same")

LONG = (
    "engines/test_vllm.py",
    "docs/test_manual.py",
    "engines/test_engines.py",
    "scoring/test_many_machines.py",
    "scoring/test_score.py",
    "scoring/test_roles.py",
    "scoring/test_forecast.py",
    "faults/test_faults.py",
    "fuzz/test_fuzz_files.py",
    "house/test_notebooks.py",
    "recipes/test_recipes.py",
    "skills/test_hostile_server.py",
    "cli/test_signals.py",
    "skills/test_server.py",
    "skills/test_chain.py",
    "engines/test_engine_failures.py",
    "exporters/test_export_trl.py",
    "cli/test_terminal.py",
)
"""Files that take longest: they begin first, so that two workers end together."""

_known = [0]  # modules that were loaded the last time


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage() -> None:
    """Leave out of garbage collection what libraries hold once they are loaded.

    It runs in full after every model; over torch, transformers and vLLM it takes longer than most tests. Before a file's first
    test no engine is alive, whose memory would stay.
    """
    if len(sys.modules) > _known[0] + 100:
        gc.collect()
        gc.freeze()
        _known[0] = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others, and the tests of each file, in their order."""
    places = {f"tests/{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(LONG)))


def pytest_sessionfinish() -> None:
    """As it was: libraries that count what is left at the end find it."""
    gc.unfreeze()
