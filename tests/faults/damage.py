"""Files that were changed behind trajscore's back: truncated, bits flipped, of another run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import trajscore as ts
from tests.faults.kills import Scored, Tally
from tests.faults.processes import Launcher, Running, said_clearly
from tests.faults.scores import check_same
from trajscore.errors import TrajscoreError


def damage(path: Path, draw: random.Random) -> str:
    """Flip one bit, overwrite some bytes, or cut a file short. Returns which."""
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    kind = draw.choice(("one bit flipped", "one bit flipped", "truncated", "16 bytes overwritten"))
    if kind == "one bit flipped":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del data[at:]
    else:
        data[at : at + 16] = bytes(byte ^ 0x55 for byte in data[at : at + 16])
    path.write_bytes(data)
    return kind


def verify_finds(undisturbed: Path, times: int, folder: Path, draw: random.Random, tally: Tally) -> None:
    """`verify` names every damaged part."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(undisturbed, folder)
    parts = sorted(folder.glob("part-*.parquet"))
    for _ in range(times):
        part = draw.choice(parts)
        kind = damage(part, draw)
        problems = ts.verify(folder).problems
        assert problems, f"{kind} in {part}: not found"
        assert all(each.startswith(part.name) for each in problems), problems
        tally.other[f"damaged parts that verify found ({kind})"] += 1
        shutil.copy(undisturbed / part.name, part)
    assert not ts.verify(folder).problems


def resume_refuses(scored: Scored, folder: Path, draw: random.Random, tally: Tally) -> None:
    """A run over a damaged part names it; once it is deleted, the same run scores it again."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scored.undisturbed, folder)
    part = draw.choice(sorted(folder.glob("part-*.parquet")))
    kind = damage(part, draw)
    running = scored.start(folder)
    said_clearly(running, str(part), "changed since it was written", "delete it and run the same `trajscore score`")
    part.unlink()
    running = scored.start(folder)
    assert running.wait() == 0, running.said
    # Long lines of the log are broken at any place.
    assert f"{part.name}ismissingandisscoredagain" in "".join(running.said.split())
    check_same(folder, scored.undisturbed, scored.exact)
    tally.other[f"damaged parts that were refused, deleted and scored again ({kind})"] += 1


def readers_of(launcher: Launcher, folder: Path, out: Path) -> list[Running]:
    """Every command that reads scores, started."""
    out.mkdir(parents=True, exist_ok=True)
    commands: list[list[str | Path]] = [
        ["select", folder, "--metric", "rsr", "--top", "100", "--out", out / "kept.parquet"],
        ["select", folder, "--metric", "surprisal", "--top", "100", "--out", out / "kept.jsonl"],
        ["mask", folder, "--rule", "entropy", "--keep", "0.5", "--out", out / "mask.parquet"],
        ["report", folder, "--replicates", "10", "--out", out / "r.html"],
        ["inspect", folder, "--worst", "3"],
        ["trace", folder, "--out", out / "s.csv"],
    ]
    return [launcher.fork(*arguments) for arguments in commands]


def readers_notice(
    launcher: Launcher, undisturbed: Path, times: int, folder: Path, draw: random.Random, tally: Tally
) -> None:
    """Commands that read a damaged folder say so and name the part, or read only what was not damaged."""
    expected = _results(readers_of(launcher, undisturbed, folder / "expected"), folder / "expected")
    for _ in range(times):
        scores = folder / "scores"
        shutil.rmtree(scores, ignore_errors=True)
        shutil.copytree(undisturbed, scores)
        part = draw.choice(sorted(scores.glob("part-*.parquet")))
        kind = damage(part, draw)
        shutil.rmtree(folder / "out", ignore_errors=True)
        running = readers_of(launcher, scores, folder / "out")
        results = _results(running, folder / "out")
        for each, (status, said, written), before in zip(running, results, expected, strict=True):
            if status == before[0]:
                names = ((folder / "out", folder / "expected"), (scores, undisturbed))
                same = (_renamed(said, names), written) == before[1:]
                outcome = "not touched by it" if same else "read on with other values"
            else:
                said_clearly(each)
                assert part.name in said or "`trajscore verify`" in said, said
                outcome = "said so"
            tally.other[f"readers of a damaged part ({kind}): {outcome}"] += 1


def _renamed(text: str, names: Sequence[tuple[Path, Path]]) -> str:
    for here, there in names:
        text = text.replace(str(here), str(there))
    return text


def _results(running: Sequence[Running], out: Path) -> list[tuple[int, str, bytes]]:
    found = []
    for each, name in zip(running, ("kept.parquet", "kept.jsonl", "mask.parquet", "r.html", "-", "s.csv"), strict=True):
        status = each.wait()
        path = out / name
        found.append((status, each.said, path.read_bytes() if path.is_file() else b""))
    return found


def damage_manifest(
    launcher: Launcher, scored: Scored, times: int, folder: Path, draw: random.Random, tally: Tally
) -> None:
    """A manifest that was cut or changed: whatever reads it, there is a message, never a traceback or a lost part."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(scored.undisturbed, folder)
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    for number in range(times):
        kind = damage(manifest, draw) if number else "emptied"
        if number == 0:
            manifest.write_bytes(b"")
        try:
            outcome = "found by verify" if ts.verify(folder).problems else "not found by verify"
        except TrajscoreError:
            outcome = "refused"
        if outcome == "not found by verify":
            said = ts.read_manifest(folder)
            assert said.environment != ts.read_manifest(scored.undisturbed).environment, manifest.read_text()
            outcome = "in what is only noted"
        tally.other[f"manifest damaged ({kind}): {outcome}"] += 1
        manifest.write_bytes(whole)
    for data in (b"", whole[: len(whole) // 2], None):
        manifest.unlink() if data is None else manifest.write_bytes(data)
        running = scored.start(folder)
        said_clearly(running, "manifest", status=(1, 2))
        for each in readers_of(launcher, folder, beside := folder.with_name("read")):
            said_clearly(each, "manifest", status=(1, 2))
        shutil.rmtree(beside)
        tally.other["manifest cut, emptied or deleted: every command says so"] += 1
    manifest.write_bytes(whole)
    check_same(folder, scored.undisturbed, scored.exact)
