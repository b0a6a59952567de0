"""Signals at any moment of any command that does not score: exit code 130 and one message or the command's own end, and no file
that is half there.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.mask_files import write_mask
from tests.helpers.paths import ROOT
from tests.helpers.score_tables import random_rows, write_folder
from tests.helpers.scripted_annotator import good, scripted

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks /proc when a process takes signals"
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

COMMANDS = {
    "select": ["select", "scores", "--where", "n_tokens > 1", "--out", "new.parquet", "--decisions", "new.csv"],
    "report": ["report", "scores", "--replicates", "200", "--out", "new.html", "--csv", "new.csv"],
    "inspect": ["inspect", "scores", "--worst", "5", "--out", "new.html"],
    "mask": ["mask", "scores", "--rule", "all", "--out", "new.parquet"],
    "trace": ["trace", "scores", "--out", "new.csv"],
    "verify": ["verify", "scores"],
    "export": ["export", "mask.parquet", "--to", "trl", "--out", "new"],
    "skills": ["skills", "label", "q.jsonl", "--skills", "s.txt", "--annotator", "m", "--out", "new.jsonl",
               "--base-url", "URL"],
}  # fmt: skip
NEW = {"new", "new.parquet", "new.csv", "new.html", "new.jsonl", "new.jsonl.calls.jsonl", ".new.jsonl.calls.jsonl.lock"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    rows = random_rows(200, seed=3)
    for row in rows:
        if row["status"] == "ok":
            row |= {"kl_student_teacher": row["student_entropy"], "teacher_sentence_logprob": [-0.5]}
    write_folder(folder / "scores", rows, extra=("kl_student_teacher", "teacher_sentence_logprob"))
    shutil.copy(ROOT / "data" / "models" / "student" / "tokenizer.json", folder / "scores")
    write_mask(folder / "mask.parquet", [{"id": str(i), "input_ids": [1, 2], "labels": [-100, 2]} for i in range(500)])
    (folder / "q.jsonl").write_text("".join(f'{{"question": "Question {i}?"}}\n' for i in range(40)))
    (folder / "s.txt").write_text("addition\n")
    return folder


def _takes_signals(process: subprocess.Popen[str]) -> bool:
    """Whether the process has begun to take signals itself; before, Python is still starting. Waits until it has, or ended."""
    while process.poll() is None:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if caught is not None and int(caught[1], 16) >> (signal.SIGHUP - 1) & 1:
            return True
        time.sleep(0.001)
    return False


def _strike(world: Path, arguments: list[str], number: int, wait: float, twice: bool = False) -> float:
    """Run a command, signal it some time after its start, and check what is left. Gives the time it took from its start on."""
    before = {path.name for path in world.iterdir()}
    process = subprocess.Popen(
        [sys.executable, "-m", "trajscore", *arguments],
        cwd=world, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    started = _takes_signals(process)
    begin = time.monotonic()
    if number and started:
        time.sleep(wait)
        for _ in range(1 + twice):
            process.send_signal(number)
    _, errors = process.communicate(timeout=900)
    took = time.monotonic() - begin
    case = (arguments[0], number, wait, process.returncode, errors)
    assert process.returncode in ((0, 130) if number else (0,)), case
    assert "Exception ignored" not in errors, case
    assert "Traceback" not in errors, case
    assert errors.count("interrupted\n") == (process.returncode == 130), case
    left = {path.name for path in world.iterdir()} - before
    assert left <= NEW, case
    for name in left:
        path = world / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return took


def _strikes(world: Path, name: str, number: int) -> None:
    draw = random.Random(name)
    with scripted(lambda body, earlier: good({"reason": "", "skills": []}, delay=0.01)) as server:
        arguments = [word.replace("URL", server.url) for word in COMMANDS[name]]
        seconds = _strike(world, arguments, 0, 0)
        for each in range(number):
            _strike(world, arguments, SIGNALS[each % 4], draw.uniform(0, 1.1) * seconds, each % 3 == 2)


@pytest.mark.parametrize("name", ["select", "export", "skills"])
def test_a_few_signals(world: Path, name: str) -> None:
    _strikes(world, name, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_many_signals(world: Path, name: str) -> None:
    _strikes(world, name, 40)
