"""The synthetic world of data/, for tests: its scripts are no package."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import TYPE_CHECKING, Any

from tests.helpers.paths import ROOT


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("world_of_data_world", ROOT / "data" / "world.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


world = _load()

if TYPE_CHECKING:
    Problem = Any
else:
    Problem = world.Problem


def problem_of(text: str) -> Problem:
    """The first problem whose question stands in a text."""
    found = re.search(r"(?:Start with|Take|Begin at) (\d)\. Then ([^.]*)\.", text)
    assert found is not None, text
    operations = []
    for words in found[2].split(", "):
        skill, _, operand = words.partition(" ")
        operations.append(world.Operation(skill, int(operand or 2)))
    return world.Problem(int(found[1]), tuple(operations))
