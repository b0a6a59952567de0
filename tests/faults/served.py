"""Kills of runs that ask a server for log-probabilities: what was answered is in the folder, and is not asked again."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.kills import Tally, kill_scoring
from tests.faults.world import World
from tests.helpers.served_model import served_model


def kill_served(world: World, kills: int, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Kill runs over a served model, one row a request; then count what the server was asked for."""
    with served_model(world.student) as served:
        command = world.served(served.url, "--part-rows", "5")
        scored = world.scored("server", lambda out: world.launcher.fork(*command, "--out", out))
        rows = served.asked.total()
        assert rows == len(served.asked) > 5, "a run that is let be asks for every row once"
        compared = f"folders compared with the undisturbed run ({scored.what})"
        before = tally.other[compared]
        kill_scoring(scored, kills, folder, draw, tally)
        folders = tally.other[compared] - before
        # One reply at most was on its way when a kill came.
        twice = served.asked.total() - (folders + 1) * rows
        assert 0 <= twice <= kills, f"{twice} rows were asked for again after {kills} kills"
        tally.other["rows that a server was asked for by runs that were killed, each once"] += folders * rows
