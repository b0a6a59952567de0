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


def pytest_sessionfinish() -> None:
    """As it was: libraries that count what is left at the end find it."""
    gc.unfreeze()
