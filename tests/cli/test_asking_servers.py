"""Every command that asks a server, from the table of options: a server that says nothing, drips or never ends does not keep it
longer than its time limit, nor fills the memory.
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helpers.every_command import lines_that_ask, words, write_recipes, write_small_world
from tests.helpers.raw_server import PEAK, Say, bomb, http, raw_server
from trajscore.cli import app

LONG = 3600.0
"""Seconds that a server would go on for; no test waits for it."""
LINES = lines_that_ask()
MODELS = http(json.dumps({"data": [{"id": "student", "max_model_len": 32768}]}).encode())
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_the_table_has_the_commands_that_ask() -> None:
    """A new one with an option called `*base_url` comes in by itself, if `every_command` has a call of it."""
    assert len(LINES) >= 10
    assert {line.split()[0] for line in LINES.values()} == {"run", "score", "skills"}


def _repeats(data: bytes, head: bytes = b"") -> Say:
    def say(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        for _ in range(int(LONG * 20)):
            connection.sendall(data)
            time.sleep(0.05)

    return say


def _says_its_models(say: Say) -> Say:
    return lambda connection, request: (
        connection.sendall(MODELS) if b"/models" in request.split(b"\r\n")[0] else say(connection, request)
    )


def _silent(connection: socket.socket, request: bytes) -> None:
    time.sleep(LONG)


def _endless(connection: socket.socket, request: bytes) -> None:
    connection.sendall(CHUNKED)
    while True:
        connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


SILENT: dict[str, Say] = {
    "silent": _silent,
    "silent after its models": _says_its_models(_silent),
    "drips": _says_its_models(_repeats(b" ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")),
    "drips headers": _says_its_models(_repeats(b"X: 1\r\n", b"HTTP/1.1 200 OK\r\n")),
    "drips an error": _says_its_models(_repeats(b" ", b"HTTP/1.1 500 No\r\nContent-Length: 1000000\r\n\r\n")),
    "informs": _says_its_models(_repeats(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")),
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_small_world(tmp_path, questions=3)


@pytest.mark.parametrize("kind", ["silent", *(pytest.param(each, marks=pytest.mark.slow) for each in [*SILENT][1:])])
def test_each_ends_by_its_time_limit_with_one_sentence(kind: str, world: Path) -> None:
    before = set(world.iterdir())
    for name, line in LINES.items():
        began = time.monotonic()
        with raw_server(SILENT[kind]) as port:
            result = _run(line, port, timeout=0.3)
        assert time.monotonic() - began < LONG / 10
        assert result.exit_code == 1, (name, result.output)
        (error,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
        assert "no complete reply within 0.3 s" in error, name
        assert error.endswith(".")
        assert f"http://127.0.0.1:{port}/v1" in error
        assert "Traceback" not in result.stderr
        left = {path.name for path in world.iterdir()} - {path.name for path in before}
        assert all(".calls.jsonl" in each or each in ("new", *_RECIPES) for each in left), (name, left)
        # A score folder that was begun belongs to the address at which it was.
        shutil.rmtree(world / "new", ignore_errors=True)


@pytest.mark.slow
def test_each_ends_where_a_reply_does_not(world: Path) -> None:
    for name, line in LINES.items():
        with raw_server(_says_its_models(_endless)) as port:
            result = _run(line, port, timeout=60.0)
        assert result.exit_code in (1, 3), (name, result.output)
        assert "longer than" in result.stderr, (name, result.stderr)
        assert "Traceback" not in result.stderr
        shutil.rmtree(world / "new", ignore_errors=True)


_RECIPES = {line.split()[1] for line in LINES.values() if line.startswith("run ")}


def _run(line: str, port: int, timeout: float) -> Any:
    return CliRunner().invoke(app, _words(line, port, timeout))


def _words(line: str, port: int, timeout: float) -> list[str]:
    url, more = f"http://127.0.0.1:{port}/v1", {"timeout": timeout, "max_retries": 2}
    write_recipes(Path.cwd(), url, more)
    if line.startswith("run "):
        return words(line, url)
    return [
        *words(line, url),
        *(word for key, value in more.items() for word in (f"--{key.replace('_', '-')}", str(value))),
    ]


FLOODS: tuple[Callable[[], bytes], ...] = (
    lambda: http(b'{"choices": [' + b'{"":0},' * 1_100_000 + b"0]}"),
    lambda: http(b"[" * 8_000_000),
    lambda: http(b'{"choices": ["' + "\u00e9".encode() * 3_900_000 + b'\xf0\x9f\x98\x80"]}'),
    lambda: http(bomb(), "Content-Encoding: gzip"),
    lambda: http(b"x" * 30_000_000, status="500 E"),
    lambda: http(json.dumps({"choices": [{"message": {"refusal": "n" * 8_000_000}}]}).encode()),
    lambda: http(
        json.dumps({"choices": [{"message": {"content": "[" * 8_000_000}, "finish_reason": "stop"}]}).encode()
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", LINES)
def test_memory_is_bounded_whatever_is_sent(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flood after the other, as many at a time as are asked for. A model in this process is part of what is measured."""
    floods, lock = itertools.cycle([flood() for flood in FLOODS]), threading.Lock()

    def say(connection: socket.socket, request: bytes) -> None:
        with lock:
            flood = next(floods)
        connection.sendall(flood)

    monkeypatch.chdir(tmp_path)
    world = write_small_world(tmp_path, questions=30)
    with raw_server(_says_its_models(say)) as port:
        command = [sys.executable, "-m", "trajscore", *_words(LINES[name], port, 60.0)]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=False, cwd=world
        )
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr, shlex.join(command)
    peak = int(done.stdout) / 1024
    print(f"{name}: {peak:.0f} MB")
    assert peak < 600, f"{peak:.0f} MB"
