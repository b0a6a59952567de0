"""Kills where several processes score into one folder: shards and their merge, and a Ray cluster on this machine."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.kills import Scored, Tally, finish, kill, wait_for_a_moment, wait_for_file
from tests.faults.processes import Running, said_clearly
from tests.faults.scores import Look, check_parts, check_same


@dataclass(frozen=True)
class Shards:
    """A corpus in shards.

    Attributes:
        start: starts one of them, by its number.
        merge: starts to merge them.
        of: number of shards.
        undisturbed: the folder that one process made.
        seconds: how long it took.
    """

    start: Callable[[Path, int], Running]
    merge: Callable[[Path], Running]
    of: int
    undisturbed: Path
    seconds: float


def kill_shards(shards: Shards, kills: int, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Kill shards while their neighbours work, then the merge; finish everything and compare."""
    done = 0
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        running = [shards.start(folder, number) for number in range(shards.of)]
        before: Look | None = None
        for _ in range(draw.randint(1, 4)):
            number = draw.randrange(shards.of)
            wait_for_a_moment(running[number], folder, draw, shards.seconds)
            before, killed = _kill_one(running, number, folder, before, draw, tally)
            done += killed
            if running[number].has_ended():
                running[number] = shards.start(folder, number)
        for number, each in enumerate(running):
            status = each.wait()
            if status != 0:
                assert shards.start(folder, number).wait() == 0
            assert status in (0, 130, -9, -15), each.said
        before = check_parts(folder, before)
        for _ in range(draw.randint(0, 3)):
            done += _kill_merge(shards, folder, before, draw, tally)
        merging = shards.merge(folder)
        assert merging.wait() == 0, merging.said
        check_same(folder, shards.undisturbed)
        tally.other["folders compared with the undisturbed run (shards, merged)"] += 1


def _kill_one(
    running: Sequence[Running], number: int, folder: Path, before: Look | None, draw: random.Random, tally: Tally
) -> tuple[Look, bool]:
    """Kill one shard while the others hold still, so that the folder can be looked at."""
    for each in running:
        each.freeze()
    stage = kill(running[number], folder, draw, "hf, shards", tally)
    after = check_parts(folder, before)
    for each in running:
        each.send(signal.SIGCONT)
    return after, stage is not None


def _kill_merge(shards: Shards, folder: Path, before: Look, draw: random.Random, tally: Tally) -> bool:
    merging = shards.merge(folder)
    if draw.random() < 0.3:
        merging.wait_at_most(draw.uniform(0, 0.5))
    else:
        wait_for_file(merging, folder, r"manifest\.json.*", draw.choice((1, 2)))
        merging.wait_at_most(draw.expovariate(1000))
    stage = kill(merging, folder, draw, "merge", tally)
    check_parts(folder, before)
    return stage is not None


class RayCluster:
    """Ray on two nodes of this machine, each of its own processes. Those that were killed are replaced by `mend`."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._second = self._nodes.add_node(num_cpus=1)
        self._nodes.wait_for_nodes()

    @property
    def address(self) -> str:
        """Where it is reached; another one after its head was killed."""
        return str(self._nodes.address)

    def process(self, what: str) -> psutil.Process:
        """The `raylet` of the node on which no driver is, the `driver's raylet`, or the `head`."""
        node, kind = {
            "raylet": (self._second, "raylet"),
            "driver's raylet": (self._nodes.head_node, "raylet"),
            "head": (self._nodes.head_node, "gcs_server"),
        }[what]
        return psutil.Process(node.all_processes[kind][0].process.pid)

    def mend(self, what: str) -> None:
        """Put a node, or a whole cluster, in the place of what was killed."""
        if what == "raylet":
            self._nodes.remove_node(self._second, allow_graceful=False)
            self._second = self._nodes.add_node(num_cpus=1)
            self._nodes.wait_for_nodes()
        else:
            self.close()
            self.__init__()  # type: ignore[misc]

    def close(self) -> None:
        """End all of its processes."""
        self._nodes.shutdown()


@contextlib.contextmanager
def two_nodes() -> Iterator[RayCluster]:
    """A Ray cluster of two nodes on this machine."""
    cluster = RayCluster()
    try:
        yield cluster
    finally:
        cluster.close()


def workers_of_ray() -> list[psutil.Process]:
    """Processes on this machine in which Ray Data's workers run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(text.startswith("ray::") and "Worker" in text for text in process.info["cmdline"] or []):
            found.append(process)
    return found


def kill_on_ray(
    scored: Scored, cluster: RayCluster, kills: int, folder: Path, draw: random.Random, tally: Tally
) -> None:
    """Kill what a run on a cluster consists of, in turn.

    A run survives its workers and the other node. Without its driver, the head or Ray on the driver's machine it ends, with a
    message where it can give one, and is started again.
    """
    turns = ["worker", "raylet", "driver", "head", "driver's raylet"]
    first, done = draw.randrange(len(turns)), 0
    while done < kills:
        what = turns[(first + done) % len(turns)]
        shutil.rmtree(folder, ignore_errors=True)
        running = scored.start(folder)
        before = None
        if what == "driver":
            wait_for_a_moment(running, folder, draw, scored.seconds)
            done += kill(running, folder, draw, "ray, driver", tally) is not None
            _until_workers_are_gone()
            before = check_parts(folder)
        else:
            wait_for_file(running, folder, r"part-\d+\.parquet", draw.choice((1, 2, 4)))
            assert not running.has_ended(), running.said
            found = workers_of_ray() if what == "worker" else [cluster.process(what)]
            if found:
                found[0].send_signal(signal.SIGKILL)
                tally.kills[f"ray, {what}", "scoring", "SIGKILL"] += 1
                done += 1
            if what in ("worker", "raylet"):
                assert running.wait() == 0, running.said
            elif running.wait() != 0:  # else all parts had been written
                said_clearly(running, "has died.", "run the same command: finished parts are kept.")
            if what != "worker":
                cluster.mend(what)
            before = check_parts(folder)
        finish(scored, folder, before, tally)


def _until_workers_are_gone(seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while workers_of_ray():
        assert time.monotonic() < deadline, "Ray's workers outlived the run that was killed"
        time.sleep(0.1)
