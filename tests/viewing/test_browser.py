"""The pages in headless Chromium: no console message, no request, nothing serious for axe-core, no sideways scrolling.

Needs node and, once, `npm install @sparticuz/chromium puppeteer-core axe-core` in a folder that TRAJSCORE_BROWSER names.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.score_tables import random_rows, write_folder
from tests.helpers.stopped_runs import HANGS
from tests.ranking.test_page import HOSTILE
from tests.viewing.test_inspect import TOKENIZER, _row
from trajscore.ranking.report import report
from trajscore.viewing.inspect import inspect

FOLDER = os.environ.get("TRAJSCORE_BROWSER", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not FOLDER or shutil.which("node") is None, reason="TRAJSCORE_BROWSER names no folder, or no node"
    ),
]


def _open(*files: Path) -> list[dict[str, Any]]:
    command = ["node", str(Path(__file__).with_name("browser_check.mjs")), FOLDER, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    seen: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(seen) == 4 * len(files)
    return seen


def _check(seen: list[dict[str, Any]]) -> None:
    for each in seen:
        assert each["console"] == [], each
        assert each["requests"] == [Path(each["file"]).as_uri()]
        assert each["scrollWidth"] <= each["width"]
        assert [found for found in each["violations"] if found["impact"] in ("serious", "critical")] == []


def test_pages_of_hostile_text(tmp_path: Path) -> None:
    rows = [
        _row(n, HOSTILE, HOSTILE, id=f"{HOSTILE}{n}", teacher=f"{HOSTILE}{n % 3}", prompt_id=f"{HOSTILE}{n // 3}")
        for n in range(60)
    ]
    folder = write_folder(tmp_path / "s", rows, student=HOSTILE)
    shutil.copy(TOKENIZER, folder)
    report(folder, replicates=50, plan=True, out=tmp_path / "r.html")
    inspect(folder, best=2, out=tmp_path / "i.html")
    seen = _open(tmp_path / "r.html", tmp_path / "i.html")
    _check(seen)
    assert all("student_rank" in each["numbers"] and "of" in each["count"] for each in seen if "count" in each)


def test_page_of_two_students(tmp_path: Path) -> None:
    names = ("QwQ-32B", "DeepSeek-R1-0528", "GPT-OSS-120B", "Magistral-Small-2506", "Phi-4-Reasoning-Plus")
    folders = [
        write_folder(tmp_path / student, random_rows(150, seed, names), student=student, part_rows=150)
        for seed, student in enumerate(("Qwen3-4B-Base", "Llama-3.1-8B"))
    ]
    lines = "".join(f"{s},{t},{30 + n}\n" for s in ("Qwen3-4B-Base", "Llama-3.1-8B") for n, t in enumerate(names))
    (tmp_path / "p.csv").write_text("student,teacher,score\n" + lines)
    report(folders, replicates=50, performance=tmp_path / "p.csv", plan=True, out=tmp_path / "r.html")
    _check(_open(tmp_path / "r.html"))


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    """The control: a page with an error, a request, a picture without text and a line that is too long."""
    bad = "<img src='http://127.0.0.1:9/a.png'><script>nonsense()</script><p style='width:3000px'>x"
    (tmp_path / "bad.html").write_text(f"<!doctype html><title>x</title>{bad}")
    for each in _open(tmp_path / "bad.html"):
        assert any("nonsense" in message for message in each["console"])
        assert len(each["requests"]) == 2
        assert each["scrollWidth"] > each["width"]
        assert any(found["id"] == "image-alt" for found in each["violations"])
