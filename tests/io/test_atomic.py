"""Files and folders are replaced whole; what a killed writer left is told from what a living one is writing."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trajscore.errors import TrajscoreError
from trajscore.io import atomic
from trajscore.io.atomic import (
    ASIDE,
    new_file,
    new_folder,
    remove_unfinished,
    replacing,
    swap_folder,
    unfinished_name,
    write_whole,
)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """As exports do it."""
    with new_folder(folder) as made:
        yield made
        swap_folder(made, folder, lambda _: ["a", "b", "half", "whole"])


_WRITER = """
import sys, time
from pathlib import Path
from trajscore.io.atomic import {0}
with {0}(Path(sys.argv[1])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    print(temporary, flush=True)
    time.sleep(60)
"""


_MAKERS: dict[str, Any] = {"replacing": replacing, "replacing_folder": replacing_folder}


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], tuple[subprocess.Popen[str], Path]]]:
    """Starts a process that begins to write a file or folder and waits."""
    running: list[subprocess.Popen[str]] = []

    def begin(function: str, path: Path) -> tuple[subprocess.Popen[str], Path]:
        command = [
            sys.executable,
            "-c",
            _WRITER.format({"replacing_folder": "new_folder"}.get(function, function)),
            str(path),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout
        return process, Path(process.stdout.readline().strip())

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")

    def fail(error: type[BaseException]) -> None:
        with new_file(path) as temporary:
            temporary.write_bytes(b"new")
            raise error

    for error in (ValueError, KeyboardInterrupt, FileNotFoundError):
        with pytest.raises(error):
            fail(error)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    with new_file(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_an_error_of_the_disk_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(TrajscoreError, match="No space left"), replacing(tmp_path / "deep" / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list((tmp_path / "deep").iterdir())


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    for text in ("one", "two"):
        with replacing(tmp_path / "link") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "a").read_text() == text
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    with replacing_folder(tmp_path / "folder") as made:
        (made / "b").write_text("three")
    assert (tmp_path / "folder").is_symlink()
    assert [each.name for each in (tmp_path / "real").iterdir()] == ["b"]


@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_file_is_not_replaced(link: bool, tmp_path: Path) -> None:
    """As root a rename replaces a device as well."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(TrajscoreError, match="no regular file"), replacing(tmp_path / ("link" if link else "pipe")):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("function", ["replacing", "replacing_folder"])
def test_a_living_writer_is_left_alone_and_a_killed_one_is_tidied_up(
    function: str, tmp_path: Path, start: Callable[[str, Path], tuple[subprocess.Popen[str], Path]]
) -> None:
    path = tmp_path / "out"
    process, half = start(function, path)
    for _ in range(2):
        with _MAKERS[function](path) as mine:
            assert mine != half
            (mine / "whole" if mine.is_dir() else mine).write_text("whole")
    assert half.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    remove_unfinished(tmp_path / "another")
    assert half.exists(), "left beside another name"
    remove_unfinished(path)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_was_put_aside_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "export"
    aside = unfinished_name(path, ASIDE)
    aside.mkdir()
    (aside / "whole").write_text("x")
    remove_unfinished(path)
    assert (path / "whole").read_text() == "x"
    aside.mkdir()
    remove_unfinished(path)
    assert not aside.exists(), "something has taken its place"


@pytest.mark.parametrize("locks", [True, False])
def test_without_locks_only_what_is_a_day_old_is_removed(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine's file a lock tells nothing, nor where the file system has none. Clocks are not compared."""
    if locks:
        monkeypatch.setattr(atomic, "machine", lambda: "0" * 8)
        left = unfinished_name(tmp_path / "a")
        monkeypatch.setattr(atomic, "machine", lambda: "1" * 8)
    else:

        def none(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", none)
        left = unfinished_name(tmp_path / "a")
    left.write_text("half")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    remove_unfinished(tmp_path / "a")
    assert left.exists()
    os.utime(left, times=(left.stat().st_mtime - 2 * 86_400,) * 2)
    remove_unfinished(tmp_path / "a")
    assert not left.exists()
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def _write_again_and_again(path: Path, mark: str, folder: bool) -> None:
    for _ in range(40):
        if folder:
            with replacing_folder(path) as made:
                for name in ("a", "b"):
                    (made / name).write_text(mark)
        else:
            with replacing(path) as temporary:
                temporary.write_text(mark * 10_000)


@pytest.mark.parametrize("folder", [False, True])
def test_of_many_writers_the_last_wins_whole(tmp_path: Path, folder: bool) -> None:
    """As from containers in which all have the same process number."""
    path = tmp_path / "out"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_again_and_again, args=(path, mark, folder)) for mark in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    texts = [each.read_text() for each in sorted(path.iterdir())] if folder else [path.read_text()]
    assert len(set(texts)) == 1
    assert len(texts) == (2 if folder else 1)
    assert set(texts[0]) < set("xyz")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_what_others_put_into_a_folder_meanwhile_is_not_lost(tmp_path: Path) -> None:
    """A trainer that wrote a checkpoint between the look and the swap."""
    with new_folder(tmp_path / "out") as made:
        (made / "deep").mkdir()
        for name in ("a", "deep/b"):
            (made / name).write_text("old")
        swap_folder(made, tmp_path / "out", lambda _: [])
    with new_folder(tmp_path / "out") as made:
        (made / "a").write_text("new")
        (tmp_path / "out" / "checkpoint").mkdir()
        (tmp_path / "out" / "checkpoint" / "weights").write_text("theirs")
        swap_folder(made, tmp_path / "out", lambda _: ["a", "deep/b"])
    found = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"out/a": "new", "out/checkpoint/weights": "theirs"}


def test_a_folder_that_another_process_just_put_there_goes_by_its_own_record(tmp_path: Path) -> None:
    """Both began when there was none: the second to finish replaces what the first one put there, and nothing of it stays."""
    with new_folder(tmp_path / "out") as mine, new_folder(tmp_path / "out") as theirs:
        for made, text in ((theirs, "theirs"), (mine, "mine")):
            (made / "a").write_text(text)
            swap_folder(made, tmp_path / "out", lambda replaced: [path.name for path in replaced.iterdir()])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "mine"
