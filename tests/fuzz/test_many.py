"""The short form of `python -m tests.fuzz`, with the same inputs on every run."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.__main__ import CHECKS, run


def test_every_kind_of_input_ends_in_a_value_or_a_message(tmp_path: Path) -> None:
    found = run(600, 7, tmp_path)
    assert sum(found.values()) == 600
    outcomes = {kind: {outcome for each, outcome in found if each == kind} for kind in CHECKS}
    # Some are taken and some are not: inputs of which all are refused would test nothing.
    assert all(len(each) > 1 for each in outcomes.values()), outcomes
