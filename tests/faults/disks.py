"""Disks that are full and folders that may not be written: small file systems, where we may mount them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.kills import Scored, Tally, Written, contents, finish
from tests.faults.machines import Shards
from tests.faults.processes import Launcher, Running, said_clearly
from tests.faults.scores import check_parts, check_same, look

PAGE = 4096
_ROOMY = 64 << 20


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory with room for so many bytes, mounted at a folder. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def grow(folder: Path) -> None:
    """Make room on a small disk."""
    subprocess.run(["mount", "-o", f"remount,size={_ROOMY}", folder], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this machine lets us mount a file system."""
    try:
        with small_disk(folder / "try", PAGE):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False


def size_of(folder: Path) -> int:
    """What a folder takes on a disk of pages, bytes."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def fill_while_scoring(
    scored: Scored, folder: Path, draw: random.Random, tally: Tally, room: int | None = None
) -> None:
    """Score onto a disk that becomes full; make room, and score on.

    Args:
        scored: what to run.
        folder: where the disk is mounted.
        draw: of the disk's size.
        tally: to be filled.
        room: bytes on the disk; drawn up to what the scores take if None.
    """
    most = size_of(scored.undisturbed) // PAGE
    room = draw.randint(1, most - 1) * PAGE if room is None else room
    with small_disk(folder, room) as disk:
        out = disk / "scores"
        running = scored.start(out)
        said_clearly(running, "No space left on device", "space")
        if "hidden states" in running.said:
            stage = "hidden states"
        elif not (out / "manifest.json").exists():
            stage = "the first manifest"
        elif not (out / "tokenizer.json").exists():
            stage = "the tokenizer"
        else:
            stage = "entering a part" if look(out).waiting else "a part"
        tally.other[f"disk full at {stage} ({scored.what})"] += 1
        before = check_parts(out)
        grow(disk)
        finish(scored, out, before, tally)


def fill_while_writing(written: Written, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Write onto a disk with room for what is there and a little more; what is there stays. Then make room."""
    old, new = contents(written.earlier), contents(written.undisturbed)
    size = max(len(data) for data in new.values())
    with small_disk(folder, _ROOMY) as disk:
        out = disk / "files"
        shutil.copytree(written.earlier, out)
        room = draw.randint(0, max(size // PAGE - 1, 0)) * PAGE
        taken = _ROOMY - _free(disk)
        subprocess.run(["mount", "-o", f"remount,size={taken + room}", disk], check=True)
        running = written.start(out)
        if running.wait() != 0:
            said_clearly(running, "No space left on device")
            tally.other[f"disk full ({written.what})"] += 1
        for name, data in contents(out).items():
            assert data in (old.get(name), new.get(name)), f"{written.what}: {name} is torn"
        assert contents(out).keys() >= old.keys() & new.keys(), f"{written.what}: files are lost"
        grow(disk)
        running = written.start(out)
        assert running.wait() == 0, running.said
        assert contents(out) == new


def fill_while_merging(shards: Shards, folder: Path, tally: Tally) -> None:
    """Merge finished shards on a disk without room for another byte; the shards stay. Then make room."""
    with small_disk(folder, _ROOMY) as disk:
        out = disk / "scores"
        running = [shards.start(out, number) for number in range(shards.of)]
        assert [each.wait() for each in running] == [0] * len(running), [each.said for each in running]
        before = check_parts(out)
        subprocess.run(["mount", "-o", f"remount,size={_ROOMY - _free(disk)}", disk], check=True)
        said_clearly(shards.merge(out), "No space left on device")
        assert check_parts(out, before) == before
        tally.other["disk full (merge)"] += 1
        grow(disk)
        merging = shards.merge(out)
        assert merging.wait() == 0, merging.said
        check_same(out, shards.undisturbed)


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def limit_files(scored: Scored, launcher: Launcher, arguments: list[str | Path], folder: Path, tally: Tally) -> None:
    """Where nothing can be mounted: files may not grow beyond some bytes, which stops the first part."""
    running = launcher.run(*arguments, file_limit=3 * PAGE)
    said_clearly(running, "cannot be written")
    finish(scored, folder, check_parts(folder), tally)
    tally.other[f"file size limited, as nothing can be mounted ({scored.what})"] += 1


def forbid_while_scoring(
    launcher: Launcher, arguments: list[str | Path], scored: Scored, folder: Path, tally: Tally
) -> None:
    """Take a folder's write permission away in the middle of a run, and give it back."""
    folder.mkdir(parents=True)
    running = launcher.fork(*arguments, plain=True)
    _wait_for_parts(running, folder, 2)
    running.freeze()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    running.send(signal.SIGCONT)
    said_clearly(running, "Permission denied", "finished parts are kept")
    before = check_parts(folder)
    assert before.finished
    again = launcher.run(*arguments, plain=True)
    said_clearly(again, "cannot be written", "ermission")
    folder.chmod(stat.S_IRWXU)
    finish(scored, folder, before, tally)
    tally.other["folder turned read-only in the middle"] += 1


def _wait_for_parts(running: Running, folder: Path, parts: int) -> None:
    while len(list(folder.glob("part-*.parquet"))) < parts:
        assert not running.has_ended(), running.said
        time.sleep(0.001)


def read_only_disk(scored: Scored, folder: Path, tally: Tally) -> None:
    """Score into a folder on a disk that may only be read: nothing can be continued, everything can be read."""
    with small_disk(folder, _ROOMY) as disk:
        out = disk / "scores"
        shutil.copytree(scored.undisturbed, out)
        (out / "part-00001.parquet").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        running = scored.start(out)
        said_clearly(running, "cannot be written", "permission")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        finish(scored, out, None, tally)
    tally.other["read-only disk"] += 1
