"""Kills of commands that ask an annotator or a student: what was answered stays in the cache, and is not asked again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import disks
from tests.faults.kills import Tally, contents, kill_anywhere, wait_for_file
from tests.faults.processes import Launcher, Running, said_clearly
from tests.faults.world import STUDENT
from tests.helpers.scripted_annotator import Reply, ScriptedServer, good, rule_based, scripted, task
from tests.helpers.world_of_data import problem_of, world

_SKILLS = ["double", "minus", "plus"]


@dataclass(frozen=True)
class Asked:
    """A command that keeps answers.

    Attributes:
        what: its name.
        start: starts it; its result and its cache go into a folder.
        undisturbed: such a folder of a run that was let be.
        calls: how many different calls it makes; None where they are not those of the server.
        seconds: how long it takes.
    """

    what: str
    start: Callable[[Path], Running]
    undisturbed: Path
    calls: int | None
    seconds: float


def _script(body: dict[str, Any], earlier: int) -> Reply:
    """An annotator that always says the same to the same."""
    prompt, name = body["messages"][0]["content"], task(body)
    if name == "propose":
        number = body["response_format"]["json_schema"]["schema"]["properties"]["questions"]["minItems"]
        mark = hashlib.sha256(f"{prompt}{body.get('seed')}".encode()).hexdigest()
        return good({"questions": [{"reason": "", "draft": "", "question": f"{mark}, {n}?"} for n in range(number)]})
    if name == "name_skills":
        return good({"skills": sorted({each.skill for each in problem_of(prompt).operations})})
    if name == "merge_skills":
        return good({"skills": _SKILLS[:2]})
    if name == "solve":
        return good({"solution": "s", "answer": "4"})
    return rule_based()(body, earlier)


@contextmanager
def asking(folder: Path, launcher: Launcher) -> Iterator[tuple[ScriptedServer, list[Asked]]]:
    """The steps of `skills` that ask, each run once undisturbed, and the annotator that they ask."""
    folder.mkdir(parents=True)
    problems = world.problems(12, 5, steps=(1, 4), split="test")
    questions, listed = folder / "questions.jsonl", folder / "skills.json"
    lines = [json.dumps({"prompt_id": each.id, "question": each.question, "answer": each.answer}) for each in problems]
    questions.write_text("\n".join(lines) + "\n")
    listed.write_text(json.dumps({"digits": _SKILLS}))
    answers, mapped, profile = folder / "answer" / "a.jsonl", folder / "label" / "l.jsonl", folder / "profile.json"
    student: list[str | Path] = [
        "--student", STUDENT, "--engine", "hf", "--max-tokens", "24", "--batch-size", "3", "--temperature", "0",
    ]  # fmt: skip
    with scripted(_script) as server:
        annotator = ["--annotator", "rules", "--base-url", server.url, "--concurrency", "1"]
        steps: dict[str, Callable[[Path], list[str | Path]]] = {
            "answer": lambda out: ["answer", questions, *student, "--out", out / "a.jsonl"],
            "catalogue": lambda out: ["catalogue", questions, *annotator, "--out", out / "c.json"],
            "label": lambda out: ["label", questions, "--skills", listed, *annotator, "--out", out / "l.jsonl"],
            "diagnose": lambda out: ["diagnose", answers, "--skills", listed, *annotator, "--out", out / "d.jsonl"],
            "synthesise": lambda out: [
                "synthesise",
                profile,
                "--skill-map",
                mapped,
                *annotator,
                "--out",
                out / "s.jsonl",
            ],
        }
        found = []
        for name, arguments in steps.items():
            if name == "synthesise":
                _done(launcher.run("skills", "profile", folder / "diagnose" / "d.jsonl", "--out", profile))
            before = len(server.requests)
            out = folder / name
            out.mkdir()
            _done(launcher.run("skills", *arguments(out)))
            start = lambda out, make=arguments: launcher.fork("skills", *make(out))  # noqa: E731
            calls = None if name == "answer" else len(server.requests) - before
            assert calls is None or calls > 2, (name, calls)
            found.append(Asked(f"skills, {name}", start, out, calls, 1.0))
        yield server, found


def _done(running: Running) -> None:
    assert running.wait() == 0, running.said


def kill_asking(
    asked: Asked, server: ScriptedServer, kills: int, folder: Path, draw: random.Random, tally: Tally
) -> None:
    """Kill a command that asks, again and again over one cache; then let it be, and compare."""
    done = 0
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        begun, here = len(server.requests), 0
        kept: list[bytes] = []
        for _ in range(min(draw.randint(2, 5), kills - done)):
            running = asked.start(folder)
            if draw.random() < 0.4:
                running.wait_at_most(draw.expovariate(1 / asked.seconds))
            else:
                wait_for_file(running, folder, r".*\.calls\.jsonl", 1)
                running.wait_at_most(draw.expovariate(20))
            here += kill_anywhere(running, asked.what, _stage(folder), draw, tally)
            now = _kept(folder)
            assert now[: len(kept)] == kept, f"{asked.what}: answers were lost"
            kept = now
        done += here
        _done(asked.start(folder))
        _check_same(asked, folder)
        if asked.calls is not None:
            # One answer at most was on its way when a kill came.
            there = len(server.requests) - begun
            assert asked.calls <= there <= asked.calls + here, (
                f"{asked.what}: {there} calls of {asked.calls} after {here} kills"
            )
        tally.other[f"outputs and caches compared with the undisturbed run ({asked.what})"] += 1


def fill_while_asking(asked: Asked, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Keep answers on a disk that becomes full; make room, and go on: what was answered is still there."""
    pages = disks.size_of(asked.undisturbed) // disks.PAGE
    with disks.small_disk(folder, draw.randint(1, max(pages - 1, 1)) * disks.PAGE) as disk:
        out = disk / "files"
        out.mkdir()
        running = asked.start(out)
        if running.wait() != 0:
            said_clearly(running, "No space left on device")
            tally.other[f"disk full ({asked.what})"] += 1
        kept = _kept(out)
        disks.grow(disk)
        _done(asked.start(out))
        assert _kept(out)[: len(kept)] == kept, f"{asked.what}: answers were lost"
        _check_same(asked, out)


def _check_same(asked: Asked, folder: Path) -> None:
    ours, theirs = (
        {name: sorted(data.splitlines()) for name, data in contents(each).items()}
        for each in (folder, asked.undisturbed)
    )
    assert ours == theirs, f"{asked.what}: not what an undisturbed run writes"


def _stage(folder: Path) -> str:
    return "asking" if _kept(folder) else "starting"


def _kept(folder: Path) -> list[bytes]:
    """Whole lines of the cache."""
    lines = [line for path in folder.glob("*.calls.jsonl") for line in path.read_bytes().splitlines(keepends=True)]
    whole = [line for line in lines if line.endswith(b"\n")]
    assert all("key" in json.loads(line) for line in whole)
    return whole
