"""Series of kills at random moments. Each series works on one folder or file until it is finished, and compares at the end."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.faults.processes import Running
from tests.faults.scores import Look, check_parts, check_same, look

SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM,) * 2 + (signal.SIGINT,) * 2 + (signal.SIGHUP, signal.SIGQUIT)
EVENTS = (
    r"\.part-\d+\.parquet\..*\.tmp",
    r"\.manifest.*\.json\..*\.tmp",
    r"part-\d+\.parquet",
    r"\.hidden-states.*\.tmp",
    r"\.tokenizer\.json\..*\.tmp",
    r"manifest.*\.json",
)
"""Files whose coming is a moment to kill at."""
_ORPHANS_SECONDS = 900.0
_LOOK_SECONDS = 0.001


@dataclass
class Tally:
    """What was done, to be printed.

    Attributes:
        kills: (engine or command, stage, signal) -> how many.
        other: what else -> how many.
    """

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Take over what another one counted."""
        self.kills.update(other.kills)
        self.other.update(other.other)

    def to_json(self) -> str:
        """All of it as one line of JSON, for `from_json`."""
        return json.dumps({"kills": [[*key, count] for key, count in self.kills.items()], "other": self.other})

    @classmethod
    def from_json(cls, line: str) -> Tally:
        """What `to_json` made."""
        said = json.loads(line)
        return cls(Counter({tuple(key): count for *key, count in said["kills"]}), Counter(said["other"]))

    def table(self) -> str:
        """The counts as lines of text."""
        lines = [f"{sum(self.kills.values())} kills", ""]
        lines += ["| what | stage when killed | signals | kills |", "|---|---|---|---:|"]
        for what, stage in sorted({key[:2] for key in self.kills}):
            signals = {key[2]: count for key, count in self.kills.items() if key[:2] == (what, stage)}
            shown = ", ".join(f"{name} {count}" for name, count in sorted(signals.items()))
            lines.append(f"| {what} | {stage} | {shown} | {sum(signals.values())} |")
        lines += ["", "| what else | count |", "|---|---:|"]
        lines += [f"| {what} | {count} |" for what, count in sorted(self.other.items())]
        return "\n".join(lines)


@dataclass(frozen=True)
class Scored:
    """A way to score, whose folder may be killed at.

    Attributes:
        what: name in the counts.
        start: starts the command that scores into a folder.
        undisturbed: the folder of a run that was let be.
        seconds: how long that run took.
        exact: whether scores must agree to the last bit.
        leaves: whether temporary files of killed writers stay, which only locks tell from those of living ones.
    """

    what: str
    start: Callable[[Path], Running]
    undisturbed: Path
    seconds: float
    exact: bool = True
    leaves: bool = False


def wait_for_a_moment(running: Running, folder: Path, draw: random.Random, seconds: float) -> None:
    """Return at a random moment of a run: after some time, or when some file comes; or when the run is over."""
    choice = draw.random()
    if choice < 0.1:
        running.wait_at_most(draw.expovariate(10 / seconds))
    elif choice < 0.5:
        running.wait_at_most(draw.uniform(0, 1.1 * seconds))
    else:
        pattern, nth = draw.choice(EVENTS), draw.choice((1, 1, 2, 3, 5))
        wait_for_file(running, folder, pattern, nth)


def wait_for_file(running: Running, folder: Path, pattern: str, nth: int) -> None:
    """Return when the nth new file with such a name is in a folder, or when the run is over."""
    seen = set(_names(folder))
    while not running.has_ended():
        new = [name for name in _names(folder) if name not in seen and re.fullmatch(pattern, name)]
        seen.update(new)
        nth -= len(new)
        if nth <= 0:
            return
        time.sleep(_LOOK_SECONDS)


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [path.name for path in folder.iterdir()]
    return []


def kill(running: Running, folder: Path, draw: random.Random, what: str, tally: Tally) -> Look | None:
    """Kill a run, wherever it is, and check how it ends.

    Returns:
        What the folder held when it was killed; None if the run had ended by itself.
    """
    running.freeze()
    if running.has_ended():
        return None
    number = draw.choice(SIGNALS)
    stage = look(folder, running.open_files())
    children = running.children()
    running.send(number)
    status = running.wait()
    if status in (0, 3):
        # The signal came when all was done, or where Python cannot raise.
        tally.other[f"{what}: {number.name} too late to stop it"] += 1
        return None
    _check_end(running, status, number)
    _check_orphans(children)
    tally.kills[what, stage.stage, number.name] += 1
    return stage


def _check_end(running: Running, status: int, number: int) -> None:
    if number == signal.SIGKILL:
        assert status == -number, (status, running.said)
        return
    # Before the command has begun, Python's own handlers are in force.
    early = not running.said or status == -number
    assert status in (130, -number), (number, status, running.said)
    assert early or ("interrupted" in running.said and "Traceback" not in running.said), running.said


def _check_orphans(children: Sequence[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=_ORPHANS_SECONDS)
    assert not alive, f"{[' '.join(each.cmdline()) for each in alive]} outlived the killed run"


def kill_scoring(scored: Scored, kills: int, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Kill a way to score so many times, over as many folders as that takes; each is finished and compared.

    Args:
        scored: what to run.
        kills: how many.
        folder: where the folders are made, one after the other.
        draw: of moments and signals.
        tally: to be filled.
    """
    done = 0
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        here = draw.randint(2, 8)
        before: Look | None = None
        for _ in range(min(here, kills - done)):
            running = scored.start(folder)
            wait_for_a_moment(running, folder, draw, scored.seconds)
            stage = kill(running, folder, draw, scored.what, tally)
            after = check_parts(folder, before)
            tally.other["parts that lay finished while a later kill came"] += len(before.finished) if before else 0
            if stage is None:
                assert running.wait() == 0, running.said
                break
            done += 1
            tally.other["parts written but not entered when killed"] += len(stage.waiting)
            before = after
        finish(scored, folder, before, tally)


def finish(scored: Scored, folder: Path, before: Look | None, tally: Tally) -> None:
    """Let a run come to its end and compare."""
    running = scored.start(folder)
    assert running.wait() == 0, running.said
    check_parts(folder, before)
    check_same(folder, scored.undisturbed, scored.exact, scored.leaves)
    tally.other[f"folders compared with the undisturbed run ({scored.what})"] += 1


@dataclass(frozen=True)
class Written:
    """A command that writes files, which may be killed.

    Attributes:
        what: its name.
        start: starts it; its results go into a folder.
        contained: starts it in a container.
        undisturbed: such a folder of a run that was let be.
        earlier: such a folder of a run with other settings.
        seconds: how long it takes.
    """

    what: str
    start: Callable[[Path], Running]
    contained: Callable[[Path], Running]
    undisturbed: Path
    earlier: Path
    seconds: float


def contents(folder: Path) -> dict[str, bytes]:
    """Files that lie below a folder, by their names; without those that were being written when somebody was killed."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if not re.search(_WRITING, name)}


_WRITING = r"(^|/)\.[^/]+\.(tmp|old|lock)(/|$)"


def kill_writing(written: Written, kills: int, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Kill a command that writes files: each is absent, as before, or new and whole. Then let it be, and compare.

    A folder that is replaced whole is absent, as before, or new as a whole.
    """
    old, new = contents(written.earlier), contents(written.undisturbed)
    done = 0
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if draw.random() < 0.5:
            shutil.copytree(written.earlier, folder, dirs_exist_ok=True)
        for _ in range(min(draw.randint(1, 4), kills - done)):
            running = written.start(folder)
            if draw.random() < 0.4:
                running.wait_at_most(draw.uniform(0, 1.1 * written.seconds))
            else:
                wait_for_file(running, folder, r"\..*\.(tmp|old)", draw.choice((1, 1, 2)))
                running.wait_at_most(draw.expovariate(200))
            done += _kill_writer(running, folder, written, draw, tally)
            for name, data in contents(folder).items():
                assert data in (old.get(name), new.get(name)), f"{written.what}: {name} is torn"
        running = written.start(folder)
        assert running.wait() == 0, running.said
        assert contents(folder) == new, f"{written.what}: other files than an undisturbed run writes"
        left = [path.name for path in folder.iterdir() if re.search(_WRITING, path.name)]
        assert not left, f"{written.what}: left behind: {left}"
        tally.other[f"outputs compared with the undisturbed run ({written.what})"] += 1


def kill_anywhere(running: Running, what: str, stage: str, draw: random.Random, tally: Tally) -> bool:
    """Kill a command, wherever it is, and check how it ends.

    Returns:
        Whether it was stopped before its end.
    """
    running.freeze()
    if running.has_ended():
        assert running.wait() == 0, running.said
        return False
    number = draw.choice(SIGNALS)
    running.send(number)
    status = running.wait()
    if status == 0:
        tally.other[f"{what}: {number.name} too late to stop it"] += 1
        return False
    _check_end(running, status, number)
    tally.kills[what, stage, number.name] += 1
    return True


def kill_overwriting(
    scored: Scored, earlier: Path, kills: int, folder: Path, draw: random.Random, tally: Tally
) -> None:
    """Kill runs that start anew over finished scores of other settings: what a manifest names is whole at any time.

    Args:
        scored: a way to score with `--overwrite`.
        earlier: finished scores of other settings.
        kills: how many.
        folder: where the folders are made.
        draw: of moments and signals.
        tally: to be filled.
    """
    done = 0
    while done < kills:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(earlier, folder)
        for _ in range(min(draw.randint(2, 6), kills - done)):
            running = scored.start(folder)
            wait_for_a_moment(running, folder, draw, scored.seconds)
            stage = kill(running, folder, draw, scored.what, tally)
            check_parts(folder)
            if stage is None:
                assert running.wait() == 0, running.said
                break
            done += 1
        finish(scored, folder, None, tally)


def stop_and_continue(scored: Scored, stops: int, folder: Path, draw: random.Random, tally: Tally) -> None:
    """Stop a run at random moments, as a laptop does that sleeps, and let it go on: nothing is other than without."""
    done = 0
    while done < stops:
        shutil.rmtree(folder, ignore_errors=True)
        running = scored.start(folder)
        while not running.has_ended() and done < stops:
            wait_for_a_moment(running, folder, draw, scored.seconds)
            running.freeze()
            if running.has_ended():
                break
            check_parts(folder)
            running.send(signal.SIGCONT)
            tally.other[f"stopped and continued ({scored.what})"] += 1
            done += 1
        assert running.wait() == 0, running.said
        check_same(folder, scored.undisturbed, scored.exact)


def _kill_writer(running: Running, folder: Path, written: Written, draw: random.Random, tally: Tally) -> bool:
    running.freeze()
    writing = any(re.search(_WRITING, name) for name in _names(folder))
    finished = contents(folder) == contents(written.undisturbed)
    stage = "writing" if writing else "after writing" if finished else "reading"
    return kill_anywhere(running, written.what, stage, draw, tally)
