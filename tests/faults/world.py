"""What the fault suite runs: the shipped corpus and models, and one undisturbed run of everything that is compared."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import polars as pl

from tests.faults.kills import Scored, Written
from tests.faults.machines import RayCluster, Shards
from tests.faults.processes import Launcher, Running
from tests.helpers.paths import ROOT

CORPUS, STUDENT, TEACHER = (ROOT / "data" / name for name in ("trajectories.jsonl", "models/student", "models/teacher"))
CLOCKS = (-3e8, -1e5, 0.0, 1e5, 3e8)
"""Seconds by which clocks of machines are fast."""
_PARTS = 26
"""Of the scored corpus."""


class World:
    """Commands over the shipped data.

    Args:
        folder: for everything that is written.
        launcher: starts commands.
        rows: of the corpus that are scored.
    """

    def __init__(self, folder: Path, launcher: Launcher, rows: int = 520) -> None:
        self.folder, self.launcher = folder, launcher
        folder.mkdir(parents=True, exist_ok=True)
        self.student = STUDENT
        self._known: dict[str, Written] = {}
        self.rows, self.part_rows = rows, max(rows // _PARTS, 1)
        self.corpus = folder / "corpus.jsonl"
        lines = CORPUS.read_text("utf-8").split("\n")[:rows]
        self.corpus.write_text("\n".join(lines) + "\n", "utf-8")

    def arguments(
        self, out: Path, *more: str | Path, engine: str = "hf", student: Path | None = None
    ) -> list[str | Path]:
        """The command line that scores the corpus."""
        own: list[str | Path] = [
            "--student",
            student or self.student,
            "--engine",
            engine,
            "--part-rows",
            str(self.part_rows),
        ]
        return ["score", self.corpus, *own, "--out", out, *more]

    def teacher(self, out: Path) -> list[str | Path]:
        """With a teacher whose hidden states wait on disk."""
        return self.arguments(out, "--teacher", TEACHER, "--swap-models")

    def scored(self, what: str, start: Callable[[Path], Running], exact: bool = True) -> Scored:
        """A way to score, run once undisturbed and by the clock."""
        undisturbed = self.folder / f"undisturbed {what}"
        self.launcher.ready()
        began = time.monotonic()
        running = start(undisturbed)
        assert running.wait() == 0, running.said
        return Scored(what, start, undisturbed, time.monotonic() - began, exact)

    def forked(self, what: str = "hf") -> Scored:
        """The engine of transformers, from the server."""
        return self.scored(what, lambda out: self.launcher.fork(*self.arguments(out)))

    def with_teacher(self) -> Scored:
        """A teacher beside the student, whose hidden states wait on disk."""
        return self.scored("hf, teacher", lambda out: self.launcher.fork(*self.teacher(out)), exact=False)

    def reusing(self, undisturbed: Scored) -> Scored:
        """Rows of the first third are copied from older scores, in the middle of a part too."""
        older = self.folder / "older"
        if not older.exists():
            limited = ["--limit", str(self.rows // 3), "--part-rows", str(self.part_rows + 1)]
            running = self.launcher.run(*self.arguments(older), *limited)
            assert running.wait() == 0, running.said
        start = lambda out: self.launcher.fork(*self.arguments(out, "--reuse", older))  # noqa: E731
        reused = self.scored("hf, reuse", start)
        assert pl.read_parquet(sorted(reused.undisturbed.glob("*.parquet")))["id"].equals(
            pl.read_parquet(sorted(undisturbed.undisturbed.glob("*.parquet")))["id"]
        )
        return reused

    def without_locks(self, undisturbed: Scored) -> Scored:
        """On a file system that has no locks."""
        return replace(
            undisturbed,
            what="hf, no locks",
            leaves=True,
            start=lambda out: self.launcher.fork(*self.arguments(out), locks=False),
        )

    def by_other_clocks(self, undisturbed: Scored, draw: random.Random) -> Scored:
        """Each start on a machine whose clock is days or years off."""
        start = lambda out: self.launcher.fork(*self.arguments(out), clock=draw.choice(CLOCKS))  # noqa: E731
        return replace(undisturbed, what="hf, other clocks", start=start)

    def contained(self, undisturbed: Scored) -> Scored:
        """Each start as process 1 of a container of its own."""
        start = lambda out: self.launcher.fork(*self.arguments(out), contained=True)  # noqa: E731
        return replace(undisturbed, what="hf, containers", start=start)

    def shards(self, undisturbed: Scored, of: int = 2) -> Shards:
        """The corpus in shards."""
        return Shards(
            start=lambda out, number: self.launcher.fork(*self.arguments(out, "--shard", f"{number}/{of}")),
            merge=lambda out: self.launcher.fork("merge", out),
            of=of,
            undisturbed=undisturbed.undisturbed,
            seconds=undisturbed.seconds,
        )

    def vllm(self) -> Scored:
        """vLLM, as the user's shell starts it."""
        start = lambda out: self.launcher.spawn(*self.arguments(out, engine="vllm"))  # noqa: E731
        return self.scored("vllm", start, exact=False)

    def served(self, url: str, *more: str) -> list[str | Path]:
        """The command line that asks a server for one row after the other, no two of them equal."""
        corpus = self.folder / "distinct.jsonl"
        if not corpus.exists():
            rows = {
                json.dumps(json.loads(line)["messages"]): line for line in self.corpus.read_text("utf-8").splitlines()
            }
            corpus.write_text("\n".join(rows.values()) + "\n", "utf-8")
        asking = ["--base-url", url, "--concurrency", "1", "--max-num-batched-tokens", "1", *more]
        return ["score", corpus, "--student", self.student, "--engine", "server", *asking]

    def ray(self, cluster: RayCluster) -> Scored:
        """Workers of a Ray cluster."""
        start = lambda out: self.launcher.spawn(*self.arguments(out, "--ray", cluster.address))  # noqa: E731
        return self.scored("ray", start)

    def overwriting(self, undisturbed: Scored) -> Scored:
        """Starting anew, whatever is there."""
        start = lambda out: self.launcher.fork(*self.arguments(out, "--overwrite"))  # noqa: E731
        return replace(undisturbed, what="hf, overwrite", start=start)

    def writers(self, scores: Path, names: Collection[str] = ()) -> list[Written]:
        """Commands that write files, over finished scores; all of them if none is named."""
        ready = self.folder / "ready"
        ready.mkdir(exist_ok=True)
        chosen, mask = ready / "selected.jsonl", ready / "mask.parquet"
        commands: list[list[str | Path]] = [
            ["select", scores, "--metric", "rsr", "--fraction", "0.9", "--out", chosen],
            ["mask", scores, "--rule", "entropy", "--keep", "0.5", "--out", mask],
        ]
        for arguments in commands:
            running = self.launcher.run(*arguments)
            assert running.wait() == 0, running.said

        def select(out: Path, top: str) -> list[str | Path]:
            files: list[str | Path] = ["--out", out / "kept.parquet", "--decisions", out / "decisions.jsonl"]
            return ["select", scores, "--metric", "rsr", "--top", top, *files]

        def masked(out: Path, keep: str) -> list[str | Path]:
            return ["mask", scores, "--rule", "entropy", "--keep", keep, "--out", out / "mask.parquet"]

        def report(out: Path, seed: str) -> list[str | Path]:
            files: list[str | Path] = ["--out", out / "r.html", "--csv", out / "r.csv"]
            return ["report", scores, "--replicates", "50", "--seed", seed, *files]

        def trace(out: Path, alpha: str) -> list[str | Path]:
            return ["trace", self.folder / "undisturbed hf, teacher", "--alpha", alpha, "--out", out / "s.csv"]

        def inspect(out: Path, worst: str) -> list[str | Path]:
            return ["inspect", scores, "--worst", worst, "--out", out / "page.html"]

        def export(out: Path, trainer: str) -> list[str | Path]:
            return ["export", chosen, "--to", trainer, "--out", out / "export"]

        def export_mask(out: Path, trainer: str) -> list[str | Path]:
            return ["export", mask, "--to", trainer, "--out", out / "export"]

        def pairs(out: Path, gap: str) -> list[str | Path]:
            return ["select", scores, "--metric", "rsr", "--pairs", gap, "--card", "--out", out / "pairs.jsonl"]

        def diagnosed(out: Path, replicates: str) -> list[str | Path]:
            return ["skills", "profile", diagnosis, "--replicates", replicates, "--out", out / "profile.json"]

        def grade(out: Path, limit: str) -> list[str | Path]:
            return [
                "grade",
                self.corpus,
                "--reference-field",
                "answer",
                "--limit",
                limit,
                "--out",
                out / "graded.jsonl",
            ]

        diagnosis = ready / "diagnosis.jsonl"
        diagnosis.write_text(
            "".join(
                json.dumps({"question_id": f"q{n}", "status": "ok", "missing_skills": ["plus"], "agreement": None})
                + "\n"
                for n in range(20)
            )
        )
        ways: list[tuple[str, Callable[[Path, str], list[str | Path]], str, str]] = [
            ("select", select, str(3 * self.rows // 4), str(self.rows // 4)),
            ("mask", masked, "0.5", "0.25"),
            ("report", report, "0", "1"),
            ("trace", trace, "0.1", "0.3"),
            ("inspect", inspect, "5", "3"),
            ("export", export, "llamafactory", "axolotl"),
            ("export, mask", export_mask, "trl", "llamafactory"),
            ("select, pairs", pairs, "0.1", "0.5"),
            ("skills, profile", diagnosed, "20", "10"),
            ("grade", grade, str(self.rows), str(self.rows // 2)),
        ]
        return [self._written(*way) for way in ways if not names or way[0] in names]

    def _written(self, what: str, arguments: Callable[[Path, str], list[str | Path]], now: str, before: str) -> Written:
        """Each is run undisturbed once, whoever asks for it."""
        if what in self._known:
            return self._known[what]
        folders = []
        for setting in (before, now):
            out = self.folder / f"undisturbed {what} {setting}"
            out.mkdir()
            began = time.monotonic()
            running = self.launcher.run(*arguments(out, setting))
            assert running.wait() == 0, running.said
            seconds = time.monotonic() - began
            folders.append(out)
        start = lambda out: self.launcher.fork(*arguments(out, now))  # noqa: E731
        contained = lambda out: self.launcher.fork(*arguments(out, now), contained=True)  # noqa: E731
        self._known[what] = Written(what, start, contained, folders[1], folders[0], seconds)
        return self._known[what]
