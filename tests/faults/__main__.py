"""The fault suite at length: kills at random moments, full disks, damaged files and others at work, with counts at the end."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

from tests.faults import damage, disks, others
from tests.faults.annotated import asking, fill_while_asking, kill_asking
from tests.faults.kills import Scored, Tally, kill_overwriting, kill_scoring, kill_writing, stop_and_continue
from tests.faults.machines import kill_on_ray, kill_shards, two_nodes
from tests.faults.processes import Launcher
from tests.faults.served import kill_served
from tests.faults.world import World

_SHARES = {
    "hf": 0.203, "reuse": 0.12, "overwrite": 0.12, "locks": 0.08, "clocks": 0.08, "server": 0.04, "skills": 0.15,
    "shards": 0.07, "teacher": 0.05, "writers": 0.08, "ray": 0.005, "vllm": 0.002,
}  # fmt: skip
"""What share of the kills each step takes."""
_STEPS = ("files", "others", "disks", "containers", "stops", *_SHARES)
_MOST_DAMAGES, _MOST_STOPS, _MOST_READERS, _MOST_OTHERS = 200, 30, 10, 5
"""Faults beside the kills grow with these, up to here: each takes several runs."""


class _Suite:
    """Everything, in order, on one folder.

    Args:
        folder: for all files.
        launcher: starts commands.
        kills: how many, about.
        seed: of all that is random.
        rows: of the corpus.
    """

    def __init__(self, folder: Path, launcher: Launcher, kills: int, seed: int, rows: int) -> None:
        self._folder, self._kills, self._draw = folder, kills, random.Random(seed)
        self.tally = Tally()
        self._world = World(folder, launcher, rows)
        self._launcher = launcher
        self._hf = self._world.forked()

    @cached_property
    def _teacher(self) -> Scored:
        return self._world.with_teacher()

    def run(self, steps: Sequence[str]) -> None:
        """Run some steps of it, in this order."""
        own = {
            "files": self._files, "others": self._others, "disks": self._disks, "writers": self._writers,
            "skills": self._skills, "overwrite": self._overwrite, "containers": self._containers, "stops": self._stops,
        }  # fmt: skip
        for name in steps:
            began = time.monotonic()
            own.get(name, partial(self._engine, name))()
            kills = sum(self.tally.kills.values())
            print(f"{name}: {time.monotonic() - began:.0f} s, {kills} kills so far", file=sys.stderr, flush=True)

    def _engine(self, name: str) -> None:
        """Kills with one engine, or with shards of one."""
        kills, out, draw, tally = (
            max(round(self._kills * _SHARES[name]), 1),
            self._folder / "killed",
            self._draw,
            self.tally,
        )
        if name == "shards":
            kill_shards(self._world.shards(self._hf), kills, out, draw, tally)
        elif name == "server":
            kill_served(self._world, kills, out, draw, tally)
        elif name == "ray":
            with two_nodes() as cluster:
                kill_on_ray(self._world.ray(cluster), cluster, kills, out, draw, tally)
        else:
            world, hf = self._world, self._hf
            ways: dict[str, Callable[[], Scored]] = {
                "hf": lambda: hf, "teacher": lambda: self._teacher, "vllm": world.vllm,
                "reuse": lambda: world.reusing(hf), "locks": lambda: world.without_locks(hf),
                "clocks": lambda: world.by_other_clocks(hf, draw),
            }  # fmt: skip
            kill_scoring(ways[name](), kills, out, draw, tally)

    def _overwrite(self) -> None:
        earlier = self._folder / "earlier"
        running = self._launcher.run(*self._world.arguments(earlier, "--limit", str(self._world.rows - 1)))
        assert running.wait() == 0, running.said
        kills = max(round(self._kills * _SHARES["overwrite"]), 1)
        scored = self._world.overwriting(self._hf)
        kill_overwriting(scored, earlier, kills, self._folder / "killed", self._draw, self.tally)

    def _skills(self) -> None:
        with asking(self._folder / "asked", self._launcher) as (server, steps):
            kills = max(round(self._kills * _SHARES["skills"] / len(steps)), 1)
            for asked in steps:
                kill_asking(asked, server, kills, self._folder / "answers", self._draw, self.tally)
                for number in range(1 + kills // 10):
                    fill_while_asking(asked, self._folder / f"full {asked.what} {number}", self._draw, self.tally)

    def _containers(self) -> None:
        others.containers_at_once(self._world, self._hf, self._folder / "containers", self.tally)
        others.dead_container_without_locks(self._world, self._hf, self._folder / "containers", self.tally)

    def _stops(self) -> None:
        for scored in (self._hf, self._teacher):
            stop_and_continue(
                scored, min(self._kills // 10 + 1, _MOST_STOPS), self._folder / "stopped", self._draw, self.tally
            )

    def _writers(self) -> None:
        assert self._teacher.undisturbed.is_dir()  # which trace reads
        writers = self._world.writers(self._hf.undisturbed)
        kills = max(round(self._kills * _SHARES["writers"] / len(writers)), 1)
        for written in writers:
            kill_writing(written, kills, self._folder / "files", self._draw, self.tally)
            for number in range(1 + kills // 4):
                disk = self._folder / f"full {written.what} {number}"
                disks.fill_while_writing(written, disk, self._draw, self.tally)

    def _files(self) -> None:
        times, folder, draw, tally = min(2 * self._kills, _MOST_DAMAGES), self._folder, self._draw, self.tally
        damage.verify_finds(self._hf.undisturbed, times, folder / "damaged", draw, tally)
        damage.damage_manifest(self._launcher, self._hf, times, folder / "damaged", draw, tally)
        for _ in range(min(1 + self._kills // 20, _MOST_OTHERS)):
            damage.resume_refuses(self._hf, folder / "damaged", draw, tally)
        scores, readers = self._teacher.undisturbed, folder / "readers"
        damage.readers_notice(self._launcher, scores, min(max(times // 8, 1), _MOST_READERS), readers, draw, tally)

    def _others(self) -> None:
        hf, folder, draw, tally = self._hf, self._folder / "others", self._draw, self.tally
        others.corpus_changed(self._world, hf, folder, draw, tally)
        others.model_changed(self._world, folder, draw, tally)
        for processes in (2, 3):
            others.several_at_once(hf, processes, folder, tally)
        for _ in range(min(1 + self._kills // 50, _MOST_OTHERS)):
            others.foreign_files(hf, folder, draw, tally)
            others.one_while_another(self._teacher, folder, draw, tally)
            others.shards_at_once(self._world.shards(hf), folder, tally)
            others.reading_meanwhile(hf, folder, tally)

    def _disks(self) -> None:
        folder, draw, tally = self._folder, self._draw, self.tally
        for scored, pages in ((self._hf, 1), (self._hf, 2), (self._teacher, 12)):
            disks.fill_while_scoring(scored, folder / f"full {scored.what} {pages}", draw, tally, pages * disks.PAGE)
        for number in range(min(1 + self._kills // 20, _MOST_OTHERS)):
            scored = draw.choice((self._hf, self._teacher))
            disks.fill_while_scoring(scored, folder / f"full {number}", draw, tally)
        disks.fill_while_merging(self._world.shards(self._hf), folder / "full merge", tally)
        disks.read_only_disk(self._hf, folder / "read-only", tally)
        for scored, arguments in ((self._hf, self._world.arguments), (self._teacher, self._world.teacher)):
            out = folder / f"forbidden {scored.what}"
            disks.forbid_while_scoring(self._launcher, arguments(out), scored, out, tally)
        limited = folder / "limited"
        disks.limit_files(self._hf, self._launcher, self._world.arguments(limited), limited, tally)


def main() -> None:
    """Run the suite and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many, about; other faults grow with them")
    parser.add_argument(
        "--seed", type=int, default=None, help="of all that is random; another one each time by default"
    )
    parser.add_argument("--steps", nargs="+", choices=_STEPS, default=_STEPS, help="what to do; everything by default")
    parser.add_argument("--rows", type=int, default=520, help="of the corpus; fewer are faster")
    parser.add_argument("--counts", type=Path, help="append the counts to this file, and print those of all in it")
    options = parser.parse_args()
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="trajscore-faults-"))
    if not disks.can_mount(folder):
        raise SystemExit("This needs to mount small file systems: run it as root.")
    with Launcher(folder / "logs") as launcher:
        suite = _Suite(folder, launcher, options.kills, seed, options.rows)
        try:
            suite.run(options.steps)
        finally:
            tally = suite.tally
            if options.counts:
                with options.counts.open("a", encoding="utf-8") as file:
                    file.write(tally.to_json() + "\n")
                tally = Tally()
                for line in options.counts.read_text("utf-8").splitlines():
                    tally.add(Tally.from_json(line))
            print(f"seed {seed}, {time.monotonic() - began:.0f} s\n\n{tally.table()}", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
