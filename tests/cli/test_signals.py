"""Every command is sent every signal while it starts, in its middle and while it writes: exit code 130 and one message, or the
command's own end; nothing of Python's on the terminal; each output is there as a run that was let be writes it, or not at all.

The commands are those of the command line's own table. `TRAJSCORE_SIGNALS=N` sends N times as many, at new moments.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.every_command import CALLS, commands, words, write_small_world
from tests.helpers.scripted_annotator import Reply, good, scripted, task

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks /proc when a process takes signals"
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
MOMENTS = ("starting", "middle", "writing")
FACTOR = int(os.environ.get("TRAJSCORE_SIGNALS", "0"))
_KEPT = re.compile(
    r"new\.\w+\.calls\.jsonl|\.new\.\w+\.calls\.jsonl\.lock"
    r"|new/(part-\d+\.parquet|manifest.*|tokenizer\.json|\.lock)"
)
"""What an interrupted run leaves for the next one: answers that were paid for, finished parts."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_world(tmp_path_factory.mktemp("signals"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An annotator that says something to everything, a little later."""
    answers = {
        "name_skills": {"skills": ["plus"]},
        "merge_skills": {"skills": ["plus"]},
        "solve": {"solution": "s", "answer": "4"},
        "label": {"reason": "", "skills": []},
        "diagnose": {"reason": "", "judge": "incorrect", "skills": ["plus"]},
    }

    def script(body: dict[str, Any], earlier: int) -> Reply:
        if task(body) != "propose":
            return good(answers[task(body)], delay=0.01)
        number = body["response_format"]["json_schema"]["schema"]["properties"]["questions"]["minItems"]
        asked = [{"reason": "", "draft": "", "question": f"What is {n} + {body.get('seed')}?"} for n in range(number)]
        return good({"questions": asked}, delay=0.01)

    with scripted(script) as server:
        yield server.url


def test_every_command_is_tried() -> None:
    assert CALLS.keys() == dict(commands()).keys()


class _Tried:
    """A command in a folder, signalled again and again."""

    def __init__(self, name: str, url: str, world: Path, folder: Path) -> None:
        self._words, self._folder = words(f"{name} {CALLS[name]}", url), folder
        shutil.copytree(world, folder)
        self._before = _contents(folder)
        self.seconds = 0.0
        began = time.monotonic()
        status, said = self._end(self._start())
        assert status == 0, said
        self.seconds = time.monotonic() - began
        self._whole = self._clean()

    def strike(self, number: int, moment: str, draw: random.Random) -> str:
        """Signal it once, or several times in a burst; what became of it."""
        process = self._start()
        if moment == "starting":
            time.sleep(draw.uniform(0, min(0.6, self.seconds)))
        elif moment == "middle":
            time.sleep(draw.uniform(0.1, 1.1) * self.seconds)
        else:
            self._wait_for_a_file(process)
            time.sleep(draw.expovariate(200))
        for _ in range(draw.choice((1, 1, 2))):
            process.send_signal(number)
        status, said = self._end(process)
        case = (self._words, signal.Signals(number).name, moment, status, said)
        assert status in (0, 130), case
        for bad in ("Exception ignored", "Traceback", "Error", "panicked", "Fatal", "core dumped"):
            assert bad not in said, (bad, *case)
        assert said.count("interrupted\n") == (status == 130), case
        assert status == 0 or said.endswith("interrupted\n"), case
        for name, data in self._clean().items():
            known = self._whole.get(name, b"?")
            assert data == known or (status and _KEPT.fullmatch(name)), (name, *case)
        return "interrupted" if status else "ended first"

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "trajscore", *self._words],
            cwd=self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # Before it has begun to take signals itself, Python is still starting.
        while process.poll() is None:
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
            if caught is not None and int(caught[1], 16) >> (signal.SIGHUP - 1) & 1:
                break
            time.sleep(0.001)
        return process

    def _wait_for_a_file(self, process: subprocess.Popen[str]) -> None:
        before = {path.name for path in self._folder.iterdir()}
        while process.poll() is None and {path.name for path in self._folder.iterdir()} == before:
            time.sleep(0.001)

    def _end(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        _, said = process.communicate(timeout=900)
        return process.returncode, said

    def _clean(self) -> dict[str, bytes]:
        """What came or changed; and put the folder back."""
        now = _contents(self._folder)
        found = {name: data for name, data in now.items() if self._before.get(name) != data}
        for path in self._folder.iterdir():
            if not any(name == path.name or name.startswith(f"{path.name}/") for name in self._before):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in now.keys() - self._before.keys():
            (self._folder / name).unlink(missing_ok=True)
        for name, data in self._before.items():
            if now.get(name) != data:
                (self._folder / name).write_bytes(data)
        return found


def _contents(folder: Path) -> dict[str, bytes]:
    """Files by name; of answers that were kept, in whichever order they came, the same lines are the same."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: b"".join(sorted(path.read_bytes().splitlines(keepends=True)))
        if name.endswith(".calls.jsonl")
        else path.read_bytes()
        for name, path in found.items()
    }


@pytest.mark.parametrize(
    ("name", "moment"), [("select", "starting"), ("export", "writing"), ("skills label", "middle")]
)
def test_a_few_signals(name: str, moment: str, world: Path, url: str, tmp_path: Path) -> None:
    tried, draw = _Tried(name, url, world, tmp_path / "w"), random.Random(name)
    for number in SIGNALS[::3]:
        tried.strike(number, moment, draw)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_signal_at_every_kind_of_moment(name: str, world: Path, url: str, tmp_path: Path) -> None:
    tried, draw = _Tried(name, url, world, tmp_path / "w"), random.Random(name if not FACTOR else None)
    counts = Counter[str]()
    for _ in range(max(FACTOR, 1)):
        for number in SIGNALS:
            for moment in MOMENTS:
                counts[tried.strike(number, moment, draw)] += 1
    print(f"{name}: {dict(counts)}")
    assert counts["interrupted"], counts


_HELD = """
import os, signal, time
from trajscore import interruptions

interruptions.stop_on_signals()
interruptions.command_runs()
try:
    with interruptions.held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        print("whole", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_within_what_must_not_be_cut_counts_after_it() -> None:
    done = subprocess.run([sys.executable, "-c", _HELD], capture_output=True, text=True, check=True, timeout=50)
    assert done.stdout == "whole\ninterrupted\n"
