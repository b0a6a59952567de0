"""Stored runs: one JSON file each, written whole or not at all. What is not stored is not claimed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

from trajscore.io.atomic import write_whole

FOLDER = Path(__file__).parent / "stored"


class Stopwatch:
    """Since when: processor time of this process, and time on the clock, which other processes stretch."""

    def __init__(self) -> None:
        """It runs from here on."""
        self._processor, self._clock = time.process_time(), time.monotonic()

    def hours(self) -> dict[str, float]:
        """What has passed, in hours, to a second."""
        passed = {"processor": time.process_time() - self._processor, "clock": time.monotonic() - self._clock}
        return {name: round(seconds / 3600, 4) for name, seconds in passed.items()}


def path(name: str, seed: int) -> Path:
    """Where the record of an arm and a seed lies; the pool's is called `pool`."""
    return FOLDER / f"seed-{seed}" / f"{name}.json"


def versions() -> dict[str, str]:
    """What numbers depend on: libraries, Python, machine."""
    names = ("trajscore-toolkit", "torch", "transformers", "tokenizers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def write(path: Path, record: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The whole text under this name, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def read() -> list[dict[str, Any]]:
    """All records of runs and pools, by seed and name."""
    return [json.loads(each.read_text("utf-8")) for each in sorted(FOLDER.glob("seed-*/*.json"))]


def read_one(path: Path) -> dict[str, Any] | None:
    """A record, None where there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None
