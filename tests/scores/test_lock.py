"""One writer per folder, with locks of the operating system and without; a lock that its holder left can be broken."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from trajscore.errors import TrajscoreError
from trajscore.scores import Manifest, ScoreFolder
from trajscore.scores.lock import HELD, LOCK, FolderLock, LockHolder

_HOLDER = """
import sys, time
from pathlib import Path
if sys.argv[2] == "without":
    import errno, fcntl
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")
    fcntl.flock = none
from trajscore.scores.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
lock.release()
"""


@pytest.fixture(params=["with", "without"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system has locks."""
    if request.param == "without":

        def none(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", none)
    return str(request.param)


@pytest.fixture
def hold(tmp_path: Path, locks: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that holds the folder until a line comes."""
    running: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _HOLDER, str(tmp_path), locks]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_a_living_holder_is_named_and_its_lock_is_not_broken(
    tmp_path: Path, hold: Callable[[], subprocess.Popen[str]]
) -> None:
    process = hold()
    for take_over in (False, True):
        with pytest.raises(TrajscoreError, match=f"process {process.pid} on .* since 20.* UTC") as caught:
            FolderLock(tmp_path, take_over=take_over)
        assert "--break-lock" not in caught.value.hint, "it runs, as anybody on this machine can see"
    process.communicate("\n")
    FolderLock(tmp_path).release()


def test_a_holder_that_died_here_holds_nothing(tmp_path: Path, hold: Callable[[], subprocess.Popen[str]]) -> None:
    process = hold()
    process.kill()
    process.wait()
    with_lock = FolderLock(tmp_path)
    with_lock.check()
    with_lock.release()
    assert not (tmp_path / f"{LOCK}{HELD}").exists()


def _elsewhere(path: Path) -> LockHolder:
    """Makes a lock's holder a process of another machine, of which nobody here can say whether it runs."""
    holder = {**orjson.loads(path.read_bytes()), "machine": "0" * 8, "host": "node-7"}
    path.write_bytes(orjson.dumps(holder))
    return LockHolder(**holder)


def test_a_dead_nodes_lock_says_how_it_is_cleared_and_is_broken_on_demand(
    tmp_path: Path, locks: str, hold: Callable[[], subprocess.Popen[str]]
) -> None:
    process = hold()
    lock = tmp_path / (LOCK if locks == "with" else f"{LOCK}{HELD}")
    _elsewhere(lock)
    with pytest.raises(TrajscoreError, match=f"process {process.pid} on node-7, since") as caught:
        FolderLock(tmp_path)
    assert "--break-lock" in caught.value.hint
    mine = FolderLock(tmp_path, take_over=True, patience=1)
    mine.check()
    with pytest.raises(TrajscoreError, match="another process"):
        FolderLock(tmp_path)
    # The other one was alive after all: it lets go, and the folder is still ours.
    process.communicate("\n")
    mine.check()
    mine.release()
    FolderLock(tmp_path).release()


def test_whoever_lost_the_folder_stops_before_it_writes(tmp_path: Path, locks: str) -> None:
    def manifest() -> Manifest:
        return Manifest({"part_rows": 1}, {}, [])

    first = ScoreFolder(tmp_path, manifest())
    _elsewhere(tmp_path / (LOCK if locks == "with" else f"{LOCK}{HELD}"))
    with pytest.raises(TrajscoreError, match="is scoring"):
        ScoreFolder(tmp_path, manifest())
    with ScoreFolder(tmp_path, manifest(), break_lock=True):
        with pytest.raises(TrajscoreError, match=f"another process .process {os.getpid()} on .* has begun to score"):
            first.finish()
        first.close()
        with pytest.raises(TrajscoreError, match="is scoring"):
            ScoreFolder(tmp_path, manifest())


def test_numbers_of_processes_come_again(tmp_path: Path) -> None:
    """The same number in another container, or after a restart, is another process."""
    me = LockHolder.me()
    path = tmp_path / "lock"
    for change, runs in (
        ({}, True),
        ({"started": "1"}, False),
        ({"pid": 2**31 - 1}, False),
        ({"processes": "pid:[1]"}, None),
        ({"machine": "0" * 8}, None),
    ):
        path.write_bytes(orjson.dumps({**orjson.loads(orjson.dumps(me)), **change}))
        holder = LockHolder.of(path)
        assert holder is not None
        assert holder.runs is runs, change


@pytest.mark.parametrize("said", [b"", b"4711 another-machine", b"[]", b"{}", b'{"pid": null}', b"\xff"])
def test_any_file_may_lie_where_the_lock_is(tmp_path: Path, said: bytes, locks: str) -> None:
    (tmp_path / LOCK).write_bytes(said)
    lock = FolderLock(tmp_path)
    lock.check()
    lock.release()
