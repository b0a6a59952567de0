"""What `doctor` found, as tables for a terminal: engines, packages, and a student's conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from trajscore.display.terminal import plain


def diagnosis_tables(facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    """One table of engines, one of packages, and one of conversations where a student was given."""
    yield Text(f"trajscore {facts['trajscore']}, Python {facts['python']}")
    engines = Table("engine", "here", "detail", box=None, pad_edge=False, title_justify="left")
    for engine in facts["engines"]:
        hint = f"\n{engine['hint']}" if engine["hint"] else ""
        engines.add_row(engine["name"], "ready" if engine["ready"] else "no", plain(engine["detail"]) + Text(hint))
    yield engines
    chosen = facts["auto"]
    if chosen:
        yield Text(f"--engine auto takes {chosen}.")
    elif any(engine["ready"] for engine in facts["engines"]):
        yield Text("--engine auto takes none that can run here: the variable TRAJSCORE_ENGINE names another.")
    else:
        yield Text("No engine can run here: install one of them to score.")
    packages = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    missing = [name for name, version in facts["packages"].items() if not version]
    yield Text(f"installed: {', '.join(packages)}")
    if missing:
        yield Text(f"not installed: {', '.join(missing)}")
    if facts["student"] is None:
        return
    yield Text(f"\nWhat the chat template of {facts['student']} does to conversations:")
    table = Table("conversation", "status", "detail", box=None, pad_edge=False)
    for probe in facts["probes"]:
        table.add_row(probe["conversation"], probe["status"], plain(probe["detail"]))
    yield table
    lost = [probe for probe in facts["probes"] if probe["status"] != "ok"]
    yield Text(
        f"{len(lost)} kinds of conversation would be refused with that status; the others are safe to score."
        if lost
        else "All of them are safe to score: no text is lost on the way to the tokens."
    )
