"""Kills, full disks, damaged files and others at work: nothing is lost, nothing doubled, and the end is as if nothing had been.

The short form of `make faults`, with the same moments on every run.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trajscore as ts
from tests.faults import damage, disks, others
from tests.faults.annotated import asking, kill_asking
from tests.faults.kills import Scored, Tally, kill_overwriting, kill_scoring, kill_writing, stop_and_continue
from tests.faults.machines import kill_on_ray, kill_shards, two_nodes
from tests.faults.processes import Launcher
from tests.faults.scores import check_parts
from tests.faults.served import kill_served
from tests.faults.world import World
from tests.helpers.served_model import served_model
from trajscore.progress import ProgressLine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    with Launcher(folder / "logs") as launcher:
        yield World(folder, launcher, rows=120)


@pytest.fixture(scope="module")
def hf(world: World) -> Scored:
    return world.forked()


@pytest.fixture
def tally() -> Iterator[Tally]:
    counts = Tally()
    yield counts
    print(counts.table())


@pytest.fixture
def draw() -> random.Random:
    return random.Random(11)


def test_kills_lose_and_double_nothing(hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    kill_scoring(hf, 2, tmp_path / "s", draw, tally)
    assert sum(tally.kills.values()) == 2


@pytest.mark.slow
def test_kills_with_a_teacher(world: World, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    kill_scoring(world.with_teacher(), 3, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_of_runs_that_copy(world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    kill_scoring(world.reusing(hf), 3, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_of_runs_that_start_anew(
    world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally
) -> None:
    earlier = tmp_path / "earlier"
    assert world.launcher.run(*world.arguments(earlier, "--limit", str(world.rows - 1))).wait() == 0
    kill_overwriting(world.overwriting(hf), earlier, 3, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_where_there_are_no_locks_or_other_clocks(
    world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally
) -> None:
    for scored in (world.without_locks(hf), world.by_other_clocks(hf, draw)):
        kill_scoring(scored, 2, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_containers_in_which_all_processes_have_one_number(
    world: World, hf: Scored, tmp_path: Path, tally: Tally
) -> None:
    if not disks.can_mount(tmp_path):
        pytest.skip("namespaces need root")
    others.containers_at_once(world, hf, tmp_path / "s", tally)
    others.dead_container_without_locks(world, hf, tmp_path / "t", tally)


@pytest.mark.slow
def test_stops_change_nothing(hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    stop_and_continue(hf, 3, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_while_an_annotator_is_asked(world: World, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    with asking(tmp_path / "asked", world.launcher) as (server, steps):
        for asked in steps:
            kill_asking(asked, server, 1, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_of_shards_and_of_their_merge(
    world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally
) -> None:
    kill_shards(world.shards(hf), 4, tmp_path / "s", draw, tally)
    others.shards_at_once(world.shards(hf), tmp_path / "t", tally)


@pytest.mark.slow
def test_kills_with_vllm(world: World, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    pytest.importorskip("vllm")
    kill_scoring(world.vllm(), 2, tmp_path / "s", draw, tally)


def test_a_kill_while_a_server_is_asked(world: World, tmp_path: Path) -> None:
    """SIGKILL in the middle of a part, while the sixth of ten rows is on its way: all others are asked for once."""
    asking, go_on = threading.Event(), threading.Event()
    with served_model(world.student) as served:
        command = [*world.served(served.url, "--limit", "10", "--part-rows", "4"), "--out", tmp_path / "s"]

        def answered(_: str, answer: Any) -> Any:
            if len(served.asked) == 6:
                asking.set()
                go_on.wait()
            return answer

        served.change = answered
        running = world.launcher.fork(*command)
        while not asking.wait(0.05):
            assert not running.has_ended(), running.said
        running.send(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, running.said
        served.change = None
        go_on.set()
        assert len(check_parts(tmp_path / "s").finished) == 1
        assert world.launcher.run(*command).wait() == 0
        (twice,) = (ids for ids, times in served.asked.items() if times > 1)
        assert list(served.asked).index(twice) == 5
        assert served.asked.total() == 11
        assert ts.verify(tmp_path / "s").sound
        assert ts.scan(tmp_path / "s").collect().height == 10
        assert not [*(tmp_path / "s").glob(".server-replies*")]


@pytest.mark.slow
def test_kills_at_any_moment_while_a_server_is_asked(
    world: World, tmp_path: Path, draw: random.Random, tally: Tally
) -> None:
    kill_served(world, 4, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_on_ray(world: World, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    pytest.importorskip("ray")
    with two_nodes() as cluster:
        kill_on_ray(world.ray(cluster), cluster, 5, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_kills_leave_output_files_old_or_new(
    world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally
) -> None:
    """And a full disk leaves them as they were."""
    mountable = disks.can_mount(tmp_path)
    for written in world.writers(hf.undisturbed, {"select", "export"}):
        kill_writing(written, 2, tmp_path / "files", draw, tally)
        if mountable:
            disks.fill_while_writing(written, tmp_path / f"full {written.what}", draw, tally)


def test_a_full_disk(world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    """On a machine where nothing may be mounted, files that may not grow stand in for it."""
    if disks.can_mount(tmp_path):
        disks.fill_while_scoring(hf, tmp_path / "disk", draw, tally)
    else:
        disks.limit_files(hf, world.launcher, world.arguments(tmp_path / "s"), tmp_path / "s", tally)


_SWALLOWED = """
import os, sys, time
import trajscore._start, trajscore.scores

def verify(folder):
    try:
        os.kill(os.getpid(), int(folder))
        time.sleep(60)
    except KeyboardInterrupt:
        raise TypeError("not a data type") from None

trajscore.scores.verify = verify
trajscore._start.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_a_library_turns_into_an_error(number: int) -> None:
    command = [sys.executable, "-c", _SWALLOWED, "verify", str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_full_disk_under_stdout() -> None:
    for arguments in (["list", "rules"], ["list", "metrics"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "trajscore", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert (
            done.stderr == "error: cannot write (No space left on device).\nhint: Free some space, then run it again.\n"
        )


def test_a_full_disk_under_the_log_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        line = ProgressLine(full, every=0)
        line.start(10, 0)
        line.advance(5, 100)
        assert line.line().startswith("5 of 10 rows")
        with contextlib.suppress(OSError):
            full.close()


def test_a_folder_turns_read_only(world: World, hf: Scored, tmp_path: Path, tally: Tally) -> None:
    disks.forbid_while_scoring(world.launcher, world.arguments(tmp_path / "s"), hf, tmp_path / "s", tally)


def test_damaged_parts(hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    damage.verify_finds(hf.undisturbed, 20, tmp_path / "v", draw, tally)
    damage.resume_refuses(hf, tmp_path / "r", draw, tally)


@pytest.mark.slow
def test_readers_of_damaged_parts(world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    damage.readers_notice(world.launcher, hf.undisturbed, 2, tmp_path / "readers", draw, tally)


@pytest.mark.slow
def test_a_damaged_manifest(world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    damage.damage_manifest(world.launcher, hf, 20, tmp_path / "m", draw, tally)


def test_another_process_on_the_same_folder(hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    others.one_while_another(hf, tmp_path / "a", draw, tally)


@pytest.mark.slow
def test_readers_and_foreign_files(hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    others.reading_meanwhile(hf, tmp_path / "b", tally)
    others.foreign_files(hf, tmp_path / "c", draw, tally)


@pytest.mark.slow
def test_several_at_once(hf: Scored, tmp_path: Path, tally: Tally) -> None:
    others.several_at_once(hf, 3, tmp_path / "s", tally)


@pytest.mark.slow
def test_a_corpus_that_changed(world: World, hf: Scored, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    others.corpus_changed(world, hf, tmp_path / "s", draw, tally)


@pytest.mark.slow
def test_a_model_that_changed(world: World, tmp_path: Path, draw: random.Random, tally: Tally) -> None:
    others.model_changed(world, tmp_path / "s", draw, tally)
